// What is in each chart of a search, of its trials.

import { color } from "./plot.js";

const axisOf = (name) => ({
  title: name, tickformat: name.endsWith("accuracy") ? ".1~%" : name.endsWith("bytes") ? "~s" : "~g",
});
/** An axis of whole numbers: plotly would put half ones between few of them. */
const numbers = (title, most) => ({ title, tick0: 0, dtick: Math.max(1, Math.ceil(most / 12)), tickformat: "d" });
const COLORS = { running: "accent", retried: "accent", finished: "good", stopped: "muted", failed: "danger" };

/** Each trial's first metric by its number, and the best up to there. */
export function values(found) {
  const [name] = found.metrics;
  const told = found.trials.filter((trial) => trial.values[name] != null);
  const better = found.modes[0] === "max" ? Math.max : Math.min;
  // Where any was trained to its end only such are compared, as the search itself does.
  const whole = told.filter((trial) => trial.epoch === trial.num_epochs);
  const compared = whole.length ? whole : told;
  let best = null;
  const bests = compared.map((trial) => (best = best === null ? trial.values[name] : better(best, trial.values[name])));
  const format = axisOf(name).tickformat;
  return {
    data: [
      {
        x: compared.map((trial) => trial.number), y: bests, name: "best", mode: "lines",
        line: { color: color("series-1"), width: 2, shape: "hv" }, hoverinfo: "skip",
      },
      {
        x: told.map((trial) => trial.number), y: told.map((trial) => trial.values[name]), name: "trial", mode: "markers",
        marker: { size: 9, color: told.map((trial) => color(COLORS[trial.status])), line: { width: 1, color: color("panel") } },
        text: told.map((trial) => trial.status), hovertemplate: `trial %{x}, %{text}: %{y:${format}}<extra></extra>`,
      },
    ],
    layout: {
      showlegend: false, yaxis: axisOf(name),
      xaxis: { ...numbers("trial", found.num_trials), range: [-0.5, found.num_trials - 0.5] },
    },
  };
}

/** Each trial by two metrics, and the front of those that no other beats. */
export function front(found) {
  const [first, second] = found.metrics;
  const told = found.trials.filter((trial) => trial.values[first] != null && trial.values[second] != null);
  const best = told.filter((trial) => found.best.includes(trial.number)).sort((a, b) => a.values[second] - b.values[second]);
  const points = (trials) => ({
    x: trials.map((trial) => trial.values[second]), y: trials.map((trial) => trial.values[first]),
    text: trials.map((trial) => `trial ${Number(trial.number)}`),
    hovertemplate: `%{text}: %{x:${axisOf(second).tickformat}}, %{y:${axisOf(first).tickformat}}<extra></extra>`,
  });
  return {
    data: [
      { ...points(told), mode: "markers", marker: { size: 8, color: color("muted") } },
      {
        ...points(best), mode: "lines+markers", marker: { size: 10, color: color("series-1") },
        line: { color: color("series-1"), width: 1, dash: "dot" },
      },
    ],
    layout: { showlegend: false, xaxis: axisOf(second), yaxis: axisOf(first) },
  };
}

/** The first metric of each trial, epoch by epoch; the best on top of the others. */
export function curves(found) {
  const isBest = (trial) => found.best.includes(trial.number);
  const [name] = found.metrics;
  const told = found.trials.filter((trial) => trial.curve.length).sort((a, b) => isBest(a) - isBest(b));
  const most = Math.max(...told.map((trial) => trial.num_epochs));
  return {
    data: told.map((trial) => ({
      x: trial.curve.map(([epoch]) => epoch), y: trial.curve.map(([, value]) => value), mode: "lines+markers",
      line: { color: color(isBest(trial) ? "series-1" : "muted"), width: isBest(trial) ? 3 : 1 },
      marker: { size: isBest(trial) ? 6 : 4 }, opacity: isBest(trial) ? 1 : 0.6,
      hovertemplate: `epoch %{x}: %{y:${axisOf(name).tickformat}}<extra>trial ${Number(trial.number)}</extra>`,
    })),
    layout: { showlegend: false, xaxis: { ...numbers("epoch", most), range: [0, most * 1.03] }, yaxis: axisOf(name) },
  };
}
