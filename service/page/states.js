// States of jobs, as they are shown.

import { h, setText } from "./dom.js";

export const ACTIVE = ["starting", "running", "stopping"];
export const ENDED = ["succeeded", "failed", "stopped"];

export const isEnded = (state) => ENDED.includes(state);

/** A state with its colour; what it says is in its words. */
export function badge() {
  const element = h("span", { class: "badge" });
  return {
    element,
    update(state) {
      element.dataset.state = state;
      setText(element, state);
    },
  };
}

export const titleOf = (job) => job.name ?? job.id;

/** Whether a user may stop, resume and delete a job. */
export const rules = (user, job) =>
  user.role === "admin" || (user.role === "submit" && user.name === job.owner);
