// npm's phoenix, unmodified, whose first WebSocket fails: it falls back to LongPoll.
//
//   node longpoll.mjs PACKAGE URL TOKEN
const [path, url, token] = process.argv.slice(2);
globalThis.window = globalThis; // where it looks for fetch
const { Socket } = await import(path);
const say = (it) => process.stdout.write(JSON.stringify(it) + "\n");

class RefusedWebSocket {
  constructor() {
    this.readyState = 0;
    setTimeout(() => {
      this.readyState = 3;
      this.onerror && this.onerror(new Error("refused"));
      this.onclose && this.onclose({ code: 1006, reason: "", wasClean: false });
    }, 0);
  }
  close() {}
}

const socket = new Socket(url, { transport: RefusedWebSocket, longPollFallbackMs: 500, params: { userToken: token } });
const channel = socket.channel("room", {});
channel.on("shout", (payload) => say({ kind: "shout", payload }));
socket.onOpen(() => say({ kind: "open" }));
socket.connect();
channel
  .join()
  .receive("ok", () => {
    say({ kind: "joined" });
    channel.push("shout", { n: 1 }).receive("ok", () => say({ kind: "pushed" }));
    channel.push("raw", new Uint8Array([0, 255]).buffer).receive("ok", () => say({ kind: "raw" }));
  })
  .receive("error", (reason) => say({ kind: "refused", reason }));
process.stdin.resume();
process.stdin.on("end", () => process.exit(0));
