// Checkpoints and files of a run directory, to download.

import { api, artifactPath, token } from "./api.js";
import { h, keyed, setText } from "./dom.js";
import { bytes, plural } from "./format.js";

/** The files of a job; rows stay where they are while others come and go. */
export class Files {
  constructor(id, signal, { byFolder = false } = {}) {
    Object.assign(this, { id, signal, byFolder, sizes: new Map() });
    this.empty = h("p", { class: "muted" }, "No files yet.");
    this.message = h("p", { class: "field-error", role: "alert" });
    this.rows = h("tbody");
    this.table = h("table", { class: "compact", hidden: true }, this.rows);
    this.checkpoints = h("div");
    this.folders = h("div");
    this.element = h("div", {}, this.empty, this.message, this.table, this.checkpoints, this.folders);
  }

  async refresh() {
    const { id, signal } = this;
    const [files, checkpoints] = await Promise.all([api.artifacts(id, { signal }), api.checkpoints(id, { signal })]);
    const inCheckpoints = new Set(checkpoints.flatMap((checkpoint) => checkpoint.files));
    this.sizes = new Map(files.map((file) => [file.path, file.num_bytes]));
    const isFolded = (path) => this.byFolder && path.includes("/");
    const left = files.map((file) => file.path).filter((path) => !inCheckpoints.has(path));
    const others = left.filter((path) => !isFolded(path));
    this.empty.hidden = files.length > 0;
    this.table.hidden = others.length === 0;
    this.fill(this.rows, others, (path) => path);
    this.fold(Map.groupBy(left.filter(isFolded), (path) => path.split("/")[0]));
    keyed(this.checkpoints, checkpoints.toReversed(), (checkpoint) => checkpoint.name, ({ epoch, num_bytes: size }) => {
      const rows = h("tbody");
      const summary = `Checkpoint of epoch ${epoch}, ${bytes(size)}`;
      return {
        element: h("details", {}, h("summary", {}, summary), h("table", { class: "compact" }, rows)),
        update: (checkpoint) => this.fill(rows, checkpoint.files, (path) => path.split("/").at(-1)),
      };
    });
  }

  /** A search has a folder for each trial: their files are listed when somebody looks. */
  fold(paths) {
    keyed(this.folders, [...paths], ([folder]) => folder, ([folder]) => {
      const rows = h("tbody");
      const summary = h("summary");
      let inside = [];
      const show = () => { if (element.open) this.fill(rows, inside, (path) => path.slice(folder.length + 1)); };
      const element = h("details", { ontoggle: () => show() }, summary, h("table", { class: "compact" }, rows));
      return { element, update([, found]) {
        inside = found;
        setText(summary, `${folder}, ${plural(inside.length, "file")}`);
        show();
      } };
    });
  }

  fill(rows, paths, nameOf) {
    keyed(rows, paths, (path) => path, (path) => {
      const size = h("td", { class: "right number" });
      return {
        element: h("tr", {}, h("th", { scope: "row" }, this.link(path, nameOf(path))), size),
        update: () => setText(size, this.sizes.has(path) ? bytes(this.sizes.get(path)) : "–"),
      };
    });
  }

  /** A link; where a token is needed, which a link cannot send, it fetches the file first. */
  link(path, name) {
    const download = path.split("/").at(-1);
    return h("a", { href: artifactPath(this.id, path), download, onclick: async (event) => {
      if (token.get() === null) return;
      event.preventDefault();
      this.message.textContent = "";
      try {
        const url = URL.createObjectURL(await api.artifact(this.id, path));
        h("a", { href: url, download }).click();
        setTimeout(() => URL.revokeObjectURL(url), 60000);
      } catch (problem) {
        this.message.textContent = problem.message;
      }
    } }, name);
  }
}
