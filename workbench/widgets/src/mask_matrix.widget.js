// @ts-check
// The mask: queries × keys, coloured by the rules that forbid a cell. What it draws and sends: widgets/mask_matrix.py.

import { css } from "./color.js";
import { h, setAttributes, setText } from "./dom.js";
import { keepKeysInside, moved } from "./keyboard.js";
import { swatch } from "./legend.js";
import { colorOf, firstSize, lettersOf, paintMask, readMask } from "./mask_data.js";
import { cellTip, patternWords, placeWords, summary } from "./mask_words.js";
import { MATRIX_CSS } from "./matrix_css.js";
import { cellOf, cursorParams } from "./matrix_data.js";
import { Plot } from "./matrix_plot.js";
import { Toolbar } from "./matrix_toolbar.js";
import { problemLine } from "./problem.js";
import { Connection, onTrait, saveView } from "./protocol.js";
import { countDraw, lifetime, makeRoot, themeName } from "./theme.js";
import { makeTooltip } from "./tooltip.js";
/** @import { RenderProps } from "@anywidget/types" */
/** @import { Model, Payload } from "./protocol.js" */
/** @import { Box, Cell } from "./matrix_plot.js" */

class MaskView {
  /** @param {Model} model @param {HTMLElement} el @param {AbortSignal} signal */
  constructor(model, el, signal) {
    this.model = model;
    this.root = makeRoot(el, signal, "mask", MATRIX_CSS, () => this.paint());
    keepKeysInside(this.root, signal);
    this.problem = problemLine(model, signal);
    this.tooltip = makeTooltip(signal);
    this.toolbar = new Toolbar({
      onSet: (_, text) => saveView(model, { text }), // the only control; its change event draws
      onMetric: () => {},
      onScale: () => {},
      onZoom: (way) => this.zoom(way),
    });
    this.plot = new Plot(this.root, signal, {
      onHover: (cell, box) => this.hover(cell, box),
      onPick: (cell) => this.pick(cell),
      onDrawn: () => countDraw(this.root, this.data.rev),
    });
    this.empty = h("div", { class: "wb-empty", "data-testid": "wb-empty" });
    this.said = h("div", { class: "wb-said", role: "status", "data-testid": "wb-said" });
    this.notes = h("div", { class: "wb-muted wb-subtitle", "data-testid": "wb-notes" });
    this.foot = h("div", { class: "wb-matrix-foot" }, this.toolbar.legend, this.notes, this.said);
    this.root.append(this.toolbar.head, this.plot.node, this.empty, this.foot, this.problem.node);
    /** @type {Payload} */
    this.payload = { rev: 0, content: {}, arrays: {} };
    this.data = readMask(this.payload, 0);
    /** Where the user went, until the kernel has answered; for good where none does. @type {Cell | null} */
    this.own = null;
    this.connection = new Connection({
      model, signal,
      onState: (payload) => this.show(payload),
      onAck: () => this.followCursor(),
      onProblem: (text) => this.problem.show(text),
    });
    this.plot.canvas.addEventListener("keydown", (event) => this.key(event), { signal });
    this.plot.canvas.addEventListener("focus", () => this.say(), { signal });
    onTrait(model, signal, "cursor", () => this.followCursor());
    onTrait(model, signal, "view", () => this.followView());
    this.read();
    this.connection.get();
  }

  /** @param {Payload} payload */
  show(payload) {
    this.payload = payload;
    this.tooltip.hide();
    this.read();
  }

  read() {
    this.data = readMask(this.payload, this.model.get("view")?.text ?? 0);
    this.paint();
  }

  followView() {
    const { text } = this.model.get("view") ?? {};
    if ((text ?? 0) === this.data.which) this.paint();
    else this.read();
  }

  /** Draws what is shown: after a payload, another text, another theme. */
  paint() {
    const { data, plot } = this;
    const theme = themeName();
    const painted = paintMask(data, theme);
    this.toolbar.show(data, painted, theme);
    this.showLegend();
    plot.node.hidden = this.said.hidden = !data.drawn;
    this.empty.hidden = data.drawn;
    setText(this.empty, data.drawn ? "" : data.stateText || "No mask yet.");
    this.empty.dataset.state = data.state;
    setAttributes(plot.canvas, { "aria-label": summary(data) });
    if (!data.drawn) countDraw(this.root, data.rev);
    plot.chosen = this.model.get("view")?.cell ?? firstSize(data);
    plot.cell = this.cursorCell();
    plot.show(data, painted);
    this.say();
  }

  showLegend() {
    const { data } = this;
    const parts = [...data.counts].map(([pattern, count]) => {
      const square = `background: ${css(colorOf(data, pattern, themeName()))}; outline: 1px solid var(--wb-line)`;
      const what = pattern ? `${lettersOf(data, pattern)} masked: ${patternWords(data, pattern)}` : "may attend";
      return swatch(square, `${what} (${count.toLocaleString("en-US")})`);
    });
    this.toolbar.legend.replaceChildren(...parts);
    this.notes.replaceChildren(...data.notes.map((note) => h("div", null, note)));
  }

  cursorCell() {
    return this.own ?? cellOf(this.data, this.model.get("cursor") ?? {});
  }

  followCursor() {
    if (this.connection.isWaiting("cursor")) return;
    this.own = null;
    this.plot.setCell(this.cursorCell(), true);
    this.say();
  }

  /** @param {1 | -1 | "fit"} way */
  zoom(way) {
    this.plot.zoom(way);
    this.tooltip.hide();
    saveView(this.model, { cell: this.plot.chosen });
  }

  /** @param {Cell} cell */
  pick(cell) {
    this.own = cell;
    this.plot.canvas.focus({ preventScroll: true });
    this.plot.setCell(cell, true);
    this.say();
    this.connection.act("cursor", cursorParams(this.data, cell));
  }

  /** @param {KeyboardEvent} event */
  key(event) {
    const { data, plot } = this;
    if (!data.drawn) return;
    const to = moved(event, { r: Math.max(0, plot.cell.r), c: Math.max(0, plot.cell.c) }, data);
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
    setText(this.said, this.data.drawn ? placeWords(this.data, hovered ?? this.plot.cell) : "");
  }
}

/** @param {RenderProps<any>} props */
function render({ model, el, signal: given }) {
  const { signal, end } = lifetime(given);
  new MaskView(model, el, signal);
  return end;
}

export default { render };
