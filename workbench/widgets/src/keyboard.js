// @ts-check
// Keys that a widget handles, and keys that must not reach the notebook around it.

/**
 * Keeps key presses inside the widget: JupyterLab would take "b" or Shift-Enter as commands on the notebook.
 * @param {HTMLElement} root
 * @param {AbortSignal} signal
 */
export function keepKeysInside(root, signal) {
  for (const type of ["keydown", "keypress", "keyup"]) {
    root.addEventListener(type, (event) => event.stopPropagation(), { signal });
  }
}

/**
 * Where an arrow, Home, End or Page key leads from a cell; null for any other key. Home and End go along the row,
 * with Ctrl to the first and last row; Page keys move ten rows.
 * @param {KeyboardEvent} event
 * @param {{r: number, c: number}} from
 * @param {{rows: number, cols: number}} size
 * @returns {{r: number, c: number} | null}
 */
export function moved(event, { r, c }, { rows, cols }) {
  const far = event.ctrlKey || event.metaKey;
  /** @type {Record<string, [number, number]>} */
  const to = {
    ArrowLeft: [r, c - 1],
    ArrowRight: [r, c + 1],
    ArrowUp: [r - 1, c],
    ArrowDown: [r + 1, c],
    Home: [far ? 0 : r, 0],
    End: [far ? rows - 1 : r, cols - 1],
    PageUp: [r - 10, c],
    PageDown: [r + 10, c],
  };
  if (!(event.key in to) || event.altKey) return null;
  const [row, col] = to[event.key];
  return { r: Math.min(rows - 1, Math.max(0, row)), c: Math.min(cols - 1, Math.max(0, col)) };
}
