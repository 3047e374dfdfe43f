import { afterEach, beforeEach, describe, expect, it, vi } from "vitest";
import widget from "../../workbench/widgets/src/generation.widget.js";
import { FakeModel, mount } from "./fake_model.js";

const SAMPLER = { temperature: 0, top_k: 0, top_p: 1 };
const HOSTILE = "<img src=x onerror=alert(1)>";
let model, view, rev;

beforeEach(() => {
  vi.useFakeTimers();
  rev = 0;
  model = new FakeModel();
  view = mount(widget, model);
});
afterEach(() => {
  view.unmount();
  document.body.replaceChildren();
  vi.useRealTimers();
});

const find = (id) => view.root.querySelector(`[data-testid=wb-${id}]`);
const rows = () => [...find("candidates").querySelectorAll("tbody tr")];
const field = (name) => view.root.querySelector(`#${[...view.root.querySelectorAll("label")].find((l) => l.textContent === name).htmlFor}`);
const use = () => [...view.root.querySelectorAll("button")].find((b) => b.textContent === "Use");
const press = (key) => document.activeElement.dispatchEvent(new KeyboardEvent("keydown", { key, bubbles: true, cancelable: true }));
const column = (...values) => ["float32", [values.length], Float32Array.from(values)];

function show(more = {}) {
  rev += 1;
  const content = {
    state: "ok", state_text: "", run: 2, node: 4, after: { text: " is", id: 9, position: 4 },
    tokens: [{ text: " Paris", id: 50, bytes: "20 50", taken: "path" }, { text: "\n", id: 51, taken: "branch" }, { text: HOSTILE, id: 52, taken: null }],
    rest: { count: 49149, p: 0.05, share: 0 }, sampler: SAMPLER, in_use: true,
    cost: [{ label: "decode", value: "1 position computed" }],
    branches: [
      { node: 5, text: " Paris", id: 50, source: "sampled", on_path: true, more: 3, logprob: -0.5 },
      { node: 9, text: HOSTILE, id: 51, source: "forced", on_path: false, more: 0, logprob: null },
    ],
    ...more,
  };
  model.show(rev, content, { p: column(0.6, 0.3, 0.05), share: column(1, 0, 0), logit: column(12, 11.3, 9), logprob: column(-0.51, -1.2, -3) });
}

it("asks for its payload, and says what to do while there is none", () => {
  expect(model.sent[0]).toEqual({ kind: "get" });
  model.show(1, { state: "empty", state_text: "Run a prompt to see", after: null, tokens: [], cost: [], branches: [], sampler: SAMPLER, in_use: true });
  expect(find("empty").textContent).toBe("Run a prompt to see");
  expect(find("empty").hidden).toBe(false);
});

describe("candidates", () => {
  it("stand with token, p, the sampler's share, logit and log p, and what was taken", () => {
    show();
    const cells = rows().map((row) => [...row.children].map((cell) => cell.textContent));
    expect(cells[0]).toEqual(["1", "● ␣Paris", "0.600", "1.000", "12.00", "−0.51"]);
    expect(cells[1]).toEqual(["2", "○ ⏎", "0.300", "never", "11.30", "−1.20"]);
    expect(find("candidates").querySelector("tfoot").textContent).toContain("49,149 others");
    expect(find("generation-after").textContent).toBe("after ␣is · position 4");
    expect(find("generation-said").textContent).toContain("After “␣is” at position 4: “␣Paris” 0.600");
    expect(rows()[0].getAttribute("aria-label")).toContain("taken in this text");
  });
  it("hostile text stays text", () => {
    show();
    expect(rows()[2].children[1].textContent).toBe(HOSTILE.replaceAll(" ", "␣"));
    rows()[2].dispatchEvent(new Event("pointerover", { bubbles: true }));
    expect(document.querySelector("[data-testid=wb-tooltip]").textContent).toContain("Id52");
    expect(document.querySelector("img")).toBeNull();
  });
  it("a click takes one: the action carries text, node and token", () => {
    show();
    rows()[1].click();
    expect(model.actions("take")[0].params).toEqual({ run: 2, node: 4, token: 51 });
  });
  it("one tab stop; arrows move, Enter takes, the first row is next after a move", () => {
    show();
    expect(rows().map((r) => r.tabIndex)).toEqual([0, -1, -1]);
    rows()[0].focus();
    press("ArrowDown");
    press("End");
    press("ArrowUp");
    expect(document.activeElement).toBe(rows()[1]);
    expect(model.actions()).toEqual([]);
    press("Enter");
    expect(model.actions("take").map((a) => a.params.token)).toEqual([51]);
    const before = rows();
    show({ node: 9 });
    expect(rows()[0]).toBe(before[0]);
    expect(document.activeElement).toBe(rows()[0]);
  });
  it("while something runs a click does nothing, and Esc stops", () => {
    show({ state: "running", state_text: "running · as it was before" });
    expect(find("generation-state").textContent).toContain("as it was before");
    expect(find("candidates").getAttribute("aria-busy")).toBe("true");
    rows()[1].click();
    expect(model.actions()).toEqual([]);
    press("Escape");
    expect(model.actions("stop")).toHaveLength(1);
  });
  it("a stale picture says so", () => {
    show({ state: "stale", state_text: "stale · computed before" });
    expect(find("generation-state").textContent).toContain("stale");
  });
});

describe("branches and cost", () => {
  it("a click on a branch goes there", () => {
    show();
    const buttons = [...find("generation-branches").querySelectorAll("button")];
    expect(buttons.map((b) => b.getAttribute("aria-current"))).toEqual(["true", null]);
    expect(buttons[0].textContent).toBe("● ␣Paris +3");
    expect(buttons[1].getAttribute("aria-label")).toContain("another branch");
    buttons[1].click();
    expect(model.actions("go")[0].params).toEqual({ run: 2, node: 9 });
    expect(find("generation-cost").textContent).toContain("decode1 position computed");
  });
});

describe("sampler", () => {
  it("typing ranks anew without using it; Use carries all fields", () => {
    show();
    expect(use().disabled).toBe(true);
    const input = field("Temperature");
    input.value = "0.7";
    input.dispatchEvent(new Event("input", { bubbles: true }));
    vi.advanceTimersByTime(100);
    expect(model.actions().map((a) => [a.name, a.params])).toEqual([["sampler", { ...SAMPLER, temperature: 0.7 }]]);
    show({ sampler: { ...SAMPLER, temperature: 0.7 }, in_use: false });
    expect(find("generation-used").textContent).toBe("shown only");
    use().click();
    expect(model.actions("use")[0].params).toEqual({ ...SAMPLER, temperature: 0.7 });
  });
  it("a number that is not allowed is explained, and not sent", () => {
    show();
    const input = field("Top-p");
    input.value = "0";
    input.dispatchEvent(new Event("input", { bubbles: true }));
    vi.advanceTimersByTime(100);
    expect(find("error").textContent).toContain("Top-p must be a number above 0");
    expect(model.actions()).toEqual([]);
  });
});

it("goes without a trace", () => {
  show();
  view.unmount();
  expect(model.listening()).toBe(0);
});
