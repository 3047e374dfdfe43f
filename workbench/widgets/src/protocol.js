// @ts-check
// What the page and the kernel say to each other; the Python side is widgets/base.py.

/** @import { AnyModel } from "@anywidget/types" */

/**
 * @typedef {AnyModel<any>} Model
 * @typedef {Float32Array | Int32Array | Uint32Array | Int16Array | Uint16Array | Int8Array | Uint8Array} Numbers
 * @typedef {{data: Numbers, dtype: string, shape: number[]}} NumberArray
 * @typedef {{rev: number, content: any, arrays: Record<string, NumberArray>}} Payload
 * @typedef {{name: string, dtype: string, shape: number[]}} ArrayAbout
 */

const TYPES = {
  float32: Float32Array,
  int32: Int32Array,
  uint32: Uint32Array,
  int16: Int16Array,
  uint16: Uint16Array,
  int8: Int8Array,
  uint8: Uint8Array,
};

/** How long an unanswered cursor action keeps the page's own cursor in front of the kernel's. */
const TRUST_OWN_CURSOR_MS = 1000;

/**
 * A message buffer as numbers; copied only where the bytes do not lie on a multiple of the item size.
 * @param {ArrayAbout} about
 * @param {DataView | ArrayBuffer | Uint8Array} buffer
 * @returns {NumberArray}
 */
export function decodeArray(about, buffer) {
  const Type = TYPES[/** @type {keyof typeof TYPES} */ (about.dtype)];
  if (!Type) throw new Error(`array '${about.name}' has unknown dtype '${about.dtype}'`);
  const view = buffer instanceof ArrayBuffer ? new Uint8Array(buffer) : buffer;
  const count = about.shape.reduce((a, b) => a * b, 1);
  if (view.byteLength !== count * Type.BYTES_PER_ELEMENT) {
    throw new Error(`array '${about.name}' has ${view.byteLength} bytes; its shape ${about.shape} asks for other`);
  }
  const bytes = /** @type {ArrayBuffer} */ (view.buffer);
  const aligned = view.byteOffset % Type.BYTES_PER_ELEMENT === 0;
  const data = aligned
    ? new Type(bytes, view.byteOffset, count)
    : new Type(bytes.slice(view.byteOffset, view.byteOffset + view.byteLength));
  return { data, dtype: about.dtype, shape: about.shape };
}

/**
 * @param {any} message
 * @param {(DataView | ArrayBuffer | Uint8Array)[]} buffers
 * @returns {Payload}
 */
export function decodeState(message, buffers) {
  /** @type {Record<string, NumberArray>} */
  const arrays = {};
  (message.arrays ?? []).forEach((/** @type {ArrayAbout} */ about, /** @type {number} */ i) => {
    arrays[about.name] = decodeArray(about, buffers[i]);
  });
  return { rev: message.rev, content: message.content ?? {}, arrays };
}

/**
 * @typedef {{model: Model, signal: AbortSignal, onState?: (payload: Payload) => void,
 *            onAck?: (ack: {name: string, ok: boolean}) => void, onProblem?: (text: string) => void}} ConnectionOptions
 */

/**
 * Listens for payloads and answers, asks for the payload, and sends actions. A payload no newer than the one shown is
 * dropped: every view of the widget receives every answer.
 */
export class Connection {
  /** @param {ConnectionOptions} options */
  constructor(options) {
    this.options = options;
    this.rev = 0;
    this.sent = 0;
    this.me = Math.random().toString(36).slice(2, 8);
    /** @type {Map<string, {name: string, at: number}>} */
    this.waiting = new Map();
    const { model, signal } = options;
    const guarded = (/** @type {any} */ message, /** @type {DataView[]} */ buffers) => this.#guarded(message, buffers);
    model.on("msg:custom", guarded);
    signal.addEventListener("abort", () => model.off("msg:custom", guarded));
  }

  /** An exception here would keep other listeners of the model from hearing the message.
   * @param {any} message @param {DataView[]} buffers */
  #guarded(message, buffers) {
    try {
      this.#receive(message, buffers);
    } catch (error) {
      console.error(error);
      this.options.onProblem?.(`This could not be drawn: ${error instanceof Error ? error.message : error}`);
    }
  }

  /** @param {any} message @param {DataView[]} buffers */
  #receive(message, buffers) {
    const { onState, onAck } = this.options;
    if (message?.kind === "state" && message.rev > this.rev) {
      this.rev = message.rev;
      onState?.(decodeState(message, buffers ?? []));
    } else if (message?.kind === "ack") {
      const action = this.waiting.get(message.id);
      this.waiting.delete(message.id);
      if (action) onAck?.({ name: action.name, ok: message.ok });
    }
  }

  /** Asks the kernel for the payload; call once everything that draws is in place. */
  get() {
    this.options.model.send({ kind: "get" });
  }

  /** @param {string} name @param {Record<string, any>} [params] */
  act(name, params = {}) {
    this.sent += 1;
    const id = `${this.me}-${this.sent}`;
    this.waiting.set(id, { name, at: performance.now() });
    this.options.model.send({ kind: "action", id, name, params });
  }

  /** Whether an action of that name was sent a moment ago and not answered yet. @param {string} name */
  isWaiting(name) {
    const now = performance.now();
    return [...this.waiting.values()].some((w) => w.name === name && now - w.at < TRUST_OWN_CURSOR_MS);
  }
}

/**
 * Calls `listener` at each change of a trait until the view goes.
 * @param {Model} model
 * @param {AbortSignal} signal
 * @param {string} trait
 * @param {() => void} listener
 */
export function onTrait(model, signal, trait, listener) {
  model.on(`change:${trait}`, listener);
  signal.addEventListener("abort", () => model.off(`change:${trait}`, listener));
}

/**
 * Stores a choice that the user made in the page (a metric, a zoom) in the small synced trait `view`.
 * @param {Model} model
 * @param {Record<string, any>} change
 */
export function saveView(model, change) {
  model.set("view", { ...(model.get("view") ?? {}), ...change });
  model.save_changes();
}
