// Channels for a browser or Node, over a Phoenix socket: tokens and their renewal, recovery, presence, states.
//
//   const client = new Client({ Socket, url: location.origin });
//   client.state.subscribe(({ name, reason }) => ...);      // connecting, connected, reconnecting, closed
//   const flights = client.channel("flights:eu", { recover: true });
//   flights.on("position", (payload) => ...);
//   flights.onMissed(({ reason }) => ...);                  // fetch the data anew
//   await flights.join();
//   const reply = await flights.push("select", { vehicle: 7 });
//   flights.members.subscribe((members) => ...);            // a Map from ids to lists of metadata

import { pause } from "./pause.js";

const TIMEOUT = 10_000; // ms to wait for a token or a reply
const RENEW_AT = 0.8; // of a token's time
const LONGEST_TIMER = 2 ** 31 - 1; // ms; longer timers of a browser end at once
const FINAL = new Set([400, 403, 404, 422]); // statuses of /token that a further request does not change
const OF_TOKENS = new Set(["unauthorized", "token expired", "wrong channel"]);

/** Causes by the close code of the WebSocket. */
const CLOSED_BECAUSE = {
  1001: "the server is shutting down",
  1009: "a message was too large",
  1011: "the server had an error",
  1012: "the server is restarting",
  1013: "this browser could not keep up",
};

/** An error reply, or none in time. `reason` is the server's word for it, `reply` the whole reply. */
export class ChannelError extends Error {
  constructor(reason, reply = {}) {
    super(reason);
    this.name = "ChannelError";
    this.reason = reason;
    this.reply = reply;
  }
}

/** A value that changes: `value` is the newest, `subscribe` calls back with it now and after each change. */
export class Observable {
  constructor(value) {
    this.value = value;
    this.listeners = new Set();
  }

  /** Return a function that ends the subscription. */
  subscribe(listener) {
    this.listeners.add(listener);
    listener(this.value);
    return () => this.listeners.delete(listener);
  }

  set(value) {
    this.value = value;
    for (const listener of [...this.listeners]) listener(value);
  }
}

export class Client {
  constructor({ Socket, url, id = null, params = {}, timeout = TIMEOUT, transport, fetch = globalThis.fetch }) {
    this.url = url.replace(/\/+$/, "");
    this.id = id; // the first token names it, and the page keeps it
    this.timeout = timeout;
    this.fetch = (...args) => fetch(...args);
    this.state = new Observable({ name: "closed" });
    this.channels = new Map();
    const options = { params, timeout, ...(transport ? { transport } : {}) };
    this.socket = new Socket(this.url.replace(/^http/, "ws"), options);
    this.socket.onOpen(() => this.opened());
    this.socket.onClose((event) => this.lost(event));
  }

  /** Open the connection; the first join does it as well. */
  connect() {
    if (this.state.value.name !== "closed") return this;
    this.state.set({ name: "connecting" });
    this.socket.connect();
    return this;
  }

  /** End the connection and all timers. */
  close() {
    for (const channel of this.channels.values()) channel.end();
    this.state.set({ name: "closed" });
    this.socket.disconnect();
  }

  /** Return the channel of a topic: one for each topic. */
  channel(topic, options = {}) {
    if (!this.channels.has(topic)) this.channels.set(topic, new Channel(this, topic, options));
    return this.channels.get(topic);
  }

  opened() {
    if (this.state.value.name === "closed") return;
    this.state.set({ name: "connected" });
    // The server behind a new connection may have another policy.
    for (const channel of this.channels.values()) if (channel.state.value.name === "refused") channel.begin();
  }

  lost({ code, reason } = {}) {
    if (this.state.value.name === "closed") return;
    this.state.set({ name: "reconnecting", code, reason: reason || CLOSED_BECAUSE[code] || "" });
  }

  /** Ask for the token of a topic. */
  async grant(topic) {
    const asked = this.id === null ? { channel: topic } : { channel: topic, id: this.id };
    const answer = await this.fetch(`${this.url}/token`, {
      method: "POST",
      headers: { "content-type": "application/json" },
      body: JSON.stringify(asked),
      signal: AbortSignal.timeout(this.timeout),
    });
    const body = await answer.json().catch(() => ({}));
    if (answer.ok) {
      this.id = body.id;
      return { token: body.token, lifetime: lifetime(body.token, answer.headers.get("date")) };
    }
    const detail = body.reason ?? body.detail ?? `status ${answer.status}`;
    const error = new ChannelError(typeof detail === "string" ? detail : JSON.stringify(detail), body);
    error.final = FINAL.has(answer.status);
    throw error;
  }
}

export class Channel {
  constructor(client, topic, { recover = false, params = {} } = {}) {
    Object.assign(this, { client, topic, recover, params });
    this.state = new Observable({ name: "left" }); // joining, joined, waiting, refused, left
    this.members = new Observable(new Map());
    this.count = new Observable(0); // members, also where the server sends only their number
    this.position = "";
    this.recovered = null;
    this.handlers = new Map();
    this.missed = new Set();
    this.attempt = 0;
    this.life = 0; // increases with each end, so that late answers are recognized
  }

  /** Call back with each payload of an event; return a function that ends it. */
  on(event, handler) {
    if (!this.handlers.has(event)) {
      this.handlers.set(event, new Set());
      this.bind(event);
    }
    this.handlers.get(event).add(handler);
    return () => this.handlers.get(event).delete(handler);
  }

  /** Call back when messages were missed that the history does not have any more. */
  onMissed(handler) {
    this.missed.add(handler);
    return () => this.missed.delete(handler);
  }

  /** Join, and stay a member over every restart. Resolves at the first reply, and rejects if the server refuses. */
  join() {
    this.client.connect();
    if (this.state.value.name === "left" || this.state.value.name === "refused") this.begin();
    return new Promise((resolve, reject) => {
      const stop = [];
      const look = ({ name, reason }) => {
        if (name === "joined") resolve(this);
        else if (name === "refused" || name === "left") reject(new ChannelError(reason ?? "left"));
        else return;
        queueMicrotask(() => stop[0]());
      };
      stop.push(this.state.subscribe(look));
    });
  }

  /** Push to the plugin. Resolves with its reply, and rejects with a ChannelError. */
  push(event, payload = {}, { timeout = this.client.timeout } = {}) {
    if (this.state.value.name !== "joined") return Promise.reject(new ChannelError("not joined"));
    return new Promise((resolve, reject) => {
      this.inner
        .push(event, payload, timeout)
        .receive("ok", resolve)
        .receive("error", (reply) => reject(new ChannelError(reply?.reason ?? "error", reply)))
        .receive("timeout", () => reject(new ChannelError("timeout")));
    });
  }

  /** Leave the topic. */
  leave() {
    this.end();
    this.client.channels.delete(this.topic);
  }

  // -- between the client and its channels

  begin() {
    this.life += 1;
    this.attempt = 0;
    this.state.set({ name: "joining" });
    return this.start(this.life);
  }

  end(state = { name: "left" }) {
    this.life += 1;
    clearTimeout(this.renewal);
    clearTimeout(this.retry);
    const { inner } = this;
    this.inner = null;
    inner?.leave();
    this.show(new Map());
    this.state.set(state);
  }

  /** Get the first token, as often as it takes, and join. */
  async start(life) {
    try {
      await this.renew(life);
    } catch (error) {
      if (life !== this.life) return;
      if (error.final) return this.end({ name: "refused", reason: error.reason });
      this.state.set({ name: "waiting", reason: error.reason ?? error.message });
      this.retry = setTimeout(() => this.start(life), pause(this.attempt));
      this.attempt += 1;
      return;
    }
    if (life === this.life) this.open(life);
  }

  open(life) {
    const inner = this.client.socket.channel(this.topic, () => this.question());
    this.inner = inner;
    for (const event of this.handlers.keys()) this.bind(event);
    inner.on("tangram:position", ({ at }) => (this.position = at));
    inner.on("presence_state", (state) => this.show(new Map(Object.entries(state).map(([id, { metas }]) => [id, metas]))));
    inner.on("presence_diff", (diff) => this.show(merged(this.members.value, diff)));
    inner.on("presence_count", ({ count }) => this.count.set(count));
    inner.onError((reason) => this.inner === inner && this.interrupted(reason));
    inner.onClose(() => this.inner === inner && this.end({ name: "refused", reason: this.refusal ?? "closed by the server" }));
    inner
      .join(this.client.timeout)
      .receive("ok", (reply) => life === this.life && this.joined(reply))
      .receive("error", (reply) => life === this.life && this.refused(reply?.reason ?? "error", life))
      .receive("timeout", () => life === this.life && this.state.set({ name: "waiting", reason: "timeout" }));
  }

  question() {
    return { ...this.params, token: this.token, ...(this.recover ? { recover: this.position } : {}) };
  }

  joined(reply) {
    this.refusal = undefined;
    if (reply.position !== undefined) this.position = reply.position;
    this.recovered = reply.recovered ?? null;
    this.state.set({ name: "joined", reply });
    if (reply.recovered === false && reply.reason) for (const handler of [...this.missed]) handler({ reason: reply.reason });
  }

  /** The socket joins again by itself; a token that was refused is replaced before. */
  refused(reason, life) {
    this.refusal = reason;
    this.state.set({ name: "waiting", reason });
    if (OF_TOKENS.has(reason)) this.renewNow(life);
  }

  interrupted(reason) {
    this.state.set({ name: "waiting", reason: typeof reason === "string" ? reason : "connection lost" });
  }

  async renew(life) {
    const { token, lifetime: whole } = await this.client.grant(this.topic);
    if (life !== this.life) return;
    this.token = token;
    clearTimeout(this.renewal);
    const delay = Math.min(LONGEST_TIMER, Math.max(1000, whole * RENEW_AT));
    this.renewal = setTimeout(() => this.renewNow(life), delay);
  }

  /** Renew the token; try again later if the server is away. */
  async renewNow(life) {
    if (life !== this.life) return;
    try {
      await this.renew(life);
    } catch (error) {
      if (life !== this.life) return;
      if (error.final) return this.end({ name: "refused", reason: error.reason });
      this.renewal = setTimeout(() => this.renewNow(life), pause(5));
    }
  }

  bind(event) {
    this.inner?.on(event, (payload) => {
      for (const handler of [...(this.handlers.get(event) ?? [])]) handler(payload);
    });
  }

  show(members) {
    this.members.set(members);
    this.count.set(members.size);
  }
}

/** Return the milliseconds until a token expires, by the server's clock where the answer has it. */
function lifetime(token, date) {
  const claims = token.split(".")[1].replaceAll("-", "+").replaceAll("_", "/");
  return JSON.parse(atob(claims)).exp * 1000 - (date === null ? Date.now() : Date.parse(date));
}

/** Return the members after a difference; a member has metadata for each of its connections. */
function merged(members, { joins = {}, leaves = {} }) {
  const next = new Map(members);
  for (const [id, { metas }] of Object.entries(joins)) {
    const refs = new Set(metas.map((meta) => meta.phx_ref));
    next.set(id, [...(next.get(id) ?? []).filter((meta) => !refs.has(meta.phx_ref)), ...metas]);
  }
  for (const [id, { metas }] of Object.entries(leaves)) {
    const refs = new Set(metas.map((meta) => meta.phx_ref));
    const rest = (next.get(id) ?? []).filter((meta) => !refs.has(meta.phx_ref));
    if (rest.length > 0) next.set(id, rest);
    else next.delete(id);
  }
  return next;
}
