// @ts-check
// Building DOM. Text reaches the page as text nodes only, never as HTML: a token may spell "<script>".

/**
 * @typedef {Node | string | number | null | undefined | false} Child
 * @typedef {Record<string, string | number | boolean | null | undefined>} Attributes
 */

/**
 * One element: `class`, `title`, `aria-*`, `data-*` … are attributes; null, undefined and false leave one out.
 * @template {keyof HTMLElementTagNameMap} T
 * @param {T} tag
 * @param {Attributes | null} [attributes]
 * @param {...Child} children
 * @returns {HTMLElementTagNameMap[T]}
 */
export function h(tag, attributes, ...children) {
  const node = document.createElement(tag);
  setAttributes(node, attributes ?? {});
  append(node, children);
  return node;
}

/**
 * @param {Element} node
 * @param {Attributes} attributes
 */
export function setAttributes(node, attributes) {
  for (const [name, value] of Object.entries(attributes)) {
    if (value === null || value === undefined || value === false) node.removeAttribute(name);
    else node.setAttribute(name, value === true ? "" : String(value));
  }
}

/**
 * @param {Element} node
 * @param {Child[]} children
 */
export function append(node, children) {
  for (const child of children) {
    if (child === null || child === undefined || child === false) continue;
    node.append(child instanceof Node ? child : document.createTextNode(String(child)));
  }
}

/**
 * Replaces what is in a node; does nothing where the text is already there (so that a live region stays quiet).
 * @param {Element} node
 * @param {string} text
 */
export function setText(node, text) {
  if (node.textContent !== text) node.textContent = text;
}

let lastId = 0;

/**
 * An id that no other element of the page has, for `for` and `aria-describedby`.
 * @param {string} what
 */
export function freshId(what) {
  lastId += 1;
  return `wb-${what}-${lastId}-${Math.random().toString(36).slice(2, 7)}`;
}

/**
 * A drop-down list with its label.
 * @param {string} label
 * @param {{value: string | number | boolean, label: string}[]} options
 * @param {string} value
 * @param {(value: string) => void} onChange
 */
export function labelledSelect(label, options, value, onChange) {
  const id = freshId("select");
  const select = h("select", { id, class: "wb-select" });
  for (const option of options) select.append(h("option", { value: String(option.value) }, option.label));
  select.value = value;
  select.addEventListener("change", () => onChange(select.value));
  return { node: h("span", { class: "wb-field" }, h("label", { for: id }, label), select), select };
}
