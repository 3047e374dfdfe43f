// @ts-check
// The token strip: one chip a token. What it draws and sends: widgets/token_strip.py.

import { h, labelledSelect, setAttributes, setText } from "./dom.js";
import { keepKeysInside, moved } from "./keyboard.js";
import { scaleBar, swatch } from "./legend.js";
import { problemLine } from "./problem.js";
import { Connection, onTrait, saveView } from "./protocol.js";
import { scaleOf } from "./scale.js";
import { chipInNextLine, Chips, makeMarks, revealChip } from "./strip_chips.js";
import { STRIP_CSS } from "./strip_css.js";
import { chipTip, summary } from "./strip_words.js";
import { countDraw, lifetime, makeRoot, themeName } from "./theme.js";
import { makeTooltip } from "./tooltip.js";
import { extent } from "./values.js";
/** @import { RenderProps } from "@anywidget/types" */
/** @import { Model, Numbers, Payload } from "./protocol.js" */
/** @import { Metric, Scale } from "./scale.js" */
/** @import { Token } from "./strip_chips.js" */

/** @typedef {{tokens: Token[], metrics: Metric[], metric?: string, empty?: string, note?: string}} StripContent */

class TokenStripView {
  /** @param {Model} model @param {HTMLElement} el @param {AbortSignal} signal */
  constructor(model, el, signal) {
    this.model = model;
    this.root = makeRoot(el, signal, "token-strip", STRIP_CSS, () => this.draw());
    keepKeysInside(this.root, signal);
    this.problem = problemLine(model, signal);
    this.tooltip = makeTooltip(signal);
    this.list = h("div", { class: "wb-strip", role: "listbox", "data-testid": "wb-tokens" });
    this.empty = h("div", { class: "wb-empty", "data-testid": "wb-empty" });
    this.legend = h("span", { class: "wb-legend" });
    this.chooser = h("span");
    this.chooserFor = "";
    this.head = h("div", { class: "wb-bar wb-strip-head" }, this.chooser, this.legend);
    this.note = h("div", { class: "wb-strip-note" });
    this.root.append(this.head, this.list, this.empty, this.note, this.problem.node);
    this.strip = new Chips(this.list);
    this.marks = makeMarks(this.strip.chips);
    /** @type {StripContent} */
    this.content = { tokens: [], metrics: [] };
    /** @type {Payload} */
    this.payload = { rev: 0, content: {}, arrays: {} };
    /** The cursor as shown: the kernel's, or a click on its way to it. @type {{query?: number | null, key?: number | null}} */
    this.cursor = { ...model.get("cursor") };
    this.focus = 0;
    this.connection = new Connection({
      model,
      signal,
      onState: (payload) => this.show(payload),
      onAck: () => this.followCursor(),
      onProblem: (text) => this.problem.show(text),
    });
    this.#listen();
    onTrait(model, signal, "cursor", () => this.followCursor());
    onTrait(model, signal, "view", () => this.draw());
    this.draw();
    this.connection.get();
  }

  #listen() {
    const { list } = this;
    list.addEventListener("click", (event) => {
      const i = indexAt(event);
      if (i < 0) return;
      this.pick(i, event.altKey ? "key" : "query");
      this.strip.chips[i].node.focus({ preventScroll: true });
    });
    list.addEventListener("pointerover", (event) => this.tip(indexAt(event)));
    list.addEventListener("pointerleave", this.tooltip.hide);
    list.addEventListener("scroll", this.tooltip.hide);
    list.addEventListener("focusout", this.tooltip.hide);
    list.addEventListener("focusin", (event) => {
      const i = indexAt(event);
      if (i < 0) return;
      this.focus = i;
      this.drawMarks();
      if (this.strip.chips[i].node.matches(":focus-visible")) this.tip(i);
    });
    list.addEventListener("keydown", (event) => this.key(event));
  }

  get metric() {
    const { metrics = [], metric } = this.content;
    const wanted = this.model.get("view")?.metric ?? metric;
    return metrics.find((m) => m.name === wanted) ?? metrics[0] ?? null;
  }

  /** @param {Payload} payload */
  show(payload) {
    this.payload = payload;
    this.content = { tokens: [], metrics: [], ...payload.content };
    this.tooltip.hide();
    this.draw();
    const { query } = this.marks.at;
    if (query && this.follows) revealChip(this.list, query);
    this.follows = false;
  }

  draw() {
    const { content, metric } = this;
    const values = metric ? (this.payload.arrays[metric.name]?.data ?? null) : null;
    const scale = metric ? scaleOf(metric, extent(values ?? [])) : null;
    const none = content.tokens.length === 0;
    this.strip.setTokens(content.tokens);
    this.strip.paint(values, scale, themeName());
    this.list.hidden = this.head.hidden = none;
    this.empty.hidden = !none;
    setText(this.empty, none ? content.empty || "Run a prompt to see its tokens." : "");
    setText(this.note, content.note ?? "");
    setAttributes(this.list, { "aria-label": summary(content.tokens, metric?.label ?? "") });
    this.drawChooser();
    this.drawLegend(scale, metric, values);
    this.drawMarks();
    countDraw(this.root, this.payload.rev);
  }

  /** Built anew only when the metrics change: a list that is open stays open. */
  drawChooser() {
    const { metric, chooser } = this;
    const options = this.content.metrics.map((m) => ({ value: m.name, label: m.label ?? m.name }));
    const key = JSON.stringify(options);
    if (key !== this.chooserFor) {
      this.chooserFor = key;
      const choose = (/** @type {string} */ name) => saveView(this.model, { metric: name });
      chooser.replaceChildren(...(options.length ? [labelledSelect("Colour by", options, "", choose).node] : []));
    }
    const select = chooser.querySelector("select");
    if (!select) return;
    select.value = metric?.name ?? "";
    select.title = metric?.description ?? "";
  }

  /** @param {Scale | null} scale @param {Metric | null} metric @param {Numbers | null} values */
  drawLegend(scale, metric, values) {
    const { legend } = this;
    const from = (/** @type {string} */ source) => this.content.tokens.some((t) => t.source === source);
    legend.replaceChildren();
    if (scale && metric) legend.append(scaleBar(scale, themeName(), { unit: metric.unit || metric.label }));
    if (values && Array.prototype.some.call(values, Number.isNaN)) legend.append(swatch("wb-hatch", "no prediction"));
    if (from("sampled")) legend.append(swatch("wb-sampled", "generated"));
    if (from("forced")) legend.append(swatch("wb-forced", "forced"));
  }

  drawMarks() {
    const { cursor, strip } = this;
    if (typeof cursor.query === "number" && !this.list.contains(document.activeElement)) this.focus = cursor.query;
    this.focus = Math.max(0, Math.min(this.focus, strip.chips.length - 1));
    this.marks.set(cursor, this.focus);
  }

  followCursor() {
    if (this.connection.isWaiting("cursor")) return;
    const next = this.model.get("cursor") ?? {};
    const isNew = next.query !== this.cursor.query;
    this.cursor = { ...next };
    this.drawMarks();
    const { query } = this.marks.at;
    if (isNew && query) revealChip(this.list, query);
    this.follows = isNew && !query; // its token is on the way
    countDraw(this.root);
  }

  /** @param {number} i @param {"query" | "key"} what */
  pick(i, what) {
    this.cursor = { ...this.cursor, [what]: i };
    this.focus = i;
    this.connection.act("cursor", { [what]: i });
    this.drawMarks();
    countDraw(this.root);
  }

  /** @param {number} i */
  tip(i) {
    const token = this.content.tokens[i];
    if (!token) return this.tooltip.hide();
    const nodes = chipTip(token, i, this.content.metrics, this.payload.arrays);
    return this.tooltip.show(nodes, this.strip.chips[i].node.getBoundingClientRect());
  }

  /** @param {KeyboardEvent} event */
  key(event) {
    const i = indexAt(event);
    if (i < 0) return;
    const chosen = event.key === "Enter" || event.key === " ";
    const to = chosen ? i : this.target(event, i);
    if (to === null) return;
    event.preventDefault();
    if (chosen) return this.pick(i, event.altKey ? "key" : "query");
    this.strip.chips[to].node.focus({ preventScroll: true });
    revealChip(this.list, this.strip.chips[to].node);
    if (to !== i) this.pick(to, "query");
  }

  /** @param {KeyboardEvent} event @param {number} i @returns {number | null} */
  target(event, i) {
    const { chips } = this.strip;
    if (event.key === "ArrowUp" || event.key === "ArrowDown") return chipInNextLine(chips, i, event.key === "ArrowDown" ? 1 : -1);
    if (event.key.startsWith("Page")) return null;
    return moved(event, { r: 0, c: i }, { rows: 1, cols: chips.length })?.c ?? null;
  }
}

/** The chip that an event happened on; −1 for none. @param {Event} event */
function indexAt(event) {
  const chip = event.target instanceof Element ? event.target.closest(".wb-chip") : null;
  return chip instanceof HTMLElement ? Number(chip.dataset.i) : -1;
}

/** @param {RenderProps<any>} props */
function render({ model, el, signal: given }) {
  const { signal, end } = lifetime(given);
  new TokenStripView(model, el, signal);
  return end;
}

export default { render };
