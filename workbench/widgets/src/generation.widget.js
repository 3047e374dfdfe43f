// @ts-check
// Generation: candidates for the next token, a sampler to try, the cost of the step, branches. See widgets/generation.py.

import { h, setAttributes, setText } from "./dom.js";
import { GENERATION_CSS } from "./generation_css.js";
import { Candidates } from "./generation_table.js";
import { branchWords, candidateRows, summary } from "./generation_words.js";
import { keepKeysInside, moved } from "./keyboard.js";
import { problemLine } from "./problem.js";
import { Connection } from "./protocol.js";
import { field, fieldProblem, numberInput } from "./run_bar_settings.js";
import { countDraw, lifetime, makeRoot } from "./theme.js";
import { shortened, visible } from "./tokens.js";
import { makeTooltip, tipRows } from "./tooltip.js";
/** @import { RenderProps } from "@anywidget/types" */
/** @import { Model, Payload } from "./protocol.js" */
/** @import { Arrays, GenerationContent } from "./generation_words.js" */

/** So long after the last keystroke in a sampler's field the kernel ranks anew. */
const SETTLED_MS = 60;

/** @type {GenerationContent} */
const NOTHING = {
  state: "empty", state_text: "", after: null, tokens: [], rest: null, cost: [], branches: [], in_use: true,
  sampler: { temperature: 0, top_k: 0, top_p: 1 },
};

class GenerationView {
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
    /** @type {Arrays} */
    this.arrays = {};
    this.shownNode = -1;
    this.connection = new Connection({
      model,
      signal,
      onState: (payload) => this.show(payload),
      onProblem: (text) => this.problem.show(text),
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
    /** @type {ReturnType<typeof setTimeout> | undefined} */
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
    const moved = content.node !== undefined && content.node !== this.shownNode;
    if (moved) table.setFocus(0);
    table.show(content, arrays);
    setAttributes(table.table, { "aria-busy": this.running ? "true" : null });
    if (moved) this.scrollBack();
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
        branch.on_path ? "● " : "○ ", h("span", { class: "wb-gen-token", dir: "ltr" }, shortened(visible(branch.text), 20)), more && h("span", { class: "wb-muted" }, more),
      ));
    });
    this.parts.branches.replaceChildren(...items);
    if (focused) /** @type {HTMLElement | null} */ (this.parts.branches.querySelector(`[data-node="${focused}"]`))?.focus({ preventScroll: true });
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
    if (!token || this.content.node === undefined) return;
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
}

/** The row that a key leads to. @param {KeyboardEvent} event @param {number} i @param {number} rows */
function rowAfter(event, i, rows) {
  if (event.key === "Home") return 0;
  if (event.key === "End") return rows - 1;
  return moved(event, { r: i, c: 0 }, { rows, cols: 1 })?.r ?? null;
}

/** The row that an event happened on; −1 for none. @param {Event} event */
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
    after, where, afterLine, state, stop, cost, branches, noBranch,
    title: h("div", { class: "wb-gen-title" }, h("b", null, "Next token"), afterLine, state, stop),
    head: h("div", { class: "wb-bar wb-gen-head" }),
    side: h("div", { class: "wb-gen-side" },
      h("section", { "aria-label": "Cost of this step" }, h("h4", null, "This step"), cost),
      h("section", { "aria-label": "Branches" }, h("h4", null, "Taken here"), branches, noBranch)),
    empty: h("div", { class: "wb-empty", "data-testid": "wb-empty" }),
    said: h("div", { class: "wb-gen-said", role: "status", "data-testid": "wb-generation-said" }),
  };
}

/** Sampler fields: what they say is shown at once, and used when "Use" is pressed. */
function makeSampler() {
  const inputs = [
    numberInput(field("temperature", "Temperature", false, 100, "0.1", "0 = greedy: always the most probable token")),
    numberInput(field("top_k", "Top-k", true, 1000000, "1", "Only this many of the most probable tokens; 0 = all")),
    numberInput(field("top_p", "Top-p", false, 1, "0.05", "Only the fewest tokens with this much probability; 1 = all")),
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
      /** @type {Record<string, number>} */
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
    },
  };
}

/** @param {RenderProps<any>} props */
function render({ model, el, signal: given }) {
  const { signal, end } = lifetime(given);
  new GenerationView(model, el, signal);
  return end;
}

export default { render };
