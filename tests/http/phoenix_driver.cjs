// Plays the unmodified npm package `phoenix`: commands come as JSON lines on stdin, what it observes goes out as
// JSON lines on stdout. argv: the folder of packages, name of the package.
const path = require("path")
const root = process.argv[2]
const { Socket, Presence } = require(path.join(root, process.argv[3]))
const WebSocket = require(path.join(root, "ws"))

const say = (kind, more) => process.stdout.write(JSON.stringify({ kind, ...more }) + "\n")
const plain = (value) => (value instanceof ArrayBuffer ? { hex: Buffer.from(value).toString("hex") } : value)
let socket = null
// A browser sends the origin of its page by itself; `ws` has to be told.
const from = (origin) => class extends WebSocket { constructor(url, protocols) { super(url, protocols, { origin }) } }
const channels = new Map()

const report = (what, push, more) => {
  for (const status of ["ok", "error", "timeout"]) {
    push.receive(status, (response) => say(what, { ...more, status, response: plain(response) }))
  }
}

const commands = {
  connect({ url, options, origin }) {
    socket = new Socket(url, { transport: origin ? from(origin) : WebSocket, ...options })
    socket.onOpen(() => say("open", {}))
    socket.onError((error) => say("failed", { message: String(error.message) }))
    socket.onMessage((message) => say("message", { event: message.event, ref: message.ref, payload: plain(message.payload) }))
    socket.onClose((event) => say("closed", { code: event.code, reason: event.reason }))
    socket.connect()
  },
  join({ topic, params, name, timeout }) {
    const channel = socket.channel(topic, params)
    const as = name || topic
    channels.set(as, channel)
    const presence = new Presence(channel)
    presence.onSync(() => {
      const refs = Object.fromEntries(presence.list((id, { metas }) => [id, metas.map((meta) => meta.phx_ref)]))
      say("presence", { name: as, ids: presence.list((id) => id).sort(), refs })
    })
    presence.onLeave((id, left, gone) => say("went", { name: as, id, left: left.metas, gone: gone.metas }))
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
  // What no channel object would send: an event of a topic that was not joined.
  raw(message) {
    socket.push(message)
  },
  disconnect() {
    socket.disconnect()
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
