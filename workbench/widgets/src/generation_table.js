// @ts-check
// The table of candidates: rows stay where they are while their numbers change, so that the focus does, too.

import { h, setAttributes, setText } from "./dom.js";
import { aligned, probability } from "./format.js";
import { candidateWords, shareWords } from "./generation_words.js";
import { shortened, visible } from "./tokens.js";
/** @import { Arrays, GenerationContent } from "./generation_words.js" */

/** [heading, class, width, what it is] @type {[string, string, string, string][]} */
const COLUMNS = [
  ["#", "wb-r", "30px", "rank"],
  ["token", "", "26%", "the token; ● it follows in this text, ○ in another branch"],
  ["p", "", "25%", "probability: the plain softmax, before temperature and cuts"],
  ["sampler", "", "25%", "probability with which the sampler takes it"],
  ["logit", "wb-r", "58px", "the model's output"],
  ["log p", "wb-r", "58px", "natural logarithm of p"],
];
const MARKS = { path: "● ", branch: "○ " };

/** @param {string} kind */
function meter(kind) {
  const fill = h("i");
  const number = h("span");
  const node = h("div", { class: `wb-gen-meter ${kind}` }, number, h("i", null, fill));
  /** @param {number} value @param {string} words */
  const set = (value, words) => {
    setText(number, words);
    fill.style.width = `${100 * Math.min(1, Math.max(0, value))}%`;
    node.classList.toggle("wb-cut", value === 0);
  };
  return { node, set };
}

/** @param {number} i */
function buildRow(i) {
  const mark = h("span", { class: "wb-gen-mark" });
  const text = h("span");
  const p = meter("wb-p");
  const share = meter("wb-share");
  const logit = h("td", { class: "wb-r", role: "gridcell" });
  const logprob = h("td", { class: "wb-r", role: "gridcell" });
  const cell = (/** @type {Node | string} */ child, type = "") => h("td", { class: type, role: "gridcell" }, child);
  const node = h(
    "tr", { role: "row", tabindex: -1, "data-i": i },
    cell(String(i + 1), "wb-r wb-muted"), h("td", { class: "wb-gen-text", role: "gridcell", dir: "ltr" }, mark, text), cell(p.node), cell(share.node), logit, logprob,
  );
  return { node, mark, text, p, share, logit, logprob };
}

export class Candidates {
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
    /** @type {ReturnType<typeof buildRow>[]} */
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
      "aria-label": after ? `Candidates after ${visible(after.text)}, position ${after.position}` : "Candidates",
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
    const top = view.top + 24; // the heading
    if (box.top < top) this.node.scrollTop -= top - box.top;
    const bottom = view.bottom - (this.foot.hidden ? 2 : this.foot.getBoundingClientRect().height + 2);
    if (box.bottom > bottom) this.node.scrollTop += box.bottom - bottom;
  }
}
