// @ts-check
// The run bar: prompt, settings, Run / Step / Stop, status. What it sends: widgets/run_bar.py.

import { h, setText } from "./dom.js";
import { keepKeysInside } from "./keyboard.js";
import { problemLine } from "./problem.js";
import { Connection, onTrait } from "./protocol.js";
import { RUN_BAR_CSS } from "./run_bar_css.js";
import { makeSettings } from "./run_bar_settings.js";
import { makeStatus } from "./run_bar_status.js";
import { shortened } from "./tokens.js";
import { countDraw, lifetime, makeRoot } from "./theme.js";
/** @import { Model } from "./protocol.js" */
/** @import { Status } from "./run_bar_status.js" */
/** @import { RenderProps } from "@anywidget/types" */

const MOST_ROWS = 8;
/** After that long without a word from the kernel, the line says that it is busy. */
const WAITING_MS = 4000;
/** So long after its handler has returned, a run that never said "running" is taken as not started. */
const NOT_STARTED_MS = 1500;

class RunBarView {
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
    /** @type {Status} */
    this.current = { state: "idle", text: "" };
    this.pending = ""; // what the line says between a click and the kernel's first word
    this.edited = false;
    /** @type {ReturnType<typeof setTimeout> | undefined} */
    this.timer = undefined;
    this.connection = new Connection({
      model,
      signal,
      onAck: (ack) => this.answered(ack),
      onProblem: (text) => this.problem.show(text),
    });
    keepKeysInside(this.root, signal);
    this.#listen();
    this.#follow(signal);
    signal.addEventListener("abort", () => clearTimeout(this.timer));
    requestAnimationFrame(() => this.grow()); // heights are known once the widget is in the page
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
      },
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
    if (this.edited && document.activeElement === this.parts.prompt) return; // the user is already typing the next one
    this.parts.prompt.value = this.model.get("prompt") ?? "";
    this.edited = false;
    this.grow();
  }

  followExamples() {
    const texts = /** @type {string[]} */ (this.model.get("examples") ?? []);
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
}

function makeParts() {
  const run = h("button", { type: "button", class: "wb-primary", title: "Generate (Ctrl-Enter)" }, "▶\ufe0e Run");
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
      class: "wb-prompt", "aria-label": "Prompt", placeholder: "Type a prompt, then Run (Ctrl-Enter)", rows: 2,
      spellcheck: "false", autocomplete: "off",
    }),
  };
}

/** @param {RenderProps<any>} props */
function render({ model, el, signal: given }) {
  const { signal, end } = lifetime(given);
  new RunBarView(model, el, signal);
  return end;
}

export default { render };
