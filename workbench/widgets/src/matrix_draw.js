// @ts-check
// The cells of the matrix on a 2D canvas: colours, hatching, glyphs, text, and the marks of the cursor.

import { css, fromOklch, LEVELS, pixel, textOn } from "./color.js";
import { colW, colX, rowY, visibleWindow } from "./matrix_layout.js";
import { fitText } from "./tokens.js";
import { CODES, MASKED, MINUS_INF, NAN, PENDING, PLUS_INF, pooled } from "./values.js";
/** @import { MatrixData, Painted } from "./matrix_data.js" */
/** @import { Layout, Window } from "./matrix_layout.js" */
/** @import { CanvasColors } from "./theme.js" */
/** @import { Rgb, ThemeName } from "./color.js" */

/**
 * @typedef {{data: MatrixData, painted: Painted, layout: Layout, scroll: {x: number, y: number}, size: {w: number, h: number},
 *            colors: CanvasColors, cell: {r: number, c: number}}} Scene
 */

/** @param {Rgb} masked @param {Rgb} pending @param {number} l @returns {Record<number, Rgb>} */
function fills(masked, pending, l) {
  const odd = (/** @type {number} */ hue) => fromOklch(l, 0.1, hue);
  return { [MASKED]: masked, [PENDING]: pending, [NAN]: odd(95), [PLUS_INF]: odd(20), [MINUS_INF]: odd(320) };
}

/** Fills of what is not a number. @type {Record<ThemeName, Record<number, Rgb>>} */
const FILLS = {
  light: fills([231, 231, 231], [244, 244, 244], 0.87),
  dark: fills([58, 58, 58], [44, 44, 44], 0.47),
};
const HATCH = { light: "rgb(0 0 0 / 17%)", dark: "rgb(255 255 255 / 17%)" };
/** Quiet: it fills half of a causal picture. */
const LETTER = { light: "rgb(0 0 0 / 42%)", dark: "rgb(255 255 255 / 46%)" };
/** @type {Record<number, {sign: string, word: string}>} */
const GLYPHS = {
  [NAN]: { sign: "×", word: "NaN" },
  [PLUS_INF]: { sign: "▲", word: "+∞" },
  [MINUS_INF]: { sign: "▼", word: "−∞" },
};
const CELL_FONT = 11;

/** @param {number} code @param {ThemeName} theme */
export const fillOf = (code, theme) => css(FILLS[theme][code]);

/** @param {Painted} painted @param {ThemeName} theme */
function pixelTable(painted, theme) {
  const table = new Uint32Array(CODES);
  painted.colors.forEach((rgb, i) => (table[i] = pixel(rgb)));
  for (const [code, rgb] of Object.entries(FILLS[theme])) table[Number(code)] = pixel(rgb);
  return table;
}

/** @type {HTMLCanvasElement | null} */
let scratch = null;

/**
 * Draws columns c0…c1 as an image of one pixel a cell, scaled up without smoothing; cells smaller than a pixel are pooled.
 * @param {CanvasRenderingContext2D} ctx
 * @param {Scene} scene
 * @param {Window} win
 */
function blit(ctx, { data, painted, layout, colors, scroll }, win) {
  const { cellW, cellH } = layout;
  const h = win.r1 - win.r0;
  const w = win.c1 - win.c0;
  if (h <= 0 || w <= 0) return;
  const outH = cellH >= 1 ? h : Math.max(1, Math.round(h * cellH));
  const width = colX(layout, win.c1 - 1) + colW(layout, win.c1 - 1) - colX(layout, win.c0);
  const outW = cellW >= 1 ? w : Math.max(1, Math.round(w * cellW));
  const levels = pooled(painted.levels, data.cols, win, outH, outW, painted.scale.diverging);
  const table = pixelTable(painted, colors.theme);
  scratch ??= document.createElement("canvas");
  scratch.width = outW;
  scratch.height = outH;
  const off = scratch.getContext("2d");
  if (!off) return;
  const image = off.createImageData(outW, outH);
  const pixels = new Uint32Array(image.data.buffer);
  for (let i = 0; i < levels.length; i++) pixels[i] = table[levels[i]];
  off.putImageData(image, 0, 0);
  ctx.imageSmoothingEnabled = false;
  const x = colX(layout, win.c0) - scroll.x;
  ctx.drawImage(scratch, 0, 0, outW, outH, x, rowY(layout, win.r0) - scroll.y, width, h * cellH);
}

/** @param {CanvasRenderingContext2D} ctx @param {Scene} scene */
export function drawCells(ctx, scene) {
  const { layout, scroll, size } = scene;
  const win = visibleWindow(layout, scroll, size);
  if (layout.gap && win.c0 === 0) {
    blit(ctx, scene, { ...win, c1: Math.min(1, win.c1) });
    blit(ctx, scene, { ...win, c0: 1 });
  } else blit(ctx, scene, win);
  hatch(ctx, scene, win);
  if (Math.min(layout.cellW, layout.cellH) >= 8) gridLines(ctx, scene, win);
  if (Math.min(layout.cellW, layout.cellH) >= 7) drawSigns(ctx, scene, win);
}

/** @param {number} level */
const isHatched = (level) => level === MASKED || level === PENDING;

/** Diagonal lines over masked and not yet computed cells. @param {CanvasRenderingContext2D} ctx @param {Scene} scene @param {Window} win */
function hatch(ctx, { data, painted, layout, scroll, size, colors }, win) {
  const path = new Path2D();
  let any = false;
  const step = Math.max(1, Math.floor(1 / layout.cellH));
  for (let r = win.r0; r < win.r1; r += step) {
    for (let c = win.c0; c < win.c1; c++) {
      const start = c;
      while (c < win.c1 && isHatched(painted.levels[r * data.cols + c])) c++;
      if (c === start) continue;
      any = true;
      const x = colX(layout, start);
      const width = colX(layout, c - 1) + colW(layout, c - 1) - x;
      path.rect(x - scroll.x, rowY(layout, r) - scroll.y, width, step * layout.cellH);
    }
  }
  if (!any) return;
  ctx.save();
  ctx.clip(path);
  ctx.strokeStyle = HATCH[colors.theme];
  ctx.lineWidth = 1;
  ctx.beginPath();
  const phase = (((scroll.x + scroll.y) % 6) + 6) % 6;
  for (let k = -phase; k < size.w + size.h; k += 6) {
    ctx.moveTo(k, 0);
    ctx.lineTo(k - size.h, size.h);
  }
  ctx.stroke();
  ctx.restore();
}

/** @param {CanvasRenderingContext2D} ctx @param {Scene} scene @param {Window} win */
function gridLines(ctx, { layout, scroll, colors }, win) {
  ctx.fillStyle = colors.bg;
  const x0 = colX(layout, win.c0) - scroll.x;
  const x1 = colX(layout, win.c1 - 1) + colW(layout, win.c1 - 1) - scroll.x;
  const y0 = rowY(layout, win.r0) - scroll.y;
  const y1 = rowY(layout, win.r1) - scroll.y;
  for (let c = win.c0; c < win.c1; c++) ctx.fillRect(colX(layout, c) + colW(layout, c) - 1 - scroll.x, y0, 1, y1 - y0);
  for (let r = win.r0; r < win.r1; r++) ctx.fillRect(x0, rowY(layout, r + 1) - 1 - scroll.y, x1 - x0, 1);
}

/** Token texts, glyphs for what is not finite, and letters of mask reasons. @param {CanvasRenderingContext2D} ctx
 * @param {Scene} scene @param {Window} win */
function drawSigns(ctx, scene, win) {
  const { data, painted, layout, scroll, colors } = scene;
  const { cellW, cellH } = layout;
  ctx.font = `${CELL_FONT}px ${colors.ui}`;
  ctx.textBaseline = "middle";
  ctx.textAlign = "left";
  const middle = cellH / 2 + 0.5;
  for (let r = win.r0; r < win.r1; r++) {
    for (let c = win.c0; c < win.c1; c++) {
      const level = painted.levels[r * data.cols + c];
      const sign = painted.signs?.[level];
      const text = sign ? signText(sign.text, layout) : cellText(ctx, scene, r * data.cols + c, level);
      if (!text) continue;
      const ink = level < LEVELS ? textOn(painted.colors[level]) : level === MASKED ? LETTER[colors.theme] : colors.fg;
      ctx.fillStyle = sign?.ink ?? ink;
      const x = colX(layout, c) - scroll.x;
      const centred = sign || (level >= LEVELS && !(data.text && level !== MASKED && cellW > 30));
      ctx.fillText(text, centred ? x + (cellW - 1 - ctx.measureText(text).width) / 2 : x + 4, rowY(layout, r) + middle - scroll.y);
    }
  }
}

/** A sign's letters; where they do not fit, the last one and a plus. @param {string} text @param {Layout} layout */
function signText(text, { cellW, cellH }) {
  if (Math.min(cellW, cellH) < 14) return "";
  const room = Math.floor((cellW - 4) / 7.5);
  return text.length <= room ? text : `${text.slice(-1)}${room > 1 ? "+" : ""}`;
}

/** @type {Map<string, string>} */
const fitted = new Map();

/** @param {CanvasRenderingContext2D} ctx @param {Scene} scene @param {number} at @param {number} level */
function cellText(ctx, { data, layout }, at, level) {
  const { cellW, cellH } = layout;
  if (GLYPHS[level]) return cellW >= 26 && cellH >= 12 ? GLYPHS[level].word : GLYPHS[level].sign;
  if (level === MASKED) {
    const reason = data.reasons[(data.mask?.[at] ?? 0) - 1];
    return Math.min(cellW, cellH) >= 14 ? (reason?.letter ?? "") : "";
  }
  if (level === PENDING || !data.text || data.text[at] < 0 || cellW < 24 || cellH < 12) return "";
  return fittedText(ctx, data.word(data.text[at]), cellW - 8);
}

/** @param {CanvasRenderingContext2D} ctx @param {string} text @param {number} width */
export function fittedText(ctx, text, width) {
  const key = `${ctx.font}|${Math.round(width)}|${text}`;
  let found = fitted.get(key);
  if (found === undefined) {
    if (fitted.size > 20000) fitted.clear();
    found = fitText(text, width, (t) => ctx.measureText(t).width);
    fitted.set(key, found);
  }
  return found;
}

/** Colour of a cursor's band: the query's, the key's, or the text's for a layer. @param {CanvasColors} colors @param {string} name */
export function cursorColor(colors, name) {
  return name === "query" ? colors.query : name === "key" ? colors.key : colors.fg;
}

/** Lines along the cursor's row and column, and a ring around its cell. @param {CanvasRenderingContext2D} ctx @param {Scene} scene */
export function drawCursor(ctx, { data, layout, scroll, colors, cell }) {
  const { r, c } = cell;
  const x0 = layout.left - scroll.x;
  const y0 = layout.top - scroll.y;
  const width = colX(layout, data.cols - 1) + colW(layout, data.cols - 1) - layout.left;
  const height = data.rows * layout.cellH;
  const x = c >= 0 ? colX(layout, c) - scroll.x : x0;
  const y = r >= 0 ? rowY(layout, r) - scroll.y : y0;
  const bandW = Math.max(3, colW(layout, Math.max(0, c)));
  const bandH = Math.max(3, layout.cellH);
  ctx.lineWidth = 1.5;
  if (r >= 0) strokeBox(ctx, cursorColor(colors, data.rowCursor), x0, y - 0.5, width, bandH, []);
  const dash = data.colCursor === "key" ? [5, 3] : [];
  if (c >= 0) strokeBox(ctx, cursorColor(colors, data.colCursor), x - 0.5, y0, bandW, height, dash);
  if (r < 0 || c < 0) return;
  ctx.lineWidth = 4;
  strokeBox(ctx, colors.bg, x - 0.5, y - 0.5, bandW, bandH, []);
  ctx.lineWidth = 2.5;
  strokeBox(ctx, colors.query, x - 0.5, y - 0.5, bandW, bandH, []);
}

/**
 * @param {CanvasRenderingContext2D} ctx
 * @param {string} color
 * @param {number} x
 * @param {number} y
 * @param {number} w
 * @param {number} h
 * @param {number[]} dash
 */
function strokeBox(ctx, color, x, y, w, h, dash) {
  ctx.strokeStyle = color;
  ctx.setLineDash(dash);
  ctx.strokeRect(x, y, w, h);
  ctx.setLineDash([]);
}
