// @ts-check
// The chips of the strip: built once, in blocks that the browser skips while out of sight, and changed only where needed.

import { css, rampColors, textOn } from "./color.js";
import { h, setAttributes } from "./dom.js";
import { placer } from "./scale.js";
import { endsLine, shortened, visible } from "./tokens.js";
/** @import { Rgb, ThemeName } from "./color.js" */
/** @import { Scale } from "./scale.js" */

/**
 * @typedef {{text: string, id: number, source?: string, bytes?: string | number[]}} Token
 * @typedef {{node: HTMLSpanElement, tail: HTMLBRElement | null, token: Token, paint: string | number}} Chip
 */

/** Chips in a block. A block is a box of its own, so a new line starts with it; its number stands in the margin. */
export const BLOCK = 256;

/** A revealed chip keeps about a line of its surroundings in sight. */
const MARGIN = 26;
const LONGEST = 64;

/** @param {Token} a @param {Token} b */
const alike = (a, b) => a.id === b.id && a.text === b.text && a.source === b.source;

/** Words for where a token came from. @type {Record<string, string>} */
export const SOURCES = { prompt: "prompt", sampled: "generated", forced: "forced" };

/** @param {Token} token @param {number} i @returns {Chip} */
function buildChip(token, i) {
  const source = token.source && token.source !== "prompt" ? ` wb-${token.source}` : "";
  const node = h(
    "span",
    { class: `wb-chip${source}`, role: "option", "aria-selected": "false", tabindex: -1, dir: "ltr", "data-i": i },
    shortened(visible(token.text), LONGEST),
  );
  return { node, tail: endsLine(token.text) ? h("br") : null, token, paint: "" };
}

/** @param {Chip} chip @param {number} level −1: no number; −2: no metric @param {Rgb[]} colors */
function paintChip(chip, level, colors) {
  const paint = level < 0 ? level : css(colors[level]);
  if (chip.paint === paint) return;
  chip.paint = paint;
  chip.node.classList.toggle("wb-hatch", level === -1);
  chip.node.style.background = level < 0 ? "" : css(colors[level]);
  chip.node.style.color = level < 0 ? "" : textOn(colors[level]);
}

export class Chips {
  /** @param {HTMLElement} list the element with role=listbox */
  constructor(list) {
    this.list = list;
    /** @type {Chip[]} */
    this.chips = [];
    /** @type {HTMLDivElement[]} */
    this.blocks = [];
  }

  /** @param {Chip} chip */
  #add(chip) {
    const i = this.chips.length;
    if (i % BLOCK === 0) {
      const block = h("div", { class: "wb-block", role: "presentation", "data-start": i });
      this.blocks.push(block);
      this.list.append(block);
    }
    const block = this.blocks[this.blocks.length - 1];
    block.append(chip.node);
    if (chip.tail) block.append(chip.tail);
    this.chips.push(chip);
  }

  /** @param {number} length */
  #cut(length) {
    while (this.chips.length > length) {
      const chip = /** @type {Chip} */ (this.chips.pop());
      chip.node.remove();
      chip.tail?.remove();
      if (this.chips.length % BLOCK === 0) this.blocks.pop()?.remove();
    }
  }

  /** Makes the chips those of `tokens`; what is the same from the start stays as it is. @param {Token[]} tokens */
  setTokens(tokens) {
    const { chips } = this;
    let same = 0;
    while (same < chips.length && same < tokens.length && alike(chips[same].token, tokens[same])) same++;
    this.#cut(same);
    for (let i = same; i < tokens.length; i++) this.#add(buildChip(tokens[i], i));
    this.list.classList.toggle("wb-numbered", tokens.length > BLOCK);
  }

  /**
   * Colours the chips; NaN is hatched, and values outside the legend take its end colours.
   * @param {ArrayLike<number> | null} values
   * @param {Scale | null} scale null: there is no metric, and chips stay plain
   * @param {ThemeName} theme
   */
  paint(values, scale, theme) {
    const colors = rampColors(scale?.diverging ? "diverging" : "sequential", theme);
    const placed = scale && placer(scale);
    this.chips.forEach((chip, i) => {
      const value = values ? values[i] : NaN;
      const level = !placed ? -2 : Number.isNaN(value) ? -1 : Math.round(placed(value) * (colors.length - 1));
      paintChip(chip, level, colors);
    });
  }
}

/**
 * Moves the marks of the cursor: at most one chip each is the query, the key, and the one that Tab reaches.
 * @param {Chip[]} chips
 */
export function makeMarks(chips) {
  /** @type {Record<string, HTMLElement | null>} */
  const at = { query: null, key: null, focus: null };
  /**
   * @param {"query" | "key" | "focus"} what
   * @param {number | null | undefined} index
   * @param {(node: HTMLElement, on: boolean) => void} apply
   */
  function move(what, index, apply) {
    const next = typeof index === "number" ? (chips[index]?.node ?? null) : null;
    const last = at[what];
    if (last && last !== next) apply(last, false);
    if (next) apply(next, true);
    at[what] = next;
  }
  return {
    at,
    /** @param {{query?: number | null, key?: number | null}} cursor @param {number} focus */
    set(cursor, focus) {
      move("query", cursor.query, (node, on) => {
        node.classList.toggle("wb-query", on);
        setAttributes(node, { "aria-selected": on ? "true" : "false" });
      });
      move("key", cursor.key, (node, on) => void node.classList.toggle("wb-key", on));
      move("focus", focus, (node, on) => {
        node.tabIndex = on ? 0 : -1;
      });
    },
  };
}

/**
 * Scrolls the strip, and nothing around it, until the chip can be seen. Blocks out of sight have estimated heights, so
 * a second pass follows once the target's block is laid out.
 * @param {HTMLElement} scroller
 * @param {HTMLElement} chip
 */
export function revealChip(scroller, chip) {
  const step = () => {
    const box = chip.getBoundingClientRect();
    const view = scroller.getBoundingClientRect();
    if (box.top < view.top + MARGIN) scroller.scrollTop -= view.top + MARGIN - box.top;
    else if (box.bottom > view.bottom - MARGIN) scroller.scrollTop += box.bottom - view.bottom + MARGIN;
  };
  step();
  requestAnimationFrame(step);
}

/**
 * The chip above or below: in the next visual line, the one nearest to the middle of chip `i`.
 * @param {Chip[]} chips
 * @param {number} i
 * @param {1 | -1} way
 */
export function chipInNextLine(chips, i, way) {
  const from = chips[i].node.getBoundingClientRect();
  const middle = (from.left + from.right) / 2;
  let best = i;
  let nearest = Infinity;
  let line = 0;
  for (let j = i + way; j >= 0 && j < chips.length; j += way) {
    const box = chips[j].node.getBoundingClientRect();
    if (Math.abs(box.top - from.top) < 4) continue;
    if (best !== i && Math.abs(box.top - line) > 4) break;
    line = box.top;
    const off = Math.abs((box.left + box.right) / 2 - middle);
    if (off < nearest) [best, nearest] = [j, off];
  }
  return best;
}
