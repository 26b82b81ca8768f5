// What is in each chart, of the lines of metrics.jsonl and timeline.jsonl.

import { CUTS, color } from "./plot.js";

export const KINDS = {
  forward: "forward",
  backward: "backward",
  update: "update",
  data: "reading data",
  send: "sending",
  wait_forward: "waiting for forward",
  wait_adjoint: "waiting for adjoint",
  other: "other",
};
const kindColor = (kind) => color(`kind-${kind.replace("_", "-")}`);
const cutColor = (index) => color(CUTS[index % CUTS.length]);

/** Training and test curve of loss or accuracy, over bands of the phases; now's epoch as a ring. */
export function curve(metrics, progress, what) {
  const epochs = metrics.map((line) => line.epoch);
  const isShare = what === "accuracy";
  const lines = [["train", "training", "muted"], ["test", "test", "series-1"]].map(([split, name, hue]) => ({
    x: epochs, y: metrics.map((line) => line[`${split}_${what}`]), name, mode: "lines+markers",
    line: { color: color(hue), width: 2 }, marker: { size: epochs.length > 60 ? 1 : 5 },
    hovertemplate: `epoch %{x}: %{y:${isShare ? ".1%" : ".4~g"}}<extra>${name}</extra>`,
  }));
  if (progress?.[what] != null) {
    lines.push({
      x: [(progress.num_batches_done / progress.num_batches) * progress.num_epochs], y: [progress[what]],
      name: "this epoch so far", mode: "markers",
      marker: { size: 9, color: color("panel"), line: { color: color("muted"), width: 2 } },
      hovertemplate: `%{y:${isShare ? ".1%" : ".4~g"}}<extra>this epoch so far</extra>`,
    });
  }
  const end = Math.max(progress?.num_epochs ?? 0, epochs.at(-1) ?? 1);
  return {
    data: lines,
    layout: {
      xaxis: { title: "epoch", range: [0, end * 1.02] },
      yaxis: isShare ? { tickformat: ".0%" } : { type: "log", dtick: "D2", tickformat: "~g" },
      shapes: bands(metrics),
    },
  };
}

/** Stretches of epochs in one phase, neighbours of the same phase in one. */
export function bands(metrics) {
  const found = [];
  for (const line of metrics) {
    let start = line.epoch - 1;
    for (const { phase, num_batches: num } of line.phases) {
      const end = start + num / line.num_batches;
      const last = found.at(-1);
      if (last?.phase === phase && Math.abs(last.x1 - start) < 1e-9) last.x1 = end;
      else found.push({ phase, x0: start, x1: end });
      start = end;
    }
  }
  return found.map(({ phase, x0, x1 }) => ({
    type: "rect", xref: "x", yref: "paper", x0, x1, y0: 0, y1: 1, layer: "below",
    fillcolor: color(`phase-${phase}`), line: { width: 0 },
  }));
}

/** What each stage did when; another `zoom` begins with the whole stretch again. */
export function trace(stages, zoom) {
  const data = [];
  for (const [kind, name] of Object.entries(KINDS)) {
    const spans = stages.flatMap((stage, k) => stage.filter((span) => span[0] === kind).map((span) => [k, span]));
    if (!spans.length) continue;
    const letter = { forward: "F", backward: "B" }[kind];
    data.push({
      type: "bar", orientation: "h", name,
      y: spans.map(([k]) => `stage ${k}`),
      base: spans.map(([, span]) => span[2]),
      x: spans.map(([, span]) => span[3] - span[2]),
      text: spans.map(([, span]) => (letter ? `${letter}${Number(span[1])}` : "")),
      textposition: "inside", insidetextanchor: "middle", constraintext: "inside", textangle: 0,
      insidetextfont: { color: color(`on-${kind}`) || "#fff" },
      marker: { color: kindColor(kind), line: { width: 0.5, color: color("panel") } },
      hovertemplate: `%{base:.2f} ms + %{x:.2f} ms<extra>${name}</extra>`,
    });
  }
  return {
    data,
    layout: {
      uirevision: zoom, barmode: "overlay", bargap: 0.25, height: 60 + 52 * stages.length, showlegend: false,
      uniformtext: { minsize: 9, mode: "hide" },
      xaxis: { title: "milliseconds", range: commonStretch(stages) },
      yaxis: { autorange: "reversed", showgrid: false },
    },
  };
}

/** Where all stages were traced; everything if they never were at once. */
function commonStretch(stages) {
  const starts = stages.map((stage) => stage[0][2]);
  const ends = stages.map((stage) => stage.at(-1)[3]);
  const [start, end] = [Math.max(...starts), Math.min(...ends)];
  return end > start ? [start, end] : [Math.min(...starts), Math.max(...ends)];
}

/** What the seconds of each stage went into, a bar for each phase and stage. */
export function stageSeconds(timeline) {
  const totals = new Map();
  for (const { phase, stages } of timeline.flatMap((line) => line.phases)) {
    stages.forEach((seconds, k) => {
      const key = `${phase} · ${k}`;
      if (!totals.has(key)) totals.set(key, { phase, stage: k, seconds: {} });
      const sum = totals.get(key).seconds;
      for (const [kind, value] of Object.entries(seconds)) sum[kind] = (sum[kind] ?? 0) + value;
    });
  }
  const order = ["parallel", "correction", "ledger", "evaluation"];
  const bars = [...totals.values()].sort((a, b) => order.indexOf(a.phase) - order.indexOf(b.phase) || a.stage - b.stage);
  const data = Object.entries(KINDS).map(([kind, name]) => ({
    type: "bar", orientation: "h", name,
    y: bars.map(({ phase, stage }) => `${phase}, stage ${stage}`),
    x: bars.map(({ seconds }) => seconds[kind] ?? 0),
    marker: { color: kindColor(kind) },
    hovertemplate: `%{x:.2f} s<extra>${name}</extra>`,
  })).filter((series) => series.x.some(Boolean));
  return {
    data,
    layout: {
      barmode: "stack", bargap: 0.3, height: Math.max(190, 70 + 26 * bars.length), showlegend: false,
      xaxis: { title: "seconds" }, yaxis: { autorange: "reversed", showgrid: false },
    },
  };
}

/** Megabytes over each cut by epoch: forward, and lighter on top, what comes back. */
export function cutBytes(timeline) {
  const cuts = [...new Set(timeline.flatMap((line) => line.phases).flatMap((phase) => phase.cuts).map((c) => c.boundary))];
  cuts.sort((a, b) => a - b);
  const data = cuts.flatMap((boundary, index) => ["forward", "adjoint"].map((direction) => ({
    type: "bar", name: `block ${Number(boundary)}, ${direction}`,
    x: timeline.map((line) => line.epoch),
    y: timeline.map((line) => megabytes(line, boundary, direction)),
    // Of the trace: the legend shows that one.
    marker: { color: cutColor(index) }, opacity: direction === "forward" ? 1 : 0.5,
    hovertemplate: `%{y:.2f} MB<extra>${direction}</extra>`,
  })));
  return { data, layout: { barmode: "stack", xaxis: { title: "epoch" }, yaxis: { title: "MB" } } };
}

function megabytes(line, boundary, direction) {
  const sent = line.phases.flatMap((phase) => phase.cuts)
    .filter((cut) => cut.boundary === boundary).map((cut) => cut[direction]).filter(Boolean);
  return sent.reduce((sum, bytes) => sum + bytes.inline_bytes + bytes.store_bytes, 0) / 1e6;
}

/** [epoch, violation] of the parallel phase, by cut. */
export function violations(timeline) {
  const found = new Map();
  for (const line of timeline) {
    for (const phase of line.phases.filter((p) => p.phase === "parallel")) {
      for (const cut of phase.cuts.filter((c) => c.violation !== undefined)) {
        if (!found.has(cut.boundary)) found.set(cut.boundary, []);
        found.get(cut.boundary).push([line.epoch, cut.violation]);
      }
    }
  }
  return found;
}

export function violation(timeline) {
  const data = [...violations(timeline)].map(([boundary, points], index) => ({
    x: points.map(([epoch]) => epoch), y: points.map(([, value]) => value), mode: "lines+markers",
    name: `cut at block ${Number(boundary)}`, line: { color: cutColor(index), width: 2 }, marker: { size: 5 },
    showlegend: true, hovertemplate: "epoch %{x}: %{y:.3g}<extra></extra>",
  }));
  return { data, layout: { xaxis: { title: "epoch" }, yaxis: { rangemode: "tozero" } } };
}

/** Cosine of each stage's gradient with the exact one, and of all stages' together. */
export function exactness(metrics) {
  const entries = metrics.filter((line) => line.ledger);
  const most = Math.max(...entries.map((line) => line.ledger.stages.length));
  const series = (name, pick, line) => {
    const points = entries.map((entry) => [entry.epoch, pick(entry.ledger)]).filter(([, found]) => found);
    return {
      x: points.map(([epoch]) => epoch), y: points.map(([, found]) => found.cosine), mode: "lines+markers",
      name, line, marker: { size: 5 }, hovertemplate: `epoch %{x}: %{y:.4f}<extra>${name}</extra>`,
    };
  };
  const data = Array.from({ length: most }, (_, k) =>
    series(`stage ${k}`, (ledger) => ledger.stages[k], { color: cutColor(k), width: 2 }));
  data.push(series("all stages", (ledger) => ledger, { color: color("text"), dash: "dot", width: 2 }));
  return { data, layout: { xaxis: { title: "epoch" }, yaxis: { tickformat: ".3~f" } } };
}

export function exactnessInWords(metrics) {
  const last = metrics.findLast((line) => line.ledger);
  if (!last) return "";
  const stages = last.ledger.stages.map((stage, k) => `stage ${k} ${stage.cosine.toFixed(3)}`);
  return `Cosine with the exact gradient after epoch ${last.epoch}: ${stages.join(", ")}`;
}
