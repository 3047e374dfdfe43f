// @ts-check
// The colour legend: a bar with ticks and a unit, and swatches for what is not a number.

import { css, rampColors } from "./color.js";
import { h } from "./dom.js";
import { legendTicks } from "./scale.js";
/** @import { ThemeName } from "./color.js" */
/** @import { Scale } from "./scale.js" */

const WIDTH = 180;

/**
 * @param {Scale} scale
 * @param {ThemeName} theme
 * @param {{unit?: string, label?: string}} about
 */
export function scaleBar(scale, theme, about) {
  const colors = rampColors(scale.diverging ? "diverging" : "sequential", theme);
  const ordered = scale.reversed ? [...colors].reverse() : colors;
  const stops = Array.from({ length: 17 }, (_, i) => css(ordered[Math.round((i / 16) * (ordered.length - 1))]));
  const ticks = legendTicks(scale, WIDTH);
  const bar = h("div", { class: "wb-scale", style: `width: ${WIDTH}px` });
  bar.append(h("div", { class: "wb-scale-bar", style: `background: linear-gradient(to right, ${stops.join(", ")})` }));
  ticks.forEach(({ t, label }, i) => {
    const end = i === 0 ? " wb-first" : i === ticks.length - 1 ? " wb-last" : "";
    bar.append(h("span", { class: `wb-scale-tick${end}`, style: `left: ${(100 * t).toFixed(2)}%` }, label));
  });
  const unit = about.unit && about.unit !== about.label ? about.unit : "";
  const words = about.label && unit ? `${about.label} (${unit})` : about.label || unit;
  return h("span", { class: "wb-swatch", style: "align-items: flex-start" }, h("span", null, words), bar);
}

/**
 * @param {string} style a CSS class (starting with "wb-") or declarations
 * @param {string} words
 */
export function swatch(style, words) {
  const mark = style.startsWith("wb-") ? h("i", { class: style }) : h("i", { style });
  return h("span", { class: "wb-swatch" }, mark, words);
}
