// Elements made of data. Text only ever becomes text: nothing here parses HTML.

/**
 * Make an element.
 *
 * @param {string} tag Its name.
 * @param {Object} properties Attributes; `class`; `onEvent` listeners; true is an empty attribute,
 *   false, null and undefined are none.
 * @param {...(Node|string|number|null|undefined|false)} children Strings become text.
 */
export function h(tag, properties = {}, ...children) {
  const element = document.createElement(tag);
  for (const [name, value] of Object.entries(properties)) {
    if (typeof value === "function") element.addEventListener(name.slice(2), value);
    else if (value === true) element.setAttribute(name, "");
    else if (value !== false && value != null) element.setAttribute(name, value);
  }
  append(element, children);
  return element;
}

export function append(element, children) {
  for (const child of children.flat()) {
    if (child == null || child === false) continue;
    element.append(child instanceof Node ? child : String(child));
  }
}

/** Replace the text of an element if it is another: screen readers and selections keep still. */
export function setText(element, text) {
  if (element.textContent !== String(text)) element.textContent = text;
}

/** Tell screen readers what changed. */
export function announce(text) {
  const announcer = document.getElementById("announcer");
  announcer.append(h("p", {}, text));
  while (announcer.childElementCount > 5) announcer.firstElementChild.remove();
}

let counter = 0;

/** A name for an element that a label or description points at. */
export function uniqueId(prefix) {
  counter += 1;
  return `${prefix}-${counter}`;
}

/**
 * Keep the children of a parent in step with items, each known by a key: focus stays where it is.
 *
 * @param {Element} parent
 * @param {Array} items
 * @param {function(*): string} keyOf
 * @param {function(*): {element: Element, update: function(*)}} make
 */
export function keyed(parent, items, keyOf, make) {
  const known = (parent.rowsByKey ??= new Map());
  const wanted = new Set(items.map(keyOf));
  for (const [key, row] of known) {
    if (wanted.has(key)) continue;
    row.element.remove();
    known.delete(key);
  }
  items.forEach((item, index) => {
    const key = keyOf(item);
    if (!known.has(key)) known.set(key, make(item));
    const row = known.get(key);
    row.update(item);
    if (parent.children[index] !== row.element) {
      parent.insertBefore(row.element, parent.children[index] ?? null);
    }
  });
}

/** Ask a question in a dialog; the answer is whether it was confirmed. */
export function confirmed(question, detail, action) {
  return new Promise((resolve) => {
    const title = uniqueId("dialog");
    const dialog = h("dialog", { "aria-labelledby": title, onclose: () => {
      dialog.remove();
      resolve(dialog.returnValue === "yes");
    } },
      h("h2", { id: title }, question),
      h("p", {}, detail),
      h("div", { class: "buttons" },
        h("button", { type: "button", autofocus: true, onclick: () => dialog.close("no") }, "Cancel"),
        h("button", { type: "button", class: "danger", onclick: () => dialog.close("yes") }, action)));
    document.body.append(dialog);
    dialog.showModal();
  });
}
