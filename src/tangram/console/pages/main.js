// The console: login, the menu, the line at the top, and one page at a time.

import { isOpen, login, logout, Stream } from "./api.js";
import { clock, h, span, write } from "./dom.js";
import * as connections from "./connections.js";
import * as log from "./log.js";
import * as pictures from "./pictures.js";
import * as plugins from "./plugins.js";
import * as topics from "./topics.js";
import * as tree from "./tree.js";

const PAGES = { tree, topics, connections, pictures, plugins, log };
const SILENCE = 7_000; // ms: every page has news every two seconds, except those that name a longer time

const $ = (id) => document.getElementById(id);
let stream = null;
let view = null;
let lastNews = 0;
let extra = []; // menu entries of plugins

// -- words at the bottom ----------------------------------------------------------------------------------------

let saidTimer = 0;

/** Tell the operator what became of an action. */
export function say(text, { bad = false } = {}) {
  clearTimeout(saidTimer);
  $("said").textContent = text;
  $("said").hidden = false;
  $("said").classList.toggle("bad", bad);
  saidTimer = setTimeout(() => ($("said").hidden = true), 6000);
}

/** Run an action and tell how it ended. */
export async function act(what, action) {
  try {
    await action();
    say(`${what}: done`);
  } catch (error) {
    if (error.status === 401 || error.status === 403) showLogin(error.message);
    else say(`${what}: ${error.message}`, { bad: true });
  }
}

// -- the line at the top ----------------------------------------------------------------------------------------

function showStatus(tone, text) {
  $("status").dataset.tone = tone;
  write($("status-text"), text);
}

function showOverview(overview, now) {
  const { redis, ready, reasons } = overview;
  if (!redis.up) {
    const since = redis.since ? ` since ${clock(redis.since)} (${span(Math.max(0, now - redis.since))})` : "";
    showStatus("bad", `Redis is away${since}`);
  } else if (reasons.length) showStatus("bad", reasons.length === 1 ? reasons[0] : `${reasons.length} parts are ill`);
  else showStatus(ready ? "good" : "wait", ready ? `All well, ${overview.connections} connected` : "Not ready");
}

function showAway() {
  if (!view || $("main").dataset.live === "false") return;
  $("main").dataset.live = "false";
  showStatus("bad", "Away");
  $("away").textContent = `The server does not answer. Everything below is from ${clock(lastNews)}.`;
  $("away").hidden = false;
}

function showNews(data) {
  lastNews = Date.now() / 1000;
  $("main").dataset.live = "true";
  $("away").hidden = true;
  showOverview(data.overview, data.now);
  if (data.plugins) showExtra(data.plugins);
  view.take(data);
}

// -- pages ------------------------------------------------------------------------------------------------------

function current() {
  const [name, ...rest] = location.hash.replace(/^#\/?/, "").split("/");
  return [name in PAGES ? name : "tree", rest.map(decodeURIComponent)];
}

function showExtra(listed) {
  const found = listed.filter((one) => one.console).map((one) => ({ name: one.name, href: one.console }));
  if (JSON.stringify(found) === JSON.stringify(extra)) return;
  extra = found;
  showMenu();
}

function showMenu() {
  const [name] = current();
  const entry = (href, text, here) => h("li", {}, h("a", { href, "aria-current": here ? "page" : null }, text));
  $("menu").replaceChildren(
    h(
      "ul",
      {},
      Object.entries(PAGES).map(([key, page]) => entry(`#/${key}`, page.title, key === name)),
      extra.map((one) => entry(one.href, one.name, false)),
    ),
  );
}

function closePage() {
  stream?.close();
  view?.close?.();
  stream = view = null;
}

/** Open the stream of the page that is shown; also called by a page that wants other parameters. */
function openStream(page, parameters = {}, silence = SILENCE) {
  stream?.close();
  const told = { news: showNews, away: showAway, login: () => showLogin("The session has ended.") };
  stream = new Stream(page, parameters, told, silence);
}

function showPage({ focus = true } = {}) {
  closePage();
  const [name, rest] = current();
  const page = PAGES[name];
  document.title = `${page.title} - tangram console`;
  $("login").hidden = true;
  $("menu").hidden = $("logout").hidden = false;
  showMenu();
  $("main").dataset.live = "true";
  $("main").replaceChildren(h("h2", { class: "title" }, page.title));
  view = page.open($("main"), { openStream, rest });
  if (focus) $("main").focus();
}

// -- login ------------------------------------------------------------------------------------------------------

function showLogin(why = "") {
  closePage();
  $("main").replaceChildren();
  $("away").hidden = $("menu").hidden = $("logout").hidden = true;
  $("login").hidden = false;
  $("login-error").textContent = why;
  showStatus("wait", "Log in");
  $("token").focus();
}

$("login-form").addEventListener("submit", async (event) => {
  event.preventDefault();
  try {
    await login({ token: $("token").value.trim() });
    $("token").value = "";
    showPage();
  } catch (error) {
    $("login-error").textContent = error.message;
    $("token").select();
  }
});

$("logout").addEventListener("click", async () => {
  try {
    await logout();
    showLogin();
  } catch (error) {
    say(`Log out: ${error.message}`, { bad: true });
  }
});

addEventListener("hashchange", () => {
  if ($("login").hidden) showPage();
});

document.addEventListener("visibilitychange", () => {
  if (document.hidden) stream?.close(); // a page that is not seen costs the server nothing
  else if (view) showPage({ focus: false });
});

async function begin() {
  const code = location.hash.match(/^#code=(\w+)$/);
  if (code) {
    history.replaceState(null, "", "#/tree");
    try {
      await login({ code: code[1] });
    } catch (error) {
      showLogin(error.message);
      return;
    }
  }
  try {
    await isOpen();
    showPage({ focus: false });
  } catch (error) {
    if (error.status === 401) showLogin();
    else {
      showStatus("bad", "Away");
      setTimeout(begin, 1000);
    }
  }
}

begin();
