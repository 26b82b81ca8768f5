// A job's progress: a bar, and the figures under it.

import { h, setText } from "./dom.js";
import { duration, figure, percent, plural, shown } from "./format.js";
import { isEnded } from "./states.js";

/** The share of a run that is done, from 0 to 1; null where nobody knows. */
export function shareOf(job) {
  if (job.state === "succeeded") return 1;
  if (job.search_progress) return job.search_progress.num_done / job.search_progress.num_trials;
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

function ofSearch(job) {
  const { num_done: done, num_trials: all, num_running: running, best } = job.search_progress;
  const parts = [`${figure(done)} of ${plural(all, "trial")}`];
  if (running && !isEnded(job.state)) parts.push(`${figure(running)} under way`);
  for (const [name, value] of Object.entries(best)) parts.push(`best ${name} ${shown(name, value)}`);
  return parts.join(" · ");
}

function details(job) {
  if (job.search_progress) return ofSearch(job);
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
