// The frame of the page: which view is shown, the theme, who is signed in, how the cluster does.

import { api, poll, token } from "./api.js";
import { announce, h, setText } from "./dom.js";
import { figure, plural } from "./format.js";
import { showJob } from "./job.js";
import { showJobs } from "./jobs.js";
import { showNew } from "./new.js";
import { showSearch } from "./search.js";
import { askForToken } from "./token.js";

const main = document.getElementById("main");
const signOut = document.getElementById("sign-out");
let controller = new AbortController();
let user = null;
let wasReachable = null; // the cluster, when it was last asked

/** `#/`, `#/new`, `#/search`, both perhaps with `?from=JOB`, and `#/jobs/JOB`, each with its view. */
function route() {
  const [path, query] = location.hash.replace(/^#/, "").split("?");
  const job = /^\/jobs\/([^/]+)$/.exec(path);
  if (job) return { page: "jobs", title: "Job", view: showJob, argument: decoded(job[1]) };
  const from = new URLSearchParams(query).get("from");
  if (path === "/new") return { page: "new", title: "New job", view: showNew, argument: from };
  if (path === "/search") return { page: "search", title: "New search", view: showSearch, argument: from };
  if (path === "" || path === "/") return { page: "jobs", title: "Jobs", view: showJobs };
  return { page: "", title: "Not found", view: showNothing };
}

function decoded(text) {
  try {
    return decodeURIComponent(text);
  } catch {
    return text; // somebody wrote the address by hand
  }
}

function showNothing(root) {
  root.append(h("h1", {}, "There is no such page"),
    h("p", {}, h("a", { href: "#/" }, "To the jobs")));
}

async function show({ keepFocus = false } = {}) {
  controller.abort();
  controller = new AbortController();
  const { signal } = controller;
  const { page, title, view, argument } = route();
  for (const link of document.querySelectorAll("nav a")) {
    if (link.dataset.page === page) link.setAttribute("aria-current", "page");
    else link.removeAttribute("aria-current");
  }
  document.title = `${title} · Laminar`;
  main.replaceChildren();
  if (!keepFocus) {
    main.focus({ preventScroll: true });
    window.scrollTo(0, 0);
  }
  try {
    user ??= await api.me({ signal });
    showUser();
    if (wasReachable === null) showCluster();
    await view(main, { signal, user }, argument);
  } catch (error) {
    if (signal.aborted || error.name === "AbortError") return;
    if (error.status === 401) return; // the dialog is open
    main.replaceChildren(h("h1", {}, title),
      h("p", { class: "notice error", role: "alert" }, error.message),
      h("button", { type: "button", onclick: () => show() }, "Try again"));
  }
}

function showUser() {
  const named = token.get() !== null;
  signOut.hidden = !named;
  setText(document.getElementById("user"), named ? `${user.name} (${user.role})` : "");
}

signOut.addEventListener("click", () => {
  token.clear();
  user = null;
  show();
});

window.addEventListener("laminar:token-needed", () => {
  user = null;
  askForToken(async (value) => {
    token.set(value);
    try {
      user = await api.me();
    } catch (error) {
      token.clear();
      throw error;
    }
    announce(`Signed in as ${user.name}`);
    show();
  });
});

// -- the theme --------------------------------------------------------------------------------

const themes = { system: ["◐", "System"], light: ["☀", "Light"], dark: ["☾", "Dark"] };
const themeButton = document.getElementById("theme");

function showTheme() {
  const theme = document.documentElement.dataset.theme ?? "system";
  const [sign, name] = themes[theme];
  themeButton.replaceChildren(`${sign} `, h("span", {}, name));
  themeButton.setAttribute("aria-label", `Theme: ${theme}. Change it`);
  window.dispatchEvent(new Event("laminar:theme"));
}

themeButton.addEventListener("click", () => {
  const names = Object.keys(themes);
  const now = document.documentElement.dataset.theme ?? "system";
  const next = names[(names.indexOf(now) + 1) % names.length];
  if (next === "system") delete document.documentElement.dataset.theme;
  else document.documentElement.dataset.theme = next;
  try {
    localStorage.setItem("laminar-theme", next);
  } catch {
    // Storage may be forbidden; the choice then holds until the page is loaded again.
  }
  showTheme();
});
matchMedia("(prefers-color-scheme: dark)").addEventListener("change", showTheme);
showTheme();

// -- the cluster ------------------------------------------------------------------------------

const cluster = document.getElementById("cluster");
const dot = h("span", { class: "dot", "aria-hidden": "true" });
const told = h("span");
cluster.append(dot, told);

async function showCluster() {
  if (user === null) return;
  let text;
  let isReachable = false;
  try {
    const found = await api.cluster();
    isReachable = found.is_reachable;
    const used = [["cpus", "CPU"], ["gpus", "GPU"]]
      .filter(([key]) => found[key])
      .map(([key, noun]) => `${figure(found[`${key}_used`])} of ${plural(found[key], noun)} busy`);
    text = isReachable ? used.join(", ") || "The cluster has no nodes" : "The cluster does not answer";
    if (found.num_queued) text += `, ${found.num_queued} queued`;
  } catch (error) {
    text = error.status === 0 ? "The service does not answer" : "";
  }
  cluster.dataset.reachable = isReachable;
  setText(told, text);
  if (wasReachable !== null && wasReachable !== isReachable) announce(text);
  wasReachable = isReachable;
}

window.addEventListener("hashchange", () => show());
show({ keepFocus: true });
poll(showCluster, 3000, new AbortController().signal);
