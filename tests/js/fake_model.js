// A stand-in for anywidget's model, and helpers to render a widget into the test's document.

import { setMaxListeners } from "node:events";

setMaxListeners(100); // one view has more than ten listeners that end with it

export class FakeModel {
  constructor(state = {}) {
    this.state = { cursor: {}, error: {}, view: {}, ...state };
    this.listeners = {};
    this.sent = [];
  }
  get(name) { return this.state[name]; }
  set(name, value) { this.state[name] = value; this.emit(`change:${name}`); }
  save_changes() {}
  on(event, listener) { (this.listeners[event] ??= []).push(listener); }
  off(event, listener) { this.listeners[event] = (this.listeners[event] ?? []).filter((l) => l !== listener); }
  emit(event, ...args) { for (const listener of [...(this.listeners[event] ?? [])]) listener(...args); }
  send(message) { this.sent.push(message); }
  push(message, buffers = []) { this.emit("msg:custom", message, buffers); }

  /** Sends a payload as the kernel does; arrays: {name: [dtype, shape, typed array]}. */
  show(rev, content, arrays = {}) {
    const about = Object.entries(arrays).map(([name, [dtype, shape]]) => ({ name, dtype, shape }));
    const buffers = Object.values(arrays).map(([, , data]) => new DataView(data.buffer, data.byteOffset, data.byteLength));
    this.push({ kind: "state", rev, content, arrays: about }, buffers);
  }
  actions(name) { return this.sent.filter((m) => m.kind === "action" && (!name || m.name === name)); }
  ack(ok = true) { this.push({ kind: "ack", id: this.actions().at(-1).id, ok }); }
  listening() { return Object.values(this.listeners).reduce((n, list) => n + list.length, 0); }
}

export function mount(widget, model) {
  const el = document.createElement("div");
  document.body.append(el);
  const control = new AbortController();
  widget.render({ model, el, signal: control.signal });
  return { el, root: el.firstElementChild, unmount: () => control.abort() };
}

/** The next animation frame, in which the matrix draws. */
export const frame = () => new Promise((resolve) => requestAnimationFrame(() => resolve()));

/** A 2D context that draws nothing and remembers images and texts. */
export function stubCanvas() {
  const seen = { images: [], texts: [], hatched: 0 };
  const context = new Proxy({}, {
    get(target, name) {
      if (name in target) return target[name];
      if (name === "measureText") return (text) => ({ width: 6 * text.length });
      if (name === "createImageData") return (w, h) => ({ width: w, height: h, data: new Uint8ClampedArray(4 * w * h) });
      if (name === "putImageData") return (image) => seen.images.push(image);
      if (name === "fillText") return (text) => seen.texts.push(text);
      if (name === "stroke") return () => { seen.hatched += 1; };
      return () => {};
    },
    set(target, name, value) { target[name] = value; return true; },
  });
  HTMLCanvasElement.prototype.getContext = () => context;
  globalThis.Path2D = class { rect() {} };
  return seen;
}
