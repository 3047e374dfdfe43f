import { describe, expect, it } from "vitest";
import * as L from "../../workbench/widgets/src/matrix_layout.js";

const sizes = (more = {}) => ({ rows: 20, cols: 30, kind: "attention", gap: false, rowLabelWidth: 60, colLabelWidth: 50, titleWidth: 40, ...more });

describe("cells and points", () => {
  it.each([[false, 8], [true, 8], [true, 0.5], [false, 64]])("gap %s, cell %d: the middle of a cell leads back to it", (gap, cell) => {
    const layout = L.layoutOf(sizes({ gap }), cell, cell);
    for (const c of [0, 1, 2, 29]) expect(L.colAt(layout, L.colX(layout, c) + L.colW(layout, c) / 2)).toBe(c);
    for (const r of [0, 1, 19]) expect(L.rowAt(layout, L.rowY(layout, r) + cell / 2)).toBe(r);
    expect(L.colAt(layout, layout.left - 1)).toBe(-1);
    expect(L.colAt(layout, L.colX(layout, 29) + cell + 1)).toBe(-1);
    expect(L.rowAt(layout, layout.top - 1)).toBe(-1);
  });
  it("the gap beside the sink belongs to no column", () => {
    const layout = L.layoutOf(sizes({ gap: true }), 8, 8);
    expect(L.colAt(layout, layout.left + 8 + 2)).toBe(-1);
    expect(L.colX(layout, 1) - L.colX(layout, 0)).toBe(8 + layout.gap);
  });
  it("the sink column can be seen even where cells are smaller than a pixel", () => {
    expect(L.layoutOf(sizes({ gap: true }), 0.3, 0.3).first).toBeGreaterThanOrEqual(3);
  });
  it("frozen labels cover cells: a point over them is no cell", () => {
    const layout = L.layoutOf(sizes(), 8, 8);
    const scroll = { x: 80, y: 40 };
    expect(L.cellAt(layout, { x: layout.left - 1, y: layout.top + 1 }, scroll)).toBeNull();
    expect(L.cellAt(layout, { x: layout.left + 1, y: layout.top + 1 }, scroll)).toEqual({ r: 5, c: 10 });
  });
  it("the visible window holds every cell in sight and little else", () => {
    const layout = L.layoutOf(sizes({ rows: 500, cols: 500 }), 10, 10);
    const win = L.visibleWindow(layout, { x: 1000, y: 2000 }, { w: layout.left + 200, h: layout.top + 100 });
    expect(win).toEqual({ r0: 200, r1: 210, c0: 100, c1: 120 });
  });
  it("scrolls as little as needed, and not at all for a cell in sight", () => {
    const layout = L.layoutOf(sizes({ rows: 500, cols: 500 }), 10, 10);
    const size = { w: layout.left + 200, h: layout.top + 100 };
    expect(L.scrollTo(layout, { r: 3, c: 3 }, { x: 20, y: 10 }, size)).toEqual({ x: 20, y: 10 });
    const to = L.scrollTo(layout, { r: 50, c: 0 }, { x: 20, y: 10 }, size);
    expect(to.x).toBe(0);
    expect(to.y).toBe(51 * 10 + 2 - 100);
    expect(L.scrollTo(layout, { r: -1, c: -1 }, { x: 7, y: 9 }, size)).toEqual({ x: 7, y: 9 });
  });
});

describe("sizes", () => {
  it("attention fits the width between 3 and 26 pixels, in whole pixels", () => {
    expect(L.cellSize(sizes({ cols: 5, rows: 5 }), 1000, undefined)).toEqual({ w: 26, h: 26 });
    expect(L.cellSize(sizes({ cols: 2000, rows: 2000 }), 1000, undefined)).toEqual({ w: 3, h: 3 });
    const middle = L.cellSize(sizes({ cols: 100, rows: 100 }), 1000, undefined).w;
    expect(Number.isInteger(middle)).toBe(true);
    expect(L.layoutOf(sizes({ cols: 100, rows: 100 }), middle, middle).width).toBeLessThanOrEqual(1000);
    expect(L.cellSize(sizes({ cols: 2000, rows: 2000 }), 1000, "fit").w).toBeLessThan(1);
  });
  it("lens cells have room for text, and a chosen size is kept", () => {
    expect(L.cellSize(sizes({ kind: "lens", cols: 300 }), 1000, undefined)).toEqual({ w: 64, h: 18 });
    expect(L.cellSize(sizes({ kind: "lens", cols: 3 }), 1000, undefined).w).toBe(96);
    expect(L.cellSize(sizes({ kind: "lens" }), 1000, 24).w).toBe(24);
  });
  it("zooming steps up and down and stops at the ends", () => {
    expect(L.zoomed("lens", 64, 1)).toBe(80);
    expect(L.zoomed("lens", 64, -1)).toBe(48);
    expect(L.zoomed("attention", 9, -1)).toBe(8);
    expect(L.zoomed("attention", 64, 1)).toBe(64);
    expect(L.zoomed("attention", 0.4, 1)).toBe(1);
  });
  it("column labels turn as cells get narrower", () => {
    expect([64, 20, 11, 3].map(L.headerMode)).toEqual(["flat", "slant", "upright", "ticks"]);
  });
  it("labels keep their distance", () => {
    expect(L.labelStep(20, 11)).toBe(1);
    expect(L.labelStep(3, 16) * 3).toBeGreaterThanOrEqual(16);
    expect(L.labelStep(0.4, 34) * 0.4).toBeGreaterThanOrEqual(34);
  });
});
