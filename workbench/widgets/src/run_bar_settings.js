// @ts-check
// The sampling settings: number fields that say when a number is not allowed, and a check box.

import { freshId, h, setAttributes } from "./dom.js";

/** @typedef {{name: string, label: string, whole: boolean, low: number, high: number, title: string, step: string}} Field */

/** @type {Field[]} */
const FIELDS = [
  field("max_new_tokens", "New tokens", true, 4096, "1", "How many tokens to generate at most"),
  field("temperature", "Temperature", false, 100, "0.1", "0 = greedy: always the most probable token"),
  field("top_k", "Top-k", true, 1000000, "1", "Sample from this many of the most probable tokens; 0 = all"),
  field("top_p", "Top-p", false, 1, "0.05", "Sample from the fewest tokens with this much probability; 1 = all"),
  field("seed", "Seed", true, 4294967295, "1", "The same seed gives the same tokens"),
];

/**
 * @param {string} name @param {string} label @param {boolean} whole @param {number} high @param {string} step @param {string} title
 * @returns {Field}
 */
export function field(name, label, whole, high, step, title) {
  return { name, label, whole, low: 0, high, step, title };
}

/**
 * What is wrong with a field's text, or "".
 * @param {Field} field
 * @param {number} value
 */
export function fieldProblem(field, value) {
  const good = Number.isFinite(value) && value >= field.low && value <= field.high && (!field.whole || Number.isInteger(value));
  if (good && !(field.name === "top_p" && value === 0)) return "";
  const kind = field.whole ? "a whole number" : "a number";
  const range = field.name === "top_p" ? "above 0 and up to 1" : `from ${field.low} to ${field.high}`;
  return `${field.label} must be ${kind} ${range}.`;
}

/** @param {HTMLInputElement} input @param {boolean} bad */
function mark(input, bad) {
  setAttributes(input, { "aria-invalid": bad ? "true" : null });
}

/** @param {Field} field */
export function numberInput(field) {
  const { name, title, low: min, high: max, step } = field;
  const id = freshId(name);
  const style = `width: ${name === "seed" ? 102 : 58}px`;
  const input = h("input", { id, type: "number", class: "wb-input", min, max, step, title, style });
  input.addEventListener("input", () => mark(input, fieldProblem(field, input.valueAsNumber) !== ""));
  return { field, input, node: h("span", { class: "wb-field" }, h("label", { for: id, title }, field.label), input) };
}

export function makeSettings() {
  const inputs = FIELDS.map(numberInput);
  const chat = h("input", { type: "checkbox" });
  const chatNode = h("label", { class: "wb-field wb-check", title: "Wrap the prompt in the model's chat template" }, chat, "Chat template");
  const node = h("span", { class: "wb-bar wb-settings" }, ...inputs.map((i) => i.node), chatNode);

  /** What the kernel has set last: a setting that it leaves as it was keeps what the user has typed since.
   * @type {Record<string, any>} */
  let written = {};

  return {
    node,
    /** @returns {{values: Record<string, number | boolean>, problem: string}} */
    read() {
      /** @type {Record<string, number | boolean>} */
      const values = { chat: chat.checked };
      const wrong = inputs.flatMap(({ field, input }) => {
        const text = fieldProblem(field, input.valueAsNumber);
        mark(input, text !== "");
        values[field.name] = input.valueAsNumber;
        return text ? [text] : [];
      });
      if (wrong.length) inputs.find(({ input }) => input.hasAttribute("aria-invalid"))?.input.focus();
      return { values, problem: wrong.join(" ") };
    },
    /** @param {Record<string, any>} settings */
    write(settings) {
      for (const { field, input } of inputs) {
        const value = settings[field.name];
        if (value !== undefined && value !== written[field.name]) input.value = String(value);
        mark(input, fieldProblem(field, input.valueAsNumber) !== "");
      }
      if (settings.chat !== written.chat) chat.checked = Boolean(settings.chat);
      written = { ...settings };
    },
  };
}
