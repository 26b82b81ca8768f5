// The table of all jobs, live.

import { api, poll } from "./api.js";
import { announce, h, keyed, setText } from "./dom.js";
import { ago, dateTime } from "./format.js";
import { progress } from "./progress.js";
import { ACTIVE, badge, titleOf } from "./states.js";

const FILTERS = {
  All: [],
  Queued: ["queued"],
  Active: ACTIVE,
  Succeeded: ["succeeded"],
  Failed: ["failed"],
  Stopped: ["stopped"],
};
const POLL_MS = 2000;

export async function showJobs(root, { signal, user }) {
  let filter = "All";
  let pages = 1;
  const states = new Map();

  const buttons = Object.keys(FILTERS).map((name) =>
    h("button", { type: "button", class: "chip", "aria-pressed": String(name === filter), onclick: () => {
      filter = name;
      pages = 1;
      for (const button of buttons) button.setAttribute("aria-pressed", String(button.textContent === name));
      refresh();
    } }, name));
  const body = h("tbody");
  const table = h("table", { class: "jobs", hidden: true },
    h("caption", { class: "visually-hidden" }, "Jobs, newest first"),
    h("thead", {}, h("tr", {}, ["Job", "State", "Progress", "Owner"].map((name) => h("th", { scope: "col" }, name)),
      h("th", { scope: "col", class: "right" }, "Priority"), h("th", { scope: "col", class: "right" }, "Submitted"))),
    body);
  const more = h("button", { type: "button", hidden: true, onclick: () => { pages += 1; refresh(); } }, "Show older jobs");
  const empty = h("div", { class: "empty", hidden: true });
  const error = h("p", { class: "notice error", role: "alert", hidden: true });
  root.append(
    h("div", { class: "title" }, h("h1", {}, "Jobs"),
      user.role !== "read" && h("a", { class: "button primary", href: "#/new" }, "New job")),
    h("div", { class: "chips", role: "group", "aria-label": "Show jobs by state" }, buttons),
    error, table, empty, more);

  async function refresh() {
    const shown = filter;
    let found = [];
    let cursor = null;
    try {
      for (let page = 0; page < pages; page += 1) {
        const answer = await api.jobs(FILTERS[shown], cursor, { signal });
        found = found.concat(answer.jobs);
        cursor = answer.next_cursor;
        if (cursor === null) break;
      }
    } catch (problem) {
      if (signal.aborted) return;
      error.hidden = false;
      setText(error, problem.message);
      return;
    }
    if (shown !== filter) return; // a later choice is under way
    error.hidden = true;
    keyed(body, found, (job) => job.id, row);
    tellChanges(found, states);
    table.hidden = found.length === 0;
    more.hidden = cursor === null;
    empty.hidden = found.length > 0;
    if (!found.length && empty.dataset.filter !== shown) {
      empty.dataset.filter = shown;
      empty.replaceChildren(...nothing(shown, user));
    }
  }

  await poll(refresh, POLL_MS, signal);
}

function nothing(filter, user) {
  if (filter !== "All") return [h("p", {}, `No job is ${filter.toLowerCase()}.`)];
  const how = user.role === "read"
    ? "Your token may look, but not submit."
    : ["Fill in ", h("a", { href: "#/new" }, "the form"), ", or run ",
      h("code", {}, "laminar submit CONFIG.yaml"), "."];
  return [h("h2", {}, "No jobs yet"), h("p", {}, how)];
}

/** Say aloud which jobs came into another state since the last look. */
function tellChanges(jobs, states) {
  for (const job of jobs) {
    const before = states.get(job.id);
    if (before && before !== job.state) announce(`Job ${titleOf(job)}: ${job.state}`);
    states.set(job.id, job.state);
  }
}

function row(job) {
  const state = badge();
  const since = h("time", { class: "muted number" });
  const reason = h("p", { class: "reason muted" });
  const bar = progress();
  const submitted = h("time", { class: "number", datetime: job.created_at, title: dateTime(job.created_at) });
  const cell = (label, properties, ...children) => h("td", { ...properties, "data-label": label }, children);
  const element = h("tr", {},
    h("th", { scope: "row" },
      h("a", { href: `#/jobs/${encodeURIComponent(job.id)}` }, titleOf(job)),
      job.kind === "search" && h("span", { class: "tag" }, "search"),
      job.name !== null && h("code", { class: "id muted" }, job.id)),
    cell("State", { class: "state" }, h("div", { class: "state-line" }, state.element, since), reason),
    cell("Progress", { class: "wide" }, bar.element),
    cell("Owner", {}, job.owner),
    cell("Priority", { class: "right number" }, job.priority),
    cell("Submitted", { class: "right" }, submitted));
  return {
    element,
    update(now) {
      state.update(now.state);
      since.setAttribute("datetime", now.changed_at);
      since.setAttribute("title", dateTime(now.changed_at));
      setText(since, ago(now.changed_at));
      setText(reason, now.reason);
      reason.title = now.reason;
      bar.update(now);
      setText(submitted, ago(now.created_at));
    },
  };
}
