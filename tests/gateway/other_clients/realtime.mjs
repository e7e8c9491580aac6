// @supabase/realtime-js, unmodified: join, send and receive; one line of JSON for each observation.
//
//   node realtime.mjs FOLDER_OF_PACKAGES URL TOKEN VSN
import { createRequire } from "node:module";

const [folder, url, token, vsn] = process.argv.slice(2);
const require = createRequire(folder + "/");
const { RealtimeClient } = require("@supabase/realtime-js");
const WebSocket = require("ws");
const say = (it) => process.stdout.write(JSON.stringify(it) + "\n");

const client = new RealtimeClient(url, { params: { apikey: "key", userToken: token }, transport: WebSocket, vsn });
const channel = client.channel("room");
channel.on("broadcast", { event: "shout" }, (message) => say({ kind: "broadcast", payload: message.payload }));
channel.subscribe(async (status) => {
  say({ kind: "status", status });
  if (status === "SUBSCRIBED") {
    say({ kind: "sent", result: await channel.send({ type: "broadcast", event: "shout", payload: { n: 1 } }) });
  }
});
process.stdin.resume();
process.stdin.on("end", () => process.exit(0));
