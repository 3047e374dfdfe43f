// @ts-check
// One tooltip a view. It hangs in the document's body: inside a notebook cell it would be cut off at the cell's edge.

import { h } from "./dom.js";
import { addCommonStyle, themeName } from "./theme.js";

const CSS = `
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

/** @typedef {ReturnType<typeof makeTooltip>} Tooltip */

/** @param {AbortSignal} signal */
export function makeTooltip(signal) {
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
    },
  };
}

/**
 * Pairs of name and value.
 * @param {[string, string][]} pairs
 */
export function tipRows(pairs) {
  const cells = pairs.flatMap(([name, value]) => [h("span", null, name), h("span", null, value)]);
  return h("div", { class: "wb-tip-rows" }, ...cells);
}
