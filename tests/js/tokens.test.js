import { describe, expect, it } from "vitest";
import { endsLine, fitText, graphemes, shortened, visible } from "../../workbench/widgets/src/tokens.js";

describe("visible text", () => {
  it.each([
    [" the", "␣the"],
    ["\n    ", "⏎␣␣␣␣"],
    ["\t", "⇥"],
    ["\r\n", "<U+000D>⏎"],
    ["", "∅"],
    ["\u0000", "<U+0000>"],
    ["a\u200bb", "a<U+200B>b"],
    ["\u202eabc", "<U+202E>abc"],
    ["\u2066x\u2069", "<U+2066>x<U+2069>"],
    ["\u00a0", "<U+00A0>"],
    ["\ufeff", "<U+FEFF>"],
    ["\ud83d", "<U+D83D>"],
    ["\u{e0041}", "<U+E0041>"],
    ["\ue000", "<U+E000>"],
    ["\u0301", "◌\u0301"],
    ["e\u0301", "e\u0301"],
    ["a\u200db", "a<U+200D>b"],
    ["👩\u200d👩\u200d👧", "👩\u200d👩\u200d👧"],
    ["❤\ufe0f", "❤\ufe0f"],
    ["שלום", "שלום"],
    ["<script>alert(1)</script>", "<script>alert(1)</script>"],
    ["<0xE2>", "<0xE2>"],
    ["\ufffd", "\ufffd"],
  ])("%j is shown as %j", (text, shown) => expect(visible(text)).toBe(shown));

  it("knows which tokens end a line", () => {
    expect([endsLine("\n"), endsLine(".\n"), endsLine("\n  "), endsLine("a")]).toEqual([true, true, false, false]);
  });
});

describe("shortening", () => {
  const width = (text) => 10 * text.length;
  it("cuts at the longest start that fits, with an ellipsis", () => {
    expect(fitText("abcdef", 60, width)).toBe("abcdef");
    expect(fitText("abcdef", 50, width)).toBe("abcd…");
    expect(fitText("abcdef", 20, width)).toBe("");
  });
  it("counts a family as one", () => {
    expect(graphemes("👩\u200d👩\u200d👧a")).toHaveLength(2);
    expect(shortened("abcdef", 4)).toBe("abc…");
    expect(shortened("abcd", 4)).toBe("abcd");
  });
});
