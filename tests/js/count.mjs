// argv: module that exports connect, URL, id or "". Each change is a line of JSON on stdout; a line on stdin is a command.
const [module, url, id] = process.argv.slice(2);
const { connect } = await import(module);
const { WebSocket } = globalThis.WebSocket ? globalThis : await import("ws");
const say = (what) => process.stdout.write(JSON.stringify(what) + "\n");

let tokens = 0;
const counted = (...args) => {
  tokens += 1;
  return fetch(...args);
};
const client = connect({ url, id: id || null, transport: WebSocket, fetch: counted });
client.state.subscribe(({ name }) => say({ connection: name }));
const numbers = client.channel("numbers:ours", { recover: true });
numbers.state.subscribe(({ name, reason }) => say({ channel: name, reason }));
numbers.members.subscribe((members) => say({ members: [...members.keys()] }));
numbers.count.subscribe((count) => say({ count }));
numbers.on("n", ({ n }) => say({ n }));
numbers.onMissed(({ reason }) => say({ missed: reason }));
await numbers.join();
say({ id: client.id, recovered: numbers.recovered });

const commands = {
  push: async () => say({ pushed: await numbers.push("wave", { from: client.id }) }),
  bytes: async () => say({ pushed: await numbers.push("wave", new Uint8Array([1, 2, 3]).buffer) }),
  tokens: async () => say({ tokens }),
  refused: async () => client.channel("secret").join().catch(({ reason }) => say({ refused: reason })),
  leave: async () => {
    numbers.leave();
    await numbers.push("wave").catch(({ reason }) => say({ left: reason }));
  },
  close: async () => client.close(),
};
const lines = await import("node:readline");
for await (const line of lines.createInterface({ input: process.stdin })) await commands[line]();
process.exit(0);
