// The charts of a run, kept in step with its epochs.

import { api } from "./api.js";
import { h, setText } from "./dom.js";
import * as figures from "./figures.js";
import { percent } from "./format.js";
import { Chart } from "./plot.js";
import { isEnded } from "./states.js";

const TEXTS = {
  loss: ["Loss", "Cross entropy. Behind it the phase: blue parallel, orange exact."],
  accuracy: ["Accuracy", "Of training and test images, by epoch."],
  stages: ["What the stages do", "A few batches in the middle of a phase: F forward, B backward, with the number of the micro-batch."],
  seconds: ["Where the time of each stage goes", "All epochs so far, by phase."],
  bytes: ["Bytes over each cut", "Both directions, training and evaluation, by epoch."],
  violation: ["Constraint violation", "How far what a stage worked on is from what would be sent now: |x − λ| / |x|, parallel phase."],
  exactness: ["Exactness of the gradients", "Cosine between the gradient that each stage applied and the exact one; 1 is exact."],
};

/** The kinds of work, which both charts of stages show. */
const legend = () => h("ul", { class: "legend" },
  Object.entries(figures.KINDS).map(([kind, name]) => h("li", { "data-kind": kind }, name)));

export class RunCharts {
  constructor(id, signal) {
    Object.assign(this, { id, signal });
    this.metrics = [];
    this.timeline = [];
    this.progress = null;
    this.traces = new Map();
    this.charts = Object.fromEntries(
      Object.entries(TEXTS).map(([name, texts]) => [name, new Chart(...texts, signal)]));
    this.empty = h("p", { class: "panel muted empty-charts" });
    this.epoch = h("select", { id: "trace-epoch", onchange: () => this.drawTrace() });
    this.phase = h("select", { id: "trace-phase", onchange: () => this.drawTrace() });
    for (const name of ["stages", "seconds"]) this.charts[name].controls.append(legend());
    this.charts.stages.controls.prepend(
      h("label", { for: "trace-epoch" }, "Epoch"), this.epoch, h("label", { for: "trace-phase" }, "Phase"), this.phase);
    this.charts.stages.element.classList.add("whole");
    this.element = h("div", { class: "charts" }, this.empty, Object.values(this.charts).map((chart) => chart.element));
  }

  /** Another number whenever there is more of the run. */
  get version() {
    return this.metrics.length;
  }

  /** Take in what the job's page knows: whether there can be charts yet. */
  update(job) {
    const texts = {
      queued: "Curves appear when the job has left the queue.",
      starting: "Curves appear after the first epoch; the stages are starting.",
      running: "Curves appear after the first epoch.",
    };
    this.empty.hidden = this.metrics.length > 0 || this.progress !== null;
    setText(this.empty, texts[job.state] ?? "No epoch was finished.");
    if (isEnded(job.state) && this.progress !== null) {
      this.progress = null;
      this.drawCurves();
    }
  }

  /** Add a line of metrics.jsonl; a later attempt does some epochs again. */
  addEpoch(line) {
    const index = line.epoch - 1;
    this.metrics.length = Math.min(this.metrics.length, index);
    this.metrics.push(line);
    if (this.timeline.length > index) {
      this.timeline.length = index;
      for (const epoch of this.traces.keys()) if (epoch > index) this.traces.delete(epoch);
    }
    this.soon();
  }

  /** Take in where the epoch under way is. */
  setProgress(progress) {
    this.progress = progress;
    if (progress.loss != null) this.empty.hidden = true;
    this.soon();
  }

  /** Draw in a moment: many epochs may come at once. */
  soon() {
    this.timer ??= setTimeout(async () => {
      this.timer = null;
      if (this.signal.aborted) return;
      this.drawCurves();
      if (this.timeline.length < this.metrics.length) await this.loadTimeline();
    }, 100);
  }

  /** Ask for the lines that are not here yet, once at a time. */
  async loadTimeline() {
    if (this.isLoading) return;
    this.isLoading = true;
    const [start, wanted] = [this.timeline.length, this.metrics.length];
    try {
      const lines = await api.timeline(this.id, start, { signal: this.signal });
      // Unless a later attempt has begun meanwhile to do some of them again.
      if (this.timeline.length === start) this.timeline.push(...lines);
      this.drawTimeline();
    } catch {
      return; // the next epoch asks again
    } finally {
      this.isLoading = false;
    }
    if (this.metrics.length !== wanted) this.soon();
  }

  drawCurves() {
    const { metrics, progress, charts } = this;
    if (!metrics.length && progress?.loss == null) return;
    this.empty.hidden = true;
    const last = metrics.at(-1);
    const told = last ? `after epoch ${last.epoch}, test accuracy ${percent(last.test_accuracy)}` : "first epoch";
    charts.loss.show(() => figures.curve(metrics, progress, "loss"), `Loss, ${told}`);
    charts.accuracy.show(() => figures.curve(metrics, progress, "accuracy"), `Accuracy, ${told}`);
    const hasLedger = metrics.some((line) => line.ledger);
    charts.exactness.show(hasLedger ? () => figures.exactness(metrics) : null, figures.exactnessInWords(metrics));
  }

  drawTimeline() {
    const { timeline, charts } = this;
    if (!timeline.length) return;
    const hasCuts = timeline.at(-1).phases.some((phase) => phase.cuts.length);
    charts.seconds.show(() => figures.stageSeconds(timeline));
    charts.bytes.show(hasCuts ? () => figures.cutBytes(timeline) : null);
    charts.violation.show(figures.violations(timeline).size ? () => figures.violation(timeline) : null);
    const traced = timeline.filter((line) => line.phases.some((phase) => phase.is_traced)).map((line) => line.epoch);
    const wasLast = this.epoch.selectedIndex <= 0;
    const chosen = this.epoch.value;
    this.epoch.replaceChildren(...traced.toReversed().map((epoch) => h("option", { value: epoch }, epoch)));
    if (!wasLast && traced.includes(Number(chosen))) this.epoch.value = chosen;
    if (traced.length) this.drawTrace();
  }

  async drawTrace() {
    const epoch = Number(this.epoch.value);
    if (!this.traces.has(epoch)) {
      try {
        this.traces.set(epoch, await api.timelineOfEpoch(this.id, epoch, { signal: this.signal }));
      } catch {
        return; // the next epoch asks again
      }
      if (epoch !== Number(this.epoch.value)) return;
    }
    const phases = this.traces.get(epoch).phases.filter((phase) => phase.trace);
    const chosen = this.phase.value;
    this.phase.replaceChildren(...phases.map(({ phase }, index) =>
      h("option", { value: index }, phases.filter((p) => p.phase === phase).length > 1 ? `${phase} ${index + 1}` : phase)));
    const parallel = phases.findLastIndex(({ phase }) => phase === "parallel");
    const index = chosen !== "" && Number(chosen) < phases.length ? Number(chosen) : Math.max(0, parallel);
    this.phase.value = String(index);
    const { trace } = phases[index];
    const zoom = `${epoch} ${index}`;
    this.charts.stages.show(() => figures.trace(trace, zoom), `Timeline of ${trace.length} stages in epoch ${epoch}`);
  }
}
