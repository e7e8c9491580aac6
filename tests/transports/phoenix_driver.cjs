// Plays the unmodified npm package `phoenix`: commands come as JSON lines on stdin, what it observes goes out as
// JSON lines on stdout. argv: folder with node_modules, name of the package.
const path = require("path")
const root = process.argv[2]
const { Socket, Presence } = require(path.join(root, "node_modules", process.argv[3]))
const WebSocket = require(path.join(root, "node_modules", "ws"))

const say = (kind, more) => process.stdout.write(JSON.stringify({ kind, ...more }) + "\n")
const plain = (value) => (value instanceof ArrayBuffer ? { hex: Buffer.from(value).toString("hex") } : value)
let socket = null
const channels = new Map()

const report = (what, push, more) => {
  for (const status of ["ok", "error", "timeout"]) {
    push.receive(status, (response) => say(what, { ...more, status, response: plain(response) }))
  }
}

const commands = {
  connect({ url, options }) {
    socket = new Socket(url, { transport: WebSocket, ...options })
    socket.onOpen(() => say("open", {}))
    socket.onClose((event) => say("closed", { code: event.code, reason: event.reason }))
    socket.connect()
  },
  join({ topic, params, name, timeout }) {
    const channel = socket.channel(topic, params)
    const as = name || topic
    channels.set(as, channel)
    const presence = new Presence(channel)
    presence.onSync(() => say("presence", { name: as, ids: presence.list((id) => id).sort() }))
    channel.onError(() => say("errored", { name: as }))
    channel.onClose(() => say("channel-closed", { name: as }))
    channel.onMessage = (event, payload) => {
      if (!event.startsWith("phx_") && !event.startsWith("chan_reply_") && !event.startsWith("presence_")) {
        say("event", { name: as, event, payload: plain(payload) })
      }
      return payload
    }
    report("join", channel.join(timeout || 2000), { name: as })
  },
  push({ name, event, payload, hex }) {
    const data = hex === undefined ? payload : Uint8Array.from(Buffer.from(hex, "hex")).buffer
    report("push", channels.get(name).push(event, data, 2000), { name, event })
  },
  leave({ name }) {
    report("leave", channels.get(name).leave(2000), { name })
  },
  // `ping` answers with the round trip's time once the heartbeat's reply has come.
  ping() {
    socket.ping(() => say("pong", {}))
  },
}

require("readline")
  .createInterface({ input: process.stdin })
  .on("line", (line) => {
    const { command, ...rest } = JSON.parse(line)
    commands[command](rest)
  })
  .on("close", () => process.exit(0))
