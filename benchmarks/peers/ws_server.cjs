// A WebSocket server on npm's `ws` and `ioredis` that does the least of Phoenix: joins without a check, messages from
// Redis to the members of a topic, pushes to Redis and their replies.
//
//   node ws_server.cjs NODE_MODULES PORT REDIS_PORT
"use strict";

const path = require("node:path");

const [folder, port, redisPort] = process.argv.slice(2);
const { WebSocketServer } = require(path.join(folder, "ws"));
const Redis = require(path.join(folder, "ioredis"));

const publisher = new Redis(Number(redisPort), "127.0.0.1");
const subscriber = new Redis(Number(redisPort), "127.0.0.1");
const topics = new Map();

function receive(socket, text) {
  const [joinRef, ref, topic, event, payload] = JSON.parse(text);
  const reply = () => socket.send(JSON.stringify([joinRef, ref, topic, "phx_reply", { status: "ok", response: {} }]));
  if (event === "phx_join") {
    if (!topics.has(topic)) topics.set(topic, new Set());
    topics.get(topic).add(socket);
    socket.topics.push(topic);
    reply();
  } else {
    publisher.publish(`from:${topic}:${event}`, JSON.stringify(payload)).then(reply);
  }
}

subscriber.on("pmessageBuffer", (_pattern, channelBytes, payload) => {
  const channel = channelBytes.toString();
  const colon = channel.lastIndexOf(":");
  const topic = channel.slice(3, colon);
  const members = topics.get(topic);
  if (members === undefined) return;
  const head = JSON.stringify([null, null, topic, channel.slice(colon + 1)]).slice(0, -1);
  const message = Buffer.concat([Buffer.from(head + ","), payload, Buffer.from("]")]);
  for (const socket of members) socket.send(message, { binary: false });
});

subscriber.psubscribe("to:*").then(() => {
  const server = new WebSocketServer({ host: "127.0.0.1", port: Number(port), perMessageDeflate: false, backlog: 4096 });
  server.on("connection", (socket) => {
    socket.topics = [];
    socket.on("message", (text) => receive(socket, text));
    socket.on("close", () => socket.topics.forEach((topic) => topics.get(topic).delete(socket)));
  });
});
