// @ts-check
// How a token's text is shown: whatever cannot be seen is spelled out.

/** @type {Record<string, string>} */
const SIGNS = { " ": "␣", "\n": "⏎", "\t": "⇥" };
const UNSEEN = /[\p{C}\p{Z}\p{Default_Ignorable_Code_Point}\u2800]/u;
const PICTURE = /\p{Extended_Pictographic}|\p{Emoji_Modifier}|\ufe0f/u;
const MARK = /^\p{M}/u;
const JOINER = "\u200d";
const EMOJI_STYLE = "\ufe0f";

/**
 * The text with spaces, line ends and tabs as signs and every other unseen character (controls, zero-width,
 * bidirectional marks, tags, private use, lone surrogates) as `<U+200B>`. Joiners inside an emoji stay.
 * @param {string} text
 */
export function visible(text) {
  if (text === "") return "∅";
  const characters = Array.from(text);
  const shown = characters.map((character, i) => {
    if (SIGNS[character]) return SIGNS[character];
    if (!UNSEEN.test(character)) return character;
    if (staysInEmoji(character, characters[i - 1], characters[i + 1])) return character;
    return escaped(character);
  });
  if (MARK.test(shown[0])) shown.unshift("◌"); // a combining mark would sit on the neighbouring token
  return shown.join("");
}

/**
 * @param {string} character
 * @param {string | undefined} before
 * @param {string | undefined} after
 */
function staysInEmoji(character, before, after) {
  if (before === undefined || !PICTURE.test(before)) return false;
  return character === EMOJI_STYLE || (character === JOINER && after !== undefined && PICTURE.test(after));
}

/** @param {string} character */
function escaped(character) {
  const code = /** @type {number} */ (character.codePointAt(0));
  return `<U+${code.toString(16).toUpperCase().padStart(4, "0")}>`;
}

/** Whether the visual line ends after this token. @param {string} text */
export const endsLine = (text) => text.endsWith("\n");

const segmenter = typeof Intl !== "undefined" && "Segmenter" in Intl ? new Intl.Segmenter() : null;

/** The characters as a reader counts them: a family emoji is one. @param {string} text @returns {string[]} */
export function graphemes(text) {
  return segmenter ? Array.from(segmenter.segment(text), (s) => s.segment) : Array.from(text);
}

/**
 * The longest start of `text` that `measure` says fits, with an ellipsis; "" where not even two characters fit.
 * @param {string} text
 * @param {number} width
 * @param {(text: string) => number} measure
 */
export function fitText(text, width, measure) {
  if (measure(text) <= width) return text;
  const parts = graphemes(text.slice(0, 200));
  let low = 0;
  let high = parts.length;
  while (low < high) {
    const middle = Math.ceil((low + high) / 2);
    if (measure(`${parts.slice(0, middle).join("")}…`) <= width) low = middle;
    else high = middle - 1;
  }
  return low >= Math.min(2, parts.length) ? `${parts.slice(0, low).join("")}…` : "";
}

/** A short form for labels in running text. @param {string} text @param {number} [most] */
export function shortened(text, most = 24) {
  const parts = graphemes(text.slice(0, 8 * most));
  return parts.length <= most && text.length <= 8 * most ? text : `${parts.slice(0, most - 1).join("")}…`;
}
