// Pages with the unmodified npm package `phoenix` in Node, with the script of docs/history.md.
// argv: folder of packages, package, URL, number of pages, topics. Each has a socket of its own.
// Out, a line of JSON: {page, topic} and n (a number), at (a position), or recovered, reason and position (the reply of a join).
// In: "cut" ends all connections, "pause N" stops N pages from reading until their connection ends.
const path = require("path")
const [root, name, url, pages, ...topics] = process.argv.slice(2)
const count = Number(pages)
const { Socket } = require(path.join(root, name))
const WebSocket = require(path.join(root, "ws"))
const say = (what) => process.stdout.write(JSON.stringify(what) + "\n")
const open = new Map()

const ask = async (topic) => {
  const headers = { "content-type": "application/json" }
  const answer = await fetch(url + "/token", { method: "POST", headers, body: JSON.stringify({ channel: topic }) })
  return (await answer.json()).token
}

const watch = (socket, page, topic, token) => {
  let position = ""
  const channel = socket.channel(topic, () => ({ token, recover: position }))
  channel.on("tangram:position", ({ at }) => { position = at; say({ page, topic, at }) })
  channel.on("n", ({ n }) => say({ page, topic, n }))
  channel.join().receive("ok", (reply) => {
    position = reply.position
    say({ page, topic, recovered: reply.recovered, reason: reply.reason, position: reply.position })
  })
}

const main = async () => {
  const tokens = await Promise.all(topics.concat("noise").map(ask))
  for (let page = 0; page < count; page++) {
    const transport = class extends WebSocket {
      constructor(...args) {
        super(...args)
        open.set(page, this)
        this.on("error", () => {})
      }
    }
    const socket = new Socket(url.replace("http", "ws"), { transport, heartbeatIntervalMs: 1000 })
    socket.connect()
    topics.forEach((topic, at) => watch(socket, page, topic, tokens[at]))
    const noise = tokens[topics.length]
    socket.channel("noise", { token: noise }).join()
  }
}

main()
require("readline")
  .createInterface({ input: process.stdin })
  .on("line", (line) => {
    const [what, number] = line.split(" ")
    if (what === "cut") open.forEach((socket) => socket.terminate())
    // The heartbeat's reply is not read either: the server closes the connection, or the page does.
    else for (let page = 0; page < Math.min(Number(number), count); page++) open.get(page).pause()
  })
  .on("close", () => process.exit(0))
