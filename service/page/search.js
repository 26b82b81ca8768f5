// The form that submits a search: its file as text, judged by the service while it is written.

import { api } from "./api.js";
import { h, setText } from "./dom.js";
import { Fields } from "./fields.js";
import { Submission } from "./submission.js";

const JOB_FIELDS = ["name", "priority", "max_retries"];
const EXAMPLE = `# The step size, with look-ahead and without, on handwritten digits.
epochs: 12
model: {name: resnet8}
optimizer:
  lr: {loguniform: [0.01, 0.5]}
parallel:
  lookahead: {choice: [true, false]}
search:
  metric: test_accuracy
  num_trials: 8
  scheduler: asha
  max_concurrent: 1
`;

export async function showSearch(root, { signal, user }, template) {
  if (user.role === "read") {
    root.append(h("h1", {}, "New search"), h("p", { class: "notice" }, "Your token may look, but not submit."));
    return;
  }
  const [openapi, from] = await Promise.all([
    api.openapi({ signal }), template ? api.job(template, { signal }) : null,
  ]);
  const form = new SearchForm(openapi.components.schemas.SearchRequest, from, signal);
  root.append(form.element);
  form.changed({ atOnce: true });
}

class SearchForm extends Submission {
  constructor(schema, from, signal) {
    super(signal, "Submit search");
    this.fields = new Fields(schema, () => this.changed());
    this.parts = JOB_FIELDS.map((key) => [key, this.fields.make(schema.properties[key], key, from?.[key])]);
    this.text = h("textarea", {
      id: "search-text", rows: "20", spellcheck: "false", autocomplete: "off", class: "code",
      "aria-describedby": "search-text-help search-text-error", placeholder: EXAMPLE, oninput: () => this.changed(),
    });
    this.text.value = from?.search_file ? JSON.stringify(from.search_file, null, 2) : "";
    this.message = h("p", { class: "field-error", id: "search-text-error", role: "alert" });
    this.estimate = h("div", { class: "estimate", "aria-live": "polite" });
    this.button = h("button", { class: "primary", type: "submit", form: "job-form" }, this.label);
    const form = h("form", { id: "job-form", novalidate: true, "aria-label": "Search", onsubmit: (event) => {
      event.preventDefault();
      this.submit();
    } },
    h("section", { class: "panel" }, h("h2", {}, "Job"), h("div", { class: "fields" }, this.parts.map(([, field]) => field.element))),
    h("section", { class: "panel" },
      h("label", { for: "search-text" }, "Search file"),
      this.text, this.message,
      h("p", { class: "help", id: "search-text-help" },
        "YAML or JSON: a configuration in which values may be uniform, loguniform, quniform, randint, choice or grid, ",
        "and a section search: metric, num_trials, seeds, algorithm, scheduler, max_concurrent. ",
        "A search holds the room of max_concurrent trials from start to end."),
      h("div", { class: "buttons" }, h("button", { type: "button", onclick: () => {
        this.text.value = EXAMPLE;
        this.changed({ atOnce: true });
        this.text.focus();
      } }, "Insert an example"))));
    this.element = h("div", {}, h("div", { class: "title" }, h("h1", {}, "New search")),
      h("div", { class: "split" }, form,
        h("aside", { class: "panel sticky", "aria-label": "Cost and submission" },
          h("h2", {}, "What it will take"), this.estimate, this.button)));
  }

  async request() {
    const searchFile = await api.readSearchFile(this.text.value, { signal: this.signal });
    const job = Object.fromEntries(this.parts.map(([key, field]) => [key, field.get()]));
    return { ...job, kind: "search", search_file: searchFile };
  }

  async ask() {
    if (this.text.value.trim()) {
      await super.ask();
      return;
    }
    this.asked += 1; // what is under way is of no interest any more
    this.clear();
    this.estimate.replaceChildren(h("p", { class: "muted" }, "Known once there is a search file."));
    this.estimate.removeAttribute("aria-busy");
  }

  clear() {
    setText(this.message, "");
    this.text.removeAttribute("aria-invalid");
    this.fields.clearErrors();
  }

  /** Show a problem at what it is about, which is returned: a field of the job, or the file. */
  show(problem) {
    this.clear();
    const [, field] = /^`(\w+)`: /.exec(problem.message) ?? [];
    if (JOB_FIELDS.includes(field)) return this.fields.showError(field, problem.message);
    setText(this.message, problem.message);
    this.text.setAttribute("aria-invalid", "true");
    return this.text;
  }
}
