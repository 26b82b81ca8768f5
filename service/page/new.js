// The form that submits a job, made of the schemas of the configuration and of the request.

import { api } from "./api.js";
import { h, setText } from "./dom.js";
import { Fields, firstLine } from "./fields.js";
import { words } from "./format.js";
import { changes, fieldOf, kindOf } from "./schema.js";
import { Submission } from "./submission.js";

const OPEN_AT_FIRST = ["model", "data"];
const JOB_FIELDS = ["name", "priority", "max_retries", "keep"];

export async function showNew(root, { signal, user }, template) {
  if (user.role === "read") {
    root.append(h("h1", {}, "New job"), h("p", { class: "notice" }, "Your token may look, but not submit."));
    return;
  }
  const [schema, openapi, defaults, from] = await Promise.all([
    api.schema({ signal }), api.openapi({ signal }), api.readConfig("", { signal }),
    template ? api.job(template, { signal }) : null,
  ]);
  const form = new JobForm(schema, openapi.components.schemas.JobRequest, defaults, signal);
  root.append(form.element);
  form.fill(from?.config ?? defaults, from ?? {});
}

class JobForm extends Submission {
  constructor(schema, requestSchema, defaults, signal) {
    super(signal, "Submit job");
    Object.assign(this, { schema, requestSchema, defaults });
    this.job = h("div", { class: "fields" });
    this.sections = h("div");
    this.message = h("p", { class: "notice error", role: "alert", hidden: true });
    this.estimate = h("div", { class: "estimate", "aria-live": "polite" });
    this.button = h("button", { class: "primary", type: "submit" }, this.label);
    this.form = h("form", { novalidate: true, onsubmit: (event) => {
      event.preventDefault();
      this.submit();
    } },
    h("section", { class: "panel" }, h("h2", {}, "Job"), this.job),
    this.sections);
    const textPanel = this.makeText();
    const entries = [["Form", this.form], ["YAML or JSON", textPanel]];
    this.tabs = tabs("How to write the configuration", entries, () => this.showMessage());
    this.form.id = "job-form";
    this.button.setAttribute("form", this.form.id);
    this.element = h("div", {},
      h("h1", {}, "New job"),
      h("div", { class: "split" },
        h("div", {}, this.tabs.element),
        h("aside", { class: "panel sticky", "aria-label": "Cost and submission" },
          h("h2", {}, "What it will take"), this.estimate, this.message, this.button)));
  }

  /** Build the fields anew, holding these values. */
  fill(config, request) {
    const changed = () => this.changed();
    this.jobFields = new Fields(this.requestSchema, changed);
    this.fields = new Fields(this.schema, changed);
    this.parts = JOB_FIELDS.map((key) =>
      [key, this.jobFields.make(this.requestSchema.properties[key], key, request[key])]);
    this.job.replaceChildren(...this.parts.map(([, field]) => field.element));
    this.config = [];
    const plain = h("div", { class: "fields" });
    const groups = [];
    for (const [key, property] of Object.entries(this.schema.properties)) {
      const field = this.fields.make(property, key, config[key]);
      const { kind, schema } = kindOf(this.schema, property);
      const group = ["section", "tagged", "choice", "list"].includes(kind) 
        ? section(key, schema, field, kind === "section" || kind === "tagged") : null;
      this.config.push({ key, field, group });
      if (group) groups.push(group.element);
      else plain.append(field.element);
    }
    this.sections.replaceChildren(
      h("section", { class: "panel" }, h("h2", {}, "Training"), plain), ...groups);
    this.changed({ atOnce: true });
  }

  /** What the fields hold, only what is not a default. */
  request() {
    const config = {};
    for (const { key, field } of this.config) {
      const change = changes(field.get(), this.defaults[key]);
      if (change !== undefined) config[key] = change;
    }
    return { ...Object.fromEntries(this.parts.map(([key, field]) => [key, field.get()])), config };
  }

  changed(when) {
    for (const { key, field, group } of this.config) group?.update(field, this.defaults[key]);
    super.changed(when);
  }

  clear() {
    setText(this.message, "");
    this.showMessage();
    this.jobFields.clearErrors();
    this.fields.clearErrors();
  }

  /** What is wrong is said of the form, so where the form is. */
  showMessage() {
    this.message.hidden = this.form.hidden || this.message.textContent === "";
  }

  /** Show a problem at the field that it is about, which is returned, and beside the button. */
  show(problem) {
    this.clear();
    setText(this.message, problem.message);
    this.showMessage();
    for (const fields of [this.fields, this.jobFields]) {
      const path = fieldOf(problem.rule ?? problem.message, (name) => fields.byPath.has(name));
      if (problem.status === 422 && path) return fields.showError(path, problem.message);
    }
    return null;
  }

  reveal() {
    this.tabs.choose(0);
  }

  /** From the other tab, once what was pasted there could be read. */
  submit() {
    return super.submit(async () => !this.form.hidden || this.readText());
  }

  makeText() {
    this.text = h("textarea", {
      id: "config-text", rows: "18", spellcheck: "false", autocomplete: "off", class: "code",
      "aria-describedby": "config-text-help config-text-error",
      placeholder: "epochs: 10\nmodel:\n  name: resnet20\noptimizer:\n  lr: 0.05",
    });
    this.textMessage = h("p", { class: "field-error", id: "config-text-error", role: "alert" });
    return h("section", { class: "panel" },
      h("label", { for: "config-text" }, "Configuration"),
      this.text, this.textMessage,
      h("p", { class: "help", id: "config-text-help" },
        "What is left out has its default. It replaces what the form holds. ",
        h("a", { href: "#/search" }, "A search, many trainings, has a page of its own.")),
      h("div", { class: "buttons" },
        h("button", { type: "button", onclick: async () => {
          if (await this.readText()) this.tabs.choose(0, { focus: true });
        } }, "Fill in the form")));
  }

  /** Take over what was pasted; whether it could be read. */
  async readText() {
    this.textMessage.textContent = "";
    this.text.removeAttribute("aria-invalid");
    try {
      const config = await api.readConfig(this.text.value, { signal: this.signal });
      this.fill(config, Object.fromEntries(this.parts.map(([key, field]) => [key, field.get()])));
      return true;
    } catch (problem) {
      this.textMessage.textContent = problem.message;
      this.text.setAttribute("aria-invalid", "true");
      this.text.focus();
      return false;
    }
  }
}

/** A part of the configuration that can be folded away; folded, it still says what it holds. */
function section(key, schema, field, isPlain) {
  const chosen = h("span", { class: "muted" });
  const mark = h("span", { class: "mark", hidden: true }, "changed");
  const element = h("details", { class: "panel", open: OPEN_AT_FIRST.includes(key) },
    h("summary", {}, h("h2", {}, words(key)), chosen, mark),
    isPlain && h("p", { class: "muted" }, firstLine(schema.description)), field.element);
  return {
    element,
    update(now, defaults) {
      const value = now.get();
      setText(chosen, now.summary?.() ?? value?.name ?? "");
      mark.hidden = changes(value, defaults) === undefined;
    },
  };
}

/** Tabs as the ARIA practices have them: arrows move between them, one panel is shown. */
function tabs(label, entries, onChoose) {
  const buttons = entries.map(([name, panel], index) => {
    panel.setAttribute("role", panel.tagName === "FORM" ? "form" : "tabpanel");
    panel.setAttribute("aria-label", name);
    return h("button", { type: "button", role: "tab", onclick: () => choose(index) }, name);
  });
  function choose(chosen, { focus = false } = {}) {
    entries.forEach(([, panel], index) => {
      panel.hidden = index !== chosen;
      buttons[index].setAttribute("aria-selected", String(index === chosen));
      buttons[index].tabIndex = index === chosen ? 0 : -1;
    });
    onChoose();
    if (focus) buttons[chosen].focus();
  }
  const bar = h("div", { role: "tablist", "aria-label": label, class: "tabs", onkeydown: (event) => {
    const step = { ArrowRight: 1, ArrowLeft: -1 }[event.key];
    if (!step) return;
    const now = buttons.indexOf(document.activeElement);
    choose((now + step + buttons.length) % buttons.length, { focus: true });
  } }, buttons);
  choose(0);
  return { element: h("div", {}, bar, entries.map(([, panel]) => panel)), choose };
}
