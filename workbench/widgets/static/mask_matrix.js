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
var pixel = ([r, g, b]) => (255 << 24 | b << 16 | g << 8 | r) >>> 0;
function luminance([r, g, b]) {
  return 0.2126 * toLinear(r / 255) + 0.7152 * toLinear(g / 255) + 0.0722 * toLinear(b / 255);
}
var contrast = (a, b) => (Math.max(a, b) + 0.05) / (Math.min(a, b) + 0.05);
function textOn(rgb) {
  const y = luminance(rgb);
  return contrast(y, 0) >= contrast(y, 1) ? "#000" : "#fff";
}

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

// workbench/widgets/src/format.js
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
var segmenter = typeof Intl !== "undefined" && "Segmenter" in Intl ? new Intl.Segmenter() : null;
function graphemes(text) {
  return segmenter ? Array.from(segmenter.segment(text), (s) => s.segment) : Array.from(text);
}
function fitText(text, width, measure) {
  if (measure(text) <= width) return text;
  const parts = graphemes(text.slice(0, 200));
  let low = 0;
  let high = parts.length;
  while (low < high) {
    const middle = Math.ceil((low + high) / 2);
    if (measure(`${parts.slice(0, middle).join("")}…`) <= width) low = middle;
    else high = middle - 1;
  }
  return low >= Math.min(2, parts.length) ? `${parts.slice(0, low).join("")}…` : "";
}
function shortened(text, most = 24) {
  const parts = graphemes(text.slice(0, 8 * most));
  return parts.length <= most && text.length <= 8 * most ? text : `${parts.slice(0, most - 1).join("")}…`;
}

// workbench/widgets/src/values.js
var NAN = 256;
var PLUS_INF = 257;
var MINUS_INF = 258;
var MASKED = 259;
var PENDING = 260;
var CODES = 261;
function stronger(a, b, diverging) {
  if (a >= LEVELS || b >= LEVELS) {
    if (a < LEVELS) return a;
    if (b < LEVELS) return b;
    return Math.min(a, b);
  }
  if (!diverging) return Math.max(a, b);
  const middle = (LEVELS - 1) / 2;
  return Math.abs(a - middle) >= Math.abs(b - middle) ? a : b;
}
function pooled(levels, cols, { r0, r1, c0, c1 }, outRows, outCols, diverging) {
  const h2 = r1 - r0;
  const w = c1 - c0;
  const out = new Uint16Array(outRows * outCols).fill(65535);
  if (outRows === h2 && outCols === w) {
    for (let r = 0; r < h2; r++) out.set(levels.subarray((r0 + r) * cols + c0, (r0 + r) * cols + c1), r * w);
    return out;
  }
  for (let r = r0; r < r1; r++) {
    const y = Math.floor((r - r0) * outRows / h2);
    for (let c = c0; c < c1; c++) {
      const at = y * outCols + Math.floor((c - c0) * outCols / w);
      const level = levels[r * cols + c];
      out[at] = out[at] === 65535 ? level : stronger(out[at], level, diverging);
    }
  }
  return out;
}

// workbench/widgets/src/matrix_data.js
var TOKEN_AXES = ["query", "key"];
var DRAWN_STATES = ["ok", "computing", "stale"];
function readMatrix({ rev, content, arrays }) {
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
    metrics: (
      /** @type {Metric[]} */
      content.metrics ?? []
    ),
    firstMetric: content.metric ?? "",
    controls: (
      /** @type {Control[]} */
      content.controls ?? []
    ),
    reasons: (
      /** @type {Reason[]} */
      content.mask_reasons ?? []
    ),
    sinkApart: Boolean(content.sink_apart) && cols > 1,
    mask: arrays.mask?.data ?? null,
    text: arrays.text?.data ?? null,
    topIds: arrays.top_ids?.data ?? null,
    topP: arrays.top_p?.data ?? null,
    top: arrays.top_ids?.shape[2] ?? 0,
    /** @param {string} name */
    values: (name) => arrays[name]?.data ?? null,
    word: vocabulary(content.texts?.vocab ?? [])
  };
}
function readAxes(content) {
  const rows = (
    /** @type {number} */
    content.rows?.length ?? 0
  );
  const cols = (
    /** @type {number} */
    content.cols?.length ?? 0
  );
  const factor = (
    /** @type {number} */
    content.pooled?.factor ?? 1
  );
  const rowCursor = (
    /** @type {string} */
    content.row_axis_cursor ?? ""
  );
  const colCursor = (
    /** @type {string} */
    content.col_axis_cursor ?? ""
  );
  return {
    rows,
    cols,
    factor,
    rowCursor,
    colCursor,
    rowTitle: (
      /** @type {string} */
      content.row_title ?? ""
    ),
    colTitle: (
      /** @type {string} */
      content.col_title ?? ""
    ),
    rowLabels: labels(content.rows ?? [], rowCursor),
    colLabels: labels(content.cols ?? [], colCursor),
    rowIndex: (
      /** @type {(number | null)[]} */
      content.row_index ?? identity(rows, factor)
    ),
    colIndex: (
      /** @type {(number | null)[]} */
      content.col_index ?? identity(cols, factor)
    ),
    rowTokens: TOKEN_AXES.includes(rowCursor),
    colTokens: TOKEN_AXES.includes(colCursor)
  };
}
function vocabulary(texts) {
  const shown = /* @__PURE__ */ new Map();
  return (id) => {
    if (id < 0 || id >= texts.length) return "";
    let text = shown.get(id);
    if (text === void 0) shown.set(id, text = visible(texts[id]));
    return text;
  };
}
function labels(texts, cursor) {
  return texts.map((text) => TOKEN_AXES.includes(cursor) ? visible(String(text)) : String(text));
}
var identity = (count, factor) => Array.from({ length: count }, (_, i) => i * factor);
function placeOf(index, value, factor = 1) {
  if (typeof value !== "number") return -1;
  return index.findIndex((start) => start !== null && value >= start && value < start + factor);
}
function cellOf(data, cursor) {
  return {
    r: placeOf(data.rowIndex, cursor[data.rowCursor], data.rowTokens ? data.factor : 1),
    c: placeOf(data.colIndex, cursor[data.colCursor], data.colTokens ? data.factor : 1)
  };
}
function cursorParams(data, { r, c }) {
  const params = {};
  const row = data.rowIndex[r];
  const col = data.colIndex[c];
  if (data.rowCursor && typeof row === "number") params[data.rowCursor] = row;
  if (data.colCursor && typeof col === "number") params[data.colCursor] = col;
  return params;
}

// workbench/widgets/src/mask_data.js
var TINTS = {
  causal: [4e-3, 250],
  padding: [0.11, 80],
  empty_slot: [0.1, 305],
  custom: [0.11, 20],
  window: [0.09, 195],
  document: [0.1, 345],
  sink: [0.1, 150]
};
var OTHERS = [165, 320, 120, 50];
var LIGHTNESS = { light: 0.9, dark: 0.4 };
var OVERVIEW = 40;
var INK = { light: "rgb(0 0 0 / 52%)", dark: "rgb(255 255 255 / 58%)" };
function readMask({ rev, content, arrays }, which) {
  const texts = content.texts ?? [];
  const shown = Math.min(Math.max(0, which), Math.max(0, texts.length - 1));
  const options = texts.map((text, i) => ({ value: i, label: text.name }));
  const data = readMatrix({
    rev,
    content: {
      ...content,
      kind: "mask",
      rows: texts[shown]?.queries ?? [],
      cols: texts[shown]?.keys ?? [],
      row_index: content.query_index,
      col_index: content.key_index,
      row_axis_cursor: "query",
      col_axis_cursor: "key",
      row_title: "query",
      col_title: "key",
      controls: options.length > 1 ? [{ name: "text", label: "Text", kind: "select", value: shown, options }] : []
    },
    arrays: {}
  });
  const size = data.rows * data.cols;
  const all = (
    /** @type {Uint8Array} */
    arrays.reasons?.data ?? new Uint8Array(0)
  );
  const from = all.length > size ? shown * size : 0;
  const bits = all.subarray(from, from + size);
  return {
    ...data,
    bits,
    which: shown,
    rules: content.rules ?? [],
    texts: texts.map((text) => text.name),
    notes: [...content.notes ?? [], ...texts[shown]?.notes ?? []],
    levels: levelsOf2(bits),
    counts: countPatterns(bits)
  };
}
function countPatterns(bits) {
  const counts = new Array(256).fill(0);
  for (let i = 0; i < bits.length; i++) counts[bits[i]] += 1;
  return new Map([...counts.entries()].filter(([, count]) => count > 0));
}
var firstSize = (data) => data.rows > OVERVIEW ? "fit" : void 0;
function levelsOf2(bits) {
  const levels = new Uint16Array(bits.length);
  for (let i = 0; i < bits.length; i++) levels[i] = levelOf(bits[i]);
  return levels;
}
var rulesOf = ({ rules }, pattern) => rules.filter((_, i) => pattern >> i & 1);
var levelOf = (pattern) => LEVELS - 1 - pattern;
function colorOf(data, pattern, theme) {
  if (pattern === 0) return rampColors("sequential", theme)[theme === "light" ? 170 : 150];
  const rule = 31 - Math.clz32(pattern);
  const name = data.rules[rule]?.name ?? "";
  const [chroma, hue] = TINTS[name] ?? [0.1, OTHERS[rule % OTHERS.length]];
  return fromOklch(LIGHTNESS[theme], chroma, hue);
}
var lettersOf = (data, pattern) => rulesOf(data, pattern).map((rule) => rule.letter).join("");
function paintMask(data, theme) {
  const colors = new Array(LEVELS).fill([0, 0, 0]);
  const signs = {};
  for (const pattern of data.counts.keys()) {
    colors[levelOf(pattern)] = colorOf(data, pattern, theme);
    signs[levelOf(pattern)] = { text: lettersOf(data, pattern), ink: INK[theme] };
  }
  return {
    metric: null,
    scale: { name: "linear", low: 0, high: 1, diverging: false, reversed: false },
    levels: data.levels,
    colors,
    signs,
    found: /* @__PURE__ */ new Set(),
    reasons: /* @__PURE__ */ new Set()
  };
}

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
function canvasColors(root) {
  const probe = h("span", { hidden: true });
  root.append(probe);
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
    ui: getComputedStyle(root).fontFamily || "sans-serif"
  };
  probe.remove();
  return colors;
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

// workbench/widgets/src/matrix_words.js
var LABEL = 24;
var NAMES = { query: "query", key: "key", layer: "layer", head: "head" };
function rowWords(data, r) {
  if (!data.rowTokens) return /^\d/.test(data.rowLabels[r]) ? `${data.rowTitle} ${data.rowLabels[r]}`.trim() : data.rowLabels[r];
  return tokenWords(NAMES[data.rowCursor], data.rowIndex[r], data.rowLabels[r]);
}
function colWords(data, c) {
  if (!data.colTokens) return data.colLabels[c];
  const name = data.kind === "lens" ? "token" : NAMES[data.colCursor];
  return tokenWords(name, data.colIndex[c], data.colLabels[c]);
}
function tokenWords(name, index, label) {
  return `${name} ${index === null ? "" : `${index} `}“${shortened(label, LABEL)}”`;
}

// workbench/widgets/src/mask_words.js
var ruleWords = ({ name, label }) => label ? `${name} (${label})` : name;
var keyWords = (data, c) => data.colIndex[c] === null ? `key slot ${c} (empty)` : colWords(data, c);
function distance(data, r, c) {
  const [query, key] = [data.rowIndex[r], data.colIndex[c]];
  return query === null || key === null ? "–" : String(query - key).replace("-", "−");
}
function verdict(data, r, c) {
  const pattern = data.bits[r * data.cols + c];
  if (!pattern) return "may attend";
  return `masked: ${rulesOf(data, pattern).map(ruleWords).join(" and ")}`;
}
function placeWords(data, { r, c }) {
  if (r >= 0 && c >= 0) {
    return `${rowWords(data, r)} → ${keyWords(data, c)} · ${verdict(data, r, c)} · distance ${distance(data, r, c)} · ${rowCount(data, r)}`;
  }
  if (r >= 0) return `${rowWords(data, r)} · ${rowCount(data, r)}`;
  return c >= 0 ? keyWords(data, c) : "";
}
function rowCount(data, r) {
  const row = data.bits.subarray(r * data.cols, (r + 1) * data.cols);
  const may = row.reduce((n, pattern) => n + (pattern === 0 ? 1 : 0), 0);
  return `this query may attend to ${may.toLocaleString("en-US")} of ${row.length.toLocaleString("en-US")} keys`;
}
function cellTip(data, r, c) {
  const pattern = data.bits[r * data.cols + c];
  const pairs = [["Attention", pattern ? "masked" : "allowed"]];
  for (const rule of rulesOf(data, pattern)) pairs.push([`${rule.letter} ${rule.name}`, rule.label || "forbids it"]);
  pairs.push(["Distance", distance(data, r, c)]);
  return [h("div", { class: "wb-tip-head", dir: "ltr" }, `${rowWords(data, r)} → ${keyWords(data, c)}`), tipRows(pairs)];
}
var patternWords = (data, pattern) => rulesOf(data, pattern).map((rule) => rule.name).join(" + ");
function summary(data) {
  const parts = [...data.counts].map(([pattern, count]) => {
    const what = pattern ? `masked by ${patternWords(data, pattern)}` : "allowed";
    return `${count.toLocaleString("en-US")} ${what}`;
  });
  return `${data.title}: ${data.rows} queries by ${data.cols} keys. Cells: ${parts.join(", ")}. Arrow keys move the cursor.`;
}

// workbench/widgets/src/matrix_css.js
var MATRIX_CSS = `
.wb-matrix { padding: 4px 2px 8px; }
.wb-matrix-head {
  display: flex; flex-wrap: wrap; gap: 6px 16px; align-items: center; justify-content: space-between; margin-bottom: 6px;
}
.wb-heading { display: flex; flex-wrap: wrap; align-items: baseline; gap: 2px 8px; min-width: 0; }
.wb-title { font-weight: 600; font-size: 13px; }
.wb-subtitle { font-size: 11px; overflow-wrap: anywhere; }
.wb-badge {
  font-size: 11px; padding: 0 6px; border-radius: 8px; border: 1px solid var(--wb-line);
  background: var(--wb-soft); color: var(--wb-muted);
}
.wb-badge:empty { display: none; }
.wb-badge[data-state=computing]::before { content: "● "; color: var(--wb-accent); animation: wb-pulse 1.2s ease-in-out infinite; }
.wb-badge[data-state=stale] { color: var(--wb-warn); border-color: currentColor; }
.wb-tools, .wb-tools .wb-group { gap: 6px 10px; }
.wb-group:empty { display: none; }
.wb .wb-tools .wb-input { width: 50px; }
.wb-zoom { gap: 4px; }
.wb-plot { position: relative; overflow: auto; scrollbar-width: thin; overscroll-behavior: auto; }
.wb-sizer { position: relative; }
.wb-stage { position: sticky; left: 0; top: 0; width: max-content; }
.wb-stage > canvas { display: block; cursor: crosshair; }
.wb .wb-stage > canvas:focus-visible { outline: 2px solid var(--wb-accent); outline-offset: -2px; }
.wb-stage > .wb-overlay { position: absolute; inset: 0; pointer-events: none; }
.wb-plot.wb-stale { opacity: .7; }
.wb-matrix-foot { margin-top: 6px; }
.wb-said { min-height: 17px; font-size: 11px; color: var(--wb-muted); overflow-wrap: anywhere; margin-top: 2px; }
.wb-empty[data-state=error] { color: var(--wb-bad); }
.wb-empty[data-state=error]::before { content: "⚠ "; }
@keyframes wb-pulse { 50% { opacity: .35; } }
@media (prefers-reduced-motion: reduce) { .wb * { animation: none !important; } }
`;

// workbench/widgets/src/matrix_layout.js
var LENS_STEPS = [2, 3, 4, 6, 8, 12, 16, 24, 32, 48, 64, 80, 96, 128, 160];
var SQUARE_STEPS = [1, 2, 3, 4, 5, 6, 8, 10, 13, 16, 20, 26, 32, 40, 52, 64];
var SINK_GAP = 6;
var SINK_LEAST = 4;
var LENS_ROW = 18;
var SLANT = Math.PI / 3;
var MOST_HEADER = 88;
var VIEW_HEIGHT = 640;
var SLANT_ANGLE = SLANT;
function headerMode(cellW) {
  if (cellW >= 30) return "flat";
  if (cellW >= 14) return "slant";
  return cellW >= 10 ? "upright" : "ticks";
}
function layoutOf(sizes, cellW, cellH) {
  const { rows, cols } = sizes;
  const header = headerMode(cellW);
  const slanted = Math.min(MOST_HEADER, Math.ceil(sizes.colLabelWidth * Math.sin(SLANT)) + 14);
  const upright = Math.min(MOST_HEADER, sizes.colLabelWidth + 10);
  const top = { flat: 34, ticks: 32, slant: Math.max(34, slanted), upright: Math.max(34, upright) }[header];
  const left = Math.min(170, Math.max(cellH >= 10 ? sizes.rowLabelWidth + 12 : 64, sizes.titleWidth + 14, 40));
  const gap = sizes.gap ? SINK_GAP : 0;
  const first = sizes.gap ? Math.max(cellW, SINK_LEAST) : cellW;
  const pad = header === "slant" ? Math.ceil(top / Math.tan(SLANT)) : 2;
  return {
    rows,
    cols,
    cellW,
    cellH,
    first,
    gap,
    left,
    top,
    header,
    width: Math.ceil(left + first + gap + (cols - 1) * cellW + pad),
    height: Math.ceil(top + rows * cellH + 2)
  };
}
function cellSize(sizes, room, chosen) {
  const roomW = room - layoutOf(sizes, 8, 18).left - (sizes.gap ? SINK_GAP : 0) - 4;
  const fitW = Math.max(0.2, roomW / Math.max(1, sizes.cols));
  const fitH = (VIEW_HEIGHT - 90) / Math.max(1, sizes.rows);
  if (sizes.kind === "lens") {
    const w = typeof chosen === "number" ? chosen : whole(chosen === "fit" ? Math.min(fitW, 160) : clamp(fitW, 64, 96));
    return { w, h: w >= 96 ? LENS_ROW + 4 : LENS_ROW };
  }
  if (typeof chosen === "number") return { w: chosen, h: chosen };
  const size = whole(chosen === "fit" ? Math.min(fitW, fitH, 52) : clamp(Math.min(fitW, Math.max(fitH, 12)), 3, 26));
  return { w: size, h: size };
}
var clamp = (x, low, high) => Math.min(high, Math.max(low, x));
var whole = (x) => x >= 1 ? Math.floor(x) : x;
function zoomed(kind, now, way) {
  const steps = kind === "lens" ? LENS_STEPS : SQUARE_STEPS;
  if (way > 0) return steps.find((s) => s > now + 0.01) ?? steps[steps.length - 1];
  return [...steps].reverse().find((s) => s < now - 0.01) ?? steps[0];
}
var colX = ({ left, first, gap, cellW }, c) => left + (c > 0 ? first + gap + (c - 1) * cellW : 0);
var colW = (layout, c) => c === 0 ? layout.first : layout.cellW;
var rowY = (layout, r) => layout.top + r * layout.cellH;
function colAt({ left, first, cellW, cols, gap }, x) {
  const from = x - left;
  if (from < 0) return -1;
  if (from < first) return 0;
  if (from < first + gap) return -1;
  const c = 1 + Math.floor((from - first - gap) / cellW);
  return c < cols ? c : -1;
}
function rowAt({ top, cellH, rows }, y) {
  const r = Math.floor((y - top) / cellH);
  return r >= 0 && r < rows ? r : -1;
}
function cellAt(layout, point, scroll) {
  if (point.x < layout.left || point.y < layout.top) return null;
  const r = rowAt(layout, point.y + scroll.y);
  const c = colAt(layout, point.x + scroll.x);
  return r < 0 || c < 0 ? null : { r, c };
}
function visibleWindow(layout, scroll, { w, h: h2 }) {
  const { left, top, first, cellW, cellH, gap, rows, cols } = layout;
  const before = first + gap - cellW;
  return {
    r0: clamp(Math.floor(scroll.y / cellH), 0, rows),
    r1: clamp(Math.ceil((scroll.y + h2 - top) / cellH), 0, rows),
    c0: clamp(Math.floor((scroll.x - before) / cellW), 0, cols),
    c1: clamp(Math.ceil((scroll.x + w - left) / cellW), 0, cols)
  };
}
function scrollTo(layout, { r, c }, scroll, { w, h: h2 }) {
  const left = colX(layout, c) - layout.left;
  const x = c < 0 ? scroll.x : nearest(left - 2, left + colW(layout, c) + 2, scroll.x, w - layout.left);
  const y = r < 0 ? scroll.y : nearest(r * layout.cellH - 2, (r + 1) * layout.cellH + 2, scroll.y, h2 - layout.top);
  return { x: Math.max(0, x), y: Math.max(0, y) };
}
function nearest(at, far, from, room) {
  if (at < from) return at;
  return far > from + room ? far - room : from;
}
function labelStep(cell, need) {
  const least = Math.ceil(need / cell);
  if (least <= 1) return 1;
  const power = 10 ** Math.floor(Math.log10(least));
  return power * ([1, 2, 5, 10].find((m) => m * power >= least) ?? 10);
}

// workbench/widgets/src/matrix_draw.js
function fills(masked, pending, l) {
  const odd = (hue) => fromOklch(l, 0.1, hue);
  return { [MASKED]: masked, [PENDING]: pending, [NAN]: odd(95), [PLUS_INF]: odd(20), [MINUS_INF]: odd(320) };
}
var FILLS = {
  light: fills([231, 231, 231], [244, 244, 244], 0.87),
  dark: fills([58, 58, 58], [44, 44, 44], 0.47)
};
var HATCH = { light: "rgb(0 0 0 / 17%)", dark: "rgb(255 255 255 / 17%)" };
var LETTER = { light: "rgb(0 0 0 / 42%)", dark: "rgb(255 255 255 / 46%)" };
var GLYPHS = {
  [NAN]: { sign: "×", word: "NaN" },
  [PLUS_INF]: { sign: "▲", word: "+∞" },
  [MINUS_INF]: { sign: "▼", word: "−∞" }
};
var CELL_FONT = 11;
var fillOf = (code, theme) => css(FILLS[theme][code]);
function pixelTable(painted, theme) {
  const table = new Uint32Array(CODES);
  painted.colors.forEach((rgb, i) => table[i] = pixel(rgb));
  for (const [code, rgb] of Object.entries(FILLS[theme])) table[Number(code)] = pixel(rgb);
  return table;
}
var scratch = null;
function blit(ctx, { data, painted, layout, colors, scroll }, win) {
  const { cellW, cellH } = layout;
  const h2 = win.r1 - win.r0;
  const w = win.c1 - win.c0;
  if (h2 <= 0 || w <= 0) return;
  const outH = cellH >= 1 ? h2 : Math.max(1, Math.round(h2 * cellH));
  const width = colX(layout, win.c1 - 1) + colW(layout, win.c1 - 1) - colX(layout, win.c0);
  const outW = cellW >= 1 ? w : Math.max(1, Math.round(w * cellW));
  const levels = pooled(painted.levels, data.cols, win, outH, outW, painted.scale.diverging);
  const table = pixelTable(painted, colors.theme);
  scratch ??= document.createElement("canvas");
  scratch.width = outW;
  scratch.height = outH;
  const off = scratch.getContext("2d");
  if (!off) return;
  const image = off.createImageData(outW, outH);
  const pixels = new Uint32Array(image.data.buffer);
  for (let i = 0; i < levels.length; i++) pixels[i] = table[levels[i]];
  off.putImageData(image, 0, 0);
  ctx.imageSmoothingEnabled = false;
  const x = colX(layout, win.c0) - scroll.x;
  ctx.drawImage(scratch, 0, 0, outW, outH, x, rowY(layout, win.r0) - scroll.y, width, h2 * cellH);
}
function drawCells(ctx, scene) {
  const { layout, scroll, size } = scene;
  const win = visibleWindow(layout, scroll, size);
  if (layout.gap && win.c0 === 0) {
    blit(ctx, scene, { ...win, c1: Math.min(1, win.c1) });
    blit(ctx, scene, { ...win, c0: 1 });
  } else blit(ctx, scene, win);
  hatch(ctx, scene, win);
  if (Math.min(layout.cellW, layout.cellH) >= 8) gridLines(ctx, scene, win);
  if (Math.min(layout.cellW, layout.cellH) >= 7) drawSigns(ctx, scene, win);
}
var isHatched = (level) => level === MASKED || level === PENDING;
function hatch(ctx, { data, painted, layout, scroll, size, colors }, win) {
  const path = new Path2D();
  let any = false;
  const step = Math.max(1, Math.floor(1 / layout.cellH));
  for (let r = win.r0; r < win.r1; r += step) {
    for (let c = win.c0; c < win.c1; c++) {
      const start = c;
      while (c < win.c1 && isHatched(painted.levels[r * data.cols + c])) c++;
      if (c === start) continue;
      any = true;
      const x = colX(layout, start);
      const width = colX(layout, c - 1) + colW(layout, c - 1) - x;
      path.rect(x - scroll.x, rowY(layout, r) - scroll.y, width, step * layout.cellH);
    }
  }
  if (!any) return;
  ctx.save();
  ctx.clip(path);
  ctx.strokeStyle = HATCH[colors.theme];
  ctx.lineWidth = 1;
  ctx.beginPath();
  const phase = ((scroll.x + scroll.y) % 6 + 6) % 6;
  for (let k = -phase; k < size.w + size.h; k += 6) {
    ctx.moveTo(k, 0);
    ctx.lineTo(k - size.h, size.h);
  }
  ctx.stroke();
  ctx.restore();
}
function gridLines(ctx, { layout, scroll, colors }, win) {
  ctx.fillStyle = colors.bg;
  const x0 = colX(layout, win.c0) - scroll.x;
  const x1 = colX(layout, win.c1 - 1) + colW(layout, win.c1 - 1) - scroll.x;
  const y0 = rowY(layout, win.r0) - scroll.y;
  const y1 = rowY(layout, win.r1) - scroll.y;
  for (let c = win.c0; c < win.c1; c++) ctx.fillRect(colX(layout, c) + colW(layout, c) - 1 - scroll.x, y0, 1, y1 - y0);
  for (let r = win.r0; r < win.r1; r++) ctx.fillRect(x0, rowY(layout, r + 1) - 1 - scroll.y, x1 - x0, 1);
}
function drawSigns(ctx, scene, win) {
  const { data, painted, layout, scroll, colors } = scene;
  const { cellW, cellH } = layout;
  ctx.font = `${CELL_FONT}px ${colors.ui}`;
  ctx.textBaseline = "middle";
  ctx.textAlign = "left";
  const middle = cellH / 2 + 0.5;
  for (let r = win.r0; r < win.r1; r++) {
    for (let c = win.c0; c < win.c1; c++) {
      const level = painted.levels[r * data.cols + c];
      const sign = painted.signs?.[level];
      const text = sign ? signText(sign.text, layout) : cellText(ctx, scene, r * data.cols + c, level);
      if (!text) continue;
      const ink = level < LEVELS ? textOn(painted.colors[level]) : level === MASKED ? LETTER[colors.theme] : colors.fg;
      ctx.fillStyle = sign?.ink ?? ink;
      const x = colX(layout, c) - scroll.x;
      const centred = sign || level >= LEVELS && !(data.text && level !== MASKED && cellW > 30);
      ctx.fillText(text, centred ? x + (cellW - 1 - ctx.measureText(text).width) / 2 : x + 4, rowY(layout, r) + middle - scroll.y);
    }
  }
}
function signText(text, { cellW, cellH }) {
  if (Math.min(cellW, cellH) < 14) return "";
  const room = Math.floor((cellW - 4) / 7.5);
  return text.length <= room ? text : `${text.slice(-1)}${room > 1 ? "+" : ""}`;
}
var fitted = /* @__PURE__ */ new Map();
function cellText(ctx, { data, layout }, at, level) {
  const { cellW, cellH } = layout;
  if (GLYPHS[level]) return cellW >= 26 && cellH >= 12 ? GLYPHS[level].word : GLYPHS[level].sign;
  if (level === MASKED) {
    const reason = data.reasons[(data.mask?.[at] ?? 0) - 1];
    return Math.min(cellW, cellH) >= 14 ? reason?.letter ?? "" : "";
  }
  if (level === PENDING || !data.text || data.text[at] < 0 || cellW < 24 || cellH < 12) return "";
  return fittedText(ctx, data.word(data.text[at]), cellW - 8);
}
function fittedText(ctx, text, width) {
  const key = `${ctx.font}|${Math.round(width)}|${text}`;
  let found = fitted.get(key);
  if (found === void 0) {
    if (fitted.size > 2e4) fitted.clear();
    found = fitText(text, width, (t) => ctx.measureText(t).width);
    fitted.set(key, found);
  }
  return found;
}
function cursorColor(colors, name) {
  return name === "query" ? colors.query : name === "key" ? colors.key : colors.fg;
}
function drawCursor(ctx, { data, layout, scroll, colors, cell }) {
  const { r, c } = cell;
  const x0 = layout.left - scroll.x;
  const y0 = layout.top - scroll.y;
  const width = colX(layout, data.cols - 1) + colW(layout, data.cols - 1) - layout.left;
  const height = data.rows * layout.cellH;
  const x = c >= 0 ? colX(layout, c) - scroll.x : x0;
  const y = r >= 0 ? rowY(layout, r) - scroll.y : y0;
  const bandW = Math.max(3, colW(layout, Math.max(0, c)));
  const bandH = Math.max(3, layout.cellH);
  ctx.lineWidth = 1.5;
  if (r >= 0) strokeBox(ctx, cursorColor(colors, data.rowCursor), x0, y - 0.5, width, bandH, []);
  const dash = data.colCursor === "key" ? [5, 3] : [];
  if (c >= 0) strokeBox(ctx, cursorColor(colors, data.colCursor), x - 0.5, y0, bandW, height, dash);
  if (r < 0 || c < 0) return;
  ctx.lineWidth = 4;
  strokeBox(ctx, colors.bg, x - 0.5, y - 0.5, bandW, bandH, []);
  ctx.lineWidth = 2.5;
  strokeBox(ctx, colors.query, x - 0.5, y - 0.5, bandW, bandH, []);
}
function strokeBox(ctx, color, x, y, w, h2, dash) {
  ctx.strokeStyle = color;
  ctx.setLineDash(dash);
  ctx.strokeRect(x, y, w, h2);
  ctx.setLineDash([]);
}

// workbench/widgets/src/matrix_axes.js
var FONT = 11;
var SMALL = 10;
var font = (colors, strong = false, size = FONT) => `${strong ? "600 " : ""}${size}px ${colors.ui}`;
function drawAxes(ctx, scene) {
  const { layout, size, colors } = scene;
  ctx.fillStyle = colors.bg;
  ctx.fillRect(0, 0, size.w, layout.top);
  ctx.fillRect(0, 0, layout.left, size.h);
  ctx.textBaseline = "middle";
  clipped(ctx, 0, layout.top, layout.left, size.h - layout.top, () => drawRowLabels(ctx, scene));
  clipped(ctx, layout.left, 0, size.w - layout.left, layout.top, () => drawColLabels(ctx, scene));
  drawCorner(ctx, scene);
}
function clipped(ctx, x, y, w, h2, draw) {
  ctx.save();
  ctx.beginPath();
  ctx.rect(x, y, w, h2);
  ctx.clip();
  draw();
  ctx.restore();
}
function drawRowLabels(ctx, scene) {
  const { data, layout, scroll, size, colors, cell } = scene;
  const win = visibleWindow(layout, scroll, size);
  const ticks = layout.cellH < 10;
  const step = ticks ? labelStep(layout.cellH, 16) : 1;
  ctx.textAlign = "right";
  for (let r = win.r0; r < win.r1; r++) {
    if (r % step && r !== cell.r) continue;
    if (ticks && r !== cell.r && cell.r >= 0 && Math.abs(r - cell.r) * layout.cellH < 12) continue;
    const y = rowY(layout, r) + Math.max(r === 0 ? 6 : 0, layout.cellH / 2 + 0.5) - scroll.y;
    const here = r === cell.r;
    ctx.font = font(colors, here, ticks ? SMALL : FONT);
    ctx.fillStyle = here ? cursorColor(colors, data.rowCursor) : ticks ? colors.muted : colors.fg;
    const text = ticks && data.rowTokens ? String(data.rowIndex[r] ?? "") : data.rowLabels[r];
    ctx.fillText(fittedText(ctx, text, layout.left - 12), layout.left - 7, y);
  }
}
function drawColLabels(ctx, scene) {
  const { data, layout, scroll, size, colors, cell } = scene;
  const win = visibleWindow(layout, scroll, size);
  const flat = layout.header === "flat";
  const ticks = layout.header === "ticks";
  const step = ticks ? labelStep(layout.cellW, 34) : layout.header === "upright" ? labelStep(layout.cellW, 11) : 1;
  for (let c = win.c0; c < win.c1; c++) {
    const here = c === cell.c;
    if (c % step && !here) continue;
    if (ticks && !here && cell.c >= 0 && Math.abs(c - cell.c) * layout.cellW < 26) continue;
    const x = colX(layout, c) + colW(layout, c) / 2 - scroll.x;
    ctx.fillStyle = here ? cursorColor(colors, data.colCursor) : colors.fg;
    ctx.font = font(colors, here);
    if (flat) drawFlat(ctx, scene, c, x, here);
    else if (ticks) drawTick(ctx, scene, c, x, here);
    else drawTurned(ctx, scene, c, x);
  }
}
function drawFlat(ctx, { data, layout, colors }, c, x, here) {
  ctx.textAlign = "center";
  ctx.fillText(fittedText(ctx, data.colLabels[c], layout.cellW - 4), x, layout.top - 10);
  ctx.font = font(colors, false, SMALL);
  if (!here) ctx.fillStyle = colors.muted;
  ctx.fillText(String(data.colIndex[c] ?? ""), x, layout.top - 25);
}
function drawTick(ctx, { data, layout, colors }, c, x, here) {
  ctx.font = font(colors, here, SMALL);
  if (!here) ctx.fillStyle = colors.muted;
  ctx.textAlign = "center";
  ctx.fillText(String(data.colIndex[c] ?? c), Math.max(x, layout.left + 4), layout.top - 14);
  ctx.fillRect(Math.round(x), layout.top - 6, 1, 4);
}
function drawTurned(ctx, { data, layout }, c, x) {
  const slant = layout.header === "slant";
  const angle = slant ? SLANT_ANGLE : Math.PI / 2;
  const room = (layout.top - 10) / Math.sin(angle);
  ctx.save();
  ctx.translate(slant ? x - 1 : x + 0.5, layout.top - 5);
  ctx.rotate(-angle);
  ctx.textAlign = "left";
  ctx.fillText(fittedText(ctx, data.colLabels[c], room), 0, 0);
  ctx.restore();
}
function drawCorner(ctx, { data, layout, colors }) {
  ctx.fillStyle = colors.bg;
  ctx.fillRect(0, 0, layout.left, layout.top);
  ctx.fillStyle = colors.muted;
  ctx.font = font(colors, false, SMALL);
  ctx.textAlign = "right";
  const width = layout.left - 10;
  if (data.colTitle) ctx.fillText(fittedText(ctx, `${data.colTitle} →`, width), layout.left - 7, layout.top - 25);
  if (data.rowTitle) ctx.fillText(fittedText(ctx, `${data.rowTitle} ↓`, width), layout.left - 7, layout.top - 10);
}
function widestLabel(ctx, colors, labels2, most) {
  if (!ctx) return 40;
  ctx.font = font(colors, true);
  const sample = labels2.length > 600 ? labels2.filter((_, i) => i % Math.ceil(labels2.length / 600) === 0) : labels2;
  return Math.ceil(Math.min(most, sample.reduce((w, text) => Math.max(w, ctx.measureText(text.slice(0, 40)).width), 0)));
}
function drawHover(ctx, { data, layout, scroll, size, colors }, { r, c }) {
  const x = colX(layout, c) - scroll.x;
  const y = rowY(layout, r) - scroll.y;
  clipped(ctx, layout.left, layout.top, size.w, size.h, () => {
    ctx.globalAlpha = 0.35;
    ctx.fillStyle = colors.fg;
    const right = Math.min(size.w, colX(layout, data.cols - 1) + colW(layout, data.cols - 1) - scroll.x);
    const bottom = Math.min(size.h, rowY(layout, data.rows) - scroll.y);
    for (const edge of [y - 1, y + layout.cellH - 0.5]) ctx.fillRect(layout.left, edge, right - layout.left, 1);
    for (const edge of [x - 1, x + colW(layout, c) - 0.5]) ctx.fillRect(edge, layout.top, 1, bottom - layout.top);
    ctx.globalAlpha = 1;
    ctx.strokeStyle = colors.fg;
    ctx.lineWidth = 1.5;
    ctx.strokeRect(x - 0.5, y - 0.5, colW(layout, c), layout.cellH);
  });
  ctx.font = font(colors, true);
  ctx.textBaseline = "middle";
  ctx.textAlign = "center";
  const rowText = fittedText(ctx, axisWords(data.rowLabels[r], data.rowIndex[r], data.rowTokens), layout.left - 10);
  const rowW = ctx.measureText(rowText).width + 8;
  labelChip(ctx, colors, rowText, layout.left - 4 - rowW, y + layout.cellH / 2 - 8, rowW);
  const colText = fittedText(ctx, axisWords(data.colLabels[c], data.colIndex[c], data.colTokens), 220);
  const labelW = ctx.measureText(colText).width + 8;
  const colLeft = Math.min(Math.max(layout.left, x + layout.cellW / 2 - labelW / 2), Math.max(layout.left, size.w - labelW));
  labelChip(ctx, colors, colText, colLeft, layout.top - 18, labelW);
}
var axisWords = (label, index, isToken) => isToken && index !== null ? `${index} ${label}` : label;
function labelChip(ctx, colors, text, x, y, w) {
  ctx.fillStyle = colors.fg;
  ctx.beginPath();
  ctx.roundRect(x, y, w, 16, 3);
  ctx.fill();
  ctx.fillStyle = colors.bg;
  ctx.fillText(text, x + w / 2, y + 8.5);
}

// workbench/widgets/src/matrix_plot.js
var WIDTH_UNSEEN = 700;
var Plot = class {
  /**
   * @param {HTMLElement} root
   * @param {AbortSignal} signal
   * @param {{onHover: (cell: Cell | null, box: Box | null) => void, onPick: (cell: Cell) => void, onDrawn: () => void}} listeners
   */
  constructor(root, signal, listeners) {
    this.root = root;
    this.listeners = listeners;
    this.canvas = /** @type {PlotCanvas} */
    h("canvas", { tabindex: 0, "data-testid": "wb-matrix-canvas" });
    setAttributes(this.canvas, { role: "application", "aria-roledescription": "heatmap" });
    this.overlay = h("canvas", { class: "wb-overlay", "aria-hidden": "true" });
    this.stage = h("div", { class: "wb-stage" }, this.canvas, this.overlay);
    this.sizer = h("div", { class: "wb-sizer" }, this.stage);
    this.node = h("div", { class: "wb-plot", style: `max-height: ${VIEW_HEIGHT}px` }, this.sizer);
    this.data = null;
    this.painted = null;
    this.cell = { r: -1, c: -1 };
    this.hover = null;
    this.chosen = void 0;
    this.size = { w: 0, h: 0 };
    this.frame = 0;
    this.counts = false;
    this.layout = null;
    this.colors = null;
    this.laidOutFor = 0;
    this.#listen(signal);
    this.canvas.wbCellRect = (r, c) => this.cellRect(r, c);
  }
  /** @param {AbortSignal} signal */
  #listen(signal) {
    this.node.addEventListener("scroll", () => this.#schedule(), { signal });
    this.stage.addEventListener("pointermove", (event) => this.#point(event), { signal });
    this.stage.addEventListener("pointerleave", () => this.#setHover(null), { signal });
    this.stage.addEventListener("click", (event) => {
      const cell = this.#cellUnder(event);
      if (cell) this.listeners.onPick(cell);
    }, { signal });
    signal.addEventListener("abort", () => cancelAnimationFrame(this.frame));
    if (typeof ResizeObserver === "undefined") return;
    const observer = new ResizeObserver(() => {
      if (this.node.clientWidth && this.node.clientWidth !== this.laidOutFor) this.invalidate();
    });
    observer.observe(this.node);
    signal.addEventListener("abort", () => observer.disconnect());
  }
  /** Draws again, laid out anew, in the next frame, and counts that as a draw. */
  invalidate() {
    this.counts = true;
    this.layout = null;
    this.#schedule();
  }
  /** Draws again in the next frame without a new layout (the cursor moved). */
  redraw() {
    this.counts = true;
    this.#schedule();
  }
  #schedule() {
    if (!this.frame) this.frame = requestAnimationFrame(() => this.draw());
  }
  /** @param {MatrixData} data @param {Painted} painted */
  show(data, painted) {
    this.data = data;
    this.painted = painted;
    this.hover = null;
    this.invalidate();
  }
  /** @returns {Layout} */
  #layOut() {
    if (this.layout) return this.layout;
    const data = (
      /** @type {MatrixData} */
      this.data
    );
    const room = this.node.clientWidth || WIDTH_UNSEEN;
    this.colors = canvasColors(this.root);
    const ctx = this.overlay.getContext("2d");
    const titles = [`${data.rowTitle} ↓`, `${data.colTitle} →`];
    const sizes = {
      rows: data.rows,
      cols: data.cols,
      kind: data.kind,
      gap: data.sinkApart,
      rowLabelWidth: widestLabel(ctx, this.colors, data.rowLabels, 130),
      colLabelWidth: widestLabel(ctx, this.colors, data.colLabels, 110),
      titleWidth: widestLabel(ctx, this.colors, titles, 110)
    };
    const { w, h: height } = cellSize(sizes, room, this.chosen);
    const layout = this.layout = layoutOf(sizes, w, height);
    this.laidOutFor = room;
    this.sizer.style.width = `${layout.width}px`;
    this.sizer.style.height = `${layout.height}px`;
    this.#resize();
    return layout;
  }
  #resize() {
    const layout = (
      /** @type {Layout} */
      this.layout
    );
    const w = this.node.clientWidth || WIDTH_UNSEEN;
    const hgt = this.node.clientHeight || Math.min(VIEW_HEIGHT, layout.height);
    this.size = { w: Math.min(w, layout.width), h: Math.min(hgt, layout.height) };
    const ratio = window.devicePixelRatio || 1;
    for (const canvas of [this.canvas, this.overlay]) {
      canvas.style.width = `${this.size.w}px`;
      canvas.style.height = `${this.size.h}px`;
      canvas.width = Math.round(this.size.w * ratio);
      canvas.height = Math.round(this.size.h * ratio);
      canvas.getContext("2d")?.setTransform(ratio, 0, 0, ratio, 0, 0);
    }
  }
  #scene() {
    const layout = this.#layOut();
    return {
      data: (
        /** @type {MatrixData} */
        this.data
      ),
      painted: (
        /** @type {Painted} */
        this.painted
      ),
      colors: (
        /** @type {CanvasColors} */
        this.colors
      ),
      layout,
      scroll: { x: Math.round(this.node.scrollLeft), y: Math.round(this.node.scrollTop) },
      size: this.size,
      cell: this.cell
    };
  }
  /** Draws now. */
  draw() {
    cancelAnimationFrame(this.frame);
    this.frame = 0;
    if (!this.data?.drawn || !this.painted) return;
    const scene = this.#scene();
    const ctx = this.canvas.getContext("2d");
    if (ctx) {
      const { size, layout } = scene;
      ctx.fillStyle = scene.colors.bg;
      ctx.fillRect(0, 0, size.w, size.h);
      clipped(ctx, layout.left - 1, layout.top - 1, size.w, size.h, () => {
        drawCells(ctx, scene);
        drawCursor(ctx, scene);
      });
      drawAxes(ctx, scene);
    }
    this.#drawHover();
    if (this.counts) this.listeners.onDrawn();
    this.counts = false;
  }
  #drawHover() {
    const ctx = this.overlay.getContext("2d");
    if (!ctx) return;
    ctx.clearRect(0, 0, this.size.w, this.size.h);
    if (this.hover) drawHover(ctx, this.#scene(), this.hover);
  }
  /** @param {MouseEvent} event */
  #cellUnder(event) {
    if (!this.data?.drawn) return null;
    const box = this.canvas.getBoundingClientRect();
    const point = { x: event.clientX - box.left, y: event.clientY - box.top };
    return cellAt(this.#layOut(), point, { x: this.node.scrollLeft, y: this.node.scrollTop });
  }
  /** @param {MouseEvent} event */
  #point(event) {
    this.#setHover(this.#cellUnder(event));
  }
  /** @param {Cell | null} cell */
  #setHover(cell) {
    if (cell?.r === this.hover?.r && cell?.c === this.hover?.c) return;
    this.hover = cell;
    this.#drawHover();
    this.listeners.onHover(cell, cell && this.#box(cell));
  }
  /** @param {Cell} cell @returns {Box} */
  #box({ r, c }) {
    const layout = this.#layOut();
    const box = this.canvas.getBoundingClientRect();
    return {
      x: box.left + colX(layout, c) - this.node.scrollLeft,
      y: box.top + rowY(layout, r) - this.node.scrollTop,
      width: colW(layout, c),
      height: layout.cellH
    };
  }
  /** Marks the cursor's cell (−1: none in that direction). @param {Cell} cell @param {boolean} reveal whether to scroll to it */
  setCell(cell, reveal) {
    const same = cell.r === this.cell.r && cell.c === this.cell.c;
    this.cell = cell;
    if (reveal && !same) this.reveal(cell);
    this.redraw();
  }
  /** Scrolls the plot, and nothing around it, until the cell can be seen. @param {Cell} cell */
  reveal(cell) {
    if (!this.data?.drawn) return;
    const layout = this.#layOut();
    const { x, y } = scrollTo(layout, cell, { x: this.node.scrollLeft, y: this.node.scrollTop }, this.size);
    this.node.scrollLeft = x;
    this.node.scrollTop = y;
  }
  /** Steps the cell size; the middle of the view stays where it is. @param {1 | -1 | "fit"} way */
  zoom(way) {
    if (!this.data?.drawn) return;
    const old = this.#layOut();
    const middle = {
      x: (this.node.scrollLeft + (this.size.w - old.left) / 2) / old.cellW,
      y: (this.node.scrollTop + (this.size.h - old.top) / 2) / old.cellH
    };
    this.chosen = way === "fit" ? "fit" : zoomed(this.data.kind, old.cellW, way);
    this.layout = null;
    const layout = this.#layOut();
    this.node.scrollLeft = middle.x * layout.cellW - (this.size.w - layout.left) / 2;
    this.node.scrollTop = middle.y * layout.cellH - (this.size.h - layout.top) / 2;
    this.redraw();
  }
  /**
   * Where a cell is on the screen (client coordinates), after scrolling it into view. For tests and assistive scripts:
   * `document.querySelector("[data-testid=wb-matrix-canvas]").wbCellRect(row, column)`.
   * @param {number} r
   * @param {number} c
   */
  cellRect(r, c) {
    if (!this.data?.drawn || r < 0 || c < 0 || r >= this.data.rows || c >= this.data.cols) return null;
    this.reveal({ r, c });
    this.draw();
    const box = this.#box({ r, c });
    if (box.y >= 0 && box.y + box.height <= window.innerHeight) return box;
    this.canvas.scrollIntoView({ block: "center" });
    return this.#box({ r, c });
  }
};

// workbench/widgets/src/matrix_toolbar.js
var SCALES = [{ value: "sqrt", label: "√" }, { value: "log", label: "log" }, { value: "linear", label: "linear" }];
var ZOOMS = [
  ["−", "Smaller cells", -1],
  ["+", "Larger cells", 1],
  ["Fit", "Fit all cells into the width", "fit"]
];
var Toolbar = class {
  /** @param {Listeners} listeners */
  constructor(listeners) {
    this.listeners = listeners;
    this.title = h("span", { class: "wb-title" });
    this.subtitle = h("span", { class: "wb-muted wb-subtitle" });
    this.badge = h("span", { class: "wb-badge", "data-testid": "wb-state" });
    this.controls = h("span", { class: "wb-bar wb-group" });
    this.choosers = h("span", { class: "wb-bar wb-group" });
    this.zoom = h("span", { class: "wb-bar wb-zoom", role: "group", "aria-label": "Zoom" });
    for (const [sign, label, way] of ZOOMS) {
      const small = sign.length === 1 ? "wb-small" : null;
      const button = h("button", { type: "button", class: small, title: label, "aria-label": label }, sign);
      button.addEventListener("click", () => listeners.onZoom(way));
      this.zoom.append(button);
    }
    this.head = h(
      "div",
      { class: "wb-matrix-head" },
      h("div", { class: "wb-heading" }, this.title, this.subtitle, this.badge),
      h("div", { class: "wb-bar wb-tools" }, this.controls, this.choosers, this.zoom)
    );
    this.legend = h("div", { class: "wb-legend" });
    this.controlsFor = "";
    this.choosersFor = "";
  }
  /** @param {MatrixData} data @param {Painted} painted @param {ThemeName} theme */
  show(data, painted, theme) {
    setText(this.title, data.title);
    setText(this.subtitle, data.subtitle);
    const quiet = data.state === "ok" || !data.drawn;
    setText(this.badge, quiet ? "" : data.stateText ? `${data.state} · ${data.stateText}` : data.state);
    this.badge.dataset.state = data.state;
    this.#showControls(data.controls);
    this.#showChoosers(data, painted);
    this.zoom.hidden = this.choosers.hidden = this.legend.hidden = !data.drawn;
    this.#showLegend(data, painted, theme);
  }
  /** Built anew only when the controls themselves change: a select that is open stays open. @param {Control[]} controls */
  #showControls(controls) {
    const key = JSON.stringify(controls.map(({ value, ...rest }) => rest));
    if (key !== this.controlsFor) {
      this.controlsFor = key;
      this.controls.replaceChildren(...controls.map((control) => this.#buildControl(control)));
    }
    controls.forEach((control, i) => {
      const input = (
        /** @type {HTMLInputElement | HTMLSelectElement} */
        this.controls.children[i].querySelector("input, select")
      );
      if (input instanceof HTMLInputElement && input.type === "checkbox") input.checked = Boolean(control.value);
      else if (!(document.activeElement === input && input.dataset.dirty)) input.value = String(control.value ?? "");
    });
  }
  /** @param {Control} control */
  #buildControl(control) {
    const { name, label, kind, value, options = [] } = control;
    const send = (v) => this.listeners.onSet(name, v);
    if (kind === "select") {
      const pick = (text) => send(options.find((o) => String(o.value) === text)?.value ?? text);
      return labelledSelect(label ?? name, options, String(value), pick).node;
    }
    const id = freshId(name);
    if (kind === "check") {
      const input = h("input", { id, type: "checkbox" });
      input.addEventListener("change", () => send(input.checked));
      return h("span", { class: "wb-field" }, input, h("label", { for: id, class: "wb-check" }, label ?? name));
    }
    return h("span", { class: "wb-field" }, h("label", { for: id }, label ?? name), this.#numberInput(id, control));
  }
  /** @param {string} id @param {Control} control */
  #numberInput(id, { name, min, max, title }) {
    const range = `from ${min ?? "−∞"} to ${max ?? "∞"}`;
    const input = h("input", { id, type: "number", class: "wb-input", min, max, step: 1, title: title ?? range });
    const good = () => {
      const number = input.valueAsNumber;
      return Number.isInteger(number) && number >= (min ?? -Infinity) && number <= (max ?? Infinity);
    };
    input.addEventListener("input", () => {
      input.dataset.dirty = "yes";
      setAttributes(input, { "aria-invalid": good() ? null : "true" });
    });
    input.addEventListener("change", () => {
      delete input.dataset.dirty;
      if (good()) this.listeners.onSet(name, input.valueAsNumber);
    });
    return input;
  }
  /** @param {MatrixData} data @param {Painted} painted */
  #showChoosers(data, { metric, scale }) {
    const metrics = data.metrics.map((m) => ({ value: m.name, label: m.label ?? m.name }));
    const withScale = data.drawn && data.kind === "attention" && !scale.diverging;
    const key = JSON.stringify([metrics, withScale]);
    if (key !== this.choosersFor) {
      this.choosersFor = key;
      this.choosers.replaceChildren();
      const { onMetric, onScale } = this.listeners;
      if (metrics.length > 1) this.choosers.append(labelledSelect("Colour by", metrics, metric?.name ?? "", onMetric).node);
      if (withScale) this.choosers.append(labelledSelect("Scale", SCALES, scale.name, onScale).node);
    }
    for (const select of this.choosers.querySelectorAll("select")) {
      const isScale = withScale && select === this.choosers.lastElementChild?.querySelector("select");
      select.value = isScale ? scale.name : metric?.name ?? "";
    }
  }
  /** @param {MatrixData} data @param {Painted} painted @param {ThemeName} theme */
  #showLegend(data, { metric, scale, found, reasons }, theme) {
    this.legend.replaceChildren();
    if (!data.drawn) return;
    const label = metric?.label ?? metric?.name;
    const named = data.metrics.length > 1;
    if (metric) this.legend.append(scaleBar(scale, theme, { label: named ? "" : label, unit: metric.unit || label }));
    const square = (code) => `background: ${fillOf(code, theme)}; outline: 1px solid var(--wb-line)`;
    if (found.has(MASKED)) {
      const letters = data.reasons.filter((r, i) => r.letter && reasons.has(i + 1)).map((r) => `${r.letter} ${r.label}`);
      this.legend.append(swatch("wb-hatch", letters.length ? `masked: ${letters.join(", ")}` : "masked"));
    }
    if (found.has(PENDING)) this.legend.append(swatch("wb-hatch", "not computed yet"));
    if (found.has(NAN)) this.legend.append(swatch(square(NAN), "× not a number"));
    if (found.has(PLUS_INF)) this.legend.append(swatch(square(PLUS_INF), "▲ +∞"));
    if (found.has(MINUS_INF)) this.legend.append(swatch(square(MINUS_INF), "▼ −∞"));
    if (data.sinkApart) this.legend.append(h("span", null, "Key 0 (the sink) stands apart: the scale leaves it out"));
    if (data.pooled) this.legend.append(h("span", null, `each cell: ${data.pooled.how ?? "pool"} of ${data.factor} × ${data.factor}`));
  }
};

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

// workbench/widgets/src/mask_matrix.widget.js
var MaskView = class {
  /** @param {Model} model @param {HTMLElement} el @param {AbortSignal} signal */
  constructor(model, el, signal) {
    this.model = model;
    this.root = makeRoot(el, signal, "mask", MATRIX_CSS, () => this.paint());
    keepKeysInside(this.root, signal);
    this.problem = problemLine(model, signal);
    this.tooltip = makeTooltip(signal);
    this.toolbar = new Toolbar({
      onSet: (_, text) => saveView(model, { text }),
      // the only control; its change event draws
      onMetric: () => {
      },
      onScale: () => {
      },
      onZoom: (way) => this.zoom(way)
    });
    this.plot = new Plot(this.root, signal, {
      onHover: (cell, box) => this.hover(cell, box),
      onPick: (cell) => this.pick(cell),
      onDrawn: () => countDraw(this.root, this.data.rev)
    });
    this.empty = h("div", { class: "wb-empty", "data-testid": "wb-empty" });
    this.said = h("div", { class: "wb-said", role: "status", "data-testid": "wb-said" });
    this.notes = h("div", { class: "wb-muted wb-subtitle", "data-testid": "wb-notes" });
    this.foot = h("div", { class: "wb-matrix-foot" }, this.toolbar.legend, this.notes, this.said);
    this.root.append(this.toolbar.head, this.plot.node, this.empty, this.foot, this.problem.node);
    this.payload = { rev: 0, content: {}, arrays: {} };
    this.data = readMask(this.payload, 0);
    this.own = null;
    this.connection = new Connection({
      model,
      signal,
      onState: (payload) => this.show(payload),
      onAck: () => this.followCursor(),
      onProblem: (text) => this.problem.show(text)
    });
    this.plot.canvas.addEventListener("keydown", (event) => this.key(event), { signal });
    this.plot.canvas.addEventListener("focus", () => this.say(), { signal });
    onTrait(model, signal, "cursor", () => this.followCursor());
    onTrait(model, signal, "view", () => this.followView());
    this.read();
    this.connection.get();
  }
  /** @param {Payload} payload */
  show(payload) {
    this.payload = payload;
    this.tooltip.hide();
    this.read();
  }
  read() {
    this.data = readMask(this.payload, this.model.get("view")?.text ?? 0);
    this.paint();
  }
  followView() {
    const { text } = this.model.get("view") ?? {};
    if ((text ?? 0) === this.data.which) this.paint();
    else this.read();
  }
  /** Draws what is shown: after a payload, another text, another theme. */
  paint() {
    const { data, plot } = this;
    const theme = themeName();
    const painted = paintMask(data, theme);
    this.toolbar.show(data, painted, theme);
    this.showLegend();
    plot.node.hidden = this.said.hidden = !data.drawn;
    this.empty.hidden = data.drawn;
    setText(this.empty, data.drawn ? "" : data.stateText || "No mask yet.");
    this.empty.dataset.state = data.state;
    setAttributes(plot.canvas, { "aria-label": summary(data) });
    if (!data.drawn) countDraw(this.root, data.rev);
    plot.chosen = this.model.get("view")?.cell ?? firstSize(data);
    plot.cell = this.cursorCell();
    plot.show(data, painted);
    this.say();
  }
  showLegend() {
    const { data } = this;
    const parts = [...data.counts].map(([pattern, count]) => {
      const square = `background: ${css(colorOf(data, pattern, themeName()))}; outline: 1px solid var(--wb-line)`;
      const what = pattern ? `${lettersOf(data, pattern)} masked: ${patternWords(data, pattern)}` : "may attend";
      return swatch(square, `${what} (${count.toLocaleString("en-US")})`);
    });
    this.toolbar.legend.replaceChildren(...parts);
    this.notes.replaceChildren(...data.notes.map((note) => h("div", null, note)));
  }
  cursorCell() {
    return this.own ?? cellOf(this.data, this.model.get("cursor") ?? {});
  }
  followCursor() {
    if (this.connection.isWaiting("cursor")) return;
    this.own = null;
    this.plot.setCell(this.cursorCell(), true);
    this.say();
  }
  /** @param {1 | -1 | "fit"} way */
  zoom(way) {
    this.plot.zoom(way);
    this.tooltip.hide();
    saveView(this.model, { cell: this.plot.chosen });
  }
  /** @param {Cell} cell */
  pick(cell) {
    this.own = cell;
    this.plot.canvas.focus({ preventScroll: true });
    this.plot.setCell(cell, true);
    this.say();
    this.connection.act("cursor", cursorParams(this.data, cell));
  }
  /** @param {KeyboardEvent} event */
  key(event) {
    const { data, plot } = this;
    if (!data.drawn) return;
    const to = moved(event, { r: Math.max(0, plot.cell.r), c: Math.max(0, plot.cell.c) }, data);
    if (!to) return;
    event.preventDefault();
    this.tooltip.hide();
    if (to.r !== plot.cell.r || to.c !== plot.cell.c) this.pick(to);
  }
  /** @param {Cell | null} cell @param {Box | null} box */
  hover(cell, box) {
    if (cell && box) this.tooltip.show(cellTip(this.data, cell.r, cell.c), box);
    else this.tooltip.hide();
    this.say(cell);
  }
  /** Says the hovered cell, or the cursor's, in words. @param {Cell | null} [hovered] */
  say(hovered) {
    setText(this.said, this.data.drawn ? placeWords(this.data, hovered ?? this.plot.cell) : "");
  }
};
function render({ model, el, signal: given }) {
  const { signal, end } = lifetime(given);
  new MaskView(model, el, signal);
  return end;
}
var mask_matrix_widget_default = { render };
export {
  mask_matrix_widget_default as default
};
