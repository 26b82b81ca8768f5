// The log of a job, as it grows.

import { h } from "./dom.js";

const MOST_CHUNKS = 2000;
const ESCAPES = /\u001b\[[0-9;?]*[A-Za-z]/g;

export class Log {
  constructor() {
    this.output = h("pre", { class: "log", role: "log", "aria-live": "off", "aria-label": "Log", tabindex: "0" });
    this.empty = h("p", { class: "muted" }, "Nothing printed yet.");
    this.following = h("input", { type: "checkbox", id: "follow-log", checked: true, onchange: () => this.scroll() });
    this.output.addEventListener("scroll", () => {
      const { scrollTop, clientHeight, scrollHeight } = this.output;
      this.following.checked = scrollTop + clientHeight >= scrollHeight - 8;
    });
    this.element = h("div", {},
      h("p", { class: "check" }, this.following, h("label", { for: "follow-log" }, "Follow the end")),
      this.empty, this.output);
    this.clear();
  }

  clear() {
    this.output.replaceChildren();
    this.output.hidden = true;
    this.empty.hidden = false;
  }

  /** Add an event of the stream: some whole lines. */
  take({ event, data }) {
    if (event !== "log") return;
    const follows = this.following.checked;
    this.empty.hidden = true;
    this.output.hidden = false;
    this.output.append(`${data.replace(ESCAPES, "")}\n`);
    while (this.output.childNodes.length > MOST_CHUNKS) this.output.firstChild.remove();
    if (follows) this.scroll();
  }

  scroll() {
    if (this.following.checked) this.output.scrollTop = this.output.scrollHeight;
  }
}
