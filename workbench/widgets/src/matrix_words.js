// @ts-check
// A cell of the matrix in words: for the status line, the tooltip and the summary.

import { h } from "./dom.js";
import { exact, probability } from "./format.js";
import { tipRows } from "./tooltip.js";
import { shortened } from "./tokens.js";
/** @import { MatrixData } from "./matrix_data.js" */
/** @import { Metric } from "./scale.js" */

const LABEL = 24;

/** Names of an axis in words. @type {Record<string, string>} */
const NAMES = { query: "query", key: "key", layer: "layer", head: "head" };

/** @param {MatrixData} data @param {number} r */
export function rowWords(data, r) {
  // "after layer 20", but "embed" alone: a label that is a number needs the axis's name before it.
  if (!data.rowTokens) return /^\d/.test(data.rowLabels[r]) ? `${data.rowTitle} ${data.rowLabels[r]}`.trim() : data.rowLabels[r];
  return tokenWords(NAMES[data.rowCursor], data.rowIndex[r], data.rowLabels[r]);
}

/** @param {MatrixData} data @param {number} c */
export function colWords(data, c) {
  if (!data.colTokens) return data.colLabels[c];
  const name = data.kind === "lens" ? "token" : NAMES[data.colCursor];
  return tokenWords(name, data.colIndex[c], data.colLabels[c]);
}

/** @param {string} name @param {number | null} index @param {string} label */
function tokenWords(name, index, label) {
  return `${name} ${index === null ? "" : `${index} `}“${shortened(label, LABEL)}”`;
}

/** Why a cell is masked, or "" where it is not. @param {MatrixData} data @param {number} at */
export function maskWords(data, at) {
  const code = data.mask?.[at] ?? 0;
  if (!code) return "";
  return `masked: ${data.reasons[code - 1]?.label ?? `reason ${code}`}`;
}

/** @param {MatrixData} data @param {Metric} metric @param {number} at */
export function valueWords(data, metric, at) {
  const values = data.values(metric.name);
  if (!values) return "not captured";
  const value = values[at];
  if (Number.isNaN(value) && data.state === "computing") return "not computed yet";
  const unit = metric.unit && metric.unit !== metric.label && Number.isFinite(value) ? ` ${metric.unit}` : "";
  return exact(value) + unit;
}

/** Distance from key to query, where both are token positions. @param {MatrixData} data @param {number} r @param {number} c */
function distance(data, r, c) {
  const query = data.rowIndex[r];
  const key = data.colIndex[c];
  return data.rowCursor === "query" && data.colCursor === "key" && query !== null && key !== null ? query - key : null;
}

/** @param {MatrixData} data @param {string} other */
const between = (data, other) => (data.kind === "attention" ? " → " : other);

/** One line for a cell. @param {MatrixData} data @param {Metric | null} metric @param {number} r @param {number} c */
export function cellWords(data, metric, r, c) {
  const at = r * data.cols + c;
  const parts = [rowWords(data, r) + between(data, ", ") + colWords(data, c)];
  if (data.text && data.text[at] >= 0) parts.push(`top token “${shortened(data.word(data.text[at]), LABEL)}”`);
  const masked = maskWords(data, at);
  if (masked) parts.push(masked);
  else if (metric) parts.push(`${metric.label ?? metric.name} ${valueWords(data, metric, at)}`);
  const far = distance(data, r, c);
  if (far !== null) parts.push(`distance ${far}`);
  return parts.join(" · ").replace(/-/g, "−");
}

/** A place that may be only a row, only a column (−1: none), or a cell. @param {MatrixData} data
 * @param {Metric | null} metric @param {{r: number, c: number}} place */
export function placeWords(data, metric, { r, c }) {
  if (r >= 0 && c >= 0) return cellWords(data, metric, r, c);
  if (r >= 0) return rowWords(data, r);
  return c >= 0 ? colWords(data, c) : "";
}

/**
 * @param {MatrixData} data
 * @param {number} r
 * @param {number} c
 * @returns {Node[]}
 */
export function cellTip(data, r, c) {
  const at = r * data.cols + c;
  const masked = maskWords(data, at);
  /** @type {[string, string][]} */
  const pairs = [];
  if (masked) pairs.push(["Mask", masked.replace("masked: ", "")]);
  for (const metric of data.metrics) {
    if (masked && data.kind === "attention" && data.values(metric.name)?.[at] === 0) continue; // nothing was attended
    pairs.push([metric.label ?? metric.name, valueWords(data, metric, at)]);
  }
  const far = distance(data, r, c);
  if (far !== null) pairs.push(["Distance", String(far).replace("-", "−")]);
  const next = data.kind === "lens" ? data.colLabels[c + 1] : undefined;
  if (next !== undefined) pairs.push(["Actual next token", shortened(next, LABEL)]);
  if (data.pooled) pairs.push(["Cell", `${data.pooled.how ?? "pooled"} of ${data.factor} × ${data.factor}`]);
  const head = rowWords(data, r) + between(data, " · ") + colWords(data, c);
  const nodes = [h("div", { class: "wb-tip-head", dir: "ltr" }, head)];
  const top = topTokens(data, at);
  if (top) nodes.push(top);
  nodes.push(tipRows(pairs));
  const stale = `stale: ${data.stateText || "computed before the last change"}`;
  if (data.state === "stale") nodes.push(h("div", { class: "wb-tip-note" }, stale));
  return nodes;
}

/** The most probable tokens with bars. @param {MatrixData} data @param {number} at */
function topTokens(data, at) {
  if (!data.topIds || !data.topP) return null;
  const list = h("div", { class: "wb-tip-top" });
  for (let k = 0; k < Math.min(5, data.top); k++) {
    const id = data.topIds[at * data.top + k];
    const p = data.topP[at * data.top + k];
    if (id < 0 || Number.isNaN(p)) continue;
    const width = Math.max(0, Math.min(100, 100 * p)).toFixed(1);
    list.append(
      h("span", { class: "wb-tip-token", dir: "ltr" }, shortened(data.word(id), LABEL)),
      h("span", { class: "wb-tip-bar" }, h("i", { style: `width: ${width}%` })),
      h("span", { class: "wb-num" }, probability(p)),
    );
  }
  return list.childElementCount ? list : null;
}

/** What a screen reader says when it enters the plot. @param {MatrixData} data @param {Metric | null} metric */
export function summary(data, metric) {
  const what = data.kind === "lens" ? "Logit lens" : "Attention";
  const size = `${data.rows} ${data.rowTitle || "rows"} by ${data.cols} ${data.colTitle || "columns"}`;
  const shown = metric ? `, showing ${metric.label ?? metric.name}` : "";
  return `${data.title || what}: ${size}${shown}. Arrow keys move the cursor.`;
}
