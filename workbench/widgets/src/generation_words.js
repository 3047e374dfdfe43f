// @ts-check
// What the generation panel says in words: its summary, a candidate's numbers, and a branch.

import { exact, probability } from "./format.js";
import { SOURCES } from "./strip_chips.js";
import { shortened, visible } from "./tokens.js";
/** @import { NumberArray } from "./protocol.js" */

/**
 * @typedef {{text: string, id: number, bytes?: string, taken?: "path" | "branch" | null}} CandidateToken
 * @typedef {{node: number, text: string, id: number, source: string, on_path: boolean, more: number, logprob: number | null}} Branch
 * @typedef {{temperature: number, top_k: number, top_p: number}} SamplerFields
 * @typedef {{state: string, state_text: string, run?: number, node?: number, after: {text: string, id: number, position: number} | null,
 *   tokens: CandidateToken[], rest: {count: number, p: number, share: number} | null, sampler: SamplerFields, in_use: boolean,
 *   cost: {label: string, value: string}[], branches: Branch[]}} GenerationContent
 * @typedef {Record<string, NumberArray>} Arrays
 */

/** @param {string} text @param {number} [most] */
export const quoted = (text, most = 24) => `“${shortened(visible(text), most)}”`;

const TAKEN = { path: ", taken in this text", branch: ", taken in another branch" };

/** The sampler's probability: a token that it can never take says so. @param {number} share */
export const shareWords = (share) => (share === 0 ? "never" : probability(share));

/** @param {CandidateToken} token @param {number} i @param {Arrays} arrays */
export function candidateWords(token, i, arrays) {
  const value = (/** @type {string} */ name) => arrays[name].data[i];
  const taken = token.taken ? TAKEN[token.taken] : "";
  return (
    `${i + 1}: ${quoted(token.text)}, probability ${probability(value("p"))}, the sampler takes it: ` +
    `${shareWords(value("share"))}, logit ${exact(value("logit"))}, log-probability ${exact(value("logprob"))}${taken}`
  );
}

/** @param {CandidateToken} token @param {number} i @param {Arrays} arrays @returns {[string, string][]} */
export function candidateRows(token, i, arrays) {
  /** @type {[string, string][]} */
  const rows = [["Id", String(token.id)]];
  if (token.bytes) rows.push(["Bytes", shortened(token.bytes, 60)]);
  rows.push(
    ["p", exact(arrays.p.data[i])],
    ["sampler", arrays.share.data[i] === 0 ? "never takes it" : exact(arrays.share.data[i])],
    ["logit", exact(arrays.logit.data[i])],
    ["log p", `${exact(arrays.logprob.data[i])} nats`],
  );
  return rows;
}

/** @param {GenerationContent} content @param {Arrays} arrays */
export function summary(content, arrays) {
  const { after, tokens } = content;
  if (!after || tokens.length === 0) return "";
  const first = tokens.slice(0, 3).map((token, i) => `${quoted(token.text)} ${probability(arrays.p.data[i])}`);
  return `After ${quoted(after.text)} at position ${after.position}: ${first.join(", ")} and ${tokens.length - first.length} more. Enter or a click takes one.`;
}

/** @param {Branch} branch */
export function branchWords(branch) {
  const where = branch.on_path ? "in this text" : "another branch: click to show it";
  const more = branch.more ? `, ${branch.more} more ${branch.more === 1 ? "token" : "tokens"} behind it` : "";
  const p = branch.logprob === null ? "" : `, p ${probability(Math.exp(branch.logprob))}`;
  return `${quoted(branch.text)}: ${where}; ${SOURCES[branch.source] ?? "prompt"}${p}${more}`;
}
