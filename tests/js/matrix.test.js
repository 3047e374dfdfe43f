import { afterEach, beforeEach, describe, expect, it } from "vitest";
import widget from "../../workbench/widgets/src/matrix.widget.js";
import { cellOf, cursorParams, paintMatrix, readMatrix } from "../../workbench/widgets/src/matrix_data.js";
import { cellTip, cellWords, rowWords } from "../../workbench/widgets/src/matrix_words.js";
import { NAN } from "../../workbench/widgets/src/values.js";
import { FakeModel, frame, mount, stubCanvas } from "./fake_model.js";

const WEIGHTS = [1, 0, 0, 0.4, 0.6, 0, 0.123456789, 0.5, 0.376543211];
const MASK = [0, 1, 1, 0, 0, 1, 0, 0, 0];

function attention(more = {}, weights = WEIGHTS) {
  const content = {
    kind: "attention", title: "Attention", rows: ["a", " b", "c"], cols: ["a", " b", "c"], row_index: [0, 1, 2],
    row_axis_cursor: "query", col_axis_cursor: "key", row_title: "query", col_title: "key", state: "ok", metric: "weight",
    metrics: [{ name: "weight", label: "Weight" }, { name: "diff", label: "A − B", diverging: true }],
    mask_reasons: [{ letter: "c", label: "causal" }], controls: [{ name: "layer", label: "Layer", kind: "int", value: 2, min: 0, max: 9 }],
    ...more,
  };
  const arrays = { weight: ["float32", [3, 3], new Float32Array(weights)], diff: ["float32", [3, 3], new Float32Array(9)], mask: ["uint8", [3, 3], new Uint8Array(MASK)] };
  return [content, arrays];
}

function lens(more = {}) {
  const content = {
    kind: "lens", title: "Lens", rows: ["L1", "L0", "embed"], row_index: [1, 0, null], cols: ["a", " b"], row_axis_cursor: "layer",
    col_axis_cursor: "query", metric: "p", metrics: [{ name: "p", label: "p", low: 0, high: 1 }], texts: { vocab: ["<b>x</b>", " y"] }, ...more,
  };
  const arrays = {
    p: ["float32", [3, 2], new Float32Array([0.9, 0.8, 0.5, NaN, 0.1, 0.2])],
    text: ["int32", [3, 2], new Int32Array([0, 1, 1, -1, 0, 1])],
    top_ids: ["int32", [3, 2, 2], new Int32Array(12).map((_, i) => i % 2)],
    top_p: ["float32", [3, 2, 2], new Float32Array(12).fill(0.25)],
  };
  return [content, arrays];
}

const payload = ([content, arrays]) => ({
  rev: 1, content, arrays: Object.fromEntries(Object.entries(arrays).map(([k, [dtype, shape, data]]) => [k, { dtype, shape, data }])),
});
const data = (parts) => readMatrix(payload(parts));

describe("data", () => {
  it("a click gives the values of both axes in one message, and leaves out what has none", () => {
    expect(cursorParams(data(attention()), { r: 2, c: 1 })).toEqual({ query: 2, key: 1 });
    expect(cursorParams(data(lens()), { r: 0, c: 1 })).toEqual({ layer: 1, query: 1 });
    expect(cursorParams(data(lens()), { r: 2, c: 1 })).toEqual({ query: 1 });
  });
  it("finds the cursor's cell, also where a cell covers several tokens", () => {
    expect(cellOf(data(lens()), { layer: 0, query: 1 })).toEqual({ r: 1, c: 1 });
    expect(cellOf(data(lens()), { layer: 9, query: null })).toEqual({ r: -1, c: -1 });
    const coarse = data(attention({ pooled: { factor: 4, how: "max" }, row_index: undefined }));
    expect(cellOf(coarse, { query: 6, key: 11 })).toEqual({ r: 1, c: 2 });
    expect(cursorParams(coarse, { r: 1, c: 2 })).toEqual({ query: 4, key: 8 });
  });
  it("says the axis before a row that is a number, and a name alone", () => {
    const numbered = data(lens({ rows: ["1", "0", "embed"], row_title: "after layer" }));
    expect([0, 1, 2].map((r) => rowWords(numbered, r))).toEqual(["after layer 1", "after layer 0", "embed"]);
  });
  it("attention is on a square-root scale unless told otherwise; the sink is left out of its maximum", () => {
    const apart = paintMatrix(data(attention({ sink_apart: true })), undefined, undefined, "light");
    expect(apart.scale).toMatchObject({ name: "sqrt", low: 0 });
    expect(apart.scale.high).toBeCloseTo(0.6);
    expect(paintMatrix(data(attention()), undefined, "linear", "light").scale).toMatchObject({ name: "linear", high: 1 });
  });
  it("a metric without an array is not captured, not zero", () => {
    const [content, { mask }] = attention();
    const painted = paintMatrix(data([content, { mask }]), "weight", undefined, "light");
    expect(painted.levels[0]).toBe(NAN);
  });
});

describe("words", () => {
  it("the exact value, the distance, the mask's reason", () => {
    const d = data(attention());
    const metric = d.metrics[0];
    expect(cellWords(d, metric, 2, 0)).toBe("query 2 “c” → key 0 “a” · Weight 0.123457 · distance 2");
    expect(cellWords(d, metric, 0, 1)).toBe("query 0 “a” → key 1 “␣b” · masked: causal · distance −1");
    expect(cellTip(d, 0, 1).map((n) => n.textContent).join(" ")).toContain("causal");
  });
  it("what is not computed yet is not called NaN", () => {
    const at = (state) => cellWords(data(lens({ state })), { name: "p" }, 1, 1);
    expect(at("computing")).toContain("not computed yet");
    expect(at("ok")).toContain("not a number");
  });
  it("top tokens stay text", () => {
    const nodes = cellTip(data(lens()), 0, 0);
    expect(nodes.map((n) => n.textContent).join(" ")).toContain("<b>x</b>");
    expect(nodes.some((n) => n.querySelector("b"))).toBe(false);
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
  const canvas = () => view.root.querySelector("canvas");
  const empty = () => view.root.querySelector("[data-testid=wb-empty]");
  const key = (name, more = {}) => canvas().dispatchEvent(new KeyboardEvent("keydown", { key: name, bubbles: true, ...more }));

  it("draws every payload once and says which", async () => {
    model.show(4, ...attention());
    await frame();
    expect(view.root.dataset.rev).toBe("4");
    const drawn = Number(view.root.dataset.drawn);
    model.show(3, ...attention());
    await frame();
    expect(Number(view.root.dataset.drawn)).toBe(drawn);
    model.show(5, ...attention());
    await frame();
    expect(Number(view.root.dataset.drawn)).toBe(drawn + 1);
    expect(seen.images.at(-1)).toMatchObject({ width: 3, height: 3 });
    expect(seen.texts).toContain("c");
  });
  it.each([["empty", "", "Run a prompt"], ["not captured", "Turn on capture", "Turn on capture"], ["error", "out of memory", "out of memory"]])(
    "state %s is words on the screen, not a picture", async (state, state_text, words) => {
      model.show(1, ...attention({ state, state_text }));
      await frame();
      expect(empty().hidden).toBe(false);
      expect(empty().textContent).toContain(words);
      expect(view.root.querySelector(".wb-plot").hidden).toBe(true);
      expect(seen.images).toHaveLength(0);
    });
  it("stale and computing keep the picture and say so", async () => {
    model.show(1, ...attention({ state: "stale", state_text: "the cache changed" }));
    await frame();
    expect(empty().hidden).toBe(true);
    expect(view.root.querySelector("[data-testid=wb-state]").textContent).toBe("stale · the cache changed");
  });
  it("click and arrow keys send the cursor in one message, from the page's own place", async () => {
    model.show(1, ...attention());
    await frame();
    const box = canvas().wbCellRect(1, 0);
    canvas().dispatchEvent(new MouseEvent("click", { bubbles: true, clientX: box.x + 2, clientY: box.y + 2 }));
    key("ArrowRight");
    key("ArrowDown");
    key("Home");
    key("Home"); // already there: nothing to say
    expect(model.actions("cursor").map((a) => a.params)).toEqual([
      { query: 1, key: 0 }, { query: 1, key: 1 }, { query: 2, key: 1 }, { query: 2, key: 0 }]);
    expect(view.root.querySelector("[role=status]").textContent).toContain("0.123457");
  });
  it("follows the kernel's cursor", async () => {
    model.show(1, ...attention());
    model.set("cursor", { query: 2, key: 2 });
    await frame();
    expect(view.root.querySelector("[role=status]").textContent).toContain("query 2 “c” → key 2");
    model.set("cursor", { query: 2, key: null });
    await frame();
    expect(view.root.querySelector("[role=status]").textContent).toBe("query 2 “c”");
  });
  it("metric and scale are the page's own business", async () => {
    model.show(1, ...attention());
    await frame();
    const scale = [...view.root.querySelectorAll("select")].at(-1);
    expect(scale.value).toBe("sqrt");
    scale.value = "log";
    scale.dispatchEvent(new Event("change"));
    await frame();
    expect(model.get("view").scale).toBe("log");
    expect(model.actions()).toEqual([]);
  });
  it("a control sends its value; one outside its range is marked and stays", () => {
    model.show(1, ...attention());
    const input = view.root.querySelector("input[type=number]");
    const enter = (value) => {
      input.value = value;
      input.dispatchEvent(new Event("input"));
      input.dispatchEvent(new Event("change"));
    };
    enter("4");
    enter("12");
    expect(input.getAttribute("aria-invalid")).toBe("true");
    expect(model.actions("set").map((a) => a.params)).toEqual([{ name: "layer", value: 4 }]);
  });
  it("a control that the kernel refused goes back to what is shown", () => {
    model.show(1, ...attention());
    const input = view.root.querySelector("input[type=number]");
    input.value = "4";
    input.dispatchEvent(new Event("change"));
    model.ack(false);
    expect(input.value).toBe("2");
  });
  it("keeps controls in place when only their value changes", () => {
    model.show(1, ...attention());
    const input = view.root.querySelector("input[type=number]");
    model.show(2, ...attention({ controls: [{ name: "layer", label: "Layer", kind: "int", value: 5, min: 0, max: 9 }] }));
    expect(view.root.querySelector("input[type=number]")).toBe(input);
    expect(input.value).toBe("5");
  });
  it("goes without a trace", () => {
    view.unmount();
    expect(model.listening()).toBe(0);
  });
});
