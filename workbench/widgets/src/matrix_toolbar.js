// @ts-check
// What stands above and below the plot: title, controls, metric, scale, zoom, legend.

import { fillOf } from "./matrix_draw.js";
import { h, labelledSelect, freshId, setAttributes, setText } from "./dom.js";
import { scaleBar, swatch } from "./legend.js";
import { MASKED, MINUS_INF, NAN, PENDING, PLUS_INF } from "./values.js";
/** @import { Control, MatrixData, Painted } from "./matrix_data.js" */
/** @import { ThemeName } from "./color.js" */

const SCALES = [{ value: "sqrt", label: "√" }, { value: "log", label: "log" }, { value: "linear", label: "linear" }];

/** @type {[sign: string, label: string, way: 1 | -1 | "fit"][]} */
const ZOOMS = [
  ["−", "Smaller cells", -1],
  ["+", "Larger cells", 1],
  ["Fit", "Fit all cells into the width", "fit"],
];

/**
 * @typedef {{onSet: (name: string, value: any) => void, onMetric: (name: string) => void, onScale: (name: string) => void,
 *            onZoom: (way: 1 | -1 | "fit") => void}} Listeners
 */

export class Toolbar {
  /** @param {Listeners} listeners */
  constructor(listeners) {
    this.listeners = listeners;
    this.title = h("span", { class: "wb-title" });
    this.subtitle = h("span", { class: "wb-muted wb-subtitle" });
    this.badge = h("span", { class: "wb-badge", "data-testid": "wb-state" });
    this.controls = h("span", { class: "wb-bar wb-group" });
    this.choosers = h("span", { class: "wb-bar wb-group" });
    this.zoom = h("span", { class: "wb-bar wb-zoom", role: "group", "aria-label": "Zoom" });
    for (const [sign, label, way] of ZOOMS) {
      const small = sign.length === 1 ? "wb-small" : null;
      const button = h("button", { type: "button", class: small, title: label, "aria-label": label }, sign);
      button.addEventListener("click", () => listeners.onZoom(way));
      this.zoom.append(button);
    }
    this.head = h("div", { class: "wb-matrix-head" },
      h("div", { class: "wb-heading" }, this.title, this.subtitle, this.badge),
      h("div", { class: "wb-bar wb-tools" }, this.controls, this.choosers, this.zoom));
    this.legend = h("div", { class: "wb-legend" });
    this.controlsFor = "";
    this.choosersFor = "";
  }

  /** @param {MatrixData} data @param {Painted} painted @param {ThemeName} theme */
  show(data, painted, theme) {
    setText(this.title, data.title);
    setText(this.subtitle, data.subtitle);
    const quiet = data.state === "ok" || !data.drawn;
    setText(this.badge, quiet ? "" : data.stateText ? `${data.state} · ${data.stateText}` : data.state);
    this.badge.dataset.state = data.state;
    this.#showControls(data.controls);
    this.#showChoosers(data, painted);
    this.zoom.hidden = this.choosers.hidden = this.legend.hidden = !data.drawn;
    this.#showLegend(data, painted, theme);
  }

  /** Built anew only when the controls themselves change: a select that is open stays open. @param {Control[]} controls */
  #showControls(controls) {
    const key = JSON.stringify(controls.map(({ value, ...rest }) => rest));
    if (key !== this.controlsFor) {
      this.controlsFor = key;
      this.controls.replaceChildren(...controls.map((control) => this.#buildControl(control)));
    }
    controls.forEach((control, i) => {
      const input = /** @type {HTMLInputElement | HTMLSelectElement} */ (this.controls.children[i].querySelector("input, select"));
      if (input instanceof HTMLInputElement && input.type === "checkbox") input.checked = Boolean(control.value);
      else if (!(document.activeElement === input && input.dataset.dirty)) input.value = String(control.value ?? "");
    });
  }

  /** @param {Control} control */
  #buildControl(control) {
    const { name, label, kind, value, options = [] } = control;
    const send = (/** @type {any} */ v) => this.listeners.onSet(name, v);
    if (kind === "select") {
      const pick = (/** @type {string} */ text) => send(options.find((o) => String(o.value) === text)?.value ?? text);
      return labelledSelect(label ?? name, options, String(value), pick).node;
    }
    const id = freshId(name);
    if (kind === "check") {
      const input = h("input", { id, type: "checkbox" });
      input.addEventListener("change", () => send(input.checked));
      return h("span", { class: "wb-field" }, input, h("label", { for: id, class: "wb-check" }, label ?? name));
    }
    return h("span", { class: "wb-field" }, h("label", { for: id }, label ?? name), this.#numberInput(id, control));
  }

  /** @param {string} id @param {Control} control */
  #numberInput(id, { name, min, max, title }) {
    const range = `from ${min ?? "−∞"} to ${max ?? "∞"}`;
    const input = h("input", { id, type: "number", class: "wb-input", min, max, step: 1, title: title ?? range });
    const good = () => {
      const number = input.valueAsNumber;
      return Number.isInteger(number) && number >= (min ?? -Infinity) && number <= (max ?? Infinity);
    };
    input.addEventListener("input", () => {
      input.dataset.dirty = "yes";
      setAttributes(input, { "aria-invalid": good() ? null : "true" });
    });
    input.addEventListener("change", () => {
      delete input.dataset.dirty;
      if (good()) this.listeners.onSet(name, input.valueAsNumber);
    });
    return input;
  }

  /** @param {MatrixData} data @param {Painted} painted */
  #showChoosers(data, { metric, scale }) {
    const metrics = data.metrics.map((m) => ({ value: m.name, label: m.label ?? m.name }));
    const withScale = data.drawn && data.kind === "attention" && !scale.diverging;
    const key = JSON.stringify([metrics, withScale]);
    if (key !== this.choosersFor) {
      this.choosersFor = key;
      this.choosers.replaceChildren();
      const { onMetric, onScale } = this.listeners;
      if (metrics.length > 1) this.choosers.append(labelledSelect("Colour by", metrics, metric?.name ?? "", onMetric).node);
      if (withScale) this.choosers.append(labelledSelect("Scale", SCALES, scale.name, onScale).node);
    }
    for (const select of this.choosers.querySelectorAll("select")) {
      const isScale = withScale && select === this.choosers.lastElementChild?.querySelector("select");
      select.value = isScale ? scale.name : (metric?.name ?? "");
    }
  }

  /** @param {MatrixData} data @param {Painted} painted @param {ThemeName} theme */
  #showLegend(data, { metric, scale, found, reasons }, theme) {
    this.legend.replaceChildren();
    if (!data.drawn) return;
    const label = metric?.label ?? metric?.name;
    const named = data.metrics.length > 1; // the list "Colour by" says which
    if (metric) this.legend.append(scaleBar(scale, theme, { label: named ? "" : label, unit: metric.unit || label }));
    const square = (/** @type {number} */ code) => `background: ${fillOf(code, theme)}; outline: 1px solid var(--wb-line)`;
    if (found.has(MASKED)) {
      const letters = data.reasons.filter((r, i) => r.letter && reasons.has(i + 1)).map((r) => `${r.letter} ${r.label}`);
      this.legend.append(swatch("wb-hatch", letters.length ? `masked: ${letters.join(", ")}` : "masked"));
    }
    if (found.has(PENDING)) this.legend.append(swatch("wb-hatch", "not computed yet"));
    if (found.has(NAN)) this.legend.append(swatch(square(NAN), "× not a number"));
    if (found.has(PLUS_INF)) this.legend.append(swatch(square(PLUS_INF), "▲ +∞"));
    if (found.has(MINUS_INF)) this.legend.append(swatch(square(MINUS_INF), "▼ −∞"));
    if (data.sinkApart) this.legend.append(h("span", null, "Key 0 (the sink) stands apart: the scale leaves it out"));
    if (data.pooled) this.legend.append(h("span", null, `each cell: ${data.pooled.how ?? "pool"} of ${data.factor} × ${data.factor}`));
  }
}
