// Connections, the slowest first, and a button that ends one.

import { change } from "./api.js";
import { bytes, count, h, show, span, sureButton } from "./dom.js";
import { act } from "./main.js";

export const title = "Connections";

function row(one) {
  const end = () => act(`Disconnect ${one.address}`, () => change("DELETE", `console/connections/${one.conn}`));
  return h(
    "tr",
    { class: one.slow ? "slow" : "" },
    h("th", { scope: "row" }, one.address || "(unknown)", one.slow ? h("span", { class: "badge" }, "slow") : null),
    h("td", { "data-label": "waiting" }, bytes(one.backlog)),
    h("td", { "data-label": "round trip" }, one.rtt),
    h("td", { "data-label": "topics" }, one.topics),
    h("td", { "data-label": "age" }, one.age),
    h("td", { "data-label": "replaced" }, count(one.conflated)),
    h("td", {}, sureButton("Disconnect", `Disconnect ${one.address}, ${one.conn}`, end)),
  );
}

export function open(root, { openStream }) {
  const note = h("p", { class: "note" }, "");
  const body = h("tbody", {});
  const names = ["Address", "Waiting", "Round trip", "Topics", "Age", "Replaced", ""];
  root.append(
    note,
    h(
      "table",
      { class: "card" },
      h(
        "thead",
        {},
        h("tr", {}, names.map((name) => (name ? h("th", { scope: "col" }, name) : h("td", {})))),
      ),
      body,
    ),
  );
  openStream("connections");
  let waited = new Map(); // bytes that waited at the last look: a client that stays behind is slow
  return {
    take(data) {
      const listed = data.connections.map((one) => ({
        conn: one.conn,
        address: one.address,
        backlog: one.backlog,
        slow: one.backlog > 0 && (waited.get(one.conn) ?? 0) > 0,
        rtt: one.rtt === null ? "–" : span(one.rtt),
        topics: one.joined > one.topics.length ? `${one.topics.join(", ")}, …` : one.topics.join(", ") || "none",
        age: span(Math.floor(one.age / 10) * 10),
        conflated: one.conflated,
      }));
      waited = new Map(data.connections.map((one) => [one.conn, one.backlog]));
      show(body, listed, (one) => one.conn, row);
      const all = data.overview.connections;
      const slow = listed.filter((one) => one.slow).length;
      const some = all > listed.length ? `, of which the ${listed.length} furthest behind are listed` : "";
      note.textContent = `${all} ${all === 1 ? "connection" : "connections"}${some}; ${slow || "none"} slow.`;
    },
  };
}
