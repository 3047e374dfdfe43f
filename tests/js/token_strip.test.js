import { afterEach, beforeEach, describe, expect, it } from "vitest";
import widget from "../../workbench/widgets/src/token_strip.widget.js";
import { FakeModel, mount } from "./fake_model.js";

const METRICS = [
  { name: "surprisal", label: "Surprisal", unit: "nats", low: 0, high: 10 },
  { name: "rank", label: "Rank", scale: "log", low: 1, high: 1000 },
];
let model, view, rev;

beforeEach(() => {
  rev = 0;
  model = new FakeModel({ cursor: {} });
  view = mount(widget, model);
});
afterEach(() => {
  view.unmount();
  document.body.replaceChildren();
});

const token = (text, source = "prompt") => ({ text, id: text.length, source });
const words = (n) => Array.from({ length: n }, (_, i) => token(` w${i}`));
const chips = () => [...view.root.querySelectorAll(".wb-chip")];

function show(tokens, more = {}) {
  const values = Float32Array.from(tokens, (_, i) => (i ? i % 10 : NaN));
  const array = ["float32", [tokens.length], values];
  rev += 1;
  model.show(rev, { tokens, metrics: METRICS, metric: "surprisal", ...more }, { surprisal: array, rank: array });
}

describe("chips", () => {
  it("asks for its payload, and says what to do while there is none", () => {
    expect(model.sent[0]).toEqual({ kind: "get" });
    expect(view.root.querySelector("[data-testid=wb-empty]").textContent).toContain("Run a prompt");
    show([], { empty: "Nothing yet" });
    expect(view.root.querySelector("[data-testid=wb-empty]").textContent).toBe("Nothing yet");
  });
  it("hostile text stays text", () => {
    const text = "<img src=x onerror=alert(1)><script>window.hacked = 1</script>";
    show([token(text), token("&amp;")]);
    expect(chips().map((c) => c.textContent)).toEqual([text.replaceAll(" ", "␣"), "&amp;"]);
    expect(view.root.querySelector("img, script")).toBeNull();
    chips()[0].dispatchEvent(new Event("pointerover", { bubbles: true }));
    const tip = document.querySelector("[data-testid=wb-tooltip]");
    expect(tip.hidden).toBe(false);
    expect(tip.querySelector("img, script")).toBeNull();
    expect(tip.textContent).toContain("<script>");
  });
  it("appended tokens leave the others as they are", () => {
    show(words(5));
    const before = chips();
    before[2].style.setProperty("--touched", "yes");
    show([...words(5), token("new", "sampled")]);
    expect(chips().slice(0, 5).every((chip, i) => chip === before[i])).toBe(true);
    expect(chips()[2].style.getPropertyValue("--touched")).toBe("yes");
    expect(chips()[5].classList.contains("wb-sampled")).toBe(true);
    show([...words(3), token("other")]);
    expect(chips()).toHaveLength(4);
    expect(chips()[2]).toBe(before[2]);
    expect(chips()[3].textContent).toBe("other");
  });
  it("goes into blocks of 256 that the browser can skip", () => {
    show(words(600));
    expect([...view.root.querySelectorAll(".wb-block")].map((b) => b.children.length)).toEqual([256, 256, 88]);
    show(words(256));
    expect(view.root.querySelectorAll(".wb-block")).toHaveLength(1);
  });
  it("a newline ends the visual line", () => {
    show([token("a"), token("\n"), token("b")]);
    expect(chips()[1].textContent).toBe("⏎");
    expect(chips()[1].nextElementSibling.tagName).toBe("BR");
  });
});

describe("colours", () => {
  it("NaN is hatched and said in words, never coloured as a number", () => {
    show(words(3));
    expect(chips()[0].classList.contains("wb-hatch")).toBe(true);
    expect(chips()[0].style.background).toBe("");
    expect(chips()[1].style.background).not.toBe("");
    chips()[0].dispatchEvent(new Event("pointerover", { bubbles: true }));
    expect(document.querySelector("[data-testid=wb-tooltip]").textContent).toContain("no prediction");
    expect(view.root.querySelector(".wb-legend").textContent).toContain("no prediction");
  });
  it("another metric is chosen without the kernel, and remembered", () => {
    show(words(30));
    const before = chips()[9].style.background;
    const select = view.root.querySelector("select");
    select.value = "rank";
    select.dispatchEvent(new Event("change"));
    expect(chips()[9].style.background).not.toBe(before);
    expect(model.get("view")).toEqual({ metric: "rank" });
    expect(model.actions()).toEqual([]);
    show(words(31));
    expect(view.root.querySelector("select").value).toBe("rank");
  });
});

describe("cursor", () => {
  it("click sets the query, Alt-click the key; the mark is there at once", () => {
    show(words(5));
    chips()[3].click();
    chips()[1].dispatchEvent(new MouseEvent("click", { bubbles: true, altKey: true }));
    expect(model.actions().map((a) => [a.name, a.params])).toEqual([["cursor", { query: 3 }], ["cursor", { key: 1 }]]);
    expect(chips()[3].classList.contains("wb-query")).toBe(true);
    expect(chips()[3].getAttribute("aria-selected")).toBe("true");
    expect(chips()[1].classList.contains("wb-key")).toBe(true);
  });
  it("follows the kernel, but not an echo of an older click", () => {
    show(words(5));
    model.set("cursor", { query: 2 });
    expect(chips()[2].classList.contains("wb-query")).toBe(true);
    chips()[4].click();
    model.set("cursor", { query: 3 });
    expect(chips()[4].classList.contains("wb-query")).toBe(true);
    model.set("cursor", { query: 4 });
    model.ack();
    expect(view.root.querySelectorAll(".wb-query")).toHaveLength(1);
    expect(chips()[4].classList.contains("wb-query")).toBe(true);
  });
  it("has one tab stop; arrow keys move it and the cursor", () => {
    show(words(5));
    model.set("cursor", { query: 1 });
    expect(chips().map((c) => c.tabIndex)).toEqual([-1, 0, -1, -1, -1]);
    chips()[1].focus();
    const key = (name) => document.activeElement.dispatchEvent(new KeyboardEvent("keydown", { key: name, bubbles: true }));
    key("ArrowRight");
    expect(document.activeElement).toBe(chips()[2]);
    key("End");
    key("ArrowRight");
    key("Home");
    expect(model.actions().map((a) => a.params.query)).toEqual([2, 4, 0]);
  });
});

it("has a summary in words, and goes without a trace", () => {
  show([token("a"), token("b"), token("c", "sampled")]);
  expect(view.root.querySelector("[role=listbox]").getAttribute("aria-label")).toBe(
    "3 tokens: 2 from the prompt, 1 generated, coloured by Surprisal");
  chips()[0].dispatchEvent(new Event("pointerover", { bubbles: true }));
  view.unmount();
  expect(document.querySelector("[data-testid=wb-tooltip]")).toBeNull();
  expect(model.listening()).toBe(0);
});
