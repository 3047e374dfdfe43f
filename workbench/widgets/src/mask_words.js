// @ts-check
// A cell of a mask in words, a query's row in words, and the summary.

import { h } from "./dom.js";
import { rulesOf } from "./mask_data.js";
import { colWords, rowWords } from "./matrix_words.js";
import { tipRows } from "./tooltip.js";
/** @import { MaskData } from "./mask_data.js" */

/** @param {{name: string, label: string}} rule */
const ruleWords = ({ name, label }) => (label ? `${name} (${label})` : name);

/** @param {MaskData} data @param {number} c */
const keyWords = (data, c) => (data.colIndex[c] === null ? `key slot ${c} (empty)` : colWords(data, c));

/** @param {MaskData} data @param {number} r @param {number} c */
function distance(data, r, c) {
  const [query, key] = [data.rowIndex[r], data.colIndex[c]];
  return query === null || key === null ? "–" : String(query - key).replace("-", "−");
}

/** What the mask says of a cell. @param {MaskData} data @param {number} r @param {number} c */
export function verdict(data, r, c) {
  const pattern = data.bits[r * data.cols + c];
  if (!pattern) return "may attend";
  return `masked: ${rulesOf(data, pattern).map(ruleWords).join(" and ")}`;
}

/** One line for a cell, or for a row or column alone (−1). @param {MaskData} data @param {{r: number, c: number}} place */
export function placeWords(data, { r, c }) {
  if (r >= 0 && c >= 0) {
    return `${rowWords(data, r)} → ${keyWords(data, c)} · ${verdict(data, r, c)} · distance ${distance(data, r, c)} · ${rowCount(data, r)}`;
  }
  if (r >= 0) return `${rowWords(data, r)} · ${rowCount(data, r)}`;
  return c >= 0 ? keyWords(data, c) : "";
}

/** How many keys a query may attend to. @param {MaskData} data @param {number} r */
export function rowCount(data, r) {
  const row = data.bits.subarray(r * data.cols, (r + 1) * data.cols);
  const may = row.reduce((n, pattern) => n + (pattern === 0 ? 1 : 0), 0);
  return `this query may attend to ${may.toLocaleString("en-US")} of ${row.length.toLocaleString("en-US")} keys`;
}

/** @param {MaskData} data @param {number} r @param {number} c @returns {Node[]} */
export function cellTip(data, r, c) {
  const pattern = data.bits[r * data.cols + c];
  /** @type {[string, string][]} */
  const pairs = [["Attention", pattern ? "masked" : "allowed"]];
  for (const rule of rulesOf(data, pattern)) pairs.push([`${rule.letter} ${rule.name}`, rule.label || "forbids it"]);
  pairs.push(["Distance", distance(data, r, c)]);
  return [h("div", { class: "wb-tip-head", dir: "ltr" }, `${rowWords(data, r)} → ${keyWords(data, c)}`), tipRows(pairs)];
}

/** Names of a pattern's rules. @param {MaskData} data @param {number} pattern */
export const patternWords = (data, pattern) => rulesOf(data, pattern).map((rule) => rule.name).join(" + ");

/** What a screen reader says when it enters the plot. @param {MaskData} data */
export function summary(data) {
  const parts = [...data.counts].map(([pattern, count]) => {
    const what = pattern ? `masked by ${patternWords(data, pattern)}` : "allowed";
    return `${count.toLocaleString("en-US")} ${what}`;
  });
  return `${data.title}: ${data.rows} queries by ${data.cols} keys. Cells: ${parts.join(", ")}. Arrow keys move the cursor.`;
}
