// What the forms that submit a job have in common: judged while they are filled in, sent once.

import { api } from "./api.js";
import { announce, h } from "./dom.js";
import { showEstimate } from "./estimate.js";

const ASK_AFTER_MS = 500;

/** A form with `estimate`, an element, and `button`; `request()`, `clear()` and `show(problem)` are its own. */
export class Submission {
  constructor(signal, label) {
    Object.assign(this, { signal, label, asked: 0, key: newKey() });
  }

  /** Ask again, once nothing has been typed for a moment. What is changed is another job. */
  changed({ atOnce = false } = {}) {
    this.key = newKey();
    clearTimeout(this.timer);
    this.timer = setTimeout(() => this.ask(), atOnce ? 0 : ASK_AFTER_MS);
  }

  /** Let the service judge what is there so far, and say what it would take. */
  async ask() {
    const number = (this.asked += 1);
    this.estimate.setAttribute("aria-busy", "true");
    try {
      const estimate = async () => api.estimate(await this.request(), { signal: this.signal });
      const [found, cluster] = await Promise.all([estimate(), api.cluster({ signal: this.signal })]);
      if (number !== this.asked) return;
      this.clear();
      showEstimate(this.estimate, found, cluster);
    } catch (problem) {
      if (this.signal.aborted || number !== this.asked) return;
      this.show(problem);
      this.estimate.replaceChildren(h("p", { class: "muted" }, "Known once the mistake is mended."));
    } finally {
      if (number === this.asked) this.estimate.removeAttribute("aria-busy");
    }
  }

  /** Bring to view where problems are shown. */
  reveal() {}

  /** Submit, and go to the job; `isReady` may find that there is nothing to submit yet. */
  async submit(isReady = async () => true) {
    clearTimeout(this.timer);
    this.asked += 1;
    this.button.disabled = true;
    this.button.textContent = "Submitting…";
    try {
      if (await isReady()) {
        const job = await api.submit(await this.request(), this.key);
        announce(`Submitted as ${job.name ?? job.id}`);
        location.hash = `#/jobs/${encodeURIComponent(job.id)}`;
      }
    } catch (problem) {
      if (this.signal.aborted) return;
      this.reveal();
      this.show(problem)?.focus();
    } finally {
      this.estimate.removeAttribute("aria-busy");
      this.button.disabled = false;
      this.button.textContent = this.label;
    }
  }
}

/** Under which a submission that is sent twice is one job; `crypto.randomUUID` wants https. */
function newKey() {
  return Array.from(crypto.getRandomValues(new Uint8Array(16)), (b) => b.toString(16).padStart(2, "0")).join("");
}
