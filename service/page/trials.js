// The trials of a search: a table, the best so far, charts, kept in step with its ledger.

import { api } from "./api.js";
import { h, keyed, setText } from "./dom.js";
import { figure, shown } from "./format.js";
import { Chart } from "./plot.js";
import { isEnded } from "./states.js";
import { curves, front, values } from "./trial_figures.js";

const LOAD_AFTER_MS = 300;
const TEXTS = {
  values: ["Trials", "Each trial's metric so far, by its number; the line is the best up to there."],
  front: ["Trade-offs", "Each trial by the first two metrics; those on the line are beaten by no other."],
  curves: ["Learning curves", "The metric of each trial by epoch; the best is the strong line."],
};

export class Trials {
  constructor(id, signal) {
    Object.assign(this, { id, signal, job: null, found: null });
    this.charts = Object.fromEntries(Object.entries(TEXTS).map(([name, texts]) => [name, new Chart(...texts, signal)]));
    this.empty = h("p", { class: "panel muted empty-charts" });
    this.best = h("p", { class: "best" });
    this.results = h("p", { class: "buttons", hidden: true });
    this.head = h("tr");
    this.body = h("tbody");
    this.table = h("section", { class: "panel whole", "aria-label": "Trials", hidden: true },
      h("h2", {}, "Trials"), this.best, this.results,
      h("div", { class: "scroll", tabindex: "0" }, h("table", { class: "trials" },
        h("caption", { class: "visually-hidden" }, "Trials in the order of their starts"),
        h("thead", {}, this.head), this.body)));
    this.element = h("div", { class: "charts" }, this.empty,
      this.charts.values.element, this.charts.front.element, this.charts.curves.element, this.table);
  }

  /** Another number whenever there may be other files: a trial has begun or ended. */
  get version() {
    const trials = this.found?.trials ?? [];
    return trials.length + trials.filter((trial) => trial.status !== "running").length;
  }

  /** Take in what the job's page knows. */
  update(job) {
    const isNews = this.job === null || (isEnded(job.state) && !isEnded(this.job.state));
    this.job = job;
    const texts = {
      queued: "Trials appear when the search has left the queue.",
      starting: "Trials appear in a moment; the driver is starting.",
    };
    this.empty.hidden = Boolean(this.found?.trials.length);
    setText(this.empty, texts[job.state] ?? "No trial has begun.");
    if (isNews) this.soon();
  }

  /** There is news of the search: load the trials in a moment, as many may come at once. */
  soon() {
    this.timer ??= setTimeout(async () => {
      this.timer = null;
      if (this.signal.aborted) return;
      try {
        this.found = await api.trials(this.id, { signal: this.signal });
        this.draw();
      } catch {
        return; // the next news asks again
      }
    }, LOAD_AFTER_MS);
  }

  /** Offer report and best configuration, once they are among the files. */
  showResults(files) {
    const names = [["report.html", "Report"], ["best.yaml", "Best configuration"]].filter(([path]) => files.sizes.has(path));
    this.results.hidden = names.length === 0;
    if (this.results.childElementCount === names.length) return;
    this.results.replaceChildren(...names.map(([path, text]) => {
      const link = files.link(path, text);
      link.classList.add("button");
      return link;
    }));
  }

  draw() {
    const { found, charts } = this;
    this.table.hidden = !found.trials.length;
    this.empty.hidden = found.trials.length > 0;
    if (!found.trials.length) return;
    const best = found.trials.filter((trial) => found.best.includes(trial.number));
    setText(this.best, bestInWords(found, best));
    const names = [...new Set(found.trials.flatMap((trial) => Object.keys(trial.params)))];
    this.drawHead(["Trial", "State", "Epoch", ...found.metrics], names);
    keyed(this.body, found.trials, (trial) => trial.id, () => this.row(names));
    const told = found.trials.some((trial) => trial.curve.length);
    const isFront = found.metrics.length > 1;
    charts.values.show(told && !isFront ? () => values(found) : null, bestInWords(found, best));
    charts.front.show(told && isFront ? () => front(found) : null, bestInWords(found, best));
    charts.curves.show(told ? () => curves(found) : null, `Learning curves of ${found.trials.length} trials`);
  }

  drawHead(columns, names) {
    const texts = [...columns, ...names];
    if (this.head.textContent === texts.join("")) return;
    this.head.replaceChildren(...texts.map((text) => h("th", { scope: "col" }, text)));
    this.body.replaceChildren(); // a parameter that only a later trial has
    this.body.rowsByKey?.clear();
  }

  row(names) {
    const { metrics } = this.found;
    const number = h("th", { scope: "row" });
    const state = h("span", { class: "badge" });
    const error = h("span", { class: "muted trial-error" });
    const epoch = h("td", { class: "number" });
    const figures = metrics.map(() => h("td", { class: "number" }));
    const params = names.map(() => h("td", { class: "number" }));
    const element = h("tr", {}, number, h("td", {}, state, error), epoch, figures, params);
    return { element, update: (trial) => {
      const isBest = this.found.best.includes(trial.number);
      element.classList.toggle("is-best", isBest);
      setText(number, `${Number(trial.number)}${isBest ? " (best)" : ""}`);
      // What a search that has ended left under way goes on when it is resumed.
      const status = trial.status === "running" && isEnded(this.job.state) ? "unfinished" : trial.status;
      state.dataset.state = BADGES[status];
      setText(state, WORDS[status] ?? status);
      setText(error, trial.error ?? "");
      setText(epoch, trial.num_epochs === null ? "–" : `${trial.epoch} of ${trial.num_epochs}`);
      metrics.forEach((name, index) => setText(figures[index], name in trial.values ? shown(name, trial.values[name]) : "–"));
      names.forEach((name, index) => setText(params[index], name in trial.params ? plain(trial.params[name]) : "–"));
    } };
  }
}

const WORDS = { stopped: "ended early", retried: "tried again" };
const BADGES = {
  running: "running", retried: "starting", finished: "succeeded", stopped: "stopped", failed: "failed", unfinished: "queued",
};

const plain = (value) => (typeof value === "number" ? figure(value, 4) : String(value));

function bestInWords(found, best) {
  if (!best.length) return "Nothing was told yet.";
  if (best.length > 1) return `Beaten by no other in all metrics: trials ${best.map((trial) => trial.number).join(", ")}.`;
  const figures = found.metrics.map((name) => `${name} ${shown(name, best[0].values[name])}`);
  return `Best: trial ${best[0].number}, ${figures.join(", ")}.`;
}
