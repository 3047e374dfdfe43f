// @ts-check
// Looking over arrays of numbers: the range for a legend, the level of each cell, and pooling for cells under a pixel.

import { LEVELS } from "./color.js";
import { placer } from "./scale.js";
/** @import { Scale } from "./scale.js" */

/** What a cell is when it is not one of the 256 levels. */
export const NAN = 256;
export const PLUS_INF = 257;
export const MINUS_INF = 258;
export const MASKED = 259;
export const PENDING = 260;
export const CODES = 261;

/**
 * Smallest, largest and smallest positive finite value, of cells that are not masked.
 * @param {ArrayLike<number>} values
 * @param {{mask?: ArrayLike<number> | null, cols?: number, skipFirst?: boolean}} [only] `skipFirst` leaves out column 0
 */
export function extent(values, { mask = null, cols = 0, skipFirst = false } = {}) {
  let low = Infinity;
  let high = -Infinity;
  let positive = Infinity;
  for (let i = 0; i < values.length; i++) {
    const v = values[i];
    if (!Number.isFinite(v) || (mask && mask[i]) || (skipFirst && i % cols === 0)) continue;
    if (v < low) low = v;
    if (v > high) high = v;
    if (v > 0 && v < positive) positive = v;
  }
  return { low, high, positive };
}

/** Which codes and mask reasons occur. @param {ArrayLike<number> | null} numbers @param {number} from smallest to report */
export function occurring(numbers, from) {
  const seen = new Uint8Array(65536);
  for (let i = 0; i < (numbers?.length ?? 0); i++) seen[/** @type {ArrayLike<number>} */ (numbers)[i]] = 1;
  const found = new Set();
  for (let n = from; n < seen.length; n++) if (seen[n]) found.add(n);
  return found;
}

/**
 * The level (0–255) or code of every cell.
 * @param {ArrayLike<number>} values
 * @param {Scale} scale
 * @param {ArrayLike<number> | null} mask
 * @param {boolean} computing NaN then means "not computed yet"
 * @returns {Uint16Array}
 */
export function levelsOf(values, scale, mask, computing) {
  const out = new Uint16Array(values.length);
  const levelOf = placer(scale);
  for (let i = 0; i < values.length; i++) {
    const v = values[i];
    if (mask && mask[i]) out[i] = MASKED;
    else if (v === Infinity) out[i] = PLUS_INF;
    else if (v === -Infinity) out[i] = MINUS_INF;
    else if (Number.isNaN(v)) out[i] = computing ? PENDING : NAN;
    else out[i] = Math.round(levelOf(v) * (LEVELS - 1));
  }
  return out;
}

/** Which of two cells that share a pixel is drawn: a number before a code, and the one farther up the ramp.
 * @param {number} a @param {number} b @param {boolean} diverging */
function stronger(a, b, diverging) {
  if (a >= LEVELS || b >= LEVELS) {
    if (a < LEVELS) return a;
    if (b < LEVELS) return b;
    return Math.min(a, b);
  }
  if (!diverging) return Math.max(a, b);
  const middle = (LEVELS - 1) / 2;
  return Math.abs(a - middle) >= Math.abs(b - middle) ? a : b;
}

/**
 * Levels of a window, reduced to `outRows` × `outCols`; where several cells fall on one pixel the strongest is kept, so
 * that a single bright cell does not vanish.
 * @param {Uint16Array} levels
 * @param {number} cols of the whole matrix
 * @param {{r0: number, r1: number, c0: number, c1: number}} window half-open
 * @param {number} outRows
 * @param {number} outCols
 * @param {boolean} diverging
 */
export function pooled(levels, cols, { r0, r1, c0, c1 }, outRows, outCols, diverging) {
  const h = r1 - r0;
  const w = c1 - c0;
  const out = new Uint16Array(outRows * outCols).fill(0xffff);
  if (outRows === h && outCols === w) {
    for (let r = 0; r < h; r++) out.set(levels.subarray((r0 + r) * cols + c0, (r0 + r) * cols + c1), r * w);
    return out;
  }
  for (let r = r0; r < r1; r++) {
    const y = Math.floor(((r - r0) * outRows) / h);
    for (let c = c0; c < c1; c++) {
      const at = y * outCols + Math.floor(((c - c0) * outCols) / w);
      const level = levels[r * cols + c];
      out[at] = out[at] === 0xffff ? level : stronger(out[at], level, diverging);
    }
  }
  return out;
}
