import { afterEach, beforeEach, describe, expect, it } from "vitest";
import { contrast, luminance } from "../../workbench/widgets/src/color.js";
import widget from "../../workbench/widgets/src/mask_matrix.widget.js";
import { colorOf, firstSize, lettersOf, levelOf, paintMask, readMask } from "../../workbench/widgets/src/mask_data.js";
import { cellTip, placeWords, summary } from "../../workbench/widgets/src/mask_words.js";
import { FakeModel, frame, mount, stubCanvas } from "./fake_model.js";

// Queries 0–2 on keys 0–2 and one empty slot; text 0 has padding first: C = 1, E = 2, P = 4.
const BITS = [4, 5, 1, 2, 4, 0, 1, 2, 4, 0, 0, 2, 0, 1, 1, 2, 0, 0, 1, 2, 0, 0, 0, 2];

function mask(more = {}, bits = BITS) {
  const label = (queries) => ({ queries, keys: [...queries, ""] });
  const content = {
    title: "Attention mask", subtitle: "tiny", state: "ok", state_text: "", notes: ["A note."],
    rules: [
      { name: "causal", letter: "C", label: "the key is after the query" },
      { name: "empty_slot", letter: "E", label: "the cache slot is empty" },
      { name: "padding", letter: "P", label: "the key is padding" },
    ],
    texts: [{ name: "0: a", ...label(["<pad>", " a", "b"]), notes: ["Query 0 is idle."] }, { name: "1: x", ...label(["<s>", "<b>x</b>", "\n"]), notes: [] }],
    query_index: [0, 1, 2], key_index: [0, 1, 2, null], ...more,
  };
  return [content, { reasons: ["uint8", [bits.length / 12, 3, 4], new Uint8Array(bits)] }];
}

const payload = ([content, arrays]) => ({
  rev: 1, content, arrays: Object.fromEntries(Object.entries(arrays).map(([k, [dtype, shape, data]]) => [k, { dtype, shape, data }])),
});
const data = (which = 0, parts = mask()) => readMask(payload(parts), which);

describe("data", () => {
  it("takes the chosen text's labels and reasons", () => {
    expect(data(0).rowLabels).toEqual(["<pad>", "␣a", "b"]);
    expect([...data(0).bits]).toEqual(BITS.slice(0, 12));
    expect(data(1).colLabels).toEqual(["<s>", "<b>x</b>", "⏎", "∅"]);
    expect([...data(1).bits]).toEqual(BITS.slice(12));
    expect(data(9).which).toBe(1);
  });
  it("one row of reasons stands for every text", () => {
    const shared = data(1, mask({}, BITS.slice(12)));
    expect([...shared.bits]).toEqual(BITS.slice(12));
    expect(shared.rowLabels[0]).toBe("<s>");
  });
  it("counts the cells of each pattern", () => {
    expect(Object.fromEntries(data(0).counts)).toEqual({ 0: 3, 1: 2, 2: 3, 4: 3, 5: 1 });
    expect([...data(0).counts.values()].reduce((a, b) => a + b)).toBe(12);
  });
  it("a cell that may attend is the level that wins where cells share a pixel", () => {
    expect(levelOf(0)).toBeGreaterThan(levelOf(1));
    expect([...data(0).levels.slice(0, 3)]).toEqual([251, 250, 254]);
  });
  it("letters name all rules, and the last one colours the cell", () => {
    const d = data(0);
    expect([0, 1, 4, 5].map((p) => lettersOf(d, p))).toEqual(["", "C", "P", "CP"]);
    expect(colorOf(d, 5, "light")).toEqual(colorOf(d, 4, "light"));
    expect(colorOf(d, 5, "light")).not.toEqual(colorOf(d, 1, "light"));
    expect(paintMask(d, "light").signs[levelOf(5)].text).toBe("CP");
  });
  it("allowed and masked cells differ in lightness, not in hue alone, in both themes", () => {
    for (const theme of ["light", "dark"]) {
      const [may, ...masked] = [0, 1, 2, 4].map((p) => luminance(colorOf(data(0), p, theme)));
      for (const other of masked) expect(contrast(may, other)).toBeGreaterThan(3);
    }
  });
  it("a long mask is first shown whole", () => {
    expect(firstSize({ rows: 8 })).toBe(undefined);
    expect(firstSize({ rows: 500 })).toBe("fit");
  });
  it("an empty payload draws nothing", () => {
    expect(readMask({ rev: 0, content: {}, arrays: {} }, 0).drawn).toBe(false);
  });
});

describe("words", () => {
  it("say the tokens, whether it may attend or which rules forbid it, and the distance", () => {
    expect(placeWords(data(0), { r: 2, c: 1 })).toBe(
      "query 2 “b” → key 1 “␣a” · may attend · distance 1 · this query may attend to 2 of 4 keys");
    expect(placeWords(data(0), { r: 0, c: 1 })).toBe(
      "query 0 “<pad>” → key 1 “␣a” · masked: causal (the key is after the query) and padding (the key is padding) · distance −1 · this query may attend to 0 of 4 keys");
    expect(placeWords(data(0), { r: 1, c: 3 })).toContain("key slot 3 (empty) · masked: empty_slot (the cache slot is empty) · distance –");
    expect(placeWords(data(0), { r: 1, c: -1 })).toBe("query 1 “␣a” · this query may attend to 1 of 4 keys");
    expect(placeWords(data(0), { r: -1, c: -1 })).toBe("");
  });
  it("the tooltip keeps tokens text", () => {
    const tip = cellTip(data(1), 1, 1);
    expect(tip[0].textContent).toBe("query 1 “<b>x</b>” → key 1 “<b>x</b>”");
    expect(tip.some((node) => node.querySelector("b"))).toBe(false);
    expect(cellTip(data(0), 0, 1)[1].textContent).toBe("AttentionmaskedC causalthe key is after the queryP paddingthe key is paddingDistance−1");
  });
  it("the summary counts", () => {
    expect(summary(data(1))).toBe(
      "Attention mask: 3 queries by 4 keys. Cells: 6 allowed, 3 masked by causal, 3 masked by empty_slot. Arrow keys move the cursor.");
  });
});

describe("the widget", () => {
  let model, view, seen;
  beforeEach(() => {
    seen = stubCanvas();
    model = new FakeModel();
    view = mount(widget, model);
  });
  afterEach(() => {
    view.unmount();
    document.body.replaceChildren();
  });
  const get = (id) => view.root.querySelector(`[data-testid=${id}]`);
  const canvas = () => get("wb-matrix-canvas");
  const key = (name) => canvas().dispatchEvent(new KeyboardEvent("keydown", { key: name, bubbles: true }));
  const texts = () => view.root.querySelector("select");

  it("asks for its payload and says so while there is none", () => {
    expect(model.sent[0]).toEqual({ kind: "get" });
    expect(get("wb-empty").textContent).toBe("No mask yet.");
  });
  it("draws the cells with their letters, the legend and the notes", async () => {
    model.show(3, ...mask());
    await frame();
    expect(view.root.dataset.rev).toBe("3");
    expect(seen.images.at(-1)).toMatchObject({ width: 4, height: 3 });
    for (const letters of ["C", "E", "P", "CP", "␣a", "∅"]) expect(seen.texts).toContain(letters);
    expect([...view.root.querySelectorAll(".wb-swatch")].map((s) => s.textContent)).toEqual([
      "may attend (3)", "C masked: causal (2)", "E masked: empty_slot (3)", "P masked: padding (3)", "CP masked: causal + padding (1)"]);
    expect(get("wb-notes").textContent).toBe("A note.Query 0 is idle.");
    expect(canvas().getAttribute("aria-label")).toContain("3 queries by 4 keys");
  });
  it("the colours on the canvas are those of the legend", async () => {
    model.show(1, ...mask());
    await frame();
    const pixels = new Uint32Array(seen.images.at(-1).data.buffer);
    const rgb = (p) => [p & 255, (p >> 8) & 255, (p >> 16) & 255];
    expect([...pixels].map(rgb)).toEqual([...data(0).bits].map((bits) => colorOf(data(0), bits, "light")));
  });
  it("arrows move its own cursor, say the cell and tell the kernel", async () => {
    model.show(1, ...mask());
    await frame();
    key("ArrowDown");
    key("ArrowRight");
    expect(get("wb-said").textContent).toMatch(/^query 1 “␣a” → key 1 “␣a” · may attend/);
    expect(model.actions("cursor").map((a) => a.params)).toEqual([{ query: 1, key: 0 }, { query: 1, key: 1 }]);
  });
  it("follows the kernel's cursor", () => {
    model.show(1, ...mask());
    model.set("cursor", { query: 2, key: 0 });
    expect(get("wb-said").textContent).toMatch(/^query 2 “b” → key 0 “<pad>” · masked: padding/);
  });
  it("a cursor that no kernel answers stays through another text", () => {
    model.show(1, ...mask());
    key("ArrowDown");
    texts().value = "1";
    texts().dispatchEvent(new Event("change"));
    expect(get("wb-said").textContent).toMatch(/^query 1 “<b>x<\/b>” → key 0 “<s>”/);
  });
  it("the list of texts changes text without asking the kernel", async () => {
    model.show(1, ...mask());
    texts().value = "1";
    texts().dispatchEvent(new Event("change"));
    await frame();
    expect(model.get("view").text).toBe(1);
    expect(model.actions()).toEqual([]);
    expect(seen.texts).toContain("<s>");
    expect(get("wb-notes").textContent).toBe("A note.");
    expect(view.root.querySelectorAll(".wb-swatch").length).toBe(3);
  });
  it("a stored text that is no longer there gives way to one that is", () => {
    model.set("view", { text: 7 });
    model.show(1, ...mask({ texts: mask()[0].texts.slice(0, 1) }, BITS.slice(0, 12)));
    expect(get("wb-notes").textContent).toContain("Query 0 is idle.");
    expect(texts()).toBe(null);
  });
  it("Esc, letters and other keys stay inside and do nothing", () => {
    model.show(1, ...mask());
    let heard = 0;
    document.body.addEventListener("keydown", () => { heard += 1; });
    key("b");
    expect(heard).toBe(0);
    expect(model.actions()).toEqual([]);
  });
  it("goes without a trace", () => {
    view.unmount();
    expect(model.listening()).toBe(0);
  });
});
