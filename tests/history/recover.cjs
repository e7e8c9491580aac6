// The unmodified npm package `phoenix` with the script of docs/history.md. argv: folder of packages, package, URL, topic.
// Each number that arrives, and each reply of a join, is one JSON line on stdout; "cut" on stdin cuts the connection.
const path = require("path")
const [root, name, url, topic] = process.argv.slice(2)
const { Socket } = require(path.join(root, name))
const WebSocket = require(path.join(root, "ws"))
const say = (what) => process.stdout.write(JSON.stringify(what) + "\n")
let last = null
const transport = class extends WebSocket {
  constructor(...args) {
    super(...args)
    last = this
  }
}
const ask = async () => {
  const headers = { "content-type": "application/json" }
  const answer = await fetch(url + "/token", { method: "POST", headers, body: JSON.stringify({ channel: topic }) })
  return (await answer.json()).token
}

ask().then((token) => {
  const socket = new Socket(url.replace("http", "ws"), { transport })
  let position = ""
  const channel = socket.channel(topic, () => ({ token, recover: position }))
  channel.on("tangram:position", ({ at }) => { position = at })
  channel.on("n", ({ n }) => say({ n }))
  socket.connect()
  channel.join().receive("ok", (reply) => { position = reply.position; say({ recovered: reply.recovered, reason: reply.reason }) })
})
require("readline")
  .createInterface({ input: process.stdin })
  .on("line", () => last.terminate())
  .on("close", () => process.exit(0))
