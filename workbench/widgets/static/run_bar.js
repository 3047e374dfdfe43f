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

// workbench/widgets/src/keyboard.js
function keepKeysInside(root, signal) {
  for (const type of ["keydown", "keypress", "keyup"]) {
    root.addEventListener(type, (event) => event.stopPropagation(), { signal });
  }
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

// workbench/widgets/src/run_bar_css.js
var RUN_BAR_CSS = `
.wb-run-bar { padding: 4px 2px 6px; }
.wb-top { display: flex; align-items: flex-end; justify-content: space-between; gap: 12px; margin-bottom: 5px; }
.wb-model { color: var(--wb-muted); font-size: 11px; line-height: 16px; overflow-wrap: anywhere; min-width: 0; }
.wb .wb-examples { flex: none; max-width: 110px; height: 22px; font-size: 11px; margin-left: auto; }
.wb .wb-prompt {
  display: block; width: 100%; resize: none; padding: 6px 8px; font: 13px/18px var(--wb-mono); min-height: 50px;
  background: var(--jp-layout-color0, Field); border: 1px solid var(--wb-field-line); border-radius: 4px;
}
.wb .wb-prompt::placeholder { color: var(--wb-muted); opacity: 1; }
.wb-controls { margin-top: 8px; gap: 8px 14px; }
.wb-settings { display: contents; }
.wb-buttons { display: inline-flex; gap: 6px; }
.wb button.wb-primary:not(:disabled) { background: var(--wb-accent); border-color: var(--wb-accent); color: #fff; font-weight: 600; }
.wb[data-theme=dark] button.wb-primary:not(:disabled) { color: #000; }
.wb button.wb-primary:hover:not(:disabled) { background: color-mix(in srgb, var(--wb-accent) 86%, #000); }
.wb[data-theme=dark] button.wb-primary:hover:not(:disabled) { background: color-mix(in srgb, var(--wb-accent) 86%, #fff); }
.wb button.wb-primary { min-width: 64px; }
.wb-check { cursor: pointer; color: var(--wb-fg) !important; }
.wb-check input { accent-color: var(--wb-accent); }
.wb-status { margin-top: 8px; }
.wb-statusline { display: flex; align-items: baseline; gap: 6px; min-height: 18px; }
.wb-words { overflow-wrap: anywhere; min-width: 0; }
.wb-clock { margin-left: auto; white-space: nowrap; }
.wb-statusline > .wb-muted { white-space: nowrap; padding-left: 6px; }
.wb-sign { width: 14px; text-align: center; color: var(--wb-muted); flex: none; }
.wb-status[data-state=running] .wb-sign { color: var(--wb-accent); animation: wb-pulse 1.2s ease-in-out infinite; }
.wb-status[data-state=done] .wb-sign { color: var(--wb-good); }
.wb-status[data-state=stopped] .wb-sign { color: var(--wb-warn); }
.wb-status[data-state=error] :is(.wb-sign, .wb-words) { color: var(--wb-bad); }
.wb-progress { height: 3px; margin-top: 4px; background: var(--wb-line); border-radius: 2px; overflow: hidden; }
.wb-progress > i {
  display: block; height: 100%; width: 0; background: var(--wb-accent); border-radius: 2px; transition: width 80ms linear;
}
.wb-status[data-state=done] .wb-progress > i { background: var(--wb-good); }
.wb-status:is([data-state=stopped], [data-state=error]) .wb-progress > i { background: var(--wb-muted); }
.wb-progress.wb-unknown > i { width: 30% !important; animation: wb-slide 1.2s ease-in-out infinite; }
.wb-progress.wb-off { visibility: hidden; }
@keyframes wb-pulse { 50% { opacity: .35; } }
@keyframes wb-slide { from { margin-left: -30%; } to { margin-left: 100%; } }
@media (prefers-reduced-motion: reduce) { .wb * { animation: none !important; transition: none !important; } }
`;

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
function makeSettings() {
  const inputs = FIELDS.map(numberInput);
  const chat = h("input", { type: "checkbox" });
  const chatNode = h("label", { class: "wb-field wb-check", title: "Wrap the prompt in the model's chat template" }, chat, "Chat template");
  const node = h("span", { class: "wb-bar wb-settings" }, ...inputs.map((i) => i.node), chatNode);
  let written = {};
  return {
    node,
    /** @returns {{values: Record<string, number | boolean>, problem: string}} */
    read() {
      const values = { chat: chat.checked };
      const wrong = inputs.flatMap(({ field: field2, input }) => {
        const text = fieldProblem(field2, input.valueAsNumber);
        mark(input, text !== "");
        values[field2.name] = input.valueAsNumber;
        return text ? [text] : [];
      });
      if (wrong.length) inputs.find(({ input }) => input.hasAttribute("aria-invalid"))?.input.focus();
      return { values, problem: wrong.join(" ") };
    },
    /** @param {Record<string, any>} settings */
    write(settings) {
      for (const { field: field2, input } of inputs) {
        const value = settings[field2.name];
        if (value !== void 0 && value !== written[field2.name]) input.value = String(value);
        mark(input, fieldProblem(field2, input.valueAsNumber) !== "");
      }
      if (settings.chat !== written.chat) chat.checked = Boolean(settings.chat);
      written = { ...settings };
    }
  };
}

// workbench/widgets/src/format.js
function duration(seconds) {
  if (seconds < 60) return `${seconds.toFixed(1)} s`;
  const whole = Math.floor(seconds);
  return `${Math.floor(whole / 60)} min ${String(whole % 60).padStart(2, "0")} s`;
}

// workbench/widgets/src/run_bar_status.js
var STATES = {
  idle: ["○", "Ready"],
  running: ["●", "Running"],
  done: ["✓", "Done"],
  stopped: ["■", "Stopped"],
  error: ["⚠", "Error"]
};
function statusWords({ state, text }) {
  const word = (STATES[state] ?? STATES.idle)[1];
  const rest = (text ?? "").trim();
  if (!rest) return word;
  return rest.toLowerCase().startsWith(word.toLowerCase()) ? rest : `${word} · ${rest}`;
}
function makeStatus(signal) {
  const sign = h("span", { class: "wb-sign", "aria-hidden": "true" });
  const words = h("span", { class: "wb-words", role: "status", "aria-live": "polite", "data-testid": "wb-status" });
  const count = h("span", { class: "wb-num wb-muted", "data-testid": "wb-progress-text" });
  const clock = h("span", { class: "wb-num wb-muted wb-clock" });
  const fill = h("i");
  const bar = h("div", { class: "wb-progress", role: "progressbar", "aria-label": "Progress", "aria-valuemin": 0 }, fill);
  const line = h("div", { class: "wb-statusline" }, sign, words, count, clock);
  const node = h("div", { class: "wb-status" }, line, bar);
  let since = null;
  function tick() {
    if (since) setText(clock, duration(since.elapsed + (performance.now() - since.at) / 1e3));
  }
  const ticking = setInterval(tick, 100);
  signal.addEventListener("abort", () => clearInterval(ticking));
  function show(status) {
    const { state, done, total, elapsed } = status;
    node.dataset.state = state in STATES ? state : "idle";
    setText(sign, (STATES[state] ?? STATES.idle)[0]);
    setText(words, statusWords(status));
    const counted = typeof done === "number" && typeof total === "number" && total > 0;
    setText(count, counted ? `${done} / ${total}` : "");
    const running = state === "running";
    since = running && typeof elapsed === "number" ? { elapsed, at: performance.now() } : null;
    setText(clock, typeof elapsed === "number" ? duration(elapsed) : "");
    setAttributes(bar, { "aria-valuemax": counted ? total : null, "aria-valuenow": counted ? done : null });
    bar.classList.toggle("wb-unknown", running && !counted);
    bar.classList.toggle("wb-off", !running && !counted);
    fill.style.width = counted ? `${Math.min(100, 100 * done / total)}%` : "";
  }
  return { node, show };
}

// workbench/widgets/src/tokens.js
var segmenter = typeof Intl !== "undefined" && "Segmenter" in Intl ? new Intl.Segmenter() : null;
function graphemes(text) {
  return segmenter ? Array.from(segmenter.segment(text), (s) => s.segment) : Array.from(text);
}
function shortened(text, most = 24) {
  const parts = graphemes(text.slice(0, 8 * most));
  return parts.length <= most && text.length <= 8 * most ? text : `${parts.slice(0, most - 1).join("")}…`;
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
function makeRoot(el, signal, name, css, onTheme) {
  const root = h("div", {
    class: `wb wb-${name}`,
    "data-testid": `wb-${name}`,
    "data-drawn": 0,
    "data-rev": 0,
    "data-lm-suppress-shortcuts": "true"
    // JupyterLab's shortcuts ("dd" deletes a cell) stay out of the widget
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
function countDraw(root, rev) {
  root.dataset.drawn = String(Number(root.dataset.drawn ?? 0) + 1);
  if (rev !== void 0) root.dataset.rev = String(rev);
}
function lifetime(given) {
  const own = new AbortController();
  given?.addEventListener("abort", () => own.abort());
  return { signal: own.signal, end: () => own.abort() };
}

// workbench/widgets/src/run_bar.widget.js
var MOST_ROWS = 8;
var WAITING_MS = 4e3;
var NOT_STARTED_MS = 1500;
var RunBarView = class {
  /** @param {Model} model @param {HTMLElement} el @param {AbortSignal} signal */
  constructor(model, el, signal) {
    this.model = model;
    this.root = makeRoot(el, signal, "run-bar", RUN_BAR_CSS);
    this.problem = problemLine(model, signal);
    this.status = makeStatus(signal);
    this.settings = makeSettings();
    this.parts = makeParts();
    const { modelLine, examples, prompt, buttons } = this.parts;
    const controls = h("div", { class: "wb-bar wb-controls" }, buttons, this.settings.node);
    this.root.append(h("div", { class: "wb-top" }, modelLine, examples), prompt, controls, this.status.node, this.problem.node);
    this.current = { state: "idle", text: "" };
    this.pending = "";
    this.edited = false;
    this.timer = void 0;
    this.connection = new Connection({
      model,
      signal,
      onAck: (ack) => this.answered(ack),
      onProblem: (text) => this.problem.show(text)
    });
    keepKeysInside(this.root, signal);
    this.#listen();
    this.#follow(signal);
    signal.addEventListener("abort", () => clearTimeout(this.timer));
    requestAnimationFrame(() => this.grow());
  }
  #listen() {
    this.parts.run.addEventListener("click", () => this.send("run"));
    this.parts.step.addEventListener("click", () => this.send("step"));
    this.parts.stop.addEventListener("click", () => this.sendStop());
    this.parts.prompt.addEventListener("input", () => {
      this.edited = true;
      this.grow();
    });
    this.parts.examples.addEventListener("change", () => this.takeExample());
    this.root.addEventListener("keydown", (event) => {
      const enter = event.key === "Enter" && !event.isComposing;
      if (enter && (event.ctrlKey || event.metaKey)) this.send("run");
      else if (enter && event.shiftKey) this.send("step");
      else if (event.key === "Escape" && !this.parts.stop.disabled) this.sendStop();
      else return;
      event.preventDefault();
    });
  }
  /** @param {AbortSignal} signal */
  #follow(signal) {
    const { model } = this;
    const follow = {
      model_line: () => setText(this.parts.modelLine, model.get("model_line") ?? ""),
      prompt: () => this.followPrompt(),
      settings: () => this.settings.write(model.get("settings") ?? {}),
      examples: () => this.followExamples(),
      status: () => {
        this.current = model.get("status") ?? this.current;
        this.setPending("");
      }
    };
    for (const [trait, listener] of Object.entries(follow)) onTrait(model, signal, trait, listener);
    onTrait(model, signal, "error", () => model.get("error")?.text && this.setPending(""));
    for (const listener of Object.values(follow)) listener();
  }
  draw() {
    const busy = this.current.state === "running" || this.pending !== "";
    this.parts.run.disabled = this.parts.step.disabled = busy;
    this.parts.stop.disabled = !busy;
    this.status.show(this.pending ? { state: "running", text: this.pending } : this.current);
    countDraw(this.root);
  }
  /** @param {string} text */
  setPending(text) {
    clearTimeout(this.timer);
    this.pending = text;
    if (text) {
      this.timer = setTimeout(() => {
        this.pending = "waiting for the kernel, which is busy with something else…";
        this.draw();
      }, WAITING_MS);
    }
    this.draw();
  }
  /** The handler has returned: a failed one starts nothing, a good one is about to say "running".
   * @param {{name: string, ok: boolean}} ack */
  answered({ name, ok }) {
    if (!this.pending || name === "stop") return;
    clearTimeout(this.timer);
    if (ok) this.timer = setTimeout(() => this.setPending(""), NOT_STARTED_MS);
    else this.setPending("");
  }
  /** @param {"run" | "step"} name */
  send(name) {
    if (this.parts.run.disabled) return;
    const { values, problem } = this.settings.read();
    this.problem.show(problem);
    if (problem) return;
    this.edited = false;
    this.connection.act(name, { prompt: this.parts.prompt.value, settings: values });
    this.setPending(name === "run" ? "starting…" : "taking one step…");
  }
  sendStop() {
    if (this.parts.stop.disabled) return;
    this.connection.act("stop");
    if (this.pending) this.setPending("");
    this.parts.stop.disabled = true;
  }
  /** As high as its text, from two to eight rows. */
  grow() {
    const { prompt } = this.parts;
    prompt.style.height = "auto";
    if (!prompt.scrollHeight) return;
    const border = prompt.offsetHeight - prompt.clientHeight;
    const most = MOST_ROWS * (parseFloat(getComputedStyle(prompt).lineHeight) || 18) + 12 + border;
    prompt.style.height = `${Math.min(most, prompt.scrollHeight + border)}px`;
    prompt.style.overflowY = prompt.scrollHeight + border > most ? "auto" : "hidden";
  }
  followPrompt() {
    if (this.edited && document.activeElement === this.parts.prompt) return;
    this.parts.prompt.value = this.model.get("prompt") ?? "";
    this.edited = false;
    this.grow();
  }
  followExamples() {
    const texts = (
      /** @type {string[]} */
      this.model.get("examples") ?? []
    );
    const options = texts.map((text, i) => h("option", { value: i }, shortened(text, 60)));
    this.parts.examples.replaceChildren(h("option", { value: "" }, "Examples…"), ...options);
    this.parts.examples.hidden = texts.length === 0;
  }
  takeExample() {
    const text = this.model.get("examples")[Number(this.parts.examples.value)];
    if (this.parts.examples.value !== "") this.parts.prompt.value = text;
    this.parts.examples.value = "";
    this.edited = true;
    this.grow();
    this.parts.prompt.focus();
  }
};
function makeParts() {
  const run = h("button", { type: "button", class: "wb-primary", title: "Generate (Ctrl-Enter)" }, "▶︎ Run");
  const step = h("button", { type: "button", title: "One token (Shift-Enter)" }, "Step");
  const stop = h("button", { type: "button", title: "Stop after the current token (Esc)" }, "■ Stop");
  return {
    run,
    step,
    stop,
    buttons: h("span", { class: "wb-buttons" }, run, step, stop),
    modelLine: h("div", { class: "wb-model", "data-testid": "wb-model-line" }),
    examples: h("select", { class: "wb-select wb-examples", "aria-label": "Example prompts" }),
    prompt: h("textarea", {
      class: "wb-prompt",
      "aria-label": "Prompt",
      placeholder: "Type a prompt, then Run (Ctrl-Enter)",
      rows: 2,
      spellcheck: "false",
      autocomplete: "off"
    })
  };
}
function render({ model, el, signal: given }) {
  const { signal, end } = lifetime(given);
  new RunBarView(model, el, signal);
  return end;
}
var run_bar_widget_default = { render };
export {
  run_bar_widget_default as default
};
