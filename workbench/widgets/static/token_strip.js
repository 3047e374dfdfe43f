// workbench/widgets/src/dom.js
function h(tag, attributes, ...children) {
  const node = document.createElement(tag);
  setAttributes(node, attributes ?? {});
  append(node, children);
  return node;
}
function setAttributes(node, attributes) {
  for (const [name, value] of Object.entries(attributes)) {
    if (value === null || value === void 0 || value === false) node.removeAttribute(name);
    else node.setAttribute(name, value === true ? "" : String(value));
  }
}
function append(node, children) {
  for (const child of children) {
    if (child === null || child === void 0 || child === false) continue;
    node.append(child instanceof Node ? child : document.createTextNode(String(child)));
  }
}
function setText(node, text) {
  if (node.textContent !== text) node.textContent = text;
}
var lastId = 0;
function freshId(what) {
  lastId += 1;
  return `wb-${what}-${lastId}-${Math.random().toString(36).slice(2, 7)}`;
}
function labelledSelect(label, options, value, onChange) {
  const id = freshId("select");
  const select = h("select", { id, class: "wb-select" });
  for (const option of options) select.append(h("option", { value: String(option.value) }, option.label));
  select.value = value;
  select.addEventListener("change", () => onChange(select.value));
  return { node: h("span", { class: "wb-field" }, h("label", { for: id }, label), select), select };
}

// workbench/widgets/src/keyboard.js
function keepKeysInside(root, signal) {
  for (const type of ["keydown", "keypress", "keyup"]) {
    root.addEventListener(type, (event) => event.stopPropagation(), { signal });
  }
}
function moved(event, { r, c }, { rows, cols }) {
  const far = event.ctrlKey || event.metaKey;
  const to = {
    ArrowLeft: [r, c - 1],
    ArrowRight: [r, c + 1],
    ArrowUp: [r - 1, c],
    ArrowDown: [r + 1, c],
    Home: [far ? 0 : r, 0],
    End: [far ? rows - 1 : r, cols - 1],
    PageUp: [r - 10, c],
    PageDown: [r + 10, c]
  };
  if (!(event.key in to) || event.altKey) return null;
  const [row, col] = to[event.key];
  return { r: Math.min(rows - 1, Math.max(0, row)), c: Math.min(cols - 1, Math.max(0, col)) };
}

// workbench/widgets/src/color.js
var LEVELS = 256;
var SEQUENTIAL = {
  light: { l: [0.975, 0.29], ch: [[0, 0.012, 225], [0.25, 0.07, 228], [0.55, 0.13, 250], [0.8, 0.155, 268], [1, 0.12, 285]] },
  dark: { l: [0.27, 0.95], ch: [[0, 0.025, 270], [0.25, 0.115, 268], [0.5, 0.14, 248], [0.78, 0.115, 210], [1, 0.05, 180]] }
};
var DIVERGING = {
  light: { middle: 0.975, end: 0.42, chroma: 0.17 },
  dark: { middle: 0.27, end: 0.78, chroma: 0.15 }
};
var BLUE = 255;
var RED = 25;
var toGamma = (x) => x <= 31308e-7 ? 12.92 * x : 1.055 * x ** (1 / 2.4) - 0.055;
var toLinear = (x) => x <= 0.04045 ? x / 12.92 : ((x + 0.055) / 1.055) ** 2.4;
function oklabToLinear(l, a, b) {
  const p = (l + 0.3963377774 * a + 0.2158037573 * b) ** 3;
  const q = (l - 0.1055613458 * a - 0.0638541728 * b) ** 3;
  const r = (l - 0.0894841775 * a - 1.291485548 * b) ** 3;
  return [
    4.0767416621 * p - 3.3077115913 * q + 0.2309699292 * r,
    -1.2684380046 * p + 2.6097574011 * q - 0.3413193965 * r,
    -0.0041960863 * p - 0.7034186147 * q + 1.707614701 * r
  ];
}
function fromOklch(l, chroma, hue) {
  const angle = hue * Math.PI / 180;
  const at = (c) => oklabToLinear(l, c * Math.cos(angle), c * Math.sin(angle));
  const inside = (rgb) => rgb.every((x) => x >= -1e-4 && x <= 1 + 1e-4);
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
function onRamp(ramp, t) {
  const { ch } = ramp;
  let i = 1;
  while (i < ch.length - 1 && ch[i][0] < t) i++;
  const [t0, c0, h0] = ch[i - 1];
  const [t1, c1, h1] = ch[i];
  const u = (t - t0) / (t1 - t0);
  return fromOklch(ramp.l[0] + t * (ramp.l[1] - ramp.l[0]), c0 + u * (c1 - c0), h0 + u * (h1 - h0));
}
var made = /* @__PURE__ */ new Map();
function rampColors(name, theme) {
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
var css = ([r, g, b]) => `rgb(${r}, ${g}, ${b})`;
function luminance([r, g, b]) {
  return 0.2126 * toLinear(r / 255) + 0.7152 * toLinear(g / 255) + 0.0722 * toLinear(b / 255);
}
var contrast = (a, b) => (Math.max(a, b) + 0.05) / (Math.min(a, b) + 0.05);
function textOn(rgb) {
  const y = luminance(rgb);
  return contrast(y, 0) >= contrast(y, 1) ? "#000" : "#fff";
}

// workbench/widgets/src/format.js
function exact(value) {
  if (Number.isNaN(value)) return "not a number";
  if (value === Infinity) return "+∞";
  if (value === -Infinity) return "−∞";
  if (value === 0) return "0";
  if (Number.isInteger(value) && Math.abs(value) < 1e9) return minus(value.toLocaleString("en-US"));
  const size = Math.abs(value);
  return minus(size < 1e-4 || size >= 1e7 ? value.toExponential(5) : value.toPrecision(6));
}
function brief(value) {
  if (value === 0) return "0";
  const size = Math.abs(value);
  if (size >= 1e4 || size < 1e-3) {
    return minus(value.toExponential(1).replace(".0e", "e").replace("e+", "e").replace("e-", "e−"));
  }
  return minus(String(Number(value.toPrecision(3))));
}
var minus = (text) => text.replace(/-/g, "−");

// workbench/widgets/src/scale.js
var REVERSED = ["down", "low", "lower", "reversed", "descending", "-1"];
function scaleOf(metric, found, chosen) {
  const reversed = REVERSED.includes(String(metric.direction ?? ""));
  if (metric.diverging) {
    const most = Math.max(Math.abs(metric.low ?? found.low), Math.abs(metric.high ?? found.high));
    const high2 = Number.isFinite(most) && most > 0 ? most : 1;
    return { name: "linear", low: -high2, high: high2, diverging: true, reversed };
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
function placer({ name, low, high, reversed }) {
  const clip = (t) => t < 0 ? 0 : t > 1 ? 1 : t;
  const turn = (t) => reversed ? 1 - t : t;
  if (name === "log") return (value) => turn(value <= 0 ? 0 : clip(Math.log(value / low) / Math.log(high / low)));
  if (name === "sqrt") return (value) => turn(Math.sqrt(clip((value - low) / (high - low))));
  return (value) => turn(clip((value - low) / (high - low)));
}
var place = (scale, value) => placer(scale)(value);
function valueAt({ name, low, high }, t) {
  if (name === "log") return low * (high / low) ** t;
  return low + (name === "sqrt" ? t * t : t) * (high - low);
}
function legendTicks(scale, width) {
  const inOrder = { ...scale, reversed: false };
  const tick = (value) => ({ t: place(inOrder, value), label: brief(value) });
  const reach = (k) => 3.4 * k.label.length + 5;
  const ticks = [tick(scale.low), tick(scale.high)];
  for (const value of roundValues(scale)) {
    const next = tick(value);
    if (ticks.every((k) => Math.abs(k.t - next.t) * width > reach(k) + reach(next))) ticks.push(next);
  }
  return ticks.sort((a, b) => a.t - b.t);
}
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
function niceStep(step) {
  const power = 10 ** Math.floor(Math.log10(step));
  return power * ([1, 2, 5].find((m) => m * power >= step * 0.999) ?? 10);
}

// workbench/widgets/src/legend.js
var WIDTH = 180;
function scaleBar(scale, theme, about) {
  const colors = rampColors(scale.diverging ? "diverging" : "sequential", theme);
  const ordered = scale.reversed ? [...colors].reverse() : colors;
  const stops = Array.from({ length: 17 }, (_, i) => css(ordered[Math.round(i / 16 * (ordered.length - 1))]));
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
function swatch(style, words) {
  const mark = style.startsWith("wb-") ? h("i", { class: style }) : h("i", { style });
  return h("span", { class: "wb-swatch" }, mark, words);
}

// workbench/widgets/src/protocol.js
var TYPES = {
  float32: Float32Array,
  int32: Int32Array,
  uint32: Uint32Array,
  int16: Int16Array,
  uint16: Uint16Array,
  int8: Int8Array,
  uint8: Uint8Array
};
var TRUST_OWN_CURSOR_MS = 1e3;
function decodeArray(about, buffer) {
  const Type = TYPES[
    /** @type {keyof typeof TYPES} */
    about.dtype
  ];
  if (!Type) throw new Error(`array '${about.name}' has unknown dtype '${about.dtype}'`);
  const view = buffer instanceof ArrayBuffer ? new Uint8Array(buffer) : buffer;
  const count = about.shape.reduce((a, b) => a * b, 1);
  if (view.byteLength !== count * Type.BYTES_PER_ELEMENT) {
    throw new Error(`array '${about.name}' has ${view.byteLength} bytes; its shape ${about.shape} asks for other`);
  }
  const bytes = (
    /** @type {ArrayBuffer} */
    view.buffer
  );
  const aligned = view.byteOffset % Type.BYTES_PER_ELEMENT === 0;
  const data = aligned ? new Type(bytes, view.byteOffset, count) : new Type(bytes.slice(view.byteOffset, view.byteOffset + view.byteLength));
  return { data, dtype: about.dtype, shape: about.shape };
}
function decodeState(message, buffers) {
  const arrays = {};
  (message.arrays ?? []).forEach((about, i) => {
    arrays[about.name] = decodeArray(about, buffers[i]);
  });
  return { rev: message.rev, content: message.content ?? {}, arrays };
}
var Connection = class {
  /** @param {ConnectionOptions} options */
  constructor(options) {
    this.options = options;
    this.rev = 0;
    this.sent = 0;
    this.me = Math.random().toString(36).slice(2, 8);
    this.waiting = /* @__PURE__ */ new Map();
    const { model, signal } = options;
    const guarded = (message, buffers) => this.#guarded(message, buffers);
    model.on("msg:custom", guarded);
    signal.addEventListener("abort", () => model.off("msg:custom", guarded));
  }
  /** An exception here would keep other listeners of the model from hearing the message.
   * @param {any} message @param {DataView[]} buffers */
  #guarded(message, buffers) {
    try {
      this.#receive(message, buffers);
    } catch (error) {
      console.error(error);
      this.options.onProblem?.(`This could not be drawn: ${error instanceof Error ? error.message : error}`);
    }
  }
  /** @param {any} message @param {DataView[]} buffers */
  #receive(message, buffers) {
    const { onState, onAck } = this.options;
    if (message?.kind === "state" && message.rev > this.rev) {
      this.rev = message.rev;
      onState?.(decodeState(message, buffers ?? []));
    } else if (message?.kind === "ack") {
      const action = this.waiting.get(message.id);
      this.waiting.delete(message.id);
      if (action) onAck?.({ name: action.name, ok: message.ok });
    }
  }
  /** Asks the kernel for the payload; call once everything that draws is in place. */
  get() {
    this.options.model.send({ kind: "get" });
  }
  /** @param {string} name @param {Record<string, any>} [params] */
  act(name, params = {}) {
    this.sent += 1;
    const id = `${this.me}-${this.sent}`;
    this.waiting.set(id, { name, at: performance.now() });
    this.options.model.send({ kind: "action", id, name, params });
  }
  /** Whether an action of that name was sent a moment ago and not answered yet. @param {string} name */
  isWaiting(name) {
    const now = performance.now();
    return [...this.waiting.values()].some((w) => w.name === name && now - w.at < TRUST_OWN_CURSOR_MS);
  }
};
function onTrait(model, signal, trait, listener) {
  model.on(`change:${trait}`, listener);
  signal.addEventListener("abort", () => model.off(`change:${trait}`, listener));
}
function saveView(model, change) {
  model.set("view", { ...model.get("view") ?? {}, ...change });
  model.save_changes();
}

// workbench/widgets/src/problem.js
function problemLine(model, signal) {
  const node = h("div", { class: "wb-problem", role: "alert", "data-testid": "wb-error", hidden: true });
  const show = (text) => {
    setText(node, text);
    node.hidden = !text;
  };
  const follow = () => show(model.get("error")?.text ?? "");
  onTrait(model, signal, "error", follow);
  follow();
  return { node, show };
}

// workbench/widgets/src/tokens.js
var SIGNS = { " ": "␣", "\n": "⏎", "	": "⇥" };
var UNSEEN = /[\p{C}\p{Z}\p{Default_Ignorable_Code_Point}\u2800]/u;
var PICTURE = /\p{Extended_Pictographic}|\p{Emoji_Modifier}|\ufe0f/u;
var MARK = /^\p{M}/u;
var JOINER = "‍";
var EMOJI_STYLE = "️";
function visible(text) {
  if (text === "") return "∅";
  const characters = Array.from(text);
  const shown = characters.map((character, i) => {
    if (SIGNS[character]) return SIGNS[character];
    if (!UNSEEN.test(character)) return character;
    if (staysInEmoji(character, characters[i - 1], characters[i + 1])) return character;
    return escaped(character);
  });
  if (MARK.test(shown[0])) shown.unshift("◌");
  return shown.join("");
}
function staysInEmoji(character, before, after) {
  if (before === void 0 || !PICTURE.test(before)) return false;
  return character === EMOJI_STYLE || character === JOINER && after !== void 0 && PICTURE.test(after);
}
function escaped(character) {
  const code = (
    /** @type {number} */
    character.codePointAt(0)
  );
  return `<U+${code.toString(16).toUpperCase().padStart(4, "0")}>`;
}
var endsLine = (text) => text.endsWith("\n");
var segmenter = typeof Intl !== "undefined" && "Segmenter" in Intl ? new Intl.Segmenter() : null;
function graphemes(text) {
  return segmenter ? Array.from(segmenter.segment(text), (s) => s.segment) : Array.from(text);
}
function shortened(text, most = 24) {
  const parts = graphemes(text.slice(0, 8 * most));
  return parts.length <= most && text.length <= 8 * most ? text : `${parts.slice(0, most - 1).join("")}…`;
}

// workbench/widgets/src/strip_chips.js
var BLOCK = 256;
var MARGIN = 26;
var LONGEST = 64;
var alike = (a, b) => a.id === b.id && a.text === b.text && a.source === b.source;
var SOURCES = { prompt: "prompt", sampled: "generated", forced: "forced" };
function buildChip(token, i) {
  const source = token.source && token.source !== "prompt" ? ` wb-${token.source}` : "";
  const node = h(
    "span",
    { class: `wb-chip${source}`, role: "option", "aria-selected": "false", tabindex: -1, dir: "ltr", "data-i": i },
    shortened(visible(token.text), LONGEST)
  );
  return { node, tail: endsLine(token.text) ? h("br") : null, token, paint: "" };
}
function paintChip(chip, level, colors) {
  const paint = level < 0 ? level : css(colors[level]);
  if (chip.paint === paint) return;
  chip.paint = paint;
  chip.node.classList.toggle("wb-hatch", level === -1);
  chip.node.style.background = level < 0 ? "" : css(colors[level]);
  chip.node.style.color = level < 0 ? "" : textOn(colors[level]);
}
var Chips = class {
  /** @param {HTMLElement} list the element with role=listbox */
  constructor(list) {
    this.list = list;
    this.chips = [];
    this.blocks = [];
  }
  /** @param {Chip} chip */
  #add(chip) {
    const i = this.chips.length;
    if (i % BLOCK === 0) {
      const block2 = h("div", { class: "wb-block", role: "presentation", "data-start": i });
      this.blocks.push(block2);
      this.list.append(block2);
    }
    const block = this.blocks[this.blocks.length - 1];
    block.append(chip.node);
    if (chip.tail) block.append(chip.tail);
    this.chips.push(chip);
  }
  /** @param {number} length */
  #cut(length) {
    while (this.chips.length > length) {
      const chip = (
        /** @type {Chip} */
        this.chips.pop()
      );
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
};
function makeMarks(chips) {
  const at = { query: null, key: null, focus: null };
  function move(what, index, apply) {
    const next = typeof index === "number" ? chips[index]?.node ?? null : null;
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
    }
  };
}
function revealChip(scroller, chip) {
  const step = () => {
    const box = chip.getBoundingClientRect();
    const view = scroller.getBoundingClientRect();
    if (box.top < view.top + MARGIN) scroller.scrollTop -= view.top + MARGIN - box.top;
    else if (box.bottom > view.bottom - MARGIN) scroller.scrollTop += box.bottom - view.bottom + MARGIN;
  };
  step();
  requestAnimationFrame(step);
}
function chipInNextLine(chips, i, way) {
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

// workbench/widgets/src/strip_css.js
var STRIP_CSS = `
.wb-token-strip { padding: 4px 2px 8px; }
.wb-strip-head { justify-content: space-between; align-items: flex-start; margin-bottom: 6px; min-height: 26px; }
.wb-strip-note { color: var(--wb-muted); font-size: 11px; margin-top: 4px; overflow-wrap: anywhere; }
.wb-strip-note:empty { display: none; }
.wb-strip {
  position: relative; max-height: 202px; overflow-y: auto; overflow-x: hidden; padding: 4px; border: 1px solid var(--wb-line);
  border-radius: 6px; overscroll-behavior: auto; scrollbar-width: thin;
}
.wb-block { content-visibility: auto; contain-intrinsic-size: auto 400px; padding: 3px; }
.wb-numbered > .wb-block { padding-left: 42px; position: relative; }
.wb-numbered > .wb-block::before {
  content: attr(data-start) "…"; position: sticky; float: left; top: 2px; width: 38px; margin-left: -42px; text-align: right;
  font-size: 10px; line-height: 22px; color: var(--wb-muted); font-variant-numeric: tabular-nums;
}
.wb-chip {
  display: inline-block; max-width: 100%; margin: 2px; padding: 0 4px; min-width: 14px; min-height: 20px; vertical-align: top;
  font: 12px/20px var(--wb-mono); white-space: pre-wrap; overflow-wrap: anywhere; border-radius: 3px; cursor: pointer;
  unicode-bidi: isolate; text-align: center; user-select: none;
}
.wb-chip:hover { filter: brightness(0.94); }
.wb[data-theme=dark] .wb-chip:hover { filter: brightness(1.12); }
.wb-chip.wb-sampled, .wb-swatch > .wb-sampled { box-shadow: 0 0 0 1.5px var(--wb-accent); }
.wb-chip.wb-forced, .wb-swatch > .wb-forced { box-shadow: none; outline: 1.5px dashed var(--wb-accent); outline-offset: 0; }
.wb-chip.wb-key { box-shadow: none; outline: 2px dashed var(--wb-key); outline-offset: 1px; }
.wb-chip.wb-query { box-shadow: 0 0 0 1.5px var(--wb-bg), 0 0 0 4px var(--wb-query); outline: none; position: relative; z-index: 1; }
.wb-chip.wb-query.wb-key { outline: 2px dashed var(--wb-key); outline-offset: -2px; }
.wb-chip.wb-chip:focus-visible { outline: 2px solid var(--wb-accent); outline-offset: 3px; }
`;

// workbench/widgets/src/theme.js
var CURSOR = { light: { query: "#d9480f", key: "#a61e8f" }, dark: { query: "#ff922b", key: "#f783d8" } };
var COMMON = `
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
var COMMON_ID = "wb-common-style";
function addCommonStyle() {
  const old = document.getElementById(COMMON_ID);
  if (old?.textContent === COMMON) return;
  const style = h("style", { id: COMMON_ID }, COMMON);
  if (old) old.replaceWith(style);
  else document.head.append(style);
}
function themeName() {
  const mark = document.body?.dataset.jpThemeLight;
  if (mark !== void 0) return mark === "false" ? "dark" : "light";
  const numbers = getComputedStyle(document.body).backgroundColor.match(/[\d.]+/g)?.map(Number);
  if (!numbers || numbers.length < 3 || numbers[3] === 0) return "light";
  return numbers[0] + numbers[1] + numbers[2] < 384 ? "dark" : "light";
}
function makeRoot(el, signal, name, css2, onTheme) {
  const root = h("div", {
    class: `wb wb-${name}`,
    "data-testid": `wb-${name}`,
    "data-drawn": 0,
    "data-rev": 0,
    "data-lm-suppress-shortcuts": "true"
    // JupyterLab's shortcuts ("dd" deletes a cell) stay out of the widget
  });
  addCommonStyle();
  root.append(h("style", null, css2));
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
function countDraw(root, rev) {
  root.dataset.drawn = String(Number(root.dataset.drawn ?? 0) + 1);
  if (rev !== void 0) root.dataset.rev = String(rev);
}
function lifetime(given) {
  const own = new AbortController();
  given?.addEventListener("abort", () => own.abort());
  return { signal: own.signal, end: () => own.abort() };
}

// workbench/widgets/src/tooltip.js
var CSS = `
.wb-tip {
  position: fixed; z-index: 10000; pointer-events: none; max-width: 380px; padding: 7px 9px; border-radius: 6px;
  border: 1px solid var(--wb-line); box-shadow: 0 4px 16px rgb(0 0 0 / 22%); font-size: 12px; line-height: 16px;
  left: 0; top: 0;
}
.wb-tip-head { font-weight: 600; margin-bottom: 3px; overflow-wrap: anywhere; unicode-bidi: isolate; }
.wb-tip-rows { display: grid; grid-template-columns: auto auto; gap: 0 12px; }
.wb-tip-rows > :nth-child(odd) { color: var(--wb-muted); }
.wb-tip-rows > :nth-child(even) { font-variant-numeric: tabular-nums; overflow-wrap: anywhere; unicode-bidi: isolate; }
.wb-tip-top { display: grid; grid-template-columns: minmax(40px, auto) 64px auto; gap: 1px 8px; margin: 5px 0; align-items: center; }
.wb-tip-top > .wb-tip-bar { height: 8px; background: var(--wb-soft); border-radius: 2px; }
.wb-tip-bar > i { display: block; height: 100%; background: var(--wb-accent); border-radius: 2px; min-width: 1px; }
.wb-tip-token {
  font-family: var(--wb-mono); unicode-bidi: isolate; white-space: nowrap; overflow: hidden;
  text-overflow: ellipsis; max-width: 180px;
}
.wb-tip-note { color: var(--wb-muted); margin-top: 4px; }
`;
function makeTooltip(signal) {
  const body = h("div");
  const node = h("div", { class: "wb wb-tip", role: "tooltip", "data-testid": "wb-tooltip", hidden: true });
  addCommonStyle();
  node.append(h("style", null, CSS), body);
  const hide = () => {
    node.hidden = true;
  };
  signal.addEventListener("abort", () => node.remove());
  return {
    node,
    hide,
    /**
     * Shows nodes next to a box of the page (client coordinates), where there is room.
     * @param {Node[]} children
     * @param {{x: number, y: number, width: number, height: number}} box
     */
    show(children, box) {
      if (!node.isConnected) document.body.append(node);
      node.dataset.theme = themeName();
      body.replaceChildren(...children);
      node.hidden = false;
      const { width, height } = node.getBoundingClientRect();
      const below = box.y + box.height + 10;
      const y = below + height < window.innerHeight ? below : Math.max(4, box.y - height - 10);
      const x = Math.max(4, Math.min(box.x + 12, window.innerWidth - width - 8));
      node.style.transform = `translate(${Math.round(x)}px, ${Math.round(y)}px)`;
    }
  };
}
function tipRows(pairs) {
  const cells = pairs.flatMap(([name, value]) => [h("span", null, name), h("span", null, value)]);
  return h("div", { class: "wb-tip-rows" }, ...cells);
}

// workbench/widgets/src/strip_words.js
var NO_PREDICTION = "no prediction (no token comes before)";
function summary(tokens, metricLabel) {
  if (tokens.length === 0) return "No tokens";
  const made2 = tokens.filter((t) => t.source && t.source !== "prompt").length;
  const parts = [`${tokens.length - made2} from the prompt`, `${made2} generated`];
  const tail = metricLabel ? `, coloured by ${metricLabel}` : "";
  return `${tokens.length} ${tokens.length === 1 ? "token" : "tokens"}: ${parts.join(", ")}${tail}`;
}
function bytesText(bytes) {
  if (bytes === void 0 || bytes === null) return "";
  if (typeof bytes === "string") return bytes;
  return bytes.map((b) => b.toString(16).toUpperCase().padStart(2, "0")).join(" ");
}
function valueWords(metric, value, i) {
  if (Number.isNaN(value)) return i === 0 ? NO_PREDICTION : "not captured";
  return `${exact(value)}${metric.unit && metric.unit !== metric.label ? ` ${metric.unit}` : ""}`;
}
function chipTip(token, i, metrics, arrays) {
  const pairs = [
    ["Position", String(i)],
    ["Id", String(token.id)],
    ["From", SOURCES[token.source ?? ""] ?? "prompt"]
  ];
  const bytes = bytesText(token.bytes);
  if (bytes) pairs.push(["Bytes", shortened(bytes, 60)]);
  for (const metric of metrics) {
    const values = arrays[metric.name]?.data;
    pairs.push([metric.label ?? metric.name, values ? valueWords(metric, values[i], i) : "not captured"]);
  }
  return [h("div", { class: "wb-tip-head wb-mono", dir: "ltr" }, shortened(visible(token.text), 400)), tipRows(pairs)];
}

// workbench/widgets/src/values.js
function extent(values, { mask = null, cols = 0, skipFirst = false } = {}) {
  let low = Infinity;
  let high = -Infinity;
  let positive = Infinity;
  for (let i = 0; i < values.length; i++) {
    const v = values[i];
    if (!Number.isFinite(v) || mask && mask[i] || skipFirst && i % cols === 0) continue;
    if (v < low) low = v;
    if (v > high) high = v;
    if (v > 0 && v < positive) positive = v;
  }
  return { low, high, positive };
}

// workbench/widgets/src/token_strip.widget.js
var TokenStripView = class {
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
    this.content = { tokens: [], metrics: [] };
    this.payload = { rev: 0, content: {}, arrays: {} };
    this.cursor = { ...model.get("cursor") };
    this.focus = 0;
    this.connection = new Connection({
      model,
      signal,
      onState: (payload) => this.show(payload),
      onAck: () => this.followCursor(),
      onProblem: (text) => this.problem.show(text)
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
    const values = metric ? this.payload.arrays[metric.name]?.data ?? null : null;
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
      const choose = (name) => saveView(this.model, { metric: name });
      chooser.replaceChildren(...options.length ? [labelledSelect("Colour by", options, "", choose).node] : []);
    }
    const select = chooser.querySelector("select");
    if (!select) return;
    select.value = metric?.name ?? "";
    select.title = metric?.description ?? "";
  }
  /** @param {Scale | null} scale @param {Metric | null} metric @param {Numbers | null} values */
  drawLegend(scale, metric, values) {
    const { legend } = this;
    const from = (source) => this.content.tokens.some((t) => t.source === source);
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
    this.follows = isNew && !query;
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
};
function indexAt(event) {
  const chip = event.target instanceof Element ? event.target.closest(".wb-chip") : null;
  return chip instanceof HTMLElement ? Number(chip.dataset.i) : -1;
}
function render({ model, el, signal: given }) {
  const { signal, end } = lifetime(given);
  new TokenStripView(model, el, signal);
  return end;
}
var token_strip_widget_default = { render };
export {
  token_strip_widget_default as default
};
