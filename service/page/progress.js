// A job's progress: a bar, and the figures under it.

import { h, setText } from "./dom.js";
import { duration, figure, percent } from "./format.js";
import { isEnded } from "./states.js";

/** The share of a run that is done, from 0 to 1; null where nobody knows. */
export function shareOf(job) {
  if (job.state === "succeeded") return 1;
  return job.progress ? job.progress.num_batches_done / job.progress.num_batches : null;
}

export function progress() {
  const bar = h("progress", { max: "1" });
  const share = h("span", { class: "number" });
  const text = h("span", { class: "muted number" });
  const element = h("div", { class: "progress" }, h("div", { class: "progress-bar" }, bar, share), text);
  return {
    element,
    update(job) {
      const done = shareOf(job);
      element.hidden = done === null;
      if (done === null) return;
      bar.value = done;
      bar.dataset.state = job.state;
      bar.setAttribute("aria-label", `Progress of ${job.name ?? job.id}`);
      setText(share, percent(done, 0));
      setText(text, details(job));
    },
  };
}

function details(job) {
  const now = job.progress;
  if (!now) return "";
  const parts = [`epoch ${now.epoch} of ${now.num_epochs}`];
  if (!isEnded(job.state)) {
    parts.push(now.phase);
    if (now.loss != null) parts.push(`loss ${figure(now.loss)}`);
    if (now.accuracy != null) parts.push(`accuracy ${percent(now.accuracy)}`);
    if (now.samples_per_s != null) parts.push(`${figure(now.samples_per_s)} samples/s`);
    if (now.eta_s != null) parts.push(`${duration(now.eta_s)} left`);
  }
  return parts.join(" · ");
}
