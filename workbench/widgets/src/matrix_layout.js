// @ts-check
// Where everything of the matrix is, in CSS pixels from the top left of the scrolled content. Pure arithmetic.

/**
 * @typedef {"flat" | "slant" | "upright" | "ticks"} HeaderMode
 * @typedef {{rows: number, cols: number, cellW: number, cellH: number, first: number, gap: number, left: number, top: number,
 *            header: HeaderMode, width: number, height: number}} Layout
 * @typedef {{r0: number, r1: number, c0: number, c1: number}} Window half-open
 * @typedef {{rows: number, cols: number, kind: string, gap: boolean, rowLabelWidth: number, colLabelWidth: number,
 *            titleWidth: number}} Sizes measured widths of the longest labels
 */

/** Cell sizes that the zoom buttons step through. */
const LENS_STEPS = [2, 3, 4, 6, 8, 12, 16, 24, 32, 48, 64, 80, 96, 128, 160];
const SQUARE_STEPS = [1, 2, 3, 4, 5, 6, 8, 10, 13, 16, 20, 26, 32, 40, 52, 64];
const SINK_GAP = 6;
/** The sink column stands apart, so it stays visible even where cells are smaller. */
const SINK_LEAST = 4;
const LENS_ROW = 18;
const SLANT = Math.PI / 3;
const MOST_HEADER = 88;
export const VIEW_HEIGHT = 640;
export const SLANT_ANGLE = SLANT;

/** @param {number} cellW @returns {HeaderMode} */
export function headerMode(cellW) {
  if (cellW >= 30) return "flat";
  if (cellW >= 14) return "slant";
  return cellW >= 10 ? "upright" : "ticks";
}

/**
 * @param {Sizes} sizes
 * @param {number} cellW
 * @param {number} cellH
 * @returns {Layout}
 */
export function layoutOf(sizes, cellW, cellH) {
  const { rows, cols } = sizes;
  const header = headerMode(cellW);
  const slanted = Math.min(MOST_HEADER, Math.ceil(sizes.colLabelWidth * Math.sin(SLANT)) + 14);
  const upright = Math.min(MOST_HEADER, sizes.colLabelWidth + 10);
  const top = { flat: 34, ticks: 32, slant: Math.max(34, slanted), upright: Math.max(34, upright) }[header];
  const left = Math.min(170, Math.max(cellH >= 10 ? sizes.rowLabelWidth + 12 : 64, sizes.titleWidth + 14, 40));
  const gap = sizes.gap ? SINK_GAP : 0;
  const first = sizes.gap ? Math.max(cellW, SINK_LEAST) : cellW;
  const pad = header === "slant" ? Math.ceil(top / Math.tan(SLANT)) : 2;
  return {
    rows, cols, cellW, cellH, first, gap, left, top, header,
    width: Math.ceil(left + first + gap + (cols - 1) * cellW + pad),
    height: Math.ceil(top + rows * cellH + 2),
  };
}

/**
 * The size of a cell: as chosen, or what suits the room. Whole pixels, so that all cells are equally wide; under one
 * pixel cells share pixels.
 * @param {Sizes} sizes
 * @param {number} room width that the scroll container offers
 * @param {number | "fit" | undefined} chosen
 */
export function cellSize(sizes, room, chosen) {
  const roomW = room - layoutOf(sizes, 8, 18).left - (sizes.gap ? SINK_GAP : 0) - 4;
  const fitW = Math.max(0.2, roomW / Math.max(1, sizes.cols));
  const fitH = (VIEW_HEIGHT - 90) / Math.max(1, sizes.rows);
  if (sizes.kind === "lens") {
    const w = typeof chosen === "number" ? chosen : whole(chosen === "fit" ? Math.min(fitW, 160) : clamp(fitW, 64, 96));
    return { w, h: w >= 96 ? LENS_ROW + 4 : LENS_ROW };
  }
  if (typeof chosen === "number") return { w: chosen, h: chosen };
  const size = whole(chosen === "fit" ? Math.min(fitW, fitH, 52) : clamp(Math.min(fitW, Math.max(fitH, 12)), 3, 26));
  return { w: size, h: size };
}

/** @param {number} x @param {number} low @param {number} high */
const clamp = (x, low, high) => Math.min(high, Math.max(low, x));
/** @param {number} x */
const whole = (x) => (x >= 1 ? Math.floor(x) : x);

/** The next larger or smaller cell width. @param {string} kind @param {number} now @param {1 | -1} way */
export function zoomed(kind, now, way) {
  const steps = kind === "lens" ? LENS_STEPS : SQUARE_STEPS;
  if (way > 0) return steps.find((s) => s > now + 0.01) ?? steps[steps.length - 1];
  return [...steps].reverse().find((s) => s < now - 0.01) ?? steps[0];
}

/** Left edge of a column. @param {Layout} layout @param {number} c */
export const colX = ({ left, first, gap, cellW }, c) => left + (c > 0 ? first + gap + (c - 1) * cellW : 0);
/** Width of a column. @param {Layout} layout @param {number} c */
export const colW = (layout, c) => (c === 0 ? layout.first : layout.cellW);
/** Top edge of a row. @param {Layout} layout @param {number} r */
export const rowY = (layout, r) => layout.top + r * layout.cellH;

/**
 * The column at `x`, in content coordinates; −1 outside and in the gap beside the sink column.
 * @param {Layout} layout
 * @param {number} x
 */
export function colAt({ left, first, cellW, cols, gap }, x) {
  const from = x - left;
  if (from < 0) return -1;
  if (from < first) return 0;
  if (from < first + gap) return -1;
  const c = 1 + Math.floor((from - first - gap) / cellW);
  return c < cols ? c : -1;
}

/** @param {Layout} layout @param {number} y */
export function rowAt({ top, cellH, rows }, y) {
  const r = Math.floor((y - top) / cellH);
  return r >= 0 && r < rows ? r : -1;
}

/**
 * The cell under a point of the view; null over the frozen labels and outside.
 * @param {Layout} layout
 * @param {{x: number, y: number}} point from the view's top left
 * @param {{x: number, y: number}} scroll
 */
export function cellAt(layout, point, scroll) {
  if (point.x < layout.left || point.y < layout.top) return null;
  const r = rowAt(layout, point.y + scroll.y);
  const c = colAt(layout, point.x + scroll.x);
  return r < 0 || c < 0 ? null : { r, c };
}

/**
 * The cells that can be seen.
 * @param {Layout} layout
 * @param {{x: number, y: number}} scroll
 * @param {{w: number, h: number}} size of the view
 * @returns {Window}
 */
export function visibleWindow(layout, scroll, { w, h }) {
  const { left, top, first, cellW, cellH, gap, rows, cols } = layout;
  const before = first + gap - cellW; // how far columns after the first are pushed to the right
  return {
    r0: clamp(Math.floor(scroll.y / cellH), 0, rows),
    r1: clamp(Math.ceil((scroll.y + h - top) / cellH), 0, rows),
    c0: clamp(Math.floor((scroll.x - before) / cellW), 0, cols),
    c1: clamp(Math.ceil((scroll.x + w - left) / cellW), 0, cols),
  };
}

/**
 * The scroll position that shows a cell beside the frozen labels, moving as little as possible.
 * @param {Layout} layout
 * @param {{r: number, c: number}} cell either may be −1: that direction stays
 * @param {{x: number, y: number}} scroll
 * @param {{w: number, h: number}} size
 */
export function scrollTo(layout, { r, c }, scroll, { w, h }) {
  const left = colX(layout, c) - layout.left;
  const x = c < 0 ? scroll.x : nearest(left - 2, left + colW(layout, c) + 2, scroll.x, w - layout.left);
  const y = r < 0 ? scroll.y : nearest(r * layout.cellH - 2, (r + 1) * layout.cellH + 2, scroll.y, h - layout.top);
  return { x: Math.max(0, x), y: Math.max(0, y) };
}

/** @param {number} at @param {number} far @param {number} from @param {number} room */
function nearest(at, far, from, room) {
  if (at < from) return at;
  return far > from + room ? far - room : from;
}

/** Every how many rows or columns a label fits. @param {number} cell @param {number} need */
export function labelStep(cell, need) {
  const least = Math.ceil(need / cell);
  if (least <= 1) return 1;
  const power = 10 ** Math.floor(Math.log10(least));
  return power * ([1, 2, 5, 10].find((m) => m * power >= least) ?? 10);
}
