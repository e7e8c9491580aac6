// The supervision tree: ill parts come first, then the last crash, then every part.

import { change } from "./api.js";
import { bytes, clock, count, h, show, span, sureButton } from "./dom.js";
import { act } from "./main.js";

export const title = "Tree";

const GOOD = new Set(["running", "finished"]);
const BAD = new Set(["quarantined", "stopped"]);

/** Every child as a row, with its depth and its path of names. */
function rows(supervisor, depth = 0, path = []) {
  return (supervisor?.children ?? []).flatMap((child) => {
    const own = [...path, child.name];
    return [
      { ...child, depth, path: own, nested: null },
      ...(child.nested ?? []).flatMap((nested) => rows(nested, depth + 1, own)),
    ];
  });
}

const pluginOf = (name) => (name.startsWith("plugin:") ? name.slice("plugin:".length) : null);
const causeOf = (crash) => (crash.message ? `${crash.exception}: ${crash.message}` : crash.exception);
// "radar.py:12 in poll"; each package has an __init__.py, so that its folder stands before it.
const fileOf = (where) => where.replace(/^.*\/(?=[^/]+\/__\w+__\.py:\d+ in |(?!__\w+__\.py)[^/]+:\d+ in )/, "");

function actions(name, state) {
  const restart = state === "quarantined" ? "Release" : state === "stopped" ? "Start" : "Restart";
  const path = `console/plugins/${encodeURIComponent(name)}`;
  return h(
    "span",
    { class: "actions" },
    h(
      "button",
      {
        type: "button",
        class: state === "quarantined" ? "" : "quiet",
        "aria-label": `${restart} plugin ${name}`,
        onclick: () => act(`${restart} ${name}`, () => change("POST", `${path}/restart`)),
      },
      restart,
    ),
    state === "running" &&
      sureButton("Stop", `Stop plugin ${name}`, () => act(`Stop ${name}`, () => change("POST", `${path}/stop`))),
  );
}

function traceback(crash) {
  const frames = [...crash.traceback].reverse();
  const at = frames.indexOf(crash.where);
  if (at > 0) frames.unshift(...frames.splice(at, 1)); // the plugin's own line first
  return h(
    "details",
    { class: "traceback" },
    h("summary", {}, `Traceback, ${frames.length} ${frames.length === 1 ? "line" : "lines"}`),
    h(
      "ol",
      {},
      frames.map((frame) => h("li", { class: frame === crash.where ? "own" : "" }, frame)),
    ),
    crash.others?.length ? h("p", { class: "note" }, `Also: ${crash.others.join("; ")}`) : null,
  );
}

function crashCard({ crash, now }) {
  const name = crash.path[0];
  const service = crash.path.slice(1).join(" > ");
  return h(
    "article",
    { class: "card crash", "aria-label": "Last crash" },
    h("h3", {}, "Last crash"),
    h(
      "p",
      { class: "what" },
      h("b", { id: "crashed" }, pluginOf(name) ?? name),
      service ? ` in ${service}` : "",
      `, at ${clock(crash.when)}, ${span(Math.max(0, now - crash.when))} ago`,
    ),
    h("p", { class: "cause" }, causeOf(crash)),
    crash.where ? h("p", { class: "where", id: "crashed-where" }, fileOf(crash.where)) : null,
    traceback(crash),
  );
}

function illCard(child) {
  const plugin = pluginOf(child.name);
  const crash = child.last_crash;
  return h(
    "li",
    { class: "card ill" },
    h(
      "div",
      { class: "line" },
      h("span", { class: "dot", "data-tone": "bad", "aria-hidden": "true" }),
      h("b", {}, plugin ?? child.name),
      h("span", { class: "state" }, child.state),
      plugin && actions(plugin, child.state),
    ),
    crash && h("p", { class: "cause" }, causeOf(crash)),
    crash?.where && h("p", { class: "where" }, fileOf(crash.where)),
    child.cause && h("p", { class: "cause" }, child.cause),
  );
}

function treeRow(child) {
  const tone = GOOD.has(child.state) ? "good" : BAD.has(child.state) ? "bad" : "wait";
  const plugin = child.depth <= 1 ? pluginOf(child.name) : null;
  const notes = [
    child.state,
    child.age !== null ? `up ${child.age}` : null,
    child.restarts ? `${child.restarts} ${child.restarts === 1 ? "restart" : "restarts"}` : null,
    child.memory ? bytes(child.memory) : null,
    child.next_delay ? `again in ${span(child.next_delay)}` : null,
  ];
  return h(
    "li",
    { class: "row", "data-depth": Math.min(child.depth, 4) },
    h("span", { class: "dot", "data-tone": tone, "aria-hidden": "true" }),
    h("span", { class: "name" }, child.name),
    h("span", { class: "note" }, notes.filter(Boolean).join(" · ")),
    plugin && actions(plugin, child.state),
    child.last_crash &&
      h(
        "details",
        { class: "fold" },
        h("summary", {}, `last crash ${clock(child.last_crash.when)}: ${causeOf(child.last_crash)}`),
        traceback(child.last_crash),
      ),
  );
}

/** Ages change each second, and a row should not be built anew for that: they are shown in coarse steps. */
function age(seconds) {
  if (seconds < 60) return `${Math.floor(seconds / 10) * 10} s`;
  return seconds < 3600 ? `${Math.floor(seconds / 60)} min` : span(Math.floor(seconds / 60) * 60);
}

/** One node of the cluster, with the plugins that it holds and how it differs from this one. */
function nodeRow(node) {
  return h(
    "tr",
    {},
    h(
      "th",
      { scope: "row" },
      node.id,
      node.me ? h("span", { class: "note" }, " this node") : null,
      node.differs.length ? h("span", { class: "badge" }, "differs") : null,
      node.url ? h("p", { class: "note" }, node.url) : null,
      node.differs.map((difference) => h("p", { class: "note" }, difference)),
    ),
    h("td", { "data-label": "version" }, node.version),
    h("td", { "data-label": "up" }, node.up),
    h("td", { "data-label": "members" }, count(node.members)),
    h("td", { "data-label": "plugins" }, node.plugins.join(", ") || "none"),
  );
}

function nodesTable(body) {
  const names = ["Node", "Version", "Up", "Members", "Plugins held"];
  return h(
    "table",
    { id: "nodes", class: "card", "aria-label": "Nodes", hidden: true },
    h("thead", {}, h("tr", {}, names.map((name) => h("th", { scope: "col" }, name)))),
    body,
  );
}

export function open(root, { openStream }) {
  const redis = h("p", { id: "redis", class: "card redis", role: "status", hidden: true });
  const ill = h("ul", { class: "plain", "aria-label": "Parts that are ill" });
  const crash = h("div", {});
  const list = h("ul", { class: "card plain tree", "aria-label": "Every part" });
  const nodes = h("tbody", {});
  const table = nodesTable(nodes);
  root.append(redis, ill, crash, table, list);
  openStream("tree");
  return {
    take(data) {
      const { redis: state } = data.overview;
      redis.hidden = state.up;
      if (!state.up) {
        const since = state.since ? `since ${clock(state.since)}, ${span(Math.max(0, data.now - state.since))}` : "";
        redis.textContent = `Redis (the broker) is away ${since}${state.cause ? `: ${state.cause}` : ""}`;
      }
      const all = rows(data.tree).map((child) => ({
        ...child,
        window: null,
        age: data.started[child.path.join("/")] && GOOD.has(child.state)
          ? age(data.now - data.started[child.path.join("/")])
          : null,
        memory:
          child.name === "broker" && child.depth === 0
            ? data.memory.broker
            : child.name === "incarnation"
              ? Math.round(data.memory.process / 2 ** 20) * 2 ** 20
              : null,
      }));
      const sick = all.filter((child) => child.depth <= 1 && !GOOD.has(child.state));
      const missing = data.not_loaded.map((one) => ({ name: one.name, state: "not loaded", cause: one.cause }));
      show(ill, [...sick, ...missing], (child) => child.name, illCard);
      const step = data.last_crash && data.now - data.last_crash.when > 60 ? 10 : 1;
      const now = Math.floor(data.now / step) * step;
      show(crash, data.last_crash ? [{ crash: data.last_crash, now }] : [], () => "crash", crashCard);
      table.hidden = data.nodes.length === 0;
      const listed = data.nodes.map((node) => ({
        id: node.id,
        me: node.me,
        url: node.url,
        version: node.version,
        up: age(Math.max(0, data.now - node.started)),
        members: node.members,
        plugins: node.plugins,
        differs: node.differs,
      }));
      show(nodes, listed, (node) => node.id, nodeRow);
      show(list, all, (child) => child.path.join("/"), treeRow);
    },
  };
}
