// @ts-check
// The matrix: one heatmap for the logit lens and for attention. What it draws and sends: widgets/matrix.py.

import { h, setAttributes, setText } from "./dom.js";
import { keepKeysInside, moved } from "./keyboard.js";
import { MATRIX_CSS } from "./matrix_css.js";
import { cellOf, cursorParams, paintMatrix, readMatrix } from "./matrix_data.js";
import { Plot } from "./matrix_plot.js";
import { Toolbar } from "./matrix_toolbar.js";
import { cellTip, placeWords, summary } from "./matrix_words.js";
import { problemLine } from "./problem.js";
import { Connection, onTrait, saveView } from "./protocol.js";
import { countDraw, lifetime, makeRoot, themeName } from "./theme.js";
import { makeTooltip } from "./tooltip.js";
/** @import { RenderProps } from "@anywidget/types" */
/** @import { Model, Payload } from "./protocol.js" */
/** @import { Box, Cell } from "./matrix_plot.js" */

const EMPTY = { lens: "Run a prompt to see what each layer would predict.", attention: "Run a prompt to see where each token attends." };

class MatrixView {
  /** @param {Model} model @param {HTMLElement} el @param {AbortSignal} signal */
  constructor(model, el, signal) {
    this.model = model;
    this.root = makeRoot(el, signal, "matrix", MATRIX_CSS, () => this.paint());
    keepKeysInside(this.root, signal);
    this.problem = problemLine(model, signal);
    this.tooltip = makeTooltip(signal);
    this.toolbar = new Toolbar({
      onSet: (name, value) => this.connection.act("set", { name, value }),
      onMetric: (metric) => this.choose({ metric, scale: null }),
      onScale: (scale) => this.choose({ scale }),
      onZoom: (way) => this.zoom(way),
    });
    this.plot = new Plot(this.root, signal, {
      onHover: (cell, box) => this.hover(cell, box),
      onPick: (cell) => this.pick(cell),
      onDrawn: () => countDraw(this.root, this.data.rev),
    });
    this.empty = h("div", { class: "wb-empty", "data-testid": "wb-empty" });
    this.said = h("div", { class: "wb-said", role: "status", "data-testid": "wb-said" });
    this.foot = h("div", { class: "wb-matrix-foot" }, this.toolbar.legend, this.said);
    this.root.append(this.toolbar.head, this.plot.node, this.empty, this.foot, this.problem.node);
    this.data = readMatrix({ rev: 0, content: {}, arrays: {} });
    this.connection = new Connection({
      model, signal,
      onState: (payload) => this.show(payload),
      onAck: ({ name, ok }) => (name === "set" && !ok ? this.paint() : this.followCursor()),
      onProblem: (text) => this.problem.show(text),
    });
    this.plot.canvas.addEventListener("keydown", (event) => this.key(event), { signal });
    this.plot.canvas.addEventListener("focus", () => this.say(), { signal });
    onTrait(model, signal, "cursor", () => this.followCursor());
    onTrait(model, signal, "view", () => this.followView());
    this.plot.chosen = model.get("view")?.cell;
    this.paint();
    this.connection.get();
  }

  /** @param {Payload} payload */
  show(payload) {
    this.data = readMatrix(payload);
    this.tooltip.hide();
    this.paint();
  }

  /** Colours and draws what is shown: after a payload, another metric or scale, another theme. */
  paint() {
    const { data, plot } = this;
    const view = this.model.get("view") ?? {};
    this.painted = paintMatrix(data, view.metric, view.scale ?? undefined, themeName());
    this.toolbar.show(data, this.painted, themeName());
    plot.node.hidden = this.said.hidden = !data.drawn;
    plot.node.classList.toggle("wb-stale", data.state === "stale");
    this.empty.hidden = data.drawn;
    setText(this.empty, data.drawn ? "" : this.emptyText());
    this.empty.dataset.state = data.state;
    setAttributes(plot.canvas, { "aria-label": summary(data, this.painted.metric) });
    if (!data.drawn) countDraw(this.root, data.rev);
    plot.cell = this.cursorCell();
    plot.show(data, this.painted);
    this.say();
  }

  emptyText() {
    const { state, stateText, kind } = this.data;
    if (stateText) return state === "empty" ? stateText : `${capital(state)}: ${stateText}`;
    if (state === "computing") return "Computing…";
    return state === "empty" || state === "ok" ? EMPTY[/** @type {"lens" | "attention"} */ (kind)] : `${capital(state)}.`;
  }

  /** The cursor's cell: the page's own while the kernel has not answered, else the kernel's. @returns {Cell} */
  cursorCell() {
    const cell = cellOf(this.data, this.model.get("cursor") ?? {});
    if (!this.own || !this.connection.isWaiting("cursor")) return cell;
    return { r: Math.min(this.own.r, this.data.rows - 1), c: Math.min(this.own.c, this.data.cols - 1) };
  }

  followCursor() {
    if (this.connection.isWaiting("cursor")) return;
    this.own = null;
    this.plot.setCell(this.cursorCell(), true);
    this.say();
    if (!this.data.drawn) countDraw(this.root);
  }

  followView() {
    this.plot.chosen = this.model.get("view")?.cell;
    this.paint();
  }

  /** @param {Record<string, any>} change */
  choose(change) {
    saveView(this.model, change); // its change event draws
  }

  /** @param {1 | -1 | "fit"} way */
  zoom(way) {
    this.plot.zoom(way);
    this.tooltip.hide();
    saveView(this.model, { cell: this.plot.chosen });
  }

  /** @param {Cell} cell */
  pick(cell) {
    const params = cursorParams(this.data, cell);
    this.plot.canvas.focus({ preventScroll: true });
    if (Object.keys(params).length === 0) return;
    /** @type {Cell | null} */
    this.own = cell;
    this.connection.act("cursor", params);
    this.plot.setCell(cell, true);
    this.say();
  }

  /** @param {KeyboardEvent} event */
  key(event) {
    const { data, plot } = this;
    if (!data.drawn) return;
    const from = { r: Math.max(0, plot.cell.r), c: Math.max(0, plot.cell.c) };
    const to = moved(event, from, data);
    if (!to) return;
    event.preventDefault();
    this.tooltip.hide();
    if (to.r !== plot.cell.r || to.c !== plot.cell.c) this.pick(to);
  }

  /** @param {Cell | null} cell @param {Box | null} box */
  hover(cell, box) {
    if (cell && box) this.tooltip.show(cellTip(this.data, cell.r, cell.c), box);
    else this.tooltip.hide();
    this.say(cell);
  }

  /** Says the hovered cell, or the cursor's, in words. @param {Cell | null} [hovered] */
  say(hovered) {
    const cell = hovered ?? this.plot.cell;
    setText(this.said, this.data.drawn ? placeWords(this.data, this.painted?.metric ?? null, cell) : "");
  }
}

/** @param {string} text */
const capital = (text) => text.slice(0, 1).toUpperCase() + text.slice(1);

/** @param {RenderProps<any>} props */
function render({ model, el, signal: given }) {
  const { signal, end } = lifetime(given);
  new MatrixView(model, el, signal);
  return end;
}

export default { render };
