// @ts-check
// The look that the widgets share, in JupyterLab's own colours, with the system's where there is no JupyterLab.

import { h } from "./dom.js";
/** @import { ThemeName } from "./color.js" */


/** Rings and bands of the cursor; they stand apart from the blue ramps in hue and from each other in line style. */
const CURSOR = { light: { query: "#d9480f", key: "#a61e8f" }, dark: { query: "#ff922b", key: "#f783d8" } };

const COMMON = `
.wb {
  --wb-bg: var(--jp-layout-color0, Canvas);
  --wb-fg: var(--jp-ui-font-color1, CanvasText);
  --wb-muted: color-mix(in srgb, var(--wb-fg) 68%, var(--wb-bg));
  --wb-line: color-mix(in srgb, var(--wb-fg) 16%, var(--wb-bg));
  --wb-field-line: color-mix(in srgb, var(--wb-fg) 48%, var(--wb-bg));
  --wb-soft: color-mix(in srgb, var(--wb-fg) 5%, var(--wb-bg));
  --wb-accent: var(--jp-brand-color1, #1976d2);
  --wb-query: ${CURSOR.light.query};
  --wb-key: ${CURSOR.light.key};
  --wb-bad: #b3261e;
  --wb-good: #1b6e35;
  --wb-warn: #8a5300;
  --wb-ui: var(--jp-ui-font-family, system-ui, sans-serif);
  --wb-mono: var(--jp-code-font-family, ui-monospace, Menlo, Consolas, "DejaVu Sans Mono", monospace);
  color: var(--wb-fg); background: var(--wb-bg); font: 12px/1.45 var(--wb-ui);
  box-sizing: border-box; text-align: left;
}
.wb[data-theme=dark] {
  --wb-query: ${CURSOR.dark.query}; --wb-key: ${CURSOR.dark.key};
  --wb-bad: #ff8a80; --wb-good: #7fd29a; --wb-warn: #ffb74d;
}
.wb *, .wb *::before, .wb *::after { box-sizing: border-box; }
.wb [hidden] { display: none !important; }
.wb-muted { color: var(--wb-muted); }
.wb-mono { font-family: var(--wb-mono); }
.wb-num { font-variant-numeric: tabular-nums; }
.wb :is(button, input, select, textarea) { font: inherit; color: var(--wb-fg); margin: 0; }
.wb :is(button, .wb-select, .wb-input) {
  height: 24px; padding: 0 8px; background: var(--wb-bg); border: 1px solid var(--wb-field-line); border-radius: 4px;
}
.wb .wb-select { padding: 0 4px; max-width: 220px; }
.wb .wb-input { padding: 0 2px 0 6px; width: 68px; font-variant-numeric: tabular-nums; }
.wb button { cursor: pointer; white-space: nowrap; }
.wb button:hover:not(:disabled) { background: color-mix(in srgb, var(--wb-fg) 9%, var(--wb-bg)); }
.wb button:disabled {
  color: color-mix(in srgb, var(--wb-fg) 40%, var(--wb-bg)); border-color: var(--wb-line); cursor: default;
}
.wb button.wb-small { width: 24px; padding: 0; line-height: 1; }
.wb :is(button, input, select, textarea, [tabindex]):focus-visible { outline: 2px solid var(--wb-accent); outline-offset: 1px; }
.wb [aria-invalid=true] { border-color: var(--wb-bad) !important; box-shadow: 0 0 0 1px var(--wb-bad); }
.wb-field { display: inline-flex; align-items: center; gap: 5px; white-space: nowrap; }
.wb-field > label { color: var(--wb-muted); }
.wb-bar { display: flex; flex-wrap: wrap; align-items: center; gap: 6px 12px; }
.wb-problem { color: var(--wb-bad); margin-top: 6px; overflow-wrap: anywhere; }
.wb-problem::before { content: "⚠ "; }
.wb-empty {
  padding: 22px 16px; text-align: center; color: var(--wb-muted); background: var(--wb-soft);
  border: 1px dashed var(--wb-line); border-radius: 6px;
}
.wb-legend {
  display: inline-flex; align-items: flex-start; gap: 5px 14px; flex-wrap: wrap; color: var(--wb-muted);
  font-size: 11px; line-height: 14px;
}
.wb-scale { position: relative; height: 26px; }
.wb-scale-bar { height: 9px; border-radius: 2px; border: 1px solid var(--wb-line); }
.wb-scale-tick { position: absolute; top: 11px; transform: translateX(-50%); white-space: nowrap; font-variant-numeric: tabular-nums; }
.wb-scale-tick.wb-first { transform: none; }
.wb-scale-tick.wb-last { transform: translateX(-100%); }
.wb-swatch { display: inline-flex; align-items: center; gap: 5px; white-space: nowrap; }
.wb-swatch > i { display: inline-block; width: 14px; height: 11px; border-radius: 2px; }
.wb-hatch {
  background: color-mix(in srgb, var(--wb-fg) 9%, var(--wb-bg))
    repeating-linear-gradient(135deg, color-mix(in srgb, var(--wb-fg) 28%, var(--wb-bg)) 0 1px, transparent 1px 4px);
}
`;

const COMMON_ID = "wb-common-style";

/** The shared rules stand once in the document's head: before each widget's own, which may override them. */
export function addCommonStyle() {
  const old = document.getElementById(COMMON_ID);
  if (old?.textContent === COMMON) return;
  const style = h("style", { id: COMMON_ID }, COMMON);
  if (old) old.replaceWith(style);
  else document.head.append(style);
}

/** Whether the page is light or dark: JupyterLab's own mark, else how light the background is. @returns {ThemeName} */
export function themeName() {
  const mark = document.body?.dataset.jpThemeLight;
  if (mark !== undefined) return mark === "false" ? "dark" : "light";
  const numbers = getComputedStyle(document.body).backgroundColor.match(/[\d.]+/g)?.map(Number);
  if (!numbers || numbers.length < 3 || numbers[3] === 0) return "light";
  return numbers[0] + numbers[1] + numbers[2] < 384 ? "dark" : "light";
}

/**
 * The theme's colours as a canvas can use them.
 * @param {HTMLElement} root a widget's root, already in the page
 */
export function canvasColors(root) {
  const probe = h("span", { hidden: true });
  root.append(probe);
  /** @param {string} value @param {string} fallback */
  const resolve = (value, fallback) => {
    probe.style.color = "";
    probe.style.color = value;
    const color = getComputedStyle(probe).color;
    return color && !color.includes("var(") ? color : fallback;
  };
  const theme = themeName();
  const colors = {
    theme,
    bg: resolve("var(--wb-bg)", theme === "dark" ? "#212121" : "#ffffff"),
    fg: resolve("var(--wb-fg)", theme === "dark" ? "#f0f0f0" : "#202020"),
    muted: resolve("var(--wb-muted)", "#767676"),
    line: resolve("var(--wb-line)", "#999999"),
    accent: resolve("var(--wb-accent)", "#1976d2"),
    query: CURSOR[theme].query,
    key: CURSOR[theme].key,
    ui: getComputedStyle(root).fontFamily || "sans-serif",
  };
  probe.remove();
  return colors;
}

/** @typedef {ReturnType<typeof canvasColors>} CanvasColors */

/**
 * A widget's root with its style, its theme mark and its revision counters; calls `onTheme` when the theme changes.
 * @param {HTMLElement} el
 * @param {AbortSignal} signal
 * @param {string} name
 * @param {string} css
 * @param {() => void} [onTheme]
 */
export function makeRoot(el, signal, name, css, onTheme) {
  const root = h("div", {
    class: `wb wb-${name}`,
    "data-testid": `wb-${name}`,
    "data-drawn": 0,
    "data-rev": 0,
    "data-lm-suppress-shortcuts": "true", // JupyterLab's shortcuts ("dd" deletes a cell) stay out of the widget
  });
  addCommonStyle();
  root.append(h("style", null, css));
  el.replaceChildren(root);
  root.dataset.theme = themeName();
  const observer = new MutationObserver(() => {
    root.dataset.theme = themeName();
    onTheme?.();
  });
  const attributeFilter = ["data-jp-theme-light", "data-jp-theme-name", "class"];
  observer.observe(document.body, { attributes: true, attributeFilter });
  signal.addEventListener("abort", () => observer.disconnect());
  return root;
}

/** Counts a completed draw; browser tests wait for it. @param {HTMLElement} root @param {number} [rev] */
export function countDraw(root, rev) {
  root.dataset.drawn = String(Number(root.dataset.drawn ?? 0) + 1);
  if (rev !== undefined) root.dataset.rev = String(rev);
}

/**
 * anywidget from 0.11 on hands over an AbortSignal; older ones call the function that `render` returns.
 * @param {AbortSignal | undefined} given
 */
export function lifetime(given) {
  const own = new AbortController();
  given?.addEventListener("abort", () => own.abort());
  return { signal: own.signal, end: () => own.abort() };
}
