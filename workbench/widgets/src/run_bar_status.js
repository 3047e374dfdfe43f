// @ts-check
// The status line: a sign and a word for the state, how far it has come, and a clock that runs on between messages.

import { h, setAttributes, setText } from "./dom.js";
import { duration } from "./format.js";

/** @typedef {{state: string, text: string, done?: number | null, total?: number | null, elapsed?: number | null}} Status */

/** @type {Record<string, [sign: string, word: string]>} */
const STATES = {
  idle: ["○", "Ready"],
  running: ["●", "Running"],
  done: ["✓", "Done"],
  stopped: ["■", "Stopped"],
  error: ["⚠", "Error"],
};

/** The words of a status, without saying the state's word twice. @param {Status} status */
export function statusWords({ state, text }) {
  const word = (STATES[state] ?? STATES.idle)[1];
  const rest = (text ?? "").trim();
  if (!rest) return word;
  return rest.toLowerCase().startsWith(word.toLowerCase()) ? rest : `${word} · ${rest}`;
}

/** @param {AbortSignal} signal */
export function makeStatus(signal) {
  const sign = h("span", { class: "wb-sign", "aria-hidden": "true" });
  const words = h("span", { class: "wb-words", role: "status", "aria-live": "polite", "data-testid": "wb-status" });
  const count = h("span", { class: "wb-num wb-muted", "data-testid": "wb-progress-text" });
  const clock = h("span", { class: "wb-num wb-muted wb-clock" });
  const fill = h("i");
  const bar = h("div", { class: "wb-progress", role: "progressbar", "aria-label": "Progress", "aria-valuemin": 0 }, fill);
  const line = h("div", { class: "wb-statusline" }, sign, words, count, clock);
  const node = h("div", { class: "wb-status" }, line, bar);
  /** @type {{elapsed: number, at: number} | null} */
  let since = null;

  function tick() {
    if (since) setText(clock, duration(since.elapsed + (performance.now() - since.at) / 1000));
  }
  const ticking = setInterval(tick, 100);
  signal.addEventListener("abort", () => clearInterval(ticking));

  /** @param {Status} status */
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
    fill.style.width = counted ? `${Math.min(100, (100 * done) / total)}%` : "";
  }
  return { node, show };
}
