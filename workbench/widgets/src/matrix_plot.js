// @ts-check
// The plot itself: a scroll container whose canvases stay in view and draw only the cells that can be seen.

import { h, setAttributes } from "./dom.js";
import { drawAxes, drawHover, clipped, widestLabel } from "./matrix_axes.js";
import { drawCells, drawCursor } from "./matrix_draw.js";
import { cellAt, cellSize, colW, colX, layoutOf, rowY, scrollTo, VIEW_HEIGHT, zoomed } from "./matrix_layout.js";
import { canvasColors } from "./theme.js";
/** @import { MatrixData, Painted } from "./matrix_data.js" */
/** @import { Layout, Sizes } from "./matrix_layout.js" */
/** @import { CanvasColors } from "./theme.js" */

/**
 * @typedef {{r: number, c: number}} Cell
 * @typedef {{x: number, y: number, width: number, height: number}} Box client coordinates
 * @typedef {HTMLCanvasElement & {wbCellRect?: (r: number, c: number) => Box | null}} PlotCanvas
 */

/** Used while the plot has no width (not yet in the page, or in a hidden tab). */
const WIDTH_UNSEEN = 700;

export class Plot {
  /**
   * @param {HTMLElement} root
   * @param {AbortSignal} signal
   * @param {{onHover: (cell: Cell | null, box: Box | null) => void, onPick: (cell: Cell) => void, onDrawn: () => void}} listeners
   */
  constructor(root, signal, listeners) {
    this.root = root;
    this.listeners = listeners;
    this.canvas = /** @type {PlotCanvas} */ (h("canvas", { tabindex: 0, "data-testid": "wb-matrix-canvas" }));
    setAttributes(this.canvas, { role: "application", "aria-roledescription": "heatmap" });
    this.overlay = h("canvas", { class: "wb-overlay", "aria-hidden": "true" });
    this.stage = h("div", { class: "wb-stage" }, this.canvas, this.overlay);
    this.sizer = h("div", { class: "wb-sizer" }, this.stage);
    this.node = h("div", { class: "wb-plot", style: `max-height: ${VIEW_HEIGHT}px` }, this.sizer);
    /** @type {MatrixData | null} */
    this.data = null;
    /** @type {Painted | null} */
    this.painted = null;
    /** @type {Cell} */
    this.cell = { r: -1, c: -1 };
    /** @type {Cell | null} */
    this.hover = null;
    /** @type {number | "fit" | undefined} */
    this.chosen = undefined;
    this.size = { w: 0, h: 0 };
    this.frame = 0;
    this.counts = false;
    /** @type {Layout | null} */
    this.layout = null;
    /** @type {CanvasColors | null} */
    this.colors = null;
    this.laidOutFor = 0;
    this.#listen(signal);
    this.canvas.wbCellRect = (r, c) => this.cellRect(r, c);
  }

  /** @param {AbortSignal} signal */
  #listen(signal) {
    this.node.addEventListener("scroll", () => this.#schedule(), { signal });
    this.stage.addEventListener("pointermove", (event) => this.#point(event), { signal });
    this.stage.addEventListener("pointerleave", () => this.#setHover(null), { signal });
    this.stage.addEventListener("click", (event) => {
      const cell = this.#cellUnder(event);
      if (cell) this.listeners.onPick(cell);
    }, { signal });
    signal.addEventListener("abort", () => cancelAnimationFrame(this.frame));
    if (typeof ResizeObserver === "undefined") return;
    const observer = new ResizeObserver(() => {
      if (this.node.clientWidth && this.node.clientWidth !== this.laidOutFor) this.invalidate();
    });
    observer.observe(this.node);
    signal.addEventListener("abort", () => observer.disconnect());
  }

  /** Draws again, laid out anew, in the next frame, and counts that as a draw. */
  invalidate() {
    this.counts = true;
    this.layout = null;
    this.#schedule();
  }

  /** Draws again in the next frame without a new layout (the cursor moved). */
  redraw() {
    this.counts = true;
    this.#schedule();
  }

  #schedule() {
    if (!this.frame) this.frame = requestAnimationFrame(() => this.draw());
  }

  /** @param {MatrixData} data @param {Painted} painted */
  show(data, painted) {
    this.data = data;
    this.painted = painted;
    this.hover = null;
    this.invalidate();
  }

  /** @returns {Layout} */
  #layOut() {
    if (this.layout) return this.layout;
    const data = /** @type {MatrixData} */ (this.data);
    const room = this.node.clientWidth || WIDTH_UNSEEN;
    this.colors = canvasColors(this.root);
    const ctx = this.overlay.getContext("2d");
    const titles = [`${data.rowTitle} ↓`, `${data.colTitle} →`];
    /** @type {Sizes} */
    const sizes = {
      rows: data.rows, cols: data.cols, kind: data.kind, gap: data.sinkApart,
      rowLabelWidth: widestLabel(ctx, this.colors, data.rowLabels, 130),
      colLabelWidth: widestLabel(ctx, this.colors, data.colLabels, 110),
      titleWidth: widestLabel(ctx, this.colors, titles, 110),
    };
    const { w, h: height } = cellSize(sizes, room, this.chosen);
    const layout = (this.layout = layoutOf(sizes, w, height));
    this.laidOutFor = room;
    this.sizer.style.width = `${layout.width}px`;
    this.sizer.style.height = `${layout.height}px`;
    this.#resize();
    return layout;
  }

  #resize() {
    const layout = /** @type {Layout} */ (this.layout);
    const w = this.node.clientWidth || WIDTH_UNSEEN;
    const hgt = this.node.clientHeight || Math.min(VIEW_HEIGHT, layout.height);
    this.size = { w: Math.min(w, layout.width), h: Math.min(hgt, layout.height) };
    const ratio = window.devicePixelRatio || 1;
    for (const canvas of [this.canvas, this.overlay]) {
      canvas.style.width = `${this.size.w}px`;
      canvas.style.height = `${this.size.h}px`;
      canvas.width = Math.round(this.size.w * ratio);
      canvas.height = Math.round(this.size.h * ratio);
      canvas.getContext("2d")?.setTransform(ratio, 0, 0, ratio, 0, 0);
    }
  }

  #scene() {
    const layout = this.#layOut();
    return {
      data: /** @type {MatrixData} */ (this.data),
      painted: /** @type {Painted} */ (this.painted),
      colors: /** @type {CanvasColors} */ (this.colors),
      layout,
      scroll: { x: Math.round(this.node.scrollLeft), y: Math.round(this.node.scrollTop) },
      size: this.size,
      cell: this.cell,
    };
  }

  /** Draws now. */
  draw() {
    cancelAnimationFrame(this.frame);
    this.frame = 0;
    if (!this.data?.drawn || !this.painted) return;
    const scene = this.#scene();
    const ctx = this.canvas.getContext("2d");
    if (ctx) {
      const { size, layout } = scene;
      ctx.fillStyle = scene.colors.bg;
      ctx.fillRect(0, 0, size.w, size.h);
      clipped(ctx, layout.left - 1, layout.top - 1, size.w, size.h, () => {
        drawCells(ctx, scene);
        drawCursor(ctx, scene);
      });
      drawAxes(ctx, scene);
    }
    this.#drawHover();
    if (this.counts) this.listeners.onDrawn();
    this.counts = false;
  }

  #drawHover() {
    const ctx = this.overlay.getContext("2d");
    if (!ctx) return;
    ctx.clearRect(0, 0, this.size.w, this.size.h);
    if (this.hover) drawHover(ctx, this.#scene(), this.hover);
  }

  /** @param {MouseEvent} event */
  #cellUnder(event) {
    if (!this.data?.drawn) return null;
    const box = this.canvas.getBoundingClientRect();
    const point = { x: event.clientX - box.left, y: event.clientY - box.top };
    return cellAt(this.#layOut(), point, { x: this.node.scrollLeft, y: this.node.scrollTop });
  }

  /** @param {MouseEvent} event */
  #point(event) {
    this.#setHover(this.#cellUnder(event));
  }

  /** @param {Cell | null} cell */
  #setHover(cell) {
    if (cell?.r === this.hover?.r && cell?.c === this.hover?.c) return;
    this.hover = cell;
    this.#drawHover();
    this.listeners.onHover(cell, cell && this.#box(cell));
  }

  /** @param {Cell} cell @returns {Box} */
  #box({ r, c }) {
    const layout = this.#layOut();
    const box = this.canvas.getBoundingClientRect();
    return {
      x: box.left + colX(layout, c) - this.node.scrollLeft,
      y: box.top + rowY(layout, r) - this.node.scrollTop,
      width: colW(layout, c),
      height: layout.cellH,
    };
  }

  /** Marks the cursor's cell (−1: none in that direction). @param {Cell} cell @param {boolean} reveal whether to scroll to it */
  setCell(cell, reveal) {
    const same = cell.r === this.cell.r && cell.c === this.cell.c;
    this.cell = cell;
    if (reveal && !same) this.reveal(cell);
    this.redraw();
  }

  /** Scrolls the plot, and nothing around it, until the cell can be seen. @param {Cell} cell */
  reveal(cell) {
    if (!this.data?.drawn) return;
    const layout = this.#layOut();
    const { x, y } = scrollTo(layout, cell, { x: this.node.scrollLeft, y: this.node.scrollTop }, this.size);
    this.node.scrollLeft = x;
    this.node.scrollTop = y;
  }

  /** Steps the cell size; the middle of the view stays where it is. @param {1 | -1 | "fit"} way */
  zoom(way) {
    if (!this.data?.drawn) return;
    const old = this.#layOut();
    const middle = {
      x: (this.node.scrollLeft + (this.size.w - old.left) / 2) / old.cellW,
      y: (this.node.scrollTop + (this.size.h - old.top) / 2) / old.cellH,
    };
    this.chosen = way === "fit" ? "fit" : zoomed(this.data.kind, old.cellW, way);
    this.layout = null;
    const layout = this.#layOut();
    this.node.scrollLeft = middle.x * layout.cellW - (this.size.w - layout.left) / 2;
    this.node.scrollTop = middle.y * layout.cellH - (this.size.h - layout.top) / 2;
    this.redraw();
  }

  /**
   * Where a cell is on the screen (client coordinates), after scrolling it into view. For tests and assistive scripts:
   * `document.querySelector("[data-testid=wb-matrix-canvas]").wbCellRect(row, column)`.
   * @param {number} r
   * @param {number} c
   */
  cellRect(r, c) {
    if (!this.data?.drawn || r < 0 || c < 0 || r >= this.data.rows || c >= this.data.cols) return null;
    this.reveal({ r, c });
    this.draw();
    const box = this.#box({ r, c });
    if (box.y >= 0 && box.y + box.height <= window.innerHeight) return box;
    this.canvas.scrollIntoView({ block: "center" });
    return this.#box({ r, c });
  }
}
