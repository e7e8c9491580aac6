// A Phoenix socket for pages without a build, in protocol version 2. It has the part of the interface of npm's "phoenix"
// that client.js uses, so that either can be given to it:
//
//   const socket = new Socket("ws://127.0.0.1:2346");
//   socket.onOpen(() => ...);  socket.onClose(({ code, reason }) => ...);
//   socket.connect();
//   const room = socket.channel("demo", () => ({ token }));
//   room.on("metrics", (payload) => ...);              // an ArrayBuffer where the event was not JSON
//   room.join().receive("ok", (reply) => ...).receive("error", ({ reason }) => ...);
//   room.push("command", { n: 1 }).receive("ok", (reply) => ...);
//
// A lost connection is opened again after the pauses of pause.js.

import { pause } from "./pause.js";

const HEARTBEAT = 30_000; // ms; the server closes a connection from which nothing came for 90 s
const TIMEOUT = 10_000; // ms to wait for a reply

/** Read a binary frame: fields prefixed by their lengths, one byte each; kind 0 is a push, 1 a reply, 2 a broadcast. */
export function decodeBinary(buffer) {
  const view = new DataView(buffer);
  const kind = view.getUint8(0);
  const names = [["joinRef", "topic", "event"], ["joinRef", "ref", "topic", "event"], ["topic", "event"]][kind];
  if (!names) return null;
  const message = { joinRef: null, ref: null };
  let at = 1 + names.length;
  names.forEach((name, index) => {
    const length = view.getUint8(1 + index);
    message[name] = new TextDecoder().decode(new Uint8Array(buffer, at, length)) || null;
    at += length;
  });
  message.payload = buffer.slice(at);
  if (kind === 1) {
    message.payload = { status: message.event, response: message.payload };
    message.event = "phx_reply";
  }
  return message;
}

/** Write a push whose payload is an ArrayBuffer. */
export function encodeBinary([joinRef, ref, topic, event, payload]) {
  const fields = [joinRef ?? "", ref ?? "", topic, event].map((text) => new TextEncoder().encode(text));
  const parts = [Uint8Array.of(0, ...fields.map((field) => field.length)), ...fields, new Uint8Array(payload)];
  const whole = new Uint8Array(parts.reduce((sum, part) => sum + part.length, 0));
  parts.reduce((at, part) => (whole.set(part, at), at + part.length), 0);
  return whole.buffer;
}

function decode(data) {
  if (typeof data !== "string") return decodeBinary(data);
  const [joinRef, ref, topic, event, payload] = JSON.parse(data);
  return { joinRef, ref, topic, event, payload };
}

export class Socket {
  constructor(endPoint, { params = {}, timeout = TIMEOUT, transport = globalThis.WebSocket } = {}) {
    this.endPoint = endPoint.replace(/\/+$/, "").replace(/^http/, "ws");
    this.params = params;
    this.timeout = timeout;
    this.transport = transport;
    this.channels = [];
    this.callbacks = { open: [], close: [], error: [] };
    this.conn = null;
    this.wanted = false;
    this.attempt = 0;
    this.lastRef = 0;
    // A sleeping laptop and a lost network end with one of these events: the socket does not wait for the end of the pause.
    globalThis.addEventListener?.("online", () => this.hurry());
    globalThis.document?.addEventListener("visibilitychange", () => document.hidden || this.hurry());
  }

  onOpen(callback) {
    this.callbacks.open.push(callback);
  }

  onClose(callback) {
    this.callbacks.close.push(callback);
  }

  onError(callback) {
    this.callbacks.error.push(callback);
  }

  isConnected() {
    return this.conn?.readyState === 1;
  }

  connect() {
    if (this.conn) return;
    this.wanted = true;
    clearTimeout(this.retry);
    const params = typeof this.params === "function" ? this.params() : this.params;
    const query = new URLSearchParams({ ...params, vsn: "2.0.0" });
    const conn = new this.transport(`${this.endPoint}/websocket?${query}`);
    conn.binaryType = "arraybuffer";
    this.conn = conn;
    conn.onopen = () => this.opened();
    conn.onmessage = ({ data }) => this.received(data);
    conn.onerror = (error) => this.callbacks.error.forEach((callback) => callback(error));
    conn.onclose = (event) => this.conn === conn && this.lost(event);
  }

  disconnect(callback) {
    this.wanted = false;
    clearTimeout(this.retry);
    const { conn } = this;
    if (conn) {
      this.lost({ code: 1000, reason: "" });
      conn.close(1000);
    }
    callback?.();
  }

  channel(topic, params = {}) {
    const channel = new Channel(this, topic, params);
    this.channels.push(channel);
    return channel;
  }

  hurry() {
    if (this.wanted && !this.conn) this.connect();
  }

  // -- between the socket and its channels

  opened() {
    this.attempt = 0;
    this.heartbeat = setInterval(() => this.beat(), HEARTBEAT);
    this.callbacks.open.forEach((callback) => callback());
    for (const channel of this.channels) channel.rejoin();
  }

  lost(event) {
    clearInterval(this.heartbeat);
    this.conn = null;
    this.beating = null;
    for (const channel of [...this.channels]) channel.fail();
    this.callbacks.close.forEach((callback) => callback(event));
    if (!this.wanted) return;
    this.retry = setTimeout(() => this.connect(), pause(this.attempt));
    this.attempt += 1;
  }

  beat() {
    if (this.beating) {
      const { conn } = this;
      // The closing handshake of a half-open connection takes minutes: it is left behind.
      conn.onclose = null;
      conn.close(4000, "heartbeat timeout");
      this.lost({ code: 4000, reason: "no reply to the heartbeat" });
      return;
    }
    this.beating = this.makeRef();
    this.send([null, this.beating, "phoenix", "heartbeat", {}]);
  }

  makeRef() {
    this.lastRef += 1;
    return String(this.lastRef);
  }

  send(message) {
    if (!this.isConnected()) return;
    const [, , , , payload] = message;
    this.conn.send(payload instanceof ArrayBuffer ? encodeBinary(message) : JSON.stringify(message));
  }

  received(data) {
    const message = decode(data);
    if (!message) return;
    if (message.ref !== null && message.ref === this.beating) this.beating = null;
    for (const channel of [...this.channels]) if (channel.topic === message.topic) channel.received(message);
  }
}

/** A frame that expects a reply. */
class Push {
  constructor(channel, event, payload, timeout) {
    Object.assign(this, { channel, event, payload, timeout });
    this.hooks = [];
    this.reset();
  }

  /** Call back with the response of a reply with this status: "ok", "error" or "timeout". */
  receive(status, callback) {
    if (this.result?.status === status) callback(this.result.response);
    this.hooks.push({ status, callback });
    return this;
  }

  reset() {
    clearTimeout(this.timer);
    this.ref = null;
    this.result = null;
  }

  start() {
    clearTimeout(this.timer);
    this.timer = setTimeout(() => this.finish("timeout", {}), this.timeout);
  }

  send() {
    const { channel } = this;
    this.ref = channel.socket.makeRef();
    if (this === channel.joinPush) channel.joinRef = this.ref;
    this.start();
    const payload = typeof this.payload === "function" ? this.payload() : this.payload;
    channel.socket.send([channel.joinRef, this.ref, channel.topic, this.event, payload]);
  }

  finish(status, response) {
    if (this.result) return;
    clearTimeout(this.timer);
    this.result = { status, response };
    for (const hook of this.hooks) if (hook.status === status) hook.callback(response);
  }
}

export class Channel {
  constructor(socket, topic, params) {
    Object.assign(this, { socket, topic });
    this.state = "closed";
    this.bindings = [];
    this.lastBinding = 0;
    this.waiting = []; // pushes before the join, or until the rejoin
    this.pending = new Set();
    this.joinRef = null;
    this.attempt = 0;
    this.joinPush = new Push(this, "phx_join", params, socket.timeout);
    this.joinPush.receive("ok", () => this.joined());
    this.joinPush.receive("error", () => this.retryLater());
    this.joinPush.receive("timeout", () => this.retryLater());
  }

  on(event, callback) {
    this.lastBinding += 1;
    this.bindings.push({ event, callback, ref: this.lastBinding });
    return this.lastBinding;
  }

  off(event, ref) {
    this.bindings = this.bindings.filter((one) => one.event !== event || (ref !== undefined && one.ref !== ref));
  }

  onClose(callback) {
    return this.on("phx_close", callback);
  }

  onError(callback) {
    return this.on("phx_error", callback);
  }

  join(timeout = this.socket.timeout) {
    this.joinPush.timeout = timeout;
    this.state = "errored";
    this.rejoin();
    return this.joinPush;
  }

  push(event, payload = {}, timeout = this.socket.timeout) {
    const push = new Push(this, event, payload, timeout);
    if (this.state === "joined" && this.socket.isConnected()) this.sendPush(push);
    else {
      push.start();
      this.waiting.push(push);
    }
    return push;
  }

  leave(timeout = this.socket.timeout) {
    clearTimeout(this.retry);
    clearTimeout(this.joinPush.timer);
    const push = new Push(this, "phx_leave", {}, timeout);
    const { state } = this;
    this.state = "leaving";
    const end = () => this.trigger("phx_close", "leave");
    push.receive("ok", end).receive("timeout", end);
    if (state === "joined" && this.socket.isConnected()) this.sendPush(push);
    else push.finish("ok", {});
    return push;
  }

  // -- between the socket and its channels

  sendPush(push) {
    this.pending.add(push);
    push.send();
  }

  rejoin() {
    if (this.state !== "errored" || !this.socket.isConnected()) return;
    clearTimeout(this.retry);
    this.state = "joining";
    this.joinPush.reset();
    this.joinPush.send();
  }

  joined() {
    this.state = "joined";
    this.attempt = 0;
    for (const push of this.waiting.splice(0)) if (!push.result) this.sendPush(push);
  }

  retryLater() {
    if (this.state === "leaving" || this.state === "closed") return;
    this.state = "errored";
    clearTimeout(this.retry);
    this.retry = setTimeout(() => this.rejoin(), pause(this.attempt));
    this.attempt += 1;
  }

  /** The connection is lost, or the server ended the membership. */
  fail(reason = "connection lost") {
    clearTimeout(this.retry);
    this.joinPush.reset();
    if (this.state === "leaving") return this.trigger("phx_close", "leave");
    for (const push of this.pending) push.finish("error", { reason });
    this.pending.clear();
    if (this.state === "joined" || this.state === "joining") {
      this.state = "errored";
      this.trigger("phx_error", reason);
    }
  }

  received({ joinRef, ref, event, payload }) {
    if (joinRef !== null && joinRef !== this.joinRef) return; // of a membership that is over
    if (event === "phx_reply") return this.replied(ref, payload);
    if (event === "phx_error") {
      this.fail("interrupted");
      return this.retryLater();
    }
    this.trigger(event, payload);
  }

  replied(ref, { status, response }) {
    if (ref === this.joinPush.ref) return this.joinPush.finish(status, response);
    for (const push of this.pending) {
      if (push.ref !== ref) continue;
      this.pending.delete(push);
      push.finish(status, response);
    }
  }

  trigger(event, payload) {
    if (event === "phx_close") {
      if (this.state === "closed") return;
      clearTimeout(this.retry);
      this.joinPush.reset();
      this.state = "closed";
      this.socket.channels = this.socket.channels.filter((one) => one !== this);
    }
    for (const one of [...this.bindings]) if (one.event === event) one.callback(payload);
  }
}
