// @ts-check
// Numbers as text.

/**
 * A value as exactly as float32 holds it: six significant digits, and words for what is not a finite number.
 * @param {number} value
 */
export function exact(value) {
  if (Number.isNaN(value)) return "not a number";
  if (value === Infinity) return "+∞";
  if (value === -Infinity) return "−∞";
  if (value === 0) return "0";
  if (Number.isInteger(value) && Math.abs(value) < 1e9) return minus(value.toLocaleString("en-US"));
  const size = Math.abs(value);
  return minus(size < 1e-4 || size >= 1e7 ? value.toExponential(5) : value.toPrecision(6));
}

/** A value on a legend: short. @param {number} value */
export function brief(value) {
  if (value === 0) return "0";
  const size = Math.abs(value);
  if (size >= 1e4 || size < 1e-3) {
    return minus(value.toExponential(1).replace(".0e", "e").replace("e+", "e").replace("e-", "e−"));
  }
  return minus(String(Number(value.toPrecision(3))));
}

/** A probability. @param {number} p */
export function probability(p) {
  if (!Number.isFinite(p)) return "–";
  return p !== 0 && p < 0.0001 ? minus(p.toExponential(1)) : p.toFixed(p < 0.1 ? 4 : 3);
}

/** A number in a column: as many decimals as the others there. @param {number} value @param {number} [decimals] */
export function aligned(value, decimals = 2) {
  return Number.isFinite(value) ? minus(value.toFixed(decimals)) : exact(value);
}

/** Seconds since a start. @param {number} seconds */
export function duration(seconds) {
  if (seconds < 60) return `${seconds.toFixed(1)} s`;
  const whole = Math.floor(seconds);
  return `${Math.floor(whole / 60)} min ${String(whole % 60).padStart(2, "0")} s`;
}

/** @param {string} text */
const minus = (text) => text.replace(/-/g, "−");
