// @ts-check
// Colour ramps, computed in OKLab so that equal steps of a value are equal steps of lightness.
// OKLab: Björn Ottosson, "A perceptual color space for image processing", 2020.

/**
 * @typedef {[number, number, number]} Rgb 0–255 each
 * @typedef {{l: [number, number], ch: [number, number, number][]}} Ramp
 *   Lightness from … to …, and stops [t, chroma, hue in degrees].
 * @typedef {"light" | "dark"} ThemeName
 * @typedef {"sequential" | "diverging"} RampName
 */

export const LEVELS = 256;

/** @type {Record<ThemeName, Ramp>} From near the page's background to the colour that stands out most on it. */
const SEQUENTIAL = {
  light: { l: [0.975, 0.29], ch: [[0, 0.012, 225], [0.25, 0.07, 228], [0.55, 0.13, 250], [0.8, 0.155, 268], [1, 0.12, 285]] },
  dark: { l: [0.27, 0.95], ch: [[0, 0.025, 270], [0.25, 0.115, 268], [0.5, 0.14, 248], [0.78, 0.115, 210], [1, 0.05, 180]] },
};
/** @type {Record<ThemeName, {middle: number, end: number, chroma: number}>} Blue – neutral – red. */
const DIVERGING = {
  light: { middle: 0.975, end: 0.42, chroma: 0.17 },
  dark: { middle: 0.27, end: 0.78, chroma: 0.15 },
};
const BLUE = 255;
const RED = 25;

/** @param {number} x */
const toGamma = (x) => (x <= 0.0031308 ? 12.92 * x : 1.055 * x ** (1 / 2.4) - 0.055);
/** @param {number} x */
const toLinear = (x) => (x <= 0.04045 ? x / 12.92 : ((x + 0.055) / 1.055) ** 2.4);

/**
 * @param {number} l
 * @param {number} a
 * @param {number} b
 * @returns {[number, number, number]} linear sRGB, maybe outside 0–1
 */
function oklabToLinear(l, a, b) {
  const p = (l + 0.3963377774 * a + 0.2158037573 * b) ** 3;
  const q = (l - 0.1055613458 * a - 0.0638541728 * b) ** 3;
  const r = (l - 0.0894841775 * a - 1.291485548 * b) ** 3;
  return [
    4.0767416621 * p - 3.3077115913 * q + 0.2309699292 * r,
    -1.2684380046 * p + 2.6097574011 * q - 0.3413193965 * r,
    -0.0041960863 * p - 0.7034186147 * q + 1.707614701 * r,
  ];
}

/** Lightness of a colour in OKLab, 0–1. @param {Rgb} rgb */
export function lightness([red, green, blue]) {
  const [r, g, b] = [toLinear(red / 255), toLinear(green / 255), toLinear(blue / 255)];
  const p = Math.cbrt(0.4122214708 * r + 0.5363325363 * g + 0.0514459929 * b);
  const q = Math.cbrt(0.2119034982 * r + 0.6806995451 * g + 0.1073969566 * b);
  const s = Math.cbrt(0.0883024619 * r + 0.2817188376 * g + 0.6299787005 * b);
  return 0.2104542553 * p + 0.793617785 * q - 0.0040720468 * s;
}

/**
 * A colour of exactly that lightness; chroma is lowered where sRGB does not reach it.
 * @param {number} l
 * @param {number} chroma
 * @param {number} hue
 * @returns {Rgb}
 */
export function fromOklch(l, chroma, hue) {
  const angle = (hue * Math.PI) / 180;
  const at = (/** @type {number} */ c) => oklabToLinear(l, c * Math.cos(angle), c * Math.sin(angle));
  const inside = (/** @type {number[]} */ rgb) => rgb.every((x) => x >= -1e-4 && x <= 1 + 1e-4);
  let low = 0;
  let high = chroma;
  if (inside(at(high))) low = high;
  for (let i = 0; i < 16 && low < high; i++) {
    const middle = (low + high) / 2;
    if (inside(at(middle))) low = middle;
    else high = middle;
  }
  const eight = at(low).map((x) => Math.round(255 * toGamma(Math.min(1, Math.max(0, x)))));
  return [eight[0], eight[1], eight[2]];
}

/** @param {Ramp} ramp @param {number} t @returns {Rgb} */
function onRamp(ramp, t) {
  const { ch } = ramp;
  let i = 1;
  while (i < ch.length - 1 && ch[i][0] < t) i++;
  const [t0, c0, h0] = ch[i - 1];
  const [t1, c1, h1] = ch[i];
  const u = (t - t0) / (t1 - t0);
  return fromOklch(ramp.l[0] + t * (ramp.l[1] - ramp.l[0]), c0 + u * (c1 - c0), h0 + u * (h1 - h0));
}

/** @type {Map<string, Rgb[]>} */
const made = new Map();

/**
 * The 256 colours of a ramp.
 * @param {RampName} name
 * @param {ThemeName} theme
 * @returns {Rgb[]}
 */
export function rampColors(name, theme) {
  const key = `${name} ${theme}`;
  const known = made.get(key);
  if (known) return known;
  const colors = Array.from({ length: LEVELS }, (_, i) => {
    const t = i / (LEVELS - 1);
    if (name === "sequential") return onRamp(SEQUENTIAL[theme], t);
    const { middle, end, chroma } = DIVERGING[theme];
    const far = Math.abs(2 * t - 1);
    return fromOklch(middle + far * (end - middle), far * chroma, t < 0.5 ? BLUE : RED);
  });
  made.set(key, colors);
  return colors;
}

/** @param {Rgb} rgb */
export const css = ([r, g, b]) => `rgb(${r}, ${g}, ${b})`;

/** One pixel as ImageData wants it (little-endian RGBA). @param {Rgb} rgb */
export const pixel = ([r, g, b]) => ((255 << 24) | (b << 16) | (g << 8) | r) >>> 0;

/** Relative luminance (WCAG 2). @param {Rgb} rgb */
export function luminance([r, g, b]) {
  return 0.2126 * toLinear(r / 255) + 0.7152 * toLinear(g / 255) + 0.0722 * toLinear(b / 255);
}

/** Contrast ratio (WCAG 2) of two luminances. @param {number} a @param {number} b */
export const contrast = (a, b) => (Math.max(a, b) + 0.05) / (Math.min(a, b) + 0.05);

/** Black or white, whichever reads better; one of them always has a contrast of at least 4.5. @param {Rgb} rgb */
export function textOn(rgb) {
  const y = luminance(rgb);
  return contrast(y, 0) >= contrast(y, 1) ? "#000" : "#fff";
}
