// The page at /: joins the topic of the demo plugin, draws what comes, and pushes commands.

import { connect as connectTo } from "./tangram.js";

const KEPT = 60; // samples in a sparkline: one minute
const TREE_EVERY = 5_000; // ms between two looks at the supervision tree

// The server may be below a path of its host: every address is relative to the page.
const BASE = new URL("..", import.meta.url);

const $ = (id) => document.getElementById(id);
const json = async (path) => {
  const answer = await fetch(new URL(path, BASE), { headers: { accept: "application/json" }, signal: AbortSignal.timeout(10_000) });
  return answer.ok ? answer.json() : Promise.reject(Object.assign(new Error(path), { status: answer.status }));
};

// -- words ------------------------------------------------------------------------------------------------------

const duration = (seconds) => {
  const days = Math.floor(seconds / 86_400);
  const hours = Math.floor((seconds % 86_400) / 3600);
  const minutes = Math.floor((seconds % 3600) / 60);
  if (days > 0) return `${days} d ${hours} h`;
  if (hours > 0) return `${hours} h ${minutes} min`;
  return minutes > 0 ? `${minutes} min` : `${Math.floor(seconds)} s`;
};

const gigabytes = (bytes) => `${(bytes / 2 ** 30).toFixed(1)} GiB`;

// -- sparklines -------------------------------------------------------------------------------------------------

const METRICS = {
  cpu: { digits: 1, tops: [10, 25, 50, 100], unit: " %" },
  memory: { digits: 1, tops: [25, 50, 100], unit: " %" },
  load: { digits: 2, tops: [1, 2, 4, 8, 16, 32, 64, 128], unit: "" },
};
const samples = { cpu: [], memory: [], load: [] };

function draw(name) {
  const values = samples[name];
  const card = document.querySelector(`[data-metric="${name}"]`);
  const { digits, tops, unit } = METRICS[name];
  const last = values.at(-1);
  $(name).textContent = last.toFixed(digits);
  const highest = Math.max(...values);
  const top = tops.find((step) => step >= highest) ?? highest;
  card.querySelector("[data-top]").textContent = `0 – ${top}${unit}`;

  const points = values.map((value, index) => {
    const x = 100 - ((values.length - 1 - index) * 100) / (KEPT - 1);
    return `${x.toFixed(2)} ${(40 - (40 * value) / top).toFixed(2)}`;
  });
  const first = points[0].split(" ")[0];
  card.querySelector("svg").innerHTML =
    '<path class="base" d="M0 40H100"/>' +
    `<path class="area" d="M${first} 40L${points.join("L")}L100 40Z"/>` +
    `<path class="line" d="M${points.join("L")}"/>`;
}

function take(sample) {
  for (const name of Object.keys(METRICS)) {
    if (!Number.isFinite(sample[name])) continue;
    samples[name].push(sample[name]);
    samples[name].splice(0, samples[name].length - KEPT);
    draw(name);
  }
}

// -- connection -------------------------------------------------------------------------------------------------

function showStatus(state, text) {
  $("status").dataset.state = state;
  if ($("status-text").textContent !== text) $("status-text").textContent = text; // each change is read aloud
  $("main").dataset.live = String(state === "connected");
  $("send").disabled = state !== "connected";
}

function showNotice(title, text, { code = "", retry = null } = {}) {
  $("notice").hidden = title === "";
  if ($("notice-title").textContent === title && $("notice-text").textContent === text) return;
  $("notice-title").textContent = title;
  $("notice-text").textContent = text;
  $("notice-code").textContent = code;
  $("notice-code").hidden = code === "";
  $("notice-retry").hidden = retry === null;
  $("notice-retry").onclick = retry;
}

async function channelBase() {
  try {
    const manifest = await json("manifest.json");
    return manifest.core.config.channel.url || BASE.href;
  } catch {
    return BASE.href; // a server without the manifest still has its channel where it has its pages
  }
}

function showWithoutDemo(plugins) {
  $("demo").hidden = true;
  if (plugins.length > 0) return showNotice("", ""); // the list of plugins says the rest
  showNotice("No plugin is enabled", "The server is well, and has nothing to show here. Install a plugin, and name it in tangram.toml:", {
    code: '[core]\nplugins = ["my_plugin"]',
  });
}

const DEMO = "demo/info";

/** What there was before we came, and whether the plugin is there at all. */
async function greet() {
  const plugins = await json("-/plugins").catch(() => null);
  // Without the demo its routes are not asked: a browser logs each 404 as an error.
  if (plugins?.every(({ routes = [] }) => !routes.includes(`GET /${DEMO}`))) return showWithoutDemo(plugins);
  try {
    const [info, history] = await Promise.all([json(DEMO), json(`demo/history?limit=${KEPT}`)]);
    $("host").textContent = `${info.host} · ${info.system} · ${info.cores} cores · ${gigabytes(info.memory)}`;
    for (const name of Object.keys(METRICS)) samples[name].length = 0;
    history.forEach(take);
    $("demo").hidden = false;
    showNotice("", "");
  } catch (error) {
    if (error.status !== 404 && error.status !== 503) return; // lost on the way: the next connection asks again
    const failed = await quarantined();
    if (error.status === 503 && !failed) return;
    if (!failed) return showWithoutDemo(await json("-/plugins").catch(() => [null]));
    $("demo").hidden = true;
    showNotice("The demo plugin is stopped", "It failed, and waits for its operator. The server runs on without it.", {
      code: failed,
    });
  }
}

async function connect() {
  const client = connectTo({ url: await channelBase() });
  const room = client.channel("demo");

  client.state.subscribe(({ name, reason }) => {
    if (name === "connecting") showStatus("connecting", "Connecting");
    if (name === "reconnecting") showOld();
    if (name === "reconnecting") showStatus("reconnecting", reason ? `Reconnecting: ${reason}` : "Reconnecting");
    if (name !== "connected") return;
    greet();
    showTree();
  });

  room.state.subscribe(({ name, reason }) => {
    if (name === "joined") showStatus("connected", "Connected");
    if (name === "waiting" && client.state.value.name === "connected") showStatus("reconnecting", `Waiting: ${reason}`);
    if (name !== "refused") return;
    showStatus("refused", `Refused: ${reason}`);
    showNotice("The server refused this page", `Its reason: ${reason}.`, {
      retry: () => {
        showNotice("", "");
        room.join().catch(() => {}); // the state shows a refusal
      },
    });
  });

  room.on("metrics", (sample) => {
    take(sample);
    showCount(sample.count);
    $("uptime").textContent = `machine up ${duration(sample.uptime)}`;
  });
  room.on("count", ({ count }) => showCount(count));

  $("send").addEventListener("click", async () => {
    try {
      await room.push("command", { from: "page" });
      $("answer").textContent = "Taken by the broker.";
    } catch (error) {
      $("answer").textContent = `Not sent: ${error.reason ?? error.message}.`;
    }
  });

  room.join().catch(() => {}); // the state shows a refusal
}

function showCount(count) {
  const text = String(count);
  if (Number.isFinite(count) && $("count").textContent !== text) $("count").textContent = text;
}

// -- supervision ------------------------------------------------------------------------------------------------

const GOOD = new Set(["running", "finished"]);
const BAD = new Set(["quarantined"]);

/** The tree as rows: below each child stand the children of the supervisors that it runs. */
function rows(supervisor, depth = 0) {
  return (supervisor?.children ?? []).flatMap((child) => [
    { ...child, depth },
    ...[child.nested ?? []].flat().flatMap((nested) => rows(nested, depth + 1)),
  ]);
}

const tree = () => json("-/supervision").then((answer) => rows(answer.tree));

/** Only the operator, and this machine, are told more than the state. */
function causeOf({ last_crash: crash }) {
  if (!crash) return "";
  const what = crash.message ? `${crash.exception}: ${crash.message}` : crash.exception;
  const where = (crash.path ?? []).slice(1).join(" › ");
  return where ? `${where}: ${what}` : what;
}

async function quarantined() {
  const all = await tree().catch(() => []);
  const found = all.find(({ name = "", state }) => BAD.has(state) && /demo/.test(name));
  return found && (causeOf(found) || found.state);
}

/** A row with a coloured dot and a name; `part` adds text of a kind to it. */
function stateRow(state, name) {
  const row = document.createElement("li");
  const tone = GOOD.has(state) ? "good" : BAD.has(state) ? "bad" : "";
  if (tone) row.className = tone;
  const part = (kind, text) => {
    const span = row.appendChild(document.createElement("span"));
    span.className = kind;
    span.textContent = text;
    return span;
  };
  part("dot", "").ariaHidden = "true";
  part("name", name);
  return { row, tone, part };
}

function treeRow(child) {
  const { row, tone, part } = stateRow(child.state, child.name);
  row.style.setProperty("--depth", child.depth);
  const restarts = child.restarts > 0 ? ` · ${child.restarts} ${child.restarts === 1 ? "restart" : "restarts"}` : "";
  part("note", `${child.state ?? "unknown"}${restarts}`);
  const cause = tone === "good" ? "" : causeOf(child);
  if (cause) part("note cause", cause);
  return row;
}

let treeShown = "";
let newsAt = null; // when the server answered last

/** Everything that is shown is from an earlier time: grey, with that time. */
function showOld() {
  if (newsAt === null) return;
  $("main").dataset.news = "old";
  $("news").textContent = `last news at ${newsAt.toLocaleTimeString()}`;
  $("news").hidden = false;
}

function showNew() {
  newsAt = new Date();
  $("main").dataset.news = "new";
  $("news").hidden = true;
}

function pluginRow({ name, state, services = [], routes = [], topics = [] }) {
  const { row, part } = stateRow(state, name);
  part("note", state);
  const lines = [["services", services], ["routes", routes.map(linked)], ["topics", topics]];
  for (const [what, list] of lines) {
    if (list.length > 0) part("note more", `${what}: `).append(...list.flatMap((one, at) => (at > 0 ? [", ", one] : [one])));
  }
  return row;
}

/** A route that can be opened as it stands is a link: the first page of a plugin is one of them. */
function linked(route) {
  const [method, path] = route.split(" ");
  if (method !== "GET" || path.includes("{")) return route;
  const link = document.createElement("a");
  link.href = new URL(path.slice(1), BASE);
  link.textContent = route;
  return link;
}

let pluginsShown = "";

async function showPlugins() {
  const all = await json("-/plugins").catch(() => null);
  if (all === null || JSON.stringify(all) === pluginsShown) return;
  pluginsShown = JSON.stringify(all);
  $("plugins").hidden = all.length === 0;
  $("plugin-list").replaceChildren(...all.map(pluginRow));
}

async function showTree() {
  if (document.hidden) return;
  const all = await tree().catch(() => null);
  if (all === null) return showOld();
  showNew();
  await showPlugins();
  if (all.length === 0) return; // being restarted: the page shows the newest known state
  const told = JSON.stringify(all);
  if (told === treeShown) return;
  treeShown = told;
  $("children").replaceChildren(...all.map(treeRow));
}

setInterval(showTree, TREE_EVERY);
showTree();
connect();
