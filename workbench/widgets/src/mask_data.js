// @ts-check
// A mask's payload as the plot wants it: one text of the batch, a level for each pattern of reason bits, its colour and letters.

import { fromOklch, LEVELS, rampColors } from "./color.js";
import { readMatrix } from "./matrix_data.js";
/** @import { Payload } from "./protocol.js" */
/** @import { Rgb, ThemeName } from "./color.js" */
/** @import { MatrixData, Painted } from "./matrix_data.js" */

/**
 * @typedef {{name: string, letter: string, label: string}} Rule
 * @typedef {MatrixData & {rules: Rule[], bits: Uint8Array, texts: string[], notes: string[], levels: Uint16Array,
 *            counts: Map<number, number>, which: number}} MaskData
 */

/** Chroma and hue of a rule's cells. Causal ones are grey: they fill half of the picture.
 * @type {Record<string, [chroma: number, hue: number]>} */
const TINTS = {
  causal: [0.004, 250], padding: [0.11, 80], empty_slot: [0.1, 305], custom: [0.11, 20],
  window: [0.09, 195], document: [0.1, 345], sink: [0.1, 150],
};
const OTHERS = [165, 320, 120, 50];
const LIGHTNESS = { light: 0.9, dark: 0.4 };
/** From so many queries on, the whole mask is shown first, not its corner. */
const OVERVIEW = 40;
/** Quiet: letters fill half of a causal picture. */
const INK = { light: "rgb(0 0 0 / 52%)", dark: "rgb(255 255 255 / 58%)" };

/**
 * @param {Payload} payload
 * @param {number} which text of the batch is shown
 * @returns {MaskData}
 */
export function readMask({ rev, content, arrays }, which) {
  const texts = content.texts ?? [];
  const shown = Math.min(Math.max(0, which), Math.max(0, texts.length - 1));
  const options = texts.map((/** @type {any} */ text, /** @type {number} */ i) => ({ value: i, label: text.name }));
  const data = readMatrix({
    rev,
    content: {
      ...content,
      kind: "mask",
      rows: texts[shown]?.queries ?? [],
      cols: texts[shown]?.keys ?? [],
      row_index: content.query_index,
      col_index: content.key_index,
      row_axis_cursor: "query",
      col_axis_cursor: "key",
      row_title: "query",
      col_title: "key",
      controls: options.length > 1 ? [{ name: "text", label: "Text", kind: "select", value: shown, options }] : [],
    },
    arrays: {},
  });
  const size = data.rows * data.cols;
  const all = /** @type {Uint8Array} */ (arrays.reasons?.data ?? new Uint8Array(0));
  const from = all.length > size ? shown * size : 0; // one row of reasons stands for all texts
  const bits = all.subarray(from, from + size);
  return {
    ...data,
    bits,
    which: shown,
    rules: content.rules ?? [],
    texts: texts.map((/** @type {any} */ text) => text.name),
    notes: [...(content.notes ?? []), ...(texts[shown]?.notes ?? [])],
    levels: levelsOf(bits),
    counts: countPatterns(bits),
  };
}

/** How many cells have each pattern of reasons. @param {Uint8Array} bits @returns {Map<number, number>} */
function countPatterns(bits) {
  const counts = new Array(256).fill(0);
  for (let i = 0; i < bits.length; i++) counts[bits[i]] += 1;
  return new Map([...counts.entries()].filter(([, count]) => count > 0));
}

/** The size of cells first shown. @param {MaskData} data @returns {"fit" | undefined} */
export const firstSize = (data) => (data.rows > OVERVIEW ? "fit" : undefined);

/** @param {Uint8Array} bits */
function levelsOf(bits) {
  const levels = new Uint16Array(bits.length);
  for (let i = 0; i < bits.length; i++) levels[i] = levelOf(bits[i]);
  return levels;
}

/** The rules that a pattern of bits stands for. @param {MaskData} data @param {number} pattern */
export const rulesOf = ({ rules }, pattern) => rules.filter((_, i) => (pattern >> i) & 1);

/** Where cells share a pixel the highest level is drawn: a cell that may attend must not vanish. @param {number} pattern */
export const levelOf = (pattern) => LEVELS - 1 - pattern;

/** @param {MaskData} data @param {number} pattern @param {ThemeName} theme @returns {Rgb} */
export function colorOf(data, pattern, theme) {
  if (pattern === 0) return rampColors("sequential", theme)[theme === "light" ? 170 : 150];
  const rule = 31 - Math.clz32(pattern); // the last rule is the most specific one
  const name = data.rules[rule]?.name ?? "";
  const [chroma, hue] = TINTS[name] ?? [0.1, OTHERS[rule % OTHERS.length]];
  return fromOklch(LIGHTNESS[theme], chroma, hue);
}

/** The letters of a pattern, the most specific rule's last. @param {MaskData} data @param {number} pattern */
export const lettersOf = (data, pattern) => rulesOf(data, pattern).map((rule) => rule.letter).join("");

/** @param {MaskData} data @param {ThemeName} theme @returns {Painted} */
export function paintMask(data, theme) {
  /** @type {Rgb[]} */
  const colors = new Array(LEVELS).fill([0, 0, 0]);
  /** @type {Record<number, {text: string, ink: string}>} */
  const signs = {};
  for (const pattern of data.counts.keys()) {
    colors[levelOf(pattern)] = colorOf(data, pattern, theme);
    signs[levelOf(pattern)] = { text: lettersOf(data, pattern), ink: INK[theme] };
  }
  return {
    metric: null,
    scale: { name: "linear", low: 0, high: 1, diverging: false, reversed: false },
    levels: data.levels,
    colors,
    signs,
    found: new Set(),
    reasons: new Set(),
  };
}
