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

// workbench/widgets/src/generation_css.js
var GENERATION_CSS = `
.wb-generation { padding: 4px 2px 8px; }
.wb-gen-head { justify-content: space-between; margin-bottom: 6px; min-height: 26px; }
.wb-gen-title { display: flex; flex-wrap: wrap; align-items: baseline; gap: 2px 8px; min-width: 0; }
.wb-gen-title > b { font-size: 13px; }
.wb-gen-token { font-family: var(--wb-mono); unicode-bidi: isolate; overflow-wrap: anywhere; }
.wb-gen-state { color: var(--wb-warn); }
.wb-gen-state[data-state=running] { color: var(--wb-accent); }
.wb-gen-state[data-state=error] { color: var(--wb-bad); }
.wb-gen-state:empty { display: none; }
.wb-gen-body { display: flex; flex-wrap: wrap; gap: 10px 20px; align-items: flex-start; }
.wb-gen-scroll {
  flex: 3 1 540px; min-width: 0; max-height: 268px; overflow: auto; border: 1px solid var(--wb-line); border-radius: 6px;
  scrollbar-width: thin;
}
.wb-generation table.wb-gen-table { width: 100%; border-collapse: separate; border-spacing: 0; margin: 0; font-size: 12px; table-layout: fixed; color: var(--wb-fg); }
.wb-generation .wb-gen-table :is(th, td) {
  padding: 0 6px; height: 22px; text-align: left; vertical-align: middle; white-space: nowrap; overflow: hidden; border: 0; max-width: none;
}
.wb-generation .wb-gen-table thead th {
  position: sticky; top: 0; z-index: 1; background: var(--wb-bg); color: var(--wb-muted); font-weight: 400; font-size: 11px;
  border-bottom: 1px solid var(--wb-line);
}
.wb-generation .wb-gen-table tbody tr, .wb-generation .wb-gen-table thead tr, .wb-generation .wb-gen-table tfoot tr { background: none; }
.wb-generation .wb-gen-table tbody tr { cursor: pointer; }
.wb-generation .wb-gen-table tbody tr:hover { background: color-mix(in srgb, var(--wb-fg) 8%, var(--wb-bg)); }
.wb-generation .wb-gen-table tbody tr:focus-visible { outline: 2px solid var(--wb-accent); outline-offset: -2px; }
.wb-generation .wb-gen-table tbody tr.wb-path { background: color-mix(in srgb, var(--wb-accent) 13%, var(--wb-bg)); }
.wb-generation .wb-gen-table tbody tr.wb-path:hover { background: color-mix(in srgb, var(--wb-accent) 22%, var(--wb-bg)); }
.wb-generation .wb-gen-table .wb-r { text-align: right; font-variant-numeric: tabular-nums; }
.wb-generation .wb-gen-table td.wb-gen-text { font-family: var(--wb-mono); unicode-bidi: isolate; text-overflow: ellipsis; }
.wb-gen-mark { display: inline-block; width: 16px; font-family: var(--wb-ui); }
.wb-gen-table th > .wb-over { display: inline-block; min-width: 52px; text-align: right; }
.wb-generation .wb-gen-table tfoot td {
  position: sticky; bottom: 0; background: var(--wb-bg); color: var(--wb-muted); border-top: 1px solid var(--wb-line);
}
.wb-gen-meter { display: flex; align-items: center; gap: 8px; font-variant-numeric: tabular-nums; }
.wb-gen-meter > span { flex: none; width: 52px; text-align: right; }
.wb-gen-meter > i { flex: 1; height: 9px; border-radius: 2px; background: var(--wb-soft); overflow: hidden; }
.wb-gen-meter > i > i { display: block; height: 100%; min-width: 1px; border-radius: 2px; background: var(--wb-accent); }
.wb-gen-meter.wb-share > i > i { background: var(--wb-good); }
.wb-gen-meter.wb-cut > span { color: var(--wb-muted); }
.wb-gen-meter.wb-cut > i > i { display: none; }
.wb-gen-side { flex: 1 1 250px; min-width: 0; display: flex; flex-direction: column; gap: 10px; }
.wb-gen-side h4 { margin: 0 0 3px; font: 600 12px/16px var(--wb-ui); color: var(--wb-fg); }
.wb-gen-cost { display: grid; grid-template-columns: auto 1fr; gap: 1px 12px; margin: 0; font-variant-numeric: tabular-nums; }
.wb-gen-cost dt { color: var(--wb-muted); font-weight: 400; } .wb-gen-cost dd { margin: 0; overflow-wrap: anywhere; }
.wb-gen-branches { list-style: none; margin: 0; padding: 1px; display: flex; flex-wrap: wrap; gap: 4px; max-height: 150px; overflow: auto; }
.wb-gen-branches > li { margin: 0; max-width: 100%; }
.wb .wb-gen-branches button { max-width: 100%; overflow: hidden; text-overflow: ellipsis; }
.wb .wb-gen-branches button[aria-current=true] { border-color: var(--wb-accent); box-shadow: inset 0 0 0 1px var(--wb-accent); }
.wb-gen-said { min-height: 17px; font-size: 11px; color: var(--wb-muted); overflow-wrap: anywhere; margin-top: 4px; }
.wb-generation:not([data-state=running]) .wb-gen-stop { display: none; }
.wb-generation[data-state=running] :is(.wb-gen-stop, .wb-gen-state) { animation: wb-late 0s 0.3s both; }
@keyframes wb-late { from { opacity: 0; } to { opacity: 1; } }
.wb-generation[data-state=running] .wb-gen-body { opacity: 0.6; transition: opacity 0.15s 0.3s; }
.wb-generation[data-state=running] .wb-gen-table tbody tr { cursor: progress; }
`;

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
function probability(p) {
  if (!Number.isFinite(p)) return "–";
  return p !== 0 && p < 1e-4 ? minus(p.toExponential(1)) : p.toFixed(p < 0.1 ? 4 : 3);
}
function aligned(value, decimals = 2) {
  return Number.isFinite(value) ? minus(value.toFixed(decimals)) : exact(value);
}
var minus = (text) => text.replace(/-/g, "−");

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
function shortened(text, most = 24) {
  const parts = graphemes(text.slice(0, 8 * most));
  return parts.length <= most && text.length <= 8 * most ? text : `${parts.slice(0, most - 1).join("")}…`;
}

// workbench/widgets/src/strip_chips.js
var SOURCES = { prompt: "prompt", sampled: "generated", forced: "forced" };

// workbench/widgets/src/generation_words.js
var quoted = (text, most = 24) => `“${shortened(visible(text), most)}”`;
var TAKEN = { path: ", taken in this text", branch: ", taken in another branch" };
var shareWords = (share) => share === 0 ? "never" : probability(share);
function candidateWords(token, i, arrays) {
  const value = (name) => arrays[name].data[i];
  const taken = token.taken ? TAKEN[token.taken] : "";
  return `${i + 1}: ${quoted(token.text)}, probability ${probability(value("p"))}, the sampler takes it: ${shareWords(value("share"))}, logit ${exact(value("logit"))}, log-probability ${exact(value("logprob"))}${taken}`;
}
function candidateRows(token, i, arrays) {
  const rows = [["Id", String(token.id)]];
  if (token.bytes) rows.push(["Bytes", shortened(token.bytes, 60)]);
  rows.push(
    ["p", exact(arrays.p.data[i])],
    ["sampler", arrays.share.data[i] === 0 ? "never takes it" : exact(arrays.share.data[i])],
    ["logit", exact(arrays.logit.data[i])],
    ["log p", `${exact(arrays.logprob.data[i])} nats`]
  );
  return rows;
}
function summary(content, arrays) {
  const { after, tokens } = content;
  if (!after || tokens.length === 0) return "";
  const first = tokens.slice(0, 3).map((token, i) => `${quoted(token.text)} ${probability(arrays.p.data[i])}`);
  return `After ${quoted(after.text)} at position ${after.position}: ${first.join(", ")} and ${tokens.length - first.length} more. Enter or a click takes one.`;
}
function branchWords(branch) {
  const where = branch.on_path ? "in this text" : "another branch: click to show it";
  const more = branch.more ? `, ${branch.more} more ${branch.more === 1 ? "token" : "tokens"} behind it` : "";
  const p = branch.logprob === null ? "" : `, p ${probability(Math.exp(branch.logprob))}`;
  return `${quoted(branch.text)}: ${where}; ${SOURCES[branch.source] ?? "prompt"}${p}${more}`;
}

// workbench/widgets/src/generation_table.js
var COLUMNS = [
  ["#", "wb-r", "30px", "rank"],
  ["token", "", "26%", "the token; ● it follows in this text, ○ in another branch"],
  ["p", "", "25%", "probability: the plain softmax, before temperature and cuts"],
  ["sampler", "", "25%", "probability with which the sampler takes it"],
  ["logit", "wb-r", "58px", "the model's output"],
  ["log p", "wb-r", "58px", "natural logarithm of p"]
];
var MARKS = { path: "● ", branch: "○ " };
function meter(kind) {
  const fill = h("i");
  const number = h("span");
  const node = h("div", { class: `wb-gen-meter ${kind}` }, number, h("i", null, fill));
  const set = (value, words) => {
    setText(number, words);
    fill.style.width = `${100 * Math.min(1, Math.max(0, value))}%`;
    node.classList.toggle("wb-cut", value === 0);
  };
  return { node, set };
}
function buildRow(i) {
  const mark2 = h("span", { class: "wb-gen-mark" });
  const text = h("span");
  const p = meter("wb-p");
  const share = meter("wb-share");
  const logit = h("td", { class: "wb-r", role: "gridcell" });
  const logprob = h("td", { class: "wb-r", role: "gridcell" });
  const cell = (child, type = "") => h("td", { class: type, role: "gridcell" }, child);
  const node = h(
    "tr",
    { role: "row", tabindex: -1, "data-i": i },
    cell(String(i + 1), "wb-r wb-muted"),
    h("td", { class: "wb-gen-text", role: "gridcell", dir: "ltr" }, mark2, text),
    cell(p.node),
    cell(share.node),
    logit,
    logprob
  );
  return { node, mark: mark2, text, p, share, logit, logprob };
}
var Candidates = class {
  constructor() {
    const head = COLUMNS.map(([name, type, width, title]) => h("th", { class: type, role: "columnheader", scope: "col", title, style: `width: ${width}` }, type || name === "token" ? name : h("span", { class: "wb-over" }, name)));
    this.body = h("tbody", { role: "rowgroup" });
    this.rest = buildRow(-1);
    this.rest.node.removeAttribute("tabindex");
    this.rest.node.firstElementChild?.replaceChildren();
    this.foot = h("tfoot", { role: "rowgroup" }, this.rest.node);
    const table = h("table", { class: "wb-gen-table", role: "grid", "data-testid": "wb-candidates" }, h("thead", { role: "rowgroup" }, h("tr", { role: "row" }, ...head)), this.body, this.foot);
    this.table = table;
    this.node = h("div", { class: "wb-gen-scroll" }, table);
    this.rows = [];
    this.focus = 0;
  }
  /** @param {GenerationContent} content @param {Arrays} arrays */
  show(content, arrays) {
    const { tokens, rest, after } = content;
    while (this.rows.length > tokens.length) this.rows.pop()?.node.remove();
    while (this.rows.length < tokens.length) {
      const row = buildRow(this.rows.length);
      this.rows.push(row);
      this.body.append(row.node);
    }
    tokens.forEach((token, i) => {
      const row = this.rows[i];
      setText(row.mark, token.taken ? MARKS[token.taken] : "");
      setText(row.text, shortened(visible(token.text), 40));
      row.p.set(arrays.p.data[i], probability(arrays.p.data[i]));
      row.share.set(arrays.share.data[i], shareWords(arrays.share.data[i]));
      setText(row.logit, aligned(arrays.logit.data[i]));
      setText(row.logprob, aligned(arrays.logprob.data[i]));
      row.node.classList.toggle("wb-path", token.taken === "path");
      setAttributes(row.node, { "aria-label": candidateWords(token, i, arrays) });
    });
    this.foot.hidden = !rest;
    if (rest) {
      setText(this.rest.text, `${rest.count.toLocaleString("en-US")} others`);
      this.rest.p.set(rest.p, probability(rest.p));
      this.rest.share.set(rest.share, rest.share < 1e-6 ? "never" : probability(rest.share));
    }
    setAttributes(this.table, {
      "aria-label": after ? `Candidates after ${visible(after.text)}, position ${after.position}` : "Candidates"
    });
    this.setFocus(Math.min(this.focus, Math.max(0, tokens.length - 1)));
  }
  /** The row that Tab reaches. @param {number} i */
  setFocus(i) {
    if (this.rows[this.focus]) this.rows[this.focus].node.tabIndex = -1;
    this.focus = i;
    if (this.rows[i]) this.rows[i].node.tabIndex = 0;
  }
  /** @param {number} i */
  moveTo(i) {
    this.setFocus(i);
    const row = this.rows[i]?.node;
    if (!row) return;
    row.focus({ preventScroll: true });
    const box = row.getBoundingClientRect();
    const view = this.node.getBoundingClientRect();
    const top = view.top + 24;
    if (box.top < top) this.node.scrollTop -= top - box.top;
    const bottom = view.bottom - (this.foot.hidden ? 2 : this.foot.getBoundingClientRect().height + 2);
    if (box.bottom > bottom) this.node.scrollTop += box.bottom - bottom;
  }
};

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
  const aligned2 = view.byteOffset % Type.BYTES_PER_ELEMENT === 0;
  const data = aligned2 ? new Type(bytes, view.byteOffset, count) : new Type(bytes.slice(view.byteOffset, view.byteOffset + view.byteLength));
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

// workbench/widgets/src/run_bar_settings.js
var FIELDS = [
  field("max_new_tokens", "New tokens", true, 4096, "1", "How many tokens to generate at most"),
  field("temperature", "Temperature", false, 100, "0.1", "0 = greedy: always the most probable token"),
  field("top_k", "Top-k", true, 1e6, "1", "Sample from this many of the most probable tokens; 0 = all"),
  field("top_p", "Top-p", false, 1, "0.05", "Sample from the fewest tokens with this much probability; 1 = all"),
  field("seed", "Seed", true, 4294967295, "1", "The same seed gives the same tokens")
];
function field(name, label, whole, high, step, title) {
  return { name, label, whole, low: 0, high, step, title };
}
function fieldProblem(field2, value) {
  const good = Number.isFinite(value) && value >= field2.low && value <= field2.high && (!field2.whole || Number.isInteger(value));
  if (good && !(field2.name === "top_p" && value === 0)) return "";
  const kind = field2.whole ? "a whole number" : "a number";
  const range = field2.name === "top_p" ? "above 0 and up to 1" : `from ${field2.low} to ${field2.high}`;
  return `${field2.label} must be ${kind} ${range}.`;
}
function mark(input, bad) {
  setAttributes(input, { "aria-invalid": bad ? "true" : null });
}
function numberInput(field2) {
  const { name, title, low: min, high: max, step } = field2;
  const id = freshId(name);
  const style = `width: ${name === "seed" ? 102 : 58}px`;
  const input = h("input", { id, type: "number", class: "wb-input", min, max, step, title, style });
  input.addEventListener("input", () => mark(input, fieldProblem(field2, input.valueAsNumber) !== ""));
  return { field: field2, input, node: h("span", { class: "wb-field" }, h("label", { for: id, title }, field2.label), input) };
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
  const mark2 = document.body?.dataset.jpThemeLight;
  if (mark2 !== void 0) return mark2 === "false" ? "dark" : "light";
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

// workbench/widgets/src/generation.widget.js
var SETTLED_MS = 60;
var NOTHING = {
  state: "empty",
  state_text: "",
  after: null,
  tokens: [],
  rest: null,
  cost: [],
  branches: [],
  in_use: true,
  sampler: { temperature: 0, top_k: 0, top_p: 1 }
};
var GenerationView = class {
  /** @param {Model} model @param {HTMLElement} el @param {AbortSignal} signal */
  constructor(model, el, signal) {
    this.root = makeRoot(el, signal, "generation", GENERATION_CSS);
    keepKeysInside(this.root, signal);
    this.problem = problemLine(model, signal);
    this.tooltip = makeTooltip(signal);
    this.table = new Candidates();
    this.sampler = makeSampler();
    this.parts = makeParts();
    const { head, side, empty, said, title } = this.parts;
    head.append(title, this.sampler.node);
    this.body = h("div", { class: "wb-gen-body" }, this.table.node, side);
    this.root.append(head, this.body, empty, said, this.problem.node);
    this.content = NOTHING;
    this.arrays = {};
    this.shownNode = -1;
    this.connection = new Connection({
      model,
      signal,
      onState: (payload) => this.show(payload),
      onProblem: (text) => this.problem.show(text)
    });
    this.#listen(signal);
    this.draw(0);
    this.connection.get();
  }
  /** @param {AbortSignal} signal */
  #listen(signal) {
    const { body } = this.table;
    body.addEventListener("click", (event) => {
      const i = indexAt(event);
      if (i < 0) return;
      this.table.moveTo(i);
      this.take(i);
    });
    body.addEventListener("keydown", (event) => this.key(event));
    body.addEventListener("pointerover", (event) => this.tip(indexAt(event)));
    body.addEventListener("pointerleave", this.tooltip.hide);
    this.table.node.addEventListener("scroll", this.tooltip.hide);
    body.addEventListener("focusin", (event) => {
      const i = indexAt(event);
      if (i >= 0) this.table.setFocus(i);
    });
    this.parts.branches.addEventListener("click", (event) => {
      const button = event.target instanceof Element ? event.target.closest("button") : null;
      if (button) this.act("go", { node: Number(button.dataset.node) });
    });
    this.parts.stop.addEventListener("click", () => this.connection.act("stop"));
    this.root.addEventListener("keydown", (event) => {
      if (event.key === "Escape" && this.running) this.connection.act("stop");
    });
    let settled;
    signal.addEventListener("abort", () => clearTimeout(settled));
    this.sampler.node.addEventListener("input", () => {
      clearTimeout(settled);
      settled = setTimeout(() => this.choose("sampler"), SETTLED_MS);
    });
    this.sampler.use.addEventListener("click", () => {
      clearTimeout(settled);
      this.choose("use");
    });
  }
  get running() {
    return this.content.state === "running";
  }
  /** @param {Payload} payload */
  show(payload) {
    this.content = { ...NOTHING, ...payload.content };
    this.arrays = payload.arrays;
    this.tooltip.hide();
    this.draw(payload.rev);
  }
  /** @param {number} rev */
  draw(rev) {
    const { content, arrays, table, parts, root } = this;
    const none = content.tokens.length === 0;
    root.dataset.state = content.state;
    this.body.hidden = none;
    parts.empty.hidden = !none;
    setText(parts.empty, none ? content.state_text || "Run a prompt to see what may come next." : "");
    setText(parts.state, none ? "" : content.state_text);
    parts.state.dataset.state = content.state;
    const { after } = content;
    setText(parts.after, after ? shortened(visible(after.text), 40) : "");
    setText(parts.where, after ? `position ${after.position}` : "");
    parts.afterLine.hidden = !after;
    const moved2 = content.node !== void 0 && content.node !== this.shownNode;
    if (moved2) table.setFocus(0);
    table.show(content, arrays);
    setAttributes(table.table, { "aria-busy": this.running ? "true" : null });
    if (moved2) this.scrollBack();
    this.shownNode = content.node ?? -1;
    if (!this.connection?.isWaiting("sampler")) this.sampler.write(content.sampler);
    this.sampler.setUsed(content.in_use);
    this.drawSide();
    setText(parts.said, this.running ? "" : summary(content, arrays));
    countDraw(root, rev);
  }
  /** Other candidates are shown: the first of them is where the keyboard goes on. */
  scrollBack() {
    const inside = this.table.body.contains(document.activeElement);
    this.table.node.scrollTop = 0;
    if (inside) this.table.moveTo(0);
  }
  drawSide() {
    const { cost, branches } = this.content;
    this.parts.cost.replaceChildren(...cost.flatMap(({ label, value }) => [h("dt", null, label), h("dd", null, value)]));
    const focused = document.activeElement instanceof HTMLElement && this.parts.branches.contains(document.activeElement) ? document.activeElement.dataset.node : null;
    const items = branches.map((branch) => {
      const words = branchWords(branch);
      const more = branch.more ? ` +${branch.more.toLocaleString("en-US")}` : "";
      return h("li", null, h(
        "button",
        { type: "button", "data-node": branch.node, title: words, "aria-label": words, "aria-current": branch.on_path ? "true" : null },
        branch.on_path ? "● " : "○ ",
        h("span", { class: "wb-gen-token", dir: "ltr" }, shortened(visible(branch.text), 20)),
        more && h("span", { class: "wb-muted" }, more)
      ));
    });
    this.parts.branches.replaceChildren(...items);
    if (focused) this.parts.branches.querySelector(`[data-node="${focused}"]`)?.focus({ preventScroll: true });
    this.parts.branches.hidden = branches.length === 0;
    setText(this.parts.noBranch, branches.length ? "" : "No token was taken here yet.");
  }
  /** @param {"take" | "go"} name @param {Record<string, number>} params */
  act(name, params) {
    if (!this.running) this.connection.act(name, { run: this.content.run, ...params });
  }
  /** @param {number} i */
  take(i) {
    const token = this.content.tokens[i];
    if (!token || this.content.node === void 0) return;
    this.tooltip.hide();
    this.act("take", { node: this.content.node, token: token.id });
  }
  /** @param {"sampler" | "use"} name */
  choose(name) {
    const { values, problem } = this.sampler.read();
    this.problem.show(problem);
    if (!problem) this.connection.act(name, values);
  }
  /** @param {number} i */
  tip(i) {
    const token = this.content.tokens[i];
    if (!token) return this.tooltip.hide();
    const name = h("div", { class: "wb-tip-head wb-mono", dir: "ltr" }, shortened(visible(token.text), 400));
    const row = this.table.rows[i].node.getBoundingClientRect();
    const box = { x: row.x + 60, y: row.y, width: row.width, height: row.height };
    return this.tooltip.show([name, tipRows(candidateRows(token, i, this.arrays))], box);
  }
  /** @param {KeyboardEvent} event */
  key(event) {
    const i = indexAt(event);
    if (i < 0) return;
    const chosen = event.key === "Enter" || event.key === " ";
    const to = chosen ? i : rowAfter(event, i, this.table.rows.length);
    if (to === null) return;
    event.preventDefault();
    if (chosen) this.take(i);
    else this.table.moveTo(to);
  }
};
function rowAfter(event, i, rows) {
  if (event.key === "Home") return 0;
  if (event.key === "End") return rows - 1;
  return moved(event, { r: i, c: 0 }, { rows, cols: 1 })?.r ?? null;
}
function indexAt(event) {
  const row = event.target instanceof Element ? event.target.closest("tr") : null;
  return row?.dataset.i ? Number(row.dataset.i) : -1;
}
function makeParts() {
  const after = h("span", { class: "wb-gen-token", dir: "ltr" });
  const where = h("span", { class: "wb-muted" });
  const afterLine = h("span", { "data-testid": "wb-generation-after" }, "after ", after, " · ", where);
  const state = h("span", { class: "wb-gen-state", role: "status", "data-testid": "wb-generation-state" });
  const stop = h("button", { type: "button", class: "wb-gen-stop", title: "Stop (Esc)" }, "■ Stop");
  const cost = h("dl", { class: "wb-gen-cost", "data-testid": "wb-generation-cost" });
  const branches = h("ul", { class: "wb-gen-branches", "aria-label": "Branches here", "data-testid": "wb-generation-branches" });
  const noBranch = h("div", { class: "wb-muted" });
  return {
    after,
    where,
    afterLine,
    state,
    stop,
    cost,
    branches,
    noBranch,
    title: h("div", { class: "wb-gen-title" }, h("b", null, "Next token"), afterLine, state, stop),
    head: h("div", { class: "wb-bar wb-gen-head" }),
    side: h(
      "div",
      { class: "wb-gen-side" },
      h("section", { "aria-label": "Cost of this step" }, h("h4", null, "This step"), cost),
      h("section", { "aria-label": "Branches" }, h("h4", null, "Taken here"), branches, noBranch)
    ),
    empty: h("div", { class: "wb-empty", "data-testid": "wb-empty" }),
    said: h("div", { class: "wb-gen-said", role: "status", "data-testid": "wb-generation-said" })
  };
}
function makeSampler() {
  const inputs = [
    numberInput(field("temperature", "Temperature", false, 100, "0.1", "0 = greedy: always the most probable token")),
    numberInput(field("top_k", "Top-k", true, 1e6, "1", "Only this many of the most probable tokens; 0 = all")),
    numberInput(field("top_p", "Top-p", false, 1, "0.05", "Only the fewest tokens with this much probability; 1 = all"))
  ];
  const use = h("button", { type: "button", title: "Take the next tokens with this sampler, too" }, "Use");
  const used = h("span", { class: "wb-muted", "data-testid": "wb-generation-used" });
  const node = h("div", { class: "wb-bar", role: "group", "aria-label": "Sampler" }, ...inputs.map((i) => i.node), use, used);
  return {
    node,
    use,
    /** @param {boolean} inUse */
    setUsed(inUse) {
      use.disabled = inUse;
      setText(used, inUse ? "in use" : "shown only");
    },
    read() {
      const values = {};
      const problems = inputs.map(({ field: about, input }) => {
        values[about.name] = input.valueAsNumber;
        return fieldProblem(about, input.valueAsNumber);
      });
      return { values, problem: problems.filter(Boolean).join(" ") };
    },
    /** A field that is being typed into stays as it is. @param {Record<string, number>} sampler */
    write(sampler) {
      for (const { field: about, input } of inputs) {
        if (input === document.activeElement && input.valueAsNumber !== sampler[about.name] && !use.disabled) continue;
        if (input.valueAsNumber !== sampler[about.name]) input.value = String(sampler[about.name]);
        setAttributes(input, { "aria-invalid": null });
      }
    }
  };
}
function render({ model, el, signal: given }) {
  const { signal, end } = lifetime(given);
  new GenerationView(model, el, signal);
  return end;
}
var generation_widget_default = { render };
export {
  generation_widget_default as default
};
