// A client for Phoenix channels, protocol version 2: one socket, many topics.
//
//   const socket = new Socket("http://127.0.0.1:2346");
//   socket.onstatus = ({ state, reason }) => ...;      // connecting, connected, reconnecting, closed
//   const room = socket.channel("demo");
//   room.onstatus = ({ state, reason }) => ...;        // joining, joined, waiting, refused, left
//   room.on("metrics", (payload) => ...);              // an ArrayBuffer where the event was not JSON
//   socket.connect();
//   room.join();
//   await room.push("command", { n: 1 });              // resolves with the server's answer
//
// Each join asks POST /token for a token of its own, so that a rejoin never sends one that has run out. A lost
// socket is opened again after a pause that doubles from a quarter of a second to ten seconds; half of it is
// chance, or all the browsers that a restart cut off would come back in the same instant.

const HEARTBEAT = 30_000; // ms; the server hangs up on clients that it has not heard of for 90 s
const TIMEOUT = 10_000; // ms to wait for any answer
const PAUSE_FIRST = 250; // ms
const PAUSE_LONGEST = 10_000; // ms

const pause = (attempt) => {
  const whole = Math.min(PAUSE_LONGEST, PAUSE_FIRST * 2 ** attempt);
  return whole / 2 + (Math.random() * whole) / 2;
};

// Why the server hung up, where its close code says so.
const CLOSED_BECAUSE = {
  1001: "the server is shutting down",
  1009: "a message was too large",
  1011: "the server had an error",
  1012: "the server is restarting",
  1013: "this browser could not keep up",
};

/** An answer with status "error", or none in time. `reason` is the server's own word for it. */
export class ChannelError extends Error {
  constructor(reason) {
    super(reason);
    this.name = "ChannelError";
    this.reason = reason;
  }
}

/** Fields are prefixed by their lengths, one byte each; kind 0 push, 1 reply, 2 broadcast. */
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

function decode(data) {
  if (typeof data !== "string") return decodeBinary(data);
  const [joinRef, ref, topic, event, payload] = JSON.parse(data);
  return { joinRef, ref, topic, event, payload };
}

export class Socket {
  constructor(base = new URL("..", import.meta.url).href, { params = {} } = {}) {
    this.base = base.replace(/\/+$/, "");
    this.params = params;
    this.channels = new Map();
    this.onstatus = () => {};
    this.state = "closed";
    this.id = null; // ours for as long as the page lives: the first token names it
    this.wanted = false;
    this.attempt = 0;
    this.lastRef = 0;
    this.replies = new Map();
    // A sleeping laptop and a lost network both end with one of these: do not wait for the pause to pass.
    addEventListener("online", () => this.hurry());
    document.addEventListener("visibilitychange", () => document.hidden || this.hurry());
  }

  get url() {
    const query = new URLSearchParams({ ...this.params, vsn: "2.0.0" });
    return `${this.base.replace(/^http/, "ws")}/websocket?${query}`;
  }

  connect() {
    this.wanted = true;
    clearTimeout(this.retry);
    this.setState(this.attempt === 0 ? "connecting" : "reconnecting");
    const socket = new WebSocket(this.url);
    socket.binaryType = "arraybuffer";
    this.socket = socket;
    socket.onopen = () => this.opened();
    socket.onmessage = ({ data }) => this.received(data);
    socket.onclose = ({ code, reason }) => this.socket === socket && this.lost(code, reason);
  }

  close() {
    this.wanted = false;
    clearTimeout(this.retry);
    clearInterval(this.heartbeat);
    const socket = this.socket;
    this.socket = null;
    this.failReplies("closed");
    socket?.close(1000);
    this.setState("closed");
  }

  channel(topic) {
    if (!this.channels.has(topic)) this.channels.set(topic, new Channel(this, topic));
    return this.channels.get(topic);
  }

  hurry() {
    if (!this.wanted || this.state !== "reconnecting" || this.socket) return;
    this.connect();
  }

  // -- what follows is between the socket and its channels

  setState(state, detail = {}) {
    this.state = state;
    this.onstatus({ state, attempt: this.attempt, ...detail });
  }

  opened() {
    this.attempt = 0;
    this.silent = false;
    this.heartbeat = setInterval(() => this.beat(), HEARTBEAT);
    this.setState("connected");
    for (const channel of this.channels.values()) channel.resume();
  }

  lost(code, reason) {
    clearInterval(this.heartbeat);
    this.socket = null;
    this.failReplies("connection lost");
    for (const channel of this.channels.values()) channel.interrupted();
    if (!this.wanted) return;
    const delay = pause(this.attempt);
    this.attempt += 1;
    this.setState("reconnecting", { code, delay, reason: reason || CLOSED_BECAUSE[code] || "" });
    this.retry = setTimeout(() => this.connect(), delay);
  }

  async beat() {
    try {
      await this.request("phoenix", "heartbeat", {}, null, HEARTBEAT - 1000);
    } catch {
      const socket = this.socket;
      if (!socket || socket.readyState !== WebSocket.OPEN) return;
      // A half-open connection would take minutes to close properly: leave it behind.
      socket.onclose = null;
      socket.close(4000, "heartbeat timeout");
      this.lost(4000, "no answer to the heartbeat");
    }
  }

  received(data) {
    const message = decode(data);
    if (!message) return;
    if (message.event === "phx_reply" && this.replies.has(message.ref)) {
      const { resolve, reject, timer } = this.replies.get(message.ref);
      this.replies.delete(message.ref);
      clearTimeout(timer);
      const { status, response } = message.payload;
      if (status === "ok") resolve(response);
      else reject(new ChannelError(response?.reason ?? status));
      return;
    }
    this.channels.get(message.topic)?.received(message);
  }

  request(topic, event, payload, joinRef, timeout = TIMEOUT) {
    const ref = String(++this.lastRef);
    return new Promise((resolve, reject) => {
      if (this.socket?.readyState !== WebSocket.OPEN) {
        reject(new ChannelError("not connected"));
        return;
      }
      const timer = setTimeout(() => {
        this.replies.delete(ref);
        reject(new ChannelError("timeout"));
      }, timeout);
      this.replies.set(ref, { resolve, reject, timer });
      this.socket.send(JSON.stringify([joinRef === true ? ref : joinRef, ref, topic, event, payload]));
    });
  }

  failReplies(reason) {
    for (const { reject, timer } of this.replies.values()) {
      clearTimeout(timer);
      reject(new ChannelError(reason));
    }
    this.replies.clear();
  }

  async token(topic) {
    const asked = this.id === null ? { channel: topic } : { channel: topic, id: this.id };
    const answer = await fetch(`${this.base}/token`, {
      method: "POST",
      headers: { "content-type": "application/json" },
      body: JSON.stringify(asked),
      signal: AbortSignal.timeout(TIMEOUT),
    });
    if (answer.ok) {
      const { id, token } = await answer.json();
      this.id = id;
      return token;
    }
    const body = await answer.json().catch(() => ({}));
    const detail = body.reason ?? body.detail ?? `status ${answer.status}`;
    const error = new ChannelError(typeof detail === "string" ? detail : JSON.stringify(detail));
    error.final = answer.status === 403; // asking again will not change a policy's mind
    throw error;
  }
}

export class Channel {
  constructor(socket, topic) {
    this.socket = socket;
    this.topic = topic;
    this.state = "left";
    this.onstatus = () => {};
    this.handlers = new Map();
    this.joinRef = null;
    this.attempt = 0;
  }

  on(event, handler) {
    this.handlers.set(event, handler);
    return this;
  }

  join() {
    this.attempt = 0;
    this.state = "waiting";
    this.resume();
    return this;
  }

  async leave() {
    clearTimeout(this.retry);
    const { joinRef, state } = this;
    this.joinRef = null;
    this.setState("left");
    if (state === "joined") await this.socket.request(this.topic, "phx_leave", {}, joinRef);
  }

  /** Resolves with the server's response; rejects with a ChannelError that carries its reason. */
  push(event, payload = {}, timeout = TIMEOUT) {
    if (this.state !== "joined") return Promise.reject(new ChannelError("not joined"));
    return this.socket.request(this.topic, event, payload, this.joinRef, timeout);
  }

  // -- what follows is between the socket and its channels

  setState(state, detail = {}) {
    this.state = state;
    this.onstatus({ state, ...detail });
  }

  async resume() {
    if (this.state !== "waiting" || this.socket.state !== "connected") return;
    clearTimeout(this.retry);
    const connection = this.socket.socket;
    this.setState("joining");
    try {
      const token = await this.socket.token(this.topic);
      if (this.state !== "joining" || this.socket.socket !== connection) return;
      this.joinRef = String(this.socket.lastRef + 1); // a join's own ref, known before the first event can come
      const response = await this.socket.request(this.topic, "phx_join", { token }, true);
      if (this.state !== "joining") return;
      this.attempt = 0;
      this.lastReason = undefined;
      this.setState("joined", { response });
    } catch (error) {
      if (this.state !== "joining" || this.socket.socket !== connection) return;
      if (error.final) this.setState("refused", { reason: error.reason });
      else this.retryLater(error.reason ?? error.message);
    }
  }

  retryLater(reason) {
    const delay = pause(this.attempt);
    this.attempt += 1;
    this.lastReason = reason; // told again if the server closes the topic for good, which it does without a word
    this.setState("waiting", { reason, delay });
    this.retry = setTimeout(() => this.resume(), delay);
  }

  interrupted() {
    clearTimeout(this.retry);
    this.joinRef = null;
    // One that was refused asks again as well: the server behind the next connection may have another policy.
    if (this.state !== "left") this.setState("waiting", { reason: "connection lost" });
  }

  received({ joinRef, event, payload }) {
    if (joinRef !== null && joinRef !== this.joinRef) return; // of a membership that is over
    if (event === "phx_error") {
      if (this.state === "joined") this.retryLater("interrupted");
      return;
    }
    if (event === "phx_close") {
      if (this.state === "left") return;
      clearTimeout(this.retry);
      this.setState("refused", { reason: this.lastReason ?? "closed by the server" });
      return;
    }
    this.handlers.get(event)?.(payload);
  }
}
