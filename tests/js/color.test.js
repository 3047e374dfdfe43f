import { describe, expect, it } from "vitest";
import { contrast, css, fromOklch, lightness, luminance, pixel, rampColors, textOn } from "../../workbench/widgets/src/color.js";

const THEMES = ["light", "dark"];

describe("ramps", () => {
  it.each(THEMES)("sequential %s has 256 colours whose lightness is a straight line", (theme) => {
    const ls = rampColors("sequential", theme).map(lightness);
    expect(ls).toHaveLength(256);
    const sign = theme === "light" ? -1 : 1;
    for (let i = 1; i < 256; i++) expect(sign * (ls[i] - ls[i - 1])).toBeGreaterThanOrEqual(-0.002); // 8-bit rounding
    ls.forEach((l, i) => expect(l).toBeCloseTo(ls[0] + (i / 255) * (ls[255] - ls[0]), 2));
    expect(Math.abs(ls[255] - ls[0])).toBeGreaterThan(0.6);
  });

  it("starts near the page's background in both themes", () => {
    expect(lightness(rampColors("sequential", "light")[0])).toBeGreaterThan(0.96);
    expect(lightness(rampColors("sequential", "dark")[0])).toBeLessThan(0.3);
  });

  it.each(THEMES)("diverging %s is blue below, red above, and as light on both sides", (theme) => {
    const colors = rampColors("diverging", theme);
    for (let i = 0; i < 128; i++) expect(lightness(colors[i])).toBeCloseTo(lightness(colors[255 - i]), 2);
    expect(colors[0][2]).toBeGreaterThan(colors[0][0]);
    expect(colors[255][0]).toBeGreaterThan(colors[255][2]);
    expect(Math.max(...colors[128]) - Math.min(...colors[128])).toBeLessThan(6);
  });

  it.each(THEMES)("text on every colour of %s has a contrast of 4.5 or more", (theme) => {
    for (const name of ["sequential", "diverging"]) {
      for (const rgb of rampColors(name, theme)) {
        expect(contrast(luminance(rgb), textOn(rgb) === "#000" ? 0 : 1)).toBeGreaterThanOrEqual(4.5);
      }
    }
  });
});

describe("conversions", () => {
  it("OKLab lightness of white, black and a grey", () => {
    expect(lightness([255, 255, 255])).toBeCloseTo(1, 3);
    expect(lightness([0, 0, 0])).toBeCloseTo(0, 3);
    expect(lightness(fromOklch(0.5, 0, 0))).toBeCloseTo(0.5, 2);
  });
  it("keeps the lightness where sRGB has no such chroma", () => {
    expect(lightness(fromOklch(0.9, 0.4, 264))).toBeCloseTo(0.9, 2);
  });
  it("writes CSS and little-endian pixels", () => {
    expect(css([1, 2, 3])).toBe("rgb(1, 2, 3)");
    expect([...new Uint8Array(new Uint32Array([pixel([1, 2, 3])]).buffer)]).toEqual([1, 2, 3, 255]);
  });
});
