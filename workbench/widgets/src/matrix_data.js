// @ts-check
// A matrix payload as the drawing wants it: labels made visible, cursor values of rows and columns, levels of cells.

import { LEVELS, rampColors } from "./color.js";
import { scaleOf } from "./scale.js";
import { visible } from "./tokens.js";
import { extent, levelsOf, MASKED, NAN, occurring } from "./values.js";
/** @import { Numbers, Payload } from "./protocol.js" */
/** @import { Metric, Scale, ScaleName } from "./scale.js" */
/** @import { Rgb, ThemeName } from "./color.js" */

/**
 * @typedef {{letter?: string, label: string}} Reason
 * @typedef {{name: string, label?: string, kind: "select" | "int" | "check", value: any, min?: number, max?: number,
 *            options?: {value: any, label: string}[], title?: string}} Control
 * @typedef {Record<string, number | null | undefined>} Cursor
 * @typedef {ReturnType<typeof readMatrix>} MatrixData
 * @typedef {{metric: Metric | null, scale: Scale, levels: Uint16Array, colors: Rgb[], found: Set<number>,
 *            reasons: Set<number>, signs?: Record<number, {text: string, ink: string}>}} Painted `signs`: letters in the
 *            middle of the cells of a level
 */

/** Cursor names whose labels are tokens, to be shown with visible whitespace. */
const TOKEN_AXES = ["query", "key"];
const DRAWN_STATES = ["ok", "computing", "stale"];

/** @param {Payload} payload */
export function readMatrix({ rev, content, arrays }) {
  const axes = readAxes(content);
  const state = content.state ?? (rev === 0 ? "empty" : "ok");
  const { cols } = axes;
  return {
    ...axes,
    rev,
    kind: content.kind ?? "attention",
    title: content.title ?? "",
    subtitle: content.subtitle ?? "",
    pooled: content.pooled ?? null,
    state,
    stateText: content.state_text ?? "",
    drawn: DRAWN_STATES.includes(state) && axes.rows > 0 && cols > 0,
    metrics: /** @type {Metric[]} */ (content.metrics ?? []),
    firstMetric: content.metric ?? "",
    controls: /** @type {Control[]} */ (content.controls ?? []),
    reasons: /** @type {Reason[]} */ (content.mask_reasons ?? []),
    sinkApart: Boolean(content.sink_apart) && cols > 1,
    mask: arrays.mask?.data ?? null,
    text: arrays.text?.data ?? null,
    topIds: arrays.top_ids?.data ?? null,
    topP: arrays.top_p?.data ?? null,
    top: arrays.top_ids?.shape[2] ?? 0,
    /** @param {string} name */
    values: (name) => arrays[name]?.data ?? null,
    word: vocabulary(content.texts?.vocab ?? []),
  };
}

/** @param {any} content */
function readAxes(content) {
  const rows = /** @type {number} */ (content.rows?.length ?? 0);
  const cols = /** @type {number} */ (content.cols?.length ?? 0);
  const factor = /** @type {number} */ (content.pooled?.factor ?? 1);
  const rowCursor = /** @type {string} */ (content.row_axis_cursor ?? "");
  const colCursor = /** @type {string} */ (content.col_axis_cursor ?? "");
  return {
    rows,
    cols,
    factor,
    rowCursor,
    colCursor,
    rowTitle: /** @type {string} */ (content.row_title ?? ""),
    colTitle: /** @type {string} */ (content.col_title ?? ""),
    rowLabels: labels(content.rows ?? [], rowCursor),
    colLabels: labels(content.cols ?? [], colCursor),
    rowIndex: /** @type {(number | null)[]} */ (content.row_index ?? identity(rows, factor)),
    colIndex: /** @type {(number | null)[]} */ (content.col_index ?? identity(cols, factor)),
    rowTokens: TOKEN_AXES.includes(rowCursor),
    colTokens: TOKEN_AXES.includes(colCursor),
  };
}

/** A function from an index to that text with visible whitespace; "" where there is none. @param {string[]} texts */
function vocabulary(texts) {
  /** @type {Map<number, string>} */
  const shown = new Map();
  return (/** @type {number} */ id) => {
    if (id < 0 || id >= texts.length) return "";
    let text = shown.get(id);
    if (text === undefined) shown.set(id, (text = visible(texts[id])));
    return text;
  };
}

/** @param {(string | number)[]} texts @param {string} cursor */
function labels(texts, cursor) {
  return texts.map((text) => (TOKEN_AXES.includes(cursor) ? visible(String(text)) : String(text)));
}

/** @param {number} count @param {number} factor */
const identity = (count, factor) => Array.from({ length: count }, (_, i) => i * factor);

/**
 * The colours of all cells for one metric and scale.
 * @param {MatrixData} data
 * @param {string | undefined} metricName
 * @param {ScaleName | undefined} scaleName
 * @param {ThemeName} theme
 * @returns {Painted}
 */
export function paintMatrix(data, metricName, scaleName, theme) {
  const byName = (/** @type {string | undefined} */ name) => data.metrics.find((m) => m.name === name);
  const metric = byName(metricName) ?? byName(data.firstMetric) ?? data.metrics[0] ?? null;
  const values = metric ? data.values(metric.name) : null;
  const { mask, cols, sinkApart } = data;
  const found = extent(values ?? [], { mask, cols, skipFirst: sinkApart });
  const scale = scaleOf(metric ?? { name: "" }, found, defaultScale(data, metric, scaleName));
  const levels = values ? levelsOf(values, scale, mask, data.state === "computing") : notCaptured(data);
  const colors = rampColors(scale.diverging ? "diverging" : "sequential", theme);
  return { metric, scale, levels, colors, found: occurring(levels, LEVELS), reasons: occurring(mask, 1) };
}

/** Attention is drawn on a square-root scale unless told otherwise: most weights are small. @param {MatrixData} data
 * @param {Metric | null} metric @param {ScaleName | undefined} chosen */
function defaultScale(data, metric, chosen) {
  return chosen ?? metric?.scale ?? (data.kind === "attention" ? "sqrt" : undefined);
}

/** @param {MatrixData} data */
function notCaptured({ rows, cols, mask }) {
  return new Uint16Array(rows * cols).fill(NAN).map((code, i) => (mask && mask[i] ? MASKED : code));
}

/**
 * The row or column that stands for a cursor value; −1 where there is none. With pooling a cell covers several.
 * @param {(number | null)[]} index
 * @param {number | null | undefined} value
 * @param {number} [factor]
 */
export function placeOf(index, value, factor = 1) {
  if (typeof value !== "number") return -1;
  return index.findIndex((start) => start !== null && value >= start && value < start + factor);
}

/** @param {MatrixData} data @param {Cursor} cursor */
export function cellOf(data, cursor) {
  return {
    r: placeOf(data.rowIndex, cursor[data.rowCursor], data.rowTokens ? data.factor : 1),
    c: placeOf(data.colIndex, cursor[data.colCursor], data.colTokens ? data.factor : 1),
  };
}

/**
 * The parameters of the `cursor` action for a cell: what has no cursor value is left out.
 * @param {MatrixData} data
 * @param {{r: number, c: number}} cell
 * @returns {Record<string, number>}
 */
export function cursorParams(data, { r, c }) {
  /** @type {Record<string, number>} */
  const params = {};
  const row = data.rowIndex[r];
  const col = data.colIndex[c];
  if (data.rowCursor && typeof row === "number") params[data.rowCursor] = row;
  if (data.colCursor && typeof col === "number") params[data.colCursor] = col;
  return params;
}
