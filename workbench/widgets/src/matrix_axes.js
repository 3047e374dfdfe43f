// @ts-check
// The frozen labels of rows and columns, and their highlight under the pointer.

import { cursorColor, fittedText } from "./matrix_draw.js";
import { colW, colX, labelStep, rowY, SLANT_ANGLE, visibleWindow } from "./matrix_layout.js";
/** @import { Scene } from "./matrix_draw.js" */
/** @import { CanvasColors } from "./theme.js" */

const FONT = 11;
const SMALL = 10;

/** @param {CanvasColors} colors @param {boolean} [strong] @param {number} [size] */
const font = (colors, strong = false, size = FONT) => `${strong ? "600 " : ""}${size}px ${colors.ui}`;

/** @param {CanvasRenderingContext2D} ctx @param {Scene} scene */
export function drawAxes(ctx, scene) {
  const { layout, size, colors } = scene;
  ctx.fillStyle = colors.bg;
  ctx.fillRect(0, 0, size.w, layout.top);
  ctx.fillRect(0, 0, layout.left, size.h);
  ctx.textBaseline = "middle";
  clipped(ctx, 0, layout.top, layout.left, size.h - layout.top, () => drawRowLabels(ctx, scene));
  clipped(ctx, layout.left, 0, size.w - layout.left, layout.top, () => drawColLabels(ctx, scene));
  drawCorner(ctx, scene);
}

/**
 * @param {CanvasRenderingContext2D} ctx
 * @param {number} x
 * @param {number} y
 * @param {number} w
 * @param {number} h
 * @param {() => void} draw
 */
export function clipped(ctx, x, y, w, h, draw) {
  ctx.save();
  ctx.beginPath();
  ctx.rect(x, y, w, h);
  ctx.clip();
  draw();
  ctx.restore();
}

/** @param {CanvasRenderingContext2D} ctx @param {Scene} scene */
function drawRowLabels(ctx, scene) {
  const { data, layout, scroll, size, colors, cell } = scene;
  const win = visibleWindow(layout, scroll, size);
  const ticks = layout.cellH < 10;
  const step = ticks ? labelStep(layout.cellH, 16) : 1;
  ctx.textAlign = "right";
  for (let r = win.r0; r < win.r1; r++) {
    if (r % step && r !== cell.r) continue;
    if (ticks && r !== cell.r && cell.r >= 0 && Math.abs(r - cell.r) * layout.cellH < 12) continue;
    const y = rowY(layout, r) + Math.max(r === 0 ? 6 : 0, layout.cellH / 2 + 0.5) - scroll.y;
    const here = r === cell.r;
    ctx.font = font(colors, here, ticks ? SMALL : FONT);
    ctx.fillStyle = here ? cursorColor(colors, data.rowCursor) : ticks ? colors.muted : colors.fg;
    const text = ticks && data.rowTokens ? String(data.rowIndex[r] ?? "") : data.rowLabels[r];
    ctx.fillText(fittedText(ctx, text, layout.left - 12), layout.left - 7, y);
  }
}

/** @param {CanvasRenderingContext2D} ctx @param {Scene} scene */
function drawColLabels(ctx, scene) {
  const { data, layout, scroll, size, colors, cell } = scene;
  const win = visibleWindow(layout, scroll, size);
  const flat = layout.header === "flat";
  const ticks = layout.header === "ticks";
  const step = ticks ? labelStep(layout.cellW, 34) : layout.header === "upright" ? labelStep(layout.cellW, 11) : 1;
  for (let c = win.c0; c < win.c1; c++) {
    const here = c === cell.c;
    if (c % step && !here) continue;
    if (ticks && !here && cell.c >= 0 && Math.abs(c - cell.c) * layout.cellW < 26) continue;
    const x = colX(layout, c) + colW(layout, c) / 2 - scroll.x;
    ctx.fillStyle = here ? cursorColor(colors, data.colCursor) : colors.fg;
    ctx.font = font(colors, here);
    if (flat) drawFlat(ctx, scene, c, x, here);
    else if (ticks) drawTick(ctx, scene, c, x, here);
    else drawTurned(ctx, scene, c, x);
  }
}

/** @param {CanvasRenderingContext2D} ctx @param {Scene} scene @param {number} c @param {number} x @param {boolean} here */
function drawFlat(ctx, { data, layout, colors }, c, x, here) {
  ctx.textAlign = "center";
  ctx.fillText(fittedText(ctx, data.colLabels[c], layout.cellW - 4), x, layout.top - 10);
  ctx.font = font(colors, false, SMALL);
  if (!here) ctx.fillStyle = colors.muted;
  ctx.fillText(String(data.colIndex[c] ?? ""), x, layout.top - 25);
}

/** @param {CanvasRenderingContext2D} ctx @param {Scene} scene @param {number} c @param {number} x @param {boolean} here */
function drawTick(ctx, { data, layout, colors }, c, x, here) {
  ctx.font = font(colors, here, SMALL);
  if (!here) ctx.fillStyle = colors.muted;
  ctx.textAlign = "center";
  ctx.fillText(String(data.colIndex[c] ?? c), Math.max(x, layout.left + 4), layout.top - 14);
  ctx.fillRect(Math.round(x), layout.top - 6, 1, 4);
}

/** @param {CanvasRenderingContext2D} ctx @param {Scene} scene @param {number} c @param {number} x */
function drawTurned(ctx, { data, layout }, c, x) {
  const slant = layout.header === "slant";
  const angle = slant ? SLANT_ANGLE : Math.PI / 2;
  const room = (layout.top - 10) / Math.sin(angle);
  ctx.save();
  ctx.translate(slant ? x - 1 : x + 0.5, layout.top - 5);
  ctx.rotate(-angle);
  ctx.textAlign = "left";
  ctx.fillText(fittedText(ctx, data.colLabels[c], room), 0, 0);
  ctx.restore();
}

/** The titles of the two axes, in the corner that they share. @param {CanvasRenderingContext2D} ctx @param {Scene} scene */
function drawCorner(ctx, { data, layout, colors }) {
  ctx.fillStyle = colors.bg;
  ctx.fillRect(0, 0, layout.left, layout.top);
  ctx.fillStyle = colors.muted;
  ctx.font = font(colors, false, SMALL);
  ctx.textAlign = "right";
  const width = layout.left - 10;
  if (data.colTitle) ctx.fillText(fittedText(ctx, `${data.colTitle} →`, width), layout.left - 7, layout.top - 25);
  if (data.rowTitle) ctx.fillText(fittedText(ctx, `${data.rowTitle} ↓`, width), layout.left - 7, layout.top - 10);
}

/** Widths of the longest labels, for the layout. @param {CanvasRenderingContext2D | null} ctx @param {CanvasColors} colors
 * @param {string[]} labels @param {number} most */
export function widestLabel(ctx, colors, labels, most) {
  if (!ctx) return 40;
  ctx.font = font(colors, true);
  const sample = labels.length > 600 ? labels.filter((_, i) => i % Math.ceil(labels.length / 600) === 0) : labels;
  return Math.ceil(Math.min(most, sample.reduce((w, text) => Math.max(w, ctx.measureText(text.slice(0, 40)).width), 0)));
}

/** The hovered cell: a ring, and its labels in full on a contrasting ground. @param {CanvasRenderingContext2D} ctx
 * @param {Scene} scene @param {{r: number, c: number}} hover */
export function drawHover(ctx, { data, layout, scroll, size, colors }, { r, c }) {
  const x = colX(layout, c) - scroll.x;
  const y = rowY(layout, r) - scroll.y;
  clipped(ctx, layout.left, layout.top, size.w, size.h, () => {
    ctx.globalAlpha = 0.35;
    ctx.fillStyle = colors.fg;
    const right = Math.min(size.w, colX(layout, data.cols - 1) + colW(layout, data.cols - 1) - scroll.x);
    const bottom = Math.min(size.h, rowY(layout, data.rows) - scroll.y);
    for (const edge of [y - 1, y + layout.cellH - 0.5]) ctx.fillRect(layout.left, edge, right - layout.left, 1);
    for (const edge of [x - 1, x + colW(layout, c) - 0.5]) ctx.fillRect(edge, layout.top, 1, bottom - layout.top);
    ctx.globalAlpha = 1;
    ctx.strokeStyle = colors.fg;
    ctx.lineWidth = 1.5;
    ctx.strokeRect(x - 0.5, y - 0.5, colW(layout, c), layout.cellH);
  });
  ctx.font = font(colors, true);
  ctx.textBaseline = "middle";
  ctx.textAlign = "center";
  const rowText = fittedText(ctx, axisWords(data.rowLabels[r], data.rowIndex[r], data.rowTokens), layout.left - 10);
  const rowW = ctx.measureText(rowText).width + 8;
  labelChip(ctx, colors, rowText, layout.left - 4 - rowW, y + layout.cellH / 2 - 8, rowW);
  const colText = fittedText(ctx, axisWords(data.colLabels[c], data.colIndex[c], data.colTokens), 220);
  const labelW = ctx.measureText(colText).width + 8;
  const colLeft = Math.min(Math.max(layout.left, x + layout.cellW / 2 - labelW / 2), Math.max(layout.left, size.w - labelW));
  labelChip(ctx, colors, colText, colLeft, layout.top - 18, labelW);
}

/** @param {string} label @param {number | null} index @param {boolean} isToken */
const axisWords = (label, index, isToken) => (isToken && index !== null ? `${index} ${label}` : label);

/**
 * @param {CanvasRenderingContext2D} ctx
 * @param {CanvasColors} colors
 * @param {string} text
 * @param {number} x
 * @param {number} y
 * @param {number} w
 */
function labelChip(ctx, colors, text, x, y, w) {
  ctx.fillStyle = colors.fg;
  ctx.beginPath();
  ctx.roundRect(x, y, w, 16, 3);
  ctx.fill();
  ctx.fillStyle = colors.bg;
  ctx.fillText(text, x + w / 2, y + 8.5);
}
