// @ts-check
// From a value to a place on a colour ramp, and the ticks of its legend.

import { brief } from "./format.js";

/**
 * @typedef {"linear" | "log" | "sqrt"} ScaleName
 * @typedef {{name: ScaleName, low: number, high: number, diverging: boolean, reversed: boolean}} Scale
 * @typedef {{name: string, label?: string, unit?: string, scale?: ScaleName, low?: number | null, high?: number | null,
 *            diverging?: boolean, direction?: string | number, description?: string}} Metric
 */

/** Names for `direction` of a metric whose low values are the ones to see. */
const REVERSED = ["down", "low", "lower", "reversed", "descending", "-1"];

/**
 * @param {Metric} metric
 * @param {{low: number, high: number, positive: number}} found smallest, largest and smallest positive value in the data
 * @param {ScaleName} [chosen] overrides the metric's own
 * @returns {Scale}
 */
export function scaleOf(metric, found, chosen) {
  const reversed = REVERSED.includes(String(metric.direction ?? ""));
  if (metric.diverging) {
    const most = Math.max(Math.abs(metric.low ?? found.low), Math.abs(metric.high ?? found.high));
    const high = Number.isFinite(most) && most > 0 ? most : 1;
    return { name: "linear", low: -high, high, diverging: true, reversed };
  }
  const name = chosen ?? metric.scale ?? "linear";
  let high = metric.high ?? found.high;
  let low = metric.low ?? (name === "sqrt" ? Math.min(0, found.low) : found.low);
  if (!Number.isFinite(high)) high = 1;
  if (!Number.isFinite(low)) low = 0;
  if (name === "log" && low <= 0) low = Math.max(Math.min(found.positive, high), high * 1e-6) || 1e-6;
  if (high <= low) high = name === "log" ? low * 10 : low + (Math.abs(low) || 1);
  return { name, low, high, diverging: false, reversed };
}

/**
 * A function from a value to its place on the ramp, 0–1, clipped.
 * @param {Scale} scale
 * @returns {(value: number) => number}
 */
export function placer({ name, low, high, reversed }) {
  const clip = (/** @type {number} */ t) => (t < 0 ? 0 : t > 1 ? 1 : t);
  const turn = (/** @type {number} */ t) => (reversed ? 1 - t : t);
  if (name === "log") return (value) => turn(value <= 0 ? 0 : clip(Math.log(value / low) / Math.log(high / low)));
  if (name === "sqrt") return (value) => turn(Math.sqrt(clip((value - low) / (high - low))));
  return (value) => turn(clip((value - low) / (high - low)));
}

/** @param {Scale} scale @param {number} value */
export const place = (scale, value) => placer(scale)(value);

/** The value that lies at `t` of the legend. @param {Scale} scale @param {number} t */
export function valueAt({ name, low, high }, t) {
  if (name === "log") return low * (high / low) ** t;
  return low + (name === "sqrt" ? t * t : t) * (high - low);
}

/**
 * Ticks for a legend `width` pixels wide: the two ends, and round values between them that do not collide.
 * @param {Scale} scale
 * @param {number} width
 * @returns {{t: number, label: string}[]} t along the legend, from `low` at 0 to `high` at 1
 */
export function legendTicks(scale, width) {
  const inOrder = { ...scale, reversed: false };
  const tick = (/** @type {number} */ value) => ({ t: place(inOrder, value), label: brief(value) });
  const reach = (/** @type {{t: number, label: string}} */ k) => 3.4 * k.label.length + 5;
  const ticks = [tick(scale.low), tick(scale.high)];
  for (const value of roundValues(scale)) {
    const next = tick(value);
    if (ticks.every((k) => Math.abs(k.t - next.t) * width > reach(k) + reach(next))) ticks.push(next);
  }
  return ticks.sort((a, b) => a.t - b.t);
}

/** @param {Scale} scale @returns {number[]} */
function roundValues({ name, low, high, diverging }) {
  if (diverging) return [0, -high / 2, high / 2];
  if (name === "log") {
    const decades = [];
    for (let e = Math.ceil(Math.log10(low)); 10 ** e < high; e++) decades.push(10 ** e);
    const every = Math.ceil(decades.length / 4);
    return decades.filter((_, i) => i % every === Math.floor(every / 2));
  }
  const step = niceStep((high - low) / (name === "sqrt" ? 8 : 4));
  const first = Math.ceil(low / step);
  const rounds = Array.from({ length: 12 }, (_, i) => (first + i) * step).filter((v) => v > low && v < high);
  const middle = valueAt({ name, low, high, diverging: false, reversed: false }, 0.5);
  return rounds.sort((a, b) => Math.abs(a - middle) - Math.abs(b - middle));
}

/** The next of 1, 2, 5 × 10ⁿ. @param {number} step */
function niceStep(step) {
  const power = 10 ** Math.floor(Math.log10(step));
  return power * ([1, 2, 5].find((m) => m * power >= step * 0.999) ?? 10);
}
