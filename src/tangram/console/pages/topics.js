// Topics with their traffic, the live tail of one, and a form to publish.

import { change } from "./api.js";
import { bytes, clock, count, h, show } from "./dom.js";
import { act, say } from "./main.js";

export const title = "Topics";

const KEPT = 200; // messages of a tail on the page

function rates(before, now, topic) {
  const then = before?.topics.get(topic.topic);
  const seconds = before ? now - before.now : 0;
  if (!then || seconds <= 0 || topic.messages < then.messages) return { messages: 0, bytes: 0 };
  return {
    messages: (topic.messages - then.messages) / seconds,
    bytes: (topic.sent_bytes - then.sent_bytes) / seconds,
  };
}

function row(topic) {
  return h(
    "tr",
    {},
    h("th", { scope: "row" }, h("a", { href: `#/topics/${encodeURIComponent(topic.topic)}` }, topic.topic)),
    h("td", { "data-label": "members" }, count(topic.members)),
    h("td", { "data-label": "messages/s" }, topic.rate),
    h("td", { "data-label": "sent/s" }, topic.sent),
    h("td", { "data-label": "backlog" }, bytes(topic.backlog)),
  );
}

function openList(root, openStream) {
  const note = h("p", { class: "note" }, "The topic with the largest traffic comes first.");
  const body = h("tbody", {});
  const names = ["Topic", "Members", "Messages/s", "Sent/s", "Backlog"];
  const table = h(
    "table",
    { class: "card" },
    h("thead", {}, h("tr", {}, names.map((name) => h("th", { scope: "col" }, name)))),
    body,
  );
  root.append(note, table);
  openStream("topics");
  let before = null;
  return {
    take(data) {
      const listed = data.topics
        .map((topic) => ({ ...topic, rates: rates(before, data.now, topic) }))
        .sort((one, other) => other.rates.bytes - one.rates.bytes || other.sent_bytes - one.sent_bytes)
        .map((topic) => ({
          topic: topic.topic,
          members: topic.members,
          backlog: topic.backlog,
          rate: count(topic.rates.messages),
          sent: `${bytes(topic.rates.bytes)}`,
        }));
      before = { now: data.now, topics: new Map(data.topics.map((topic) => [topic.topic, topic])) };
      show(body, listed, (topic) => topic.topic, row);
      table.hidden = listed.length === 0;
      const more = data.count > listed.length ? ` ${listed.length} of ${data.count} are listed.` : "";
      note.textContent = listed.length
        ? `The topic with the largest traffic comes first.${more}`
        : data.restarting
          ? "The channels are restarting."
          : "No client has joined a topic.";
    },
  };
}

function messageRow(message) {
  const text = typeof message.payload === "string" ? message.payload : JSON.stringify(message.payload);
  return h(
    "li",
    {},
    h("time", {}, clock(message.time)),
    h("b", {}, message.event),
    h("code", {}, text.length > 400 ? `${text.slice(0, 400)}…` : text),
  );
}

function openTopic(root, openStream, name) {
  let paused = false;
  const list = h("ol", { class: "card plain tail", "aria-label": `Messages of ${name}`, tabindex: "0" });
  const note = h("p", { class: "note" }, "Waiting for a message.");
  const pause = h(
    "button",
    {
      type: "button",
      class: "quiet",
      "aria-pressed": "false",
      onclick: () => {
        paused = !paused;
        pause.setAttribute("aria-pressed", String(paused));
        pause.textContent = paused ? "Go on" : "Pause";
      },
    },
    "Pause",
  );
  const event = h("input", { id: "event", required: true, autocapitalize: "off", spellcheck: "false" });
  const payload = h("textarea", { id: "payload", rows: "3", spellcheck: "false", value: "{}" });
  const publish = (submitted) => {
    submitted.preventDefault();
    let value;
    try {
      value = JSON.parse(payload.value);
    } catch (error) {
      say(`The payload is not JSON: ${error.message}`, { bad: true });
      return;
    }
    act(`Publish ${event.value}`, () =>
      change("POST", "console/publish", { topic: name, event: event.value, payload: value }),
    );
  };
  root.append(
    h("p", {}, h("a", { href: "#/topics" }, "All topics")),
    h("h3", {}, name),
    h("div", { class: "line" }, note, pause),
    list,
    h(
      "form",
      { class: "card publish", onsubmit: publish, "aria-label": `Publish to ${name}` },
      h("label", { for: "event" }, "Event"),
      event,
      h("label", { for: "payload" }, "Payload (JSON)"),
      payload,
      h("button", { type: "submit" }, "Publish"),
    ),
  );
  openStream("tail", { topic: name }, 25_000);
  let skipped = 0;
  return {
    take(data) {
      if (paused) {
        skipped += data.messages.length + data.skipped;
        note.textContent = `Paused, ${skipped} messages passed.`;
        return;
      }
      if (data.skipped) skipped += data.skipped;
      for (const message of data.messages) list.prepend(messageRow(message));
      while (list.children.length > KEPT) list.lastChild.remove();
      if (list.children.length) note.textContent = skipped ? `${skipped} messages were left out.` : "Newest first.";
    },
  };
}

export function open(root, { openStream, rest }) {
  return rest[0] ? openTopic(root, openStream, rest[0]) : openList(root, openStream);
}
