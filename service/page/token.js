// The dialog that asks for a token, where the service wants one.

import { h, uniqueId } from "./dom.js";

let dialog = null;

/**
 * Ask for a token until one is taken.
 *
 * @param {function(string): Promise} use Takes the token; throws what the service says of it.
 */
export function askForToken(use) {
  if (dialog !== null) return;
  const [title, input, message] = ["token-title", "token", "token-message"].map(uniqueId);
  const field = h("input", {
    id: input, type: "password", autocomplete: "off", spellcheck: "false", required: true,
    autofocus: true, "aria-describedby": message,
  });
  const said = h("p", { id: message, class: "field-error", role: "alert" });
  const button = h("button", { class: "primary" }, "Sign in");
  const form = h("form", { onsubmit: async (event) => {
    event.preventDefault();
    button.disabled = true;
    said.textContent = "";
    try {
      await use(field.value.trim());
      dialog?.close();
    } catch (error) {
      said.textContent = error.status === 401 ? "The service does not know this token." : error.message;
      field.setAttribute("aria-invalid", "true");
      field.select();
    } finally {
      button.disabled = false;
    }
  } },
  h("h2", { id: title }, "This service wants a token"),
  h("p", {}, "Whoever runs it makes one with ", h("code", {}, "laminar token create"),
    ". It is kept in this tab only, until you close it."),
  h("label", { for: input }, "Token"), field, said,
  h("div", { class: "buttons" }, button));
  dialog = h("dialog", { "aria-labelledby": title, onclose: () => {
    dialog.remove();
    dialog = null; // whoever closed it with Escape is asked again by the next request
  } }, form);
  document.body.append(dialog);
  dialog.showModal();
}
