// Plugins with version, state, configuration in force, routes and services, and the server's own settings.

import { h, show } from "./dom.js";

export const title = "Plugins";

const text = (value) => (typeof value === "string" ? value : JSON.stringify(value));

function settings(listed, name) {
  if (!listed?.length) return h("p", { class: "note" }, "No settings.");
  return h(
    "dl",
    { class: "settings", "aria-label": `Settings of ${name}` },
    listed.map(({ key, value, default: isDefault }) =>
      h(
        "div",
        { class: isDefault ? "default" : "set" },
        h("dt", {}, key),
        h("dd", {}, h("code", {}, text(value)), isDefault ? h("span", { class: "note" }, " default") : null),
      ),
    ),
  );
}

const some = ({ length }, what) => `${length} ${what}${length === 1 ? "" : "s"}`;

function card(plugin) {
  const good = plugin.state === "running" || plugin.state === "finished";
  const services = plugin.service_details ?? [];
  return h(
    "article",
    { class: "card plugin", "aria-label": `Plugin ${plugin.name}` },
    h(
      "div",
      { class: "line" },
      h("span", { class: "dot", "data-tone": good ? "good" : "bad", "aria-hidden": "true" }),
      h("h3", {}, plugin.name),
      h("span", { class: "note" }, [plugin.state, plugin.version].filter(Boolean).join(" · ")),
      plugin.console && h("a", { href: plugin.console }, "Its page"),
      h("a", { href: `#/log/${encodeURIComponent(plugin.name)}` }, "Its log"),
    ),
    plugin.error && h("p", { class: "cause" }, plugin.error),
    h(
      "details",
      {},
      h("summary", {}, `${some(services, "service")}, ${some(plugin.routes ?? [], "route")}`),
      h(
        "ul",
        {},
        services.map((one) => h("li", {}, h("b", {}, one.name), ` ${one.restart}${one.threaded ? ", in a thread" : ""}`)),
        (plugin.routes ?? []).map((route) => h("li", {}, h("code", {}, route))),
      ),
    ),
    h("details", {}, h("summary", {}, "Configuration in force"), settings(plugin.settings, plugin.name)),
  );
}

export function open(root, { openStream }) {
  const list = h("div", { class: "cards" });
  const server = h("div", { class: "cards" });
  root.append(list, h("h3", {}, "The server's settings"), server);
  openStream("plugins", {}, 25_000);
  return {
    take(data) {
      const shown = data.plugins.map(({ ghosts, ...plugin }) => ({ ...plugin, ghosts: ghosts?.length ?? 0 }));
      show(list, shown, (plugin) => plugin.name, card);
      show(server, data.settings, (table) => table.table, (table) =>
        h(
          "details",
          { class: "card" },
          h(
            "summary",
            {},
            `[${table.table}]`,
            h("span", { class: "note" }, ` ${table.settings.filter((one) => !one.default).length} set`),
          ),
          settings(table.settings, table.table),
        ),
      );
    },
  };
}
