// The last 1,000 records of the log, by plugin and level, live.

import { clock, h } from "./dom.js";

export const title = "Log";

const KEPT = 1000;
const LEVELS = ["debug", "info", "warning", "error", "critical"];

const text = (value) => (typeof value === "string" ? value : JSON.stringify(value));

function row(record) {
  const { traceback, exception, stack, ...fields } = record.fields;
  const long = [traceback, exception, stack].filter(Boolean);
  return h(
    "li",
    { class: record.level },
    h("time", {}, clock(record.at)),
    h("span", { class: "level" }, record.level),
    record.plugin ? h("b", {}, record.plugin) : null,
    h("span", { class: "event" }, record.event),
    h(
      "span",
      { class: "note" },
      Object.entries(fields).map(([key, value]) => `${key}=${text(value)} `),
    ),
    long.length
      ? h("details", {}, h("summary", {}, "Traceback"), long.map((one) => h("pre", {}, Array.isArray(one) ? one.join("\n") : text(one))))
      : null,
  );
}

export function open(root, { openStream, rest }) {
  let records = [];
  const level = h(
    "select",
    { id: "level", onchange: () => redraw() },
    LEVELS.map((name) => h("option", { value: name, selected: name === "info" }, `${name} and above`)),
  );
  const plugin = h("select", { id: "plugin", onchange: () => redraw() }, h("option", { value: "" }, "everything"));
  if (rest[0]) {
    plugin.append(h("option", { value: rest[0] }, rest[0]));
    plugin.value = rest[0];
  }
  const list = h("ol", { class: "card plain log", "aria-label": "Records, newest first", tabindex: "0" });
  root.append(
    h("div", { class: "line filters" }, h("label", {}, "Level", level), h("label", {}, "Plugin", plugin)),
    list,
  );
  const wanted = (record) =>
    LEVELS.indexOf(record.level) >= LEVELS.indexOf(level.value) && (!plugin.value || record.plugin === plugin.value);
  const redraw = () => list.replaceChildren(...records.filter(wanted).map(row).reverse());
  openStream("log");
  return {
    take(data) {
      const newest = records.at(-1)?.n ?? 0;
      const fresh = data.records.filter((record) => record.n > newest || data.records[0].n < newest - KEPT);
      if (data.records.length && data.records.at(-1).n < newest) records = []; // another process: numbers begin anew
      const added = records.length ? fresh : data.records;
      records = [...records, ...added].slice(-KEPT);
      const known = new Set([...plugin.options].map((option) => option.value));
      for (const name of new Set(added.map((record) => record.plugin)))
        if (name && !known.has(name)) plugin.append(h("option", { value: name }, name));
      if (added.length === records.length) redraw();
      else for (const record of added.filter(wanted)) list.prepend(row(record));
      while (list.children.length > KEPT) list.lastChild.remove();
    },
  };
}
