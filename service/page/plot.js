// Plotly, loaded when the first chart is shown, in the colours of the page.

import { h } from "./dom.js";

let loading = null;

function load() {
  loading ??= new Promise((resolve, reject) => {
    document.head.append(h("script", {
      src: "static/plotly.min.js",
      onload: () => resolve(window.Plotly),
      onerror: () => { loading = null; reject(new Error("The charts' script could not be loaded.")); },
    }));
  });
  return loading;
}

// Something to be coloured: Plotly does not know `light-dark()`, what the browser makes of it it does.
const probe = document.body.appendChild(h("span", { hidden: true }));

/** A colour of the style sheet, as the theme has it now; empty where there is none of that name. */
export function color(name) {
  const value = getComputedStyle(document.documentElement).getPropertyValue(`--${name}`).trim();
  probe.style.color = value;
  return value && getComputedStyle(probe).color;
}

export const CUTS = ["series-1", "series-2", "series-3", "series-4", "series-5", "series-6"];

/** A figure with its title; `draw` is called again whenever the theme is another. */
export class Chart {
  /**
   * @param {string} title
   * @param {string} text What it shows, for those who do not know it.
   * @param {AbortSignal} signal Ends it.
   */
  constructor(title, text, signal) {
    this.plot = h("div", { class: "plot", role: "img", "aria-label": title });
    this.controls = h("div", { class: "controls" });
    this.element = h("figure", { class: "panel", hidden: true },
      h("figcaption", {}, h("h2", {}, title), h("p", { class: "muted" }, text)), this.controls, this.plot);
    this.figure = null;
    window.addEventListener("laminar:theme", () => this.redraw(), { signal });
    signal.addEventListener("abort", () => window.Plotly?.purge(this.plot), { once: true });
  }

  /**
   * Show a figure.
   *
   * @param {?function(): {data: Array, layout: Object}} figure Makes it, in the theme's colours;
   *   null shows none.
   * @param {string} summary What it says, in a sentence, for who cannot see it.
   */
  show(figure, summary = "") {
    this.figure = figure;
    this.element.hidden = figure === null;
    if (summary) this.plot.setAttribute("aria-label", summary);
    return this.redraw();
  }

  async redraw() {
    if (this.figure === null) return;
    let plotly;
    try {
      plotly = await load();
    } catch (error) {
      this.plot.replaceChildren(h("p", { class: "notice error" }, error.message));
      return;
    }
    if (this.figure === null || !this.plot.isConnected) return;
    const { data, layout } = this.figure();
    const options = { displayModeBar: false, responsive: true, doubleClick: "reset" };
    await plotly.react(this.plot, data, styled(layout), options);
  }
}

function styled(layout) {
  const text = color("muted");
  const axis = {
    gridcolor: color("line"), linecolor: color("line"), zerolinecolor: color("line"), tickfont: { color: text },
    automargin: true, fixedrange: false,
  };
  const title = (given) => (typeof given === "string" ? { text: given, font: { size: 12, color: text } } : given);
  const axisOf = (given = {}) => ({ ...axis, ...given, title: title(given.title) });
  return {
    height: 260,
    uirevision: "same", // what somebody zoomed into stays, whatever comes
    margin: { l: 48, r: 12, t: 8, b: 36 },
    paper_bgcolor: "rgba(0,0,0,0)",
    plot_bgcolor: "rgba(0,0,0,0)",
    font: { family: getComputedStyle(document.body).fontFamily, size: 12, color: color("text") },
    legend: { orientation: "h", traceorder: "normal", x: 0, y: 1.02, yanchor: "bottom", font: { size: 12 } },
    hoverlabel: { bgcolor: color("panel"), bordercolor: color("line"), font: { color: color("text") } },
    ...layout,
    xaxis: axisOf(layout.xaxis),
    yaxis: axisOf(layout.yaxis),
  };
}
