import { describe, expect, it } from "vitest";
import { brief, duration, exact, probability } from "../../workbench/widgets/src/format.js";
import { legendTicks, place, scaleOf, valueAt } from "../../workbench/widgets/src/scale.js";
import { extent, levelsOf, MASKED, MINUS_INF, NAN, occurring, PENDING, PLUS_INF, pooled } from "../../workbench/widgets/src/values.js";

const found = { low: 0.001, high: 0.5, positive: 0.001 };

describe("scales", () => {
  it("linear, square root and log put the ends at 0 and 1 and clip beyond them", () => {
    for (const name of ["linear", "sqrt", "log"]) {
      const scale = scaleOf({ name: "m", scale: name, low: 0.01, high: 1 }, found);
      expect(place(scale, 0.01)).toBeCloseTo(0);
      expect(place(scale, 1)).toBe(1);
      expect(place(scale, 7)).toBe(1);
      expect(place(scale, -7)).toBe(0);
      expect(valueAt(scale, place(scale, 0.3))).toBeCloseTo(0.3);
    }
  });
  it("the chosen scale overrides the metric's", () => {
    expect(place(scaleOf({ name: "m", scale: "linear", low: 0, high: 1 }, found, "sqrt"), 0.25)).toBe(0.5);
  });
  it("a diverging scale is symmetric about zero whatever the data", () => {
    const scale = scaleOf({ name: "d", diverging: true }, { low: -0.1, high: 0.4, positive: 0.1 });
    expect([scale.low, scale.high]).toEqual([-0.4, 0.4]);
    expect(place(scale, 0)).toBe(0.5);
  });
  it("direction down puts low values where the ramp stands out", () => {
    const scale = scaleOf({ name: "rank", scale: "log", low: 1, high: 1000, direction: "down" }, found);
    expect(place(scale, 1)).toBe(1);
    expect(place(scale, 1000)).toBeCloseTo(0);
  });
  it("survives data with nothing in it, and data that is all one value", () => {
    const none = scaleOf({ name: "m" }, extent([]));
    expect(none.high).toBeGreaterThan(none.low);
    const same = scaleOf({ name: "m" }, extent([3, 3]));
    expect(place(same, 3)).toBe(0);
  });
  it.each(["linear", "sqrt", "log"])("ticks of a %s legend hold the ends, rise, and do not collide", (name) => {
    const ticks = legendTicks(scaleOf({ name: "m", scale: name, low: name === "log" ? 1 : 0, high: 49152 }, found), 180);
    expect(ticks[0].t).toBe(0);
    expect(ticks.at(-1).t).toBe(1);
    expect(ticks.length).toBeGreaterThan(2);
    for (let i = 1; i < ticks.length; i++) {
      expect((ticks[i].t - ticks[i - 1].t) * 180).toBeGreaterThan(3 * (ticks[i].label.length + ticks[i - 1].label.length));
    }
  });
});

describe("levels", () => {
  const scale = scaleOf({ name: "m", low: 0, high: 1 }, found);
  it("keeps what is not a number apart from numbers, and never turns it into zero", () => {
    const values = [0, 1, NaN, Infinity, -Infinity, 0.5];
    expect([...levelsOf(values, scale, null, false)]).toEqual([0, 255, NAN, PLUS_INF, MINUS_INF, 128]);
    expect(levelsOf(values, scale, null, true)[2]).toBe(PENDING);
    expect(levelsOf(values, scale, [1, 0, 0, 0, 0, 0], false)[0]).toBe(MASKED);
  });
  it("extent leaves out masked cells, what is not finite, and the sink column when asked", () => {
    expect(extent([9, 1, 8, 0, NaN, Infinity], { cols: 2, skipFirst: true })).toEqual({ low: 0, high: 1, positive: 1 });
    expect(extent([9, 1], { mask: [1, 0] }).high).toBe(1);
  });
  it("a single bright cell does not vanish when cells share a pixel", () => {
    const levels = new Uint16Array(64).fill(3);
    levels[27] = 250;
    expect([...pooled(levels, 8, { r0: 0, r1: 8, c0: 0, c1: 8 }, 2, 2, false)].sort((a, b) => b - a)).toEqual([250, 3, 3, 3]);
    expect([...pooled(new Uint16Array([120, 2, 130, 127]), 2, { r0: 0, r1: 2, c0: 0, c1: 2 }, 1, 1, true)]).toEqual([2]);
    expect([...pooled(new Uint16Array([MASKED, 4]), 2, { r0: 0, r1: 1, c0: 0, c1: 2 }, 1, 1, false)]).toEqual([4]);
  });
  it("a window of the same size is copied cell by cell", () => {
    const levels = Uint16Array.from({ length: 12 }, (_, i) => i);
    expect([...pooled(levels, 4, { r0: 1, r1: 3, c0: 1, c1: 3 }, 2, 2, false)]).toEqual([5, 6, 9, 10]);
  });
  it("lists the codes that occur", () => {
    expect([...occurring(new Uint16Array([1, NAN, NAN]), 256)]).toEqual([NAN]);
  });
});

describe("numbers as text", () => {
  it("six digits, and words for what is not finite", () => {
    expect(exact(0.123456789)).toBe("0.123457");
    expect(exact(-0.5)).toBe("−0.500000");
    expect(exact(1e-7)).toBe("1.00000e−7");
    expect(exact(49152)).toBe("49,152");
    expect([exact(NaN), exact(Infinity), exact(-Infinity), exact(0)]).toEqual(["not a number", "+∞", "−∞", "0"]);
  });
  it("short forms", () => {
    expect([brief(0.18312), brief(49152), brief(0), brief(12)]).toEqual(["0.183", "4.9e4", "0", "12"]);
    expect([probability(0.5), probability(0.01), probability(1e-6), probability(NaN)]).toEqual(["0.500", "0.0100", "1.0e−6", "–"]);
    expect([duration(3.21), duration(75)]).toEqual(["3.2 s", "1 min 15 s"]);
  });
});
