// @ts-check
// The line that says what went wrong: an action that failed in the kernel, or a picture that could not be drawn.

import { h, setText } from "./dom.js";
import { onTrait } from "./protocol.js";
/** @import { Model } from "./protocol.js" */

/**
 * @param {Model} model
 * @param {AbortSignal} signal
 */
export function problemLine(model, signal) {
  const node = h("div", { class: "wb-problem", role: "alert", "data-testid": "wb-error", hidden: true });
  /** @param {string} text */
  const show = (text) => {
    setText(node, text);
    node.hidden = !text;
  };
  const follow = () => show(model.get("error")?.text ?? "");
  onTrait(model, signal, "error", follow);
  follow();
  return { node, show };
}
