// @ts-check
// What the strip says in words: its summary, and the tooltip of a chip.

import { h } from "./dom.js";
import { exact } from "./format.js";
import { SOURCES } from "./strip_chips.js";
import { tipRows } from "./tooltip.js";
import { shortened, visible } from "./tokens.js";
/** @import { NumberArray } from "./protocol.js" */
/** @import { Metric } from "./scale.js" */
/** @import { Token } from "./strip_chips.js" */


export const NO_PREDICTION = "no prediction (no token comes before)";

/** @param {Token[]} tokens @param {string} metricLabel */
export function summary(tokens, metricLabel) {
  if (tokens.length === 0) return "No tokens";
  const made = tokens.filter((t) => t.source && t.source !== "prompt").length;
  const parts = [`${tokens.length - made} from the prompt`, `${made} generated`];
  const tail = metricLabel ? `, coloured by ${metricLabel}` : "";
  return `${tokens.length} ${tokens.length === 1 ? "token" : "tokens"}: ${parts.join(", ")}${tail}`;
}

/** @param {string | number[] | undefined} bytes */
function bytesText(bytes) {
  if (bytes === undefined || bytes === null) return "";
  if (typeof bytes === "string") return bytes;
  return bytes.map((b) => b.toString(16).toUpperCase().padStart(2, "0")).join(" ");
}

/**
 * A metric's value for one token, in words.
 * @param {Metric} metric
 * @param {number} value
 * @param {number} i position of the token
 */
export function valueWords(metric, value, i) {
  if (Number.isNaN(value)) return i === 0 ? NO_PREDICTION : "not captured";
  return `${exact(value)}${metric.unit && metric.unit !== metric.label ? ` ${metric.unit}` : ""}`;
}

/**
 * @param {Token} token
 * @param {number} i
 * @param {Metric[]} metrics
 * @param {Record<string, NumberArray>} arrays
 * @returns {Node[]}
 */
export function chipTip(token, i, metrics, arrays) {
  /** @type {[string, string][]} */
  const pairs = [
    ["Position", String(i)],
    ["Id", String(token.id)],
    ["From", SOURCES[token.source ?? ""] ?? "prompt"],
  ];
  const bytes = bytesText(token.bytes);
  if (bytes) pairs.push(["Bytes", shortened(bytes, 60)]);
  for (const metric of metrics) {
    const values = arrays[metric.name]?.data;
    pairs.push([metric.label ?? metric.name, values ? valueWords(metric, values[i], i) : "not captured"]);
  }
  return [h("div", { class: "wb-tip-head wb-mono", dir: "ltr" }, shortened(visible(token.text), 400)), tipRows(pairs)];
}
