// Topics with their traffic; the kept messages and the live tail of one, and a form to publish.

import { change } from "./api.js";
import { bytes, clock, count, h, show, span, write } from "./dom.js";
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
    h("th", { scope: "row" }, h("a", { href: addressOf(topic.topic) }, topic.topic)),
    h("td", { "data-label": "members" }, count(topic.members)),
    h("td", { "data-label": "messages/s" }, topic.rate),
    h("td", { "data-label": "sent/s" }, topic.sent),
    h("td", { "data-label": "backlog" }, bytes(topic.backlog)),
  );
}

function addressOf(topic) {
  return `#/topics/${encodeURIComponent(topic)}`;
}

function words({ mode, size, ttl }) {
  const what = mode === "latest" ? `the newest message of each of ${count(size)} events` : size === 1 ? "the last message" : `the last ${count(size)} messages`;
  return `${what}, for ${span(ttl)}`;
}

/** A form that opens a topic by its name, also one without members, and the patterns with a history. */
function finder() {
  const name = h("input", { id: "topic", required: true, autocapitalize: "off", spellcheck: "false" });
  const find = (submitted) => {
    submitted.preventDefault();
    location.hash = addressOf(name.value);
  };
  const begin = (pattern) => {
    name.value = pattern.slice(0, pattern.indexOf("*"));
    name.focus();
  };
  const pattern = (one) =>
    h(
      "li",
      { class: "line" },
      one.pattern.includes("*")
        ? h("button", { type: "button", class: "quiet", onclick: () => begin(one.pattern) }, one.pattern)
        : h("a", { href: addressOf(one.pattern) }, one.pattern),
      h("span", { class: "note" }, words(one)),
    );
  const list = h("ul", { class: "plain" });
  const histories = h("section", { class: "card stack", hidden: true }, h("h3", {}, "Topics with a history"), list);
  const form = h(
    "form",
    { class: "card", onsubmit: find, "aria-label": "Open a topic" },
    h("label", { for: "topic" }, "Topic, also one without members"),
    h("div", { class: "line" }, name, h("button", { type: "submit" }, "Open")),
  );
  return {
    parts: [form, histories],
    take(listed) {
      histories.hidden = listed.length === 0;
      show(list, listed, (one) => one.pattern, pattern);
    },
  };
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
  const others = finder();
  root.append(note, table, ...others.parts);
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
      others.take(data.histories);
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
    message.time ? h("time", {}, clock(message.time)) : null,
    h("b", {}, message.event),
    h("code", {}, text.length > 400 ? `${text.slice(0, 400)}…` : text),
  );
}

/** The messages that the history of a topic keeps. */
function keeper(name) {
  const note = h("p", { class: "note" });
  const list = h("ol", { class: "card plain tail kept", "aria-label": `Kept messages of ${name}`, tabindex: "0" });
  const part = h("section", { class: "stack", hidden: true }, h("h3", {}, "Kept before"), note, list);
  return {
    part,
    take(history) {
      part.hidden = history === null;
      if (history === null) return;
      const { failed, messages = [], position, reason } = history;
      list.replaceChildren(...messages.map(messageRow).reverse());
      list.hidden = messages.length === 0;
      const found = messages.length ? `${messages.length} are shown, the newest first.` : "None is kept now.";
      const seen = reason === "too_much" ? "The newest ones are too large to be shown." : found;
      write(note, failed ? `The history cannot be read: ${failed}` : `The history keeps ${words(history)}. ${seen} Position: ${position}`);
    },
  };
}

function openTopic(root, openStream, name) {
  let paused = false;
  const list = h("ol", { class: "card plain tail", "aria-label": `Messages of ${name}`, tabindex: "0" });
  const note = h("p", { class: "note" }, "Waiting for a message.");
  const kept = keeper(name);
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
    kept.part,
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
      if (data.history !== undefined) {
        kept.take(data.history);
        if (!list.children.length) write(note, waiting(data.members));
      }
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

function waiting(members) {
  const joined = members === 1 ? "1 member" : `${count(members)} members`;
  return `Waiting for a message; ${members ? joined : "no member"} on this server.`;
}

export function open(root, { openStream, rest }) {
  return rest[0] ? openTopic(root, openStream, rest[0]) : openList(root, openStream);
}
