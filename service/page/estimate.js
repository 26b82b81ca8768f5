// What a job will take.

import { h } from "./dom.js";
import { bytes, duration, figure, plural } from "./format.js";

/** Fill an element with an estimate, and say where the cluster has less. */
export function showEstimate(element, estimate, cluster) {
  const items = estimate.num_trials === null ? []
    : [["Trials", figure(estimate.num_trials)], ["At once", figure(estimate.num_concurrent)]];
  items.push(["Workers", plural(estimate.num_workers, "stage")], ["CPUs", figure(estimate.cpus)]);
  if (estimate.gpus) items.push(["GPUs", figure(estimate.gpus)]);
  items.push(["Memory", bytes(estimate.memory_bytes)]);
  items.push(["Time", estimate.seconds === null ? "not known for GPUs" : `about ${duration(estimate.seconds)}`]);
  element.replaceChildren(
    h("dl", { class: "figures" }, items.map(([name, value]) => h("div", {}, h("dt", {}, name), h("dd", {}, value)))),
    h("table", { class: "compact" }, h("caption", {}, "Tensors of each stage"),
      h("tbody", {}, estimate.stage_bytes.map((size, stage) =>
        h("tr", {}, h("th", { scope: "row" }, `Stage ${stage}`), h("td", { class: "right number" }, bytes(size)))))),
    ...lacking(estimate, cluster).map((text) => h("p", { class: "notice" }, text)));
}

function lacking(estimate, cluster) {
  if (!cluster?.is_reachable) return [];
  return [["gpus", "GPU"], ["cpus", "CPU"]]
    .filter(([key]) => estimate[key] > cluster[key])
    .map(([key, noun]) =>
      `It needs ${plural(estimate[key], noun)}, the cluster has ${figure(cluster[key])}: it would wait in the queue.`);
}
