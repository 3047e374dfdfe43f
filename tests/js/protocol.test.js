import { describe, expect, it, vi } from "vitest";
import { Connection, decodeArray } from "../../workbench/widgets/src/protocol.js";
import { FakeModel } from "./fake_model.js";

function connected(options = {}) {
  const model = new FakeModel();
  const control = new AbortController();
  const states = [];
  const connection = new Connection({ model, signal: control.signal, onState: (s) => states.push(s), ...options });
  return { model, control, states, connection };
}

describe("arrays", () => {
  it("reads a buffer in place, and copies one that is not aligned", () => {
    const bytes = new ArrayBuffer(13);
    new Float32Array(bytes, 0, 3).set([1, 2, 3]);
    const about = { name: "a", dtype: "float32", shape: [3] };
    const inPlace = decodeArray(about, new DataView(bytes, 0, 12)).data;
    expect([...inPlace]).toEqual([1, 2, 3]);
    expect(inPlace.buffer).toBe(bytes);
    const shifted = new Uint8Array(13);
    shifted.set(new Uint8Array(bytes, 0, 12), 1);
    expect([...decodeArray(about, new DataView(shifted.buffer, 1, 12)).data]).toEqual([1, 2, 3]);
  });
  it("refuses an unknown dtype and a wrong size", () => {
    expect(() => decodeArray({ name: "a", dtype: "float64", shape: [1] }, new DataView(new ArrayBuffer(8)))).toThrow("float64");
    expect(() => decodeArray({ name: "a", dtype: "float32", shape: [3] }, new DataView(new ArrayBuffer(8)))).toThrow("8 bytes");
  });
});

describe("states", () => {
  it("decodes a payload and drops older and equal revisions", () => {
    const { model, states } = connected();
    model.show(2, { a: 1 }, { x: ["int32", [2], new Int32Array([5, 6])] });
    model.show(1, { a: 0 });
    model.show(2, { a: 9 });
    model.show(3, { a: 2 });
    expect(states.map((s) => s.rev)).toEqual([2, 3]);
    expect([...states[0].arrays.x.data]).toEqual([5, 6]);
  });
  it("ignores unknown kinds and messages of others", () => {
    const { model, states } = connected();
    for (const message of [null, "text", { kind: "other" }, { kind: "ack", id: "not mine" }]) model.push(message);
    expect(states).toEqual([]);
  });
  it("says what could not be drawn, and other listeners still hear the message", () => {
    vi.spyOn(console, "error").mockImplementation(() => {});
    const onProblem = vi.fn();
    const { model } = connected({ onState: () => { throw new Error("broken"); }, onProblem });
    const other = vi.fn();
    model.on("msg:custom", other);
    model.show(1, {});
    expect(onProblem).toHaveBeenCalledWith(expect.stringContaining("broken"));
    expect(other).toHaveBeenCalled();
  });
  it("stops listening when the view goes", () => {
    const { model, control, states } = connected();
    control.abort();
    model.show(1, {});
    expect(states).toEqual([]);
    expect(model.listening()).toBe(0);
  });
});

describe("actions", () => {
  it("carry a name, their parameters and an id of their own; the answer comes back by id", () => {
    const answers = [];
    const { model, connection } = connected({ onAck: (a) => answers.push(a) });
    connection.act("run", { prompt: "x" });
    connection.act("stop");
    const [run, stop] = model.actions();
    expect(run).toMatchObject({ kind: "action", name: "run", params: { prompt: "x" } });
    expect(stop).toMatchObject({ name: "stop", params: {} });
    expect(run.id).not.toBe(stop.id);
    expect(connection.isWaiting("run")).toBe(true);
    model.push({ kind: "ack", id: run.id, ok: false });
    expect(answers).toEqual([{ name: "run", ok: false }]);
    expect(connection.isWaiting("run")).toBe(false);
  });
});
