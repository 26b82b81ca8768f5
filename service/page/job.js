// One job: where it stands, its curves, what its stages do, its log and its files, live.

import { api, follow, poll } from "./api.js";
import { announce, confirmed, h, keyed, setText } from "./dom.js";
import { Files } from "./files.js";
import { ago, bytes, dateTime, duration } from "./format.js";
import { Log } from "./log.js";
import { progress } from "./progress.js";
import { RunCharts } from "./run_charts.js";
import { badge, isEnded, rules, titleOf } from "./states.js";
import { Trials } from "./trials.js";

const LOG_BYTES = 256 * 1024;

export async function showJob(root, { signal, user }, id) {
  const view = new JobView(await api.job(id, { signal }), user, signal);
  root.append(view.element);
  await view.run();
}

class JobView {
  constructor(job, user, signal) {
    Object.assign(this, { id: job.id, user, signal });
    this.state = badge();
    this.progress = progress();
    this.reason = h("p", { class: "reason muted" });
    this.error = h("p", { class: "notice error", role: "alert", hidden: true });
    this.broken = h("p", { class: "notice", hidden: true });
    this.facts = h("dl", { class: "figures" });
    this.history = h("ol", { class: "history" });
    this.buttons = this.makeButtons(job);
    const isSearch = job.kind === "search";
    this.charts = isSearch ? new Trials(job.id, signal) : new RunCharts(job.id, signal);
    this.log = new Log();
    this.files = new Files(job.id, signal, { byFolder: isSearch });
    this.config = h("pre", { class: "code", tabindex: "0" }, JSON.stringify(job.search_file ?? job.config, null, 2));
    document.title = `${titleOf(job)} · Laminar`;
    this.element = h("article", {},
      h("div", { class: "title" },
        h("div", {},
          h("h1", {}, titleOf(job)),
          h("p", { class: "state-line" }, this.state.element, isSearch && h("span", { class: "tag" }, "search"), job.name !== null && h("code", { class: "id muted" }, job.id))),
        h("div", { class: "buttons" }, Object.values(this.buttons))),
      this.reason, this.error, this.broken, this.progress.element, this.facts,
      this.charts.element,
      panel("Log", this.log.element),
      h("div", { class: "columns" },
        panel("History", this.history),
        panel("Files", this.files.element)),
      h("details", { class: "panel" }, h("summary", {}, h("h2", {}, isSearch ? "Search file" : "Configuration")), this.config));
    this.update(job);
  }

  makeButtons(job) {
    const may = rules(this.user, job);
    const button = (text, style, act) =>
      h("button", { type: "button", class: style, hidden: true, onclick: () => this.act(act) }, text);
    const found = {};
    if (may) {
      found.stop = button("Stop", "danger", async () => { this.update(await api.stop(this.id)); });
      found.resume = button("Resume", "primary", async () => {
        this.update(await api.resume(this.id));
        this.follow();
      });
      found.delete = button("Delete", "danger quiet", () => this.delete(titleOf(job)));
    }
    if (this.user.role !== "read") {
      const form = job.kind === "search" ? "search" : "new";
      found.again = h("a", { class: "button", href: `#/${form}?from=${encodeURIComponent(this.id)}` }, "Use as a template");
    }
    return found;
  }

  async act(action) {
    this.error.hidden = true;
    try {
      await action();
    } catch (problem) {
      setText(this.error, problem.message);
      this.error.hidden = false;
    }
  }

  async delete(title) {
    const detail = "Its metrics, log and checkpoints go too, of a search those of all trials. This cannot be undone.";
    if (!(await confirmed(`Delete ${title}?`, detail, "Delete"))) return;
    await api.delete(this.id);
    announce(`Deleted ${title}`);
    location.hash = "#/";
  }

  update(job) {
    if (this.job && this.job.state !== job.state) announce(`Job ${titleOf(job)}: ${job.state}`);
    this.job = job;
    this.state.update(job.state);
    setText(this.reason, job.reason);
    this.progress.update(job);
    this.charts.update(job);
    if (this.buttons.stop) {
      this.buttons.stop.hidden = isEnded(job.state) || job.state === "stopping";
      this.buttons.resume.hidden = !["stopped", "failed"].includes(job.state);
      this.buttons.delete.hidden = !isEnded(job.state);
    }
    this.showFacts(job);
    keyed(this.history, job.history.toReversed(), (step) => `${step.at} ${step.state}`, historyRow);
  }

  showFacts(job) {
    const facts = [
      ["Owner", job.owner],
      ["Priority", job.priority],
      ["Attempt", job.attempt || "–"],
      ["Stages", job.needs.num_bundles],
      ...(job.kind === "search" ? [["Trials at once", job.needs.num_groups]] : []),
      ["Submitted", h("time", { datetime: job.created_at, title: dateTime(job.created_at) }, ago(job.created_at))],
      [isEnded(job.state) ? "Ran for" : "Running for", ranFor(job)],
    ];
    if (job.estimate) {
      facts.push(["Estimate", job.estimate.seconds === null ? "–" : duration(job.estimate.seconds)]);
      facts.push(["Memory", bytes(job.estimate.memory_bytes)]);
    }
    this.facts.replaceChildren(...facts.map(([name, value]) => h("div", {}, h("dt", {}, name), h("dd", {}, value))));
  }

  async run() {
    this.follow();
    await poll(() => this.refresh(), 2000, this.signal);
  }

  async refresh() {
    try {
      const before = this.job.state;
      this.update(await api.job(this.id, { signal: this.signal }));
      if (isEnded(before) && !isEnded(this.job.state)) this.follow(); // somebody else resumed it
      const now = `${this.charts.version} ${this.job.state}`;
      if (this.filesOf !== now) {
        this.filesOf = now;
        await this.files.refresh();
        this.charts.showResults?.(this.files);
      }
    } catch (problem) {
      if (this.signal.aborted) return;
      setText(this.error, problem.message);
      this.error.hidden = false;
    }
  }

  /** Follow log and metrics until the job ends; a resumed one is followed anew. */
  follow() {
    this.stream?.abort();
    this.stream = new AbortController();
    const signal = AbortSignal.any([this.signal, this.stream.signal]);
    const onBreak = (text) => {
      this.broken.hidden = text === null;
      setText(this.broken, text ?? "");
    };
    this.log.clear();
    follow(this.id, `logs/events?most=${LOG_BYTES}`, { signal, onBreak, onEvent: (event) => this.log.take(event) });
    // Of a search only new lines of its ledger count: its trials are asked for as a whole.
    const query = this.job.kind === "search" ? `?start=${Number.MAX_SAFE_INTEGER}` : "";
    follow(this.id, `metrics/events${query}`, { signal, onBreak, onEvent: (event) => {
      if (event.event === "epoch") this.charts.addEpoch(JSON.parse(event.data));
      else if (event.event === "trial" || event.event === "search") this.charts.soon();
      else if (event.event === "progress") this.charts.setProgress(JSON.parse(event.data));
      else this.refresh();
    } });
  }
}

function panel(title, ...children) {
  return h("section", { class: "panel", "aria-label": title }, h("h2", {}, title), children);
}

function historyRow(step) {
  const element = h("li", {}, h("span", { class: "dot", "data-state": step.state, "aria-hidden": "true" }),
    h("div", {}, h("strong", {}, step.state), " ",
      h("time", { class: "muted number", datetime: step.at }, dateTime(step.at)),
      step.attempt > 0 && h("span", { class: "muted" }, ` · attempt ${step.attempt}`),
      h("p", {}, step.reason)));
  return { element, update() {} };
}

/** Seconds in which the job held room on the cluster, all attempts together. */
function ranFor(job) {
  let total = 0;
  job.history.forEach((step, index) => {
    if (!["starting", "running", "stopping"].includes(step.state)) return;
    const next = job.history[index + 1];
    total += (next ? Date.parse(next.at) : Date.now()) - Date.parse(step.at);
  });
  return total ? duration(total / 1000) : "–";
}
