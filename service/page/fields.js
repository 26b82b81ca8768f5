// Form fields made of a JSON schema. Each is {element, get()}: what is shown, and its value as JSON.

import { append, h, uniqueId } from "./dom.js";
import { words } from "./format.js";
import { branchOf, kindOf, resolve } from "./schema.js";

/**
 * All fields of a form, by path. What they hold is judged by the service alone.
 */
export class Fields {
  /**
   * @param {Object} root The schema that references are within.
   * @param {function()} onChange Told whenever a value is another.
   */
  constructor(root, onChange) {
    this.root = root;
    this.onChange = onChange;
    this.byPath = new Map();
  }

  /** Show a message at a field, and where it is. */
  showError(path, text) {
    const { control, message } = this.byPath.get(path);
    control.setAttribute("aria-invalid", "true");
    message.textContent = text;
    message.hidden = false;
    for (let up = control.closest("details"); up; up = up.parentElement.closest("details")) up.open = true;
    return control;
  }

  clearErrors() {
    for (const { control, message } of this.byPath.values()) {
      control.removeAttribute("aria-invalid");
      message.textContent = "";
      message.hidden = true;
    }
  }

  /**
   * Make a field.
   *
   * @param {Object} schema
   * @param {string} path Dotted, as the configuration has it.
   * @param {*} value What it holds first; undefined is the schema's default.
   */
  make(schema, path, value) {
    const found = kindOf(this.root, schema);
    const start = value === undefined ? found.schema.default : value;
    switch (found.kind) {
      case "section": return this.section(found.schema, path, start ?? {});
      case "tagged": return this.tagged(found, path, start ?? {});
      case "choice": return this.choice(found, path, start);
      case "list": return this.list(found.schema, path, start ?? []);
      case "choose": return this.choose(found, path, start);
      case "boolean": return this.checkbox(found.schema, path, start ?? false);
      default: return this.text(found, path, start);
    }
  }

  /** The properties of an object, below each other. */
  section(schema, path, value, { without = [] } = {}) {
    const element = h("div", { class: "fields" });
    const parts = [];
    for (const [key, property] of Object.entries(schema.properties ?? {})) {
      if (without.includes(key)) continue;
      const inner = path ? `${path}.${key}` : key;
      const field = this.make(property, inner, value[key]);
      parts.push([key, field]);
      element.append(field.element);
    }
    return { element, get: () => collect(parts) };
  }

  /** One of several objects: a choice by name, and the properties of the one that is chosen. */
  tagged({ schema, tag, branches }, path, value) {
    const tags = Object.keys(branches);
    let inner;
    const holder = h("div");
    const pick = (name, from) => {
      const branch = resolve(this.root, branches[name]);
      this.forget(path, `${path}.${tag}`);
      inner = this.section(branch, path, from, { without: [tag] });
      holder.replaceChildren(h("p", { class: "branch" }, firstLine(branch.description)), inner.element);
    };
    const select = this.select(`${path}.${tag}`, tags.map((name) => [name, name]), value[tag] ?? tags[0],
      "", (name) => pick(name, {}));
    pick(select.get(), value);
    return {
      element: h("div", {}, select.element, holder),
      get: () => ({ [tag]: select.get(), ...inner.get() }),
      summary: () => select.get(),
    };
  }

  /** Null, an object or a list of objects: which, and then that. */
  choice({ schema, branches }, path, value) {
    const first = value === undefined ? branches.findIndex((branch) => branch.schema !== null)
      : branchOf(this.root, branches, value);
    let inner = null;
    const holder = h("div", { class: "nested" });
    const pick = (index, from) => {
      this.forget(path, path);
      inner = branches[index].schema === null ? null : this.make(branches[index].schema, path, from);
      holder.replaceChildren(...(inner ? [inner.element] : []));
    };
    const options = branches.map(({ label }, index) => [String(index), label]);
    const select = this.select(path, options, String(first), schema.description, (index) => pick(Number(index)));
    pick(first, value);
    return {
      element: h("div", {}, select.element, holder),
      get: () => (inner ? inner.get() : null),
      summary: () => branches[Number(select.get())].label,
    };
  }

  /** Any number of objects. */
  list(schema, path, value) {
    let items = [];
    const name = words(path.split(".").at(-1));
    const rows = h("ol", { class: "list" });
    const render = (values) => {
      this.forget(path, path); // their paths have their numbers
      items = values.map((from, index) => this.make(schema.items, `${path}.${index}`, from));
      rows.replaceChildren(...items.map((field, index) => h("li", {}, field.element,
        h("button", { type: "button", class: "quiet", "aria-label": `Remove entry ${index + 1} of ${name}`,
          onclick: () => {
            render(items.map((item) => item.get()).toSpliced(index, 1));
            more.focus();
            this.onChange();
          } }, "Remove"))));
    };
    const more = h("button", { type: "button", onclick: () => {
      render([...items.map((item) => item.get()), undefined]);
      rows.lastElementChild.querySelector("input, select")?.focus();
      this.onChange();
    } }, "Add one");
    const message = h("p", { class: "field-error", hidden: true });
    if (!this.byPath.has(path)) this.byPath.set(path, { control: more, message });
    render(value);
    return {
      element: h("div", { role: "group", "aria-label": name }, h("span", { class: "label" }, name),
        h("p", { class: "help" }, schema.description), message, rows, more),
      get: () => items.map((field) => field.get()),
      summary: () => (items.length ? `${items.length}` : "none"),
    };
  }

  choose({ schema, values, isNullable }, path, value) {
    const options = values.map((option) => [String(option), String(option)]);
    if (isNullable) options.unshift(["", "null"]);
    const select = this.select(path, options, String(value ?? (isNullable ? "" : values[0])),
      describe(schema));
    return {
      element: select.element,
      get: () => (isNullable && select.get() === "" ? null : values.find((v) => String(v) === select.get())),
    };
  }

  select(path, options, value, description, onPick = () => {}) {
    const control = h("select", { onchange: () => { onPick(control.value); this.onChange(); } },
      options.map(([option, label]) => h("option", { value: option, selected: option === value }, label)));
    return { element: this.labelled(path, control, description), get: () => control.value };
  }

  checkbox(schema, path, value) {
    const control = h("input", { type: "checkbox", checked: value, onchange: this.onChange });
    return {
      element: this.labelled(path, control, describe(schema), "field check"),
      get: () => control.checked,
    };
  }

  /** Numbers, texts, and several of them with commas between. */
  text({ kind, schema, isNullable }, path, value) {
    const isNumber = kind === "integer" || kind === "number";
    const shown = Array.isArray(value) ? value.join(", ") : String(value ?? "");
    const control = h("input", {
      type: "text", value: shown, autocomplete: "off", spellcheck: "false",
      inputmode: isNumber ? "decimal" : null, class: isNumber ? "number short" : null,
      placeholder: isNullable ? "null" : schema.default === undefined ? null : String(schema.default),
      required: schema.default === undefined && !isNullable && value === undefined,
      oninput: this.onChange,
    });
    const extras = [];
    if (schema.examples?.length && !isNumber) {
      const list = h("datalist", { id: uniqueId("examples") },
        schema.examples.map((example) => h("option", { value: example })));
      control.setAttribute("list", list.id);
      extras.push(list);
    }
    const element = this.labelled(path, control, describe(schema));
    append(element, extras);
    return {
      element,
      get() {
        const text = control.value.trim();
        if (text === "") return isNullable ? null : undefined;
        if (kind === "numbers") return text.split(",").map((part) => numberIn(part.trim()));
        return isNumber ? numberIn(text) : text;
      },
    };
  }

  labelled(path, control, description, style = "field") {
    control.id = uniqueId("field");
    control.name = path;
    const help = h("p", { class: "help", id: `${control.id}-help` }, description);
    const message = h("p", { class: "field-error", id: `${control.id}-error`, hidden: true });
    control.setAttribute("aria-describedby", `${message.id} ${help.id}`);
    this.byPath.set(path, { control, message });
    return h("div", { class: style },
      h("label", { for: control.id }, words(path.split(".").at(-1))), control, message, help);
  }

  /** Drop the fields under a path, whose place others take. */
  forget(path, but) {
    for (const known of this.byPath.keys()) {
      if (known.startsWith(`${path}.`) && known !== but) this.byPath.delete(known);
    }
  }
}

function collect(parts) {
  const found = {};
  for (const [key, field] of parts) {
    const value = field.get();
    if (value !== undefined) found[key] = value;
  }
  return found;
}

/** A number, or the text where it is none, or one that would lose digits: the service reads it. */
function numberIn(text) {
  const value = Number(text);
  return text === "" || !Number.isFinite(value) || (Number.isInteger(value) && !Number.isSafeInteger(value))
    ? text : value;
}

function describe(schema) {
  const parts = [schema.description ?? ""];
  const start = schema.default;
  if (start != null && typeof start !== "object" && start !== "") parts.push(`Default: ${start}.`);
  return parts.filter(Boolean).join(" ");
}

export const firstLine = (text) => (text ?? "").split("\n\n")[0];
