import { afterEach, beforeEach, describe, expect, it, vi } from "vitest";
import widget from "../../workbench/widgets/src/run_bar.widget.js";
import { statusWords } from "../../workbench/widgets/src/run_bar_status.js";
import { FakeModel, mount } from "./fake_model.js";

const SETTINGS = { max_new_tokens: 32, temperature: 0, top_k: 0, top_p: 1, seed: 7, chat: false };
let model, view;

beforeEach(() => {
  vi.useFakeTimers();
  model = new FakeModel({ model_line: "SmolLM2", prompt: "Hello", settings: SETTINGS, status: { state: "idle", text: "" }, examples: ["one"] });
  view = mount(widget, model);
});
afterEach(() => {
  view.unmount();
  document.body.replaceChildren();
  vi.useRealTimers();
});

const button = (name) => [...view.root.querySelectorAll("button")].find((b) => b.textContent.includes(name));
const field = (name) => view.root.querySelector(`#${[...view.root.querySelectorAll("label")].find((l) => l.textContent === name).htmlFor}`);
const prompt = () => view.root.querySelector("textarea");
const said = () => view.root.querySelector("[data-testid=wb-status]").textContent;
const problem = () => view.root.querySelector("[data-testid=wb-error]").textContent;
const type = (input, value) => { input.value = value; input.dispatchEvent(new Event("input")); };
const press = (key, more = {}) => prompt().dispatchEvent(new KeyboardEvent("keydown", { key, bubbles: true, cancelable: true, ...more }));

describe("sending", () => {
  it("an action carries the prompt and all settings", () => {
    type(prompt(), "Once upon");
    type(field("New tokens"), "5");
    button("Run").click();
    expect(model.actions()).toHaveLength(1);
    expect(model.actions()[0]).toMatchObject({ name: "run", params: { prompt: "Once upon", settings: { ...SETTINGS, max_new_tokens: 5 } } });
  });
  it("Ctrl-Enter and Cmd-Enter run, Shift-Enter steps, a plain Enter is a new line", () => {
    press("Enter");
    expect(model.actions()).toHaveLength(0);
    press("Enter", { shiftKey: true });
    model.set("status", { state: "done", text: "" });
    press("Enter", { ctrlKey: true });
    model.set("status", { state: "done", text: "1" });
    press("Enter", { metaKey: true });
    expect(model.actions().map((a) => a.name)).toEqual(["step", "run", "run"]);
  });
  it.each([["New tokens", "5000"], ["New tokens", "1.5"], ["Temperature", "-1"], ["Top-p", "0"], ["Top-p", "1.2"], ["Seed", ""]])(
    "%s = %j is marked, explained, and not sent", (name, value) => {
      type(field(name), value);
      expect(field(name).getAttribute("aria-invalid")).toBe("true");
      button("Run").click();
      expect(model.actions()).toHaveLength(0);
      expect(problem()).toContain(`${name} must be`);
      type(field(name), String(SETTINGS[{ "New tokens": "max_new_tokens", Temperature: "temperature", "Top-p": "top_p", Seed: "seed" }[name]]));
      button("Run").click();
      expect(model.actions()).toHaveLength(1);
      expect(problem()).toBe("");
    });
});

describe("states", () => {
  it("says so at once, and the kernel's status takes over", () => {
    button("Run").click();
    expect(said()).toContain("starting");
    expect([button("Run").disabled, button("Step").disabled, button("Stop").disabled]).toEqual([true, true, false]);
    model.set("status", { state: "running", text: "generating", done: 3, total: 12, elapsed: 1 });
    expect(said()).toBe("Running · generating");
    expect(view.root.querySelector("[role=progressbar]").getAttribute("aria-valuenow")).toBe("3");
    model.set("status", { state: "done", text: "12 tokens" });
    expect([button("Run").disabled, button("Stop").disabled]).toEqual([false, true]);
  });
  it("recovers when the action fails, when it never starts, and when Stop is pressed", () => {
    button("Run").click();
    model.set("error", { text: "ValueError: no", count: 1 });
    expect([button("Run").disabled, problem()]).toEqual([false, "ValueError: no"]);
    button("Run").click();
    model.ack(true);
    vi.advanceTimersByTime(2000);
    expect(button("Run").disabled).toBe(false);
    button("Run").click();
    button("Stop").click();
    expect(model.actions().at(-1)).toMatchObject({ name: "stop", params: {} });
    expect(button("Run").disabled).toBe(false);
  });
  it("says that the kernel is busy when nothing comes back", () => {
    button("Run").click();
    vi.advanceTimersByTime(5000);
    expect(said()).toContain("waiting for the kernel");
  });
  it("Esc stops only while running; the clock runs on between messages", () => {
    press("Escape");
    expect(model.actions()).toHaveLength(0);
    model.set("status", { state: "running", text: "", elapsed: 2 });
    vi.advanceTimersByTime(1500);
    expect(view.root.querySelector(".wb-clock").textContent).toMatch(/^3\.[456] s$/);
    press("Escape");
    expect(model.actions().map((a) => a.name)).toEqual(["stop"]);
  });
  it("does not say the state's word twice", () => {
    expect(statusWords({ state: "done", text: "Done in 3 s" })).toBe("Done in 3 s");
    expect(statusWords({ state: "done", text: "in 3 s" })).toBe("Done · in 3 s");
    expect(statusWords({ state: "idle", text: "" })).toBe("Ready");
  });
});

describe("around it", () => {
  it("keys do not reach the notebook", () => {
    const leaked = vi.fn();
    document.body.addEventListener("keydown", leaked);
    press("b");
    press("Enter", { shiftKey: true });
    expect(leaked).not.toHaveBeenCalled();
    expect(view.root.dataset.lmSuppressShortcuts).toBe("true");
  });
  it("follows a prompt set from Python, but not over what is being typed", () => {
    model.set("prompt", "from Python");
    expect(prompt().value).toBe("from Python");
    prompt().focus();
    type(prompt(), "typing the next one");
    model.set("prompt", "late");
    expect(prompt().value).toBe("typing the next one");
  });
  it("counts draws and stops listening when the view goes", () => {
    const before = Number(view.root.dataset.drawn);
    model.set("status", { state: "done", text: "" });
    expect(Number(view.root.dataset.drawn)).toBeGreaterThan(before);
    view.unmount();
    expect(model.listening()).toBe(0);
  });
});

it("settings that the kernel changes leave alone what the user has typed into the others", () => {
  type(field("New tokens"), "50");
  model.set("settings", { ...SETTINGS, temperature: 0.7, top_k: 40 });
  expect([field("New tokens").value, field("Temperature").value, field("Top-k").value]).toEqual(["50", "0.7", "40"]);
});
