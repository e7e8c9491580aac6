"""Write TypeScript declarations of declared channels, for clients with phoenix.js.

Messages to browsers have all their fields; fields of pushes with a default may be left out. A class that is
used in both directions has two interfaces if that makes a difference.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping
from typing import Any, Final

import attrs

from tangram.declared.asyncapi import channel_names
from tangram.declared.binding import return_type
from tangram.declared.channel import DeclaredChannel
from tangram.errors import PluginError
from tangram.routing.schema import Schema, SchemaWriter

__all__ = ["typescript"]

HEAD: Final = """\
// Written by `tangram types`: the declared channels of the server's plugins.

/** The response of an error reply. */
export interface PushError {
  reason: string;
  id?: string;
  status?: number;
  detail?: { loc: (string | number)[]; msg: string; type: string }[];
}

/** A push whose reply has a known type; as `Push` of phoenix.js. */
export interface TypedPush<Reply> {
  receive(status: "ok", callback: (response: Reply) => void): this;
  receive(status: "error", callback: (response: PushError) => void): this;
  receive(status: "timeout", callback: () => void): this;
}

/** A channel whose messages and pushes have known types; as `Channel` of phoenix.js. */
export interface TypedChannel<
  Events extends object,
  Pushes extends { [Event in keyof Pushes]: { message: unknown; reply: unknown } },
> {
  readonly topic: string;
  join(timeout?: number): TypedPush<{ id: string; recovered?: boolean; position?: string }>;
  leave(timeout?: number): TypedPush<unknown>;
  on<Event extends keyof Events & string>(event: Event, callback: (message: Events[Event]) => void): number;
  off(event: keyof Events & string, ref?: number): void;
  push<Event extends keyof Pushes & string>(
    event: Event,
    message: Pushes[Event]["message"],
    timeout?: number,
  ): TypedPush<Pushes[Event]["reply"]>;
  onClose(callback: () => void): number;
  onError(callback: (reason?: unknown) => void): number;
}

/** A channel that no plugin has declared. */
export type UndeclaredChannel = TypedChannel<
  Record<string, any>,
  Record<string, { message: any; reply: any }>
>;

/** A socket of phoenix.js that knows the channels: `new Socket(url) as unknown as TypedSocket`. */
export interface TypedSocket {
  connect(): void;
  disconnect(callback?: () => void, code?: number, reason?: string): void;
  channel<Topic extends string>(topic: Topic, params?: object | (() => object)): ChannelOf<Topic>;
}
"""
WORD: Final = re.compile(r"[A-Za-z_$][A-Za-z0-9_$]*")
_SCALARS: Final = {
    "string": "string",
    "number": "number",
    "integer": "number",
    "boolean": "boolean",
    "null": "null",
}
_RESERVED: Final = frozenset(
    {"PushError", "TypedPush", "TypedChannel", "TypedSocket", "UndeclaredChannel", "ChannelOf", "Channels"}
)


def typescript(channels: Iterable[tuple[str, Iterable[DeclaredChannel]]]) -> str:
    """Return the declarations.

    Args:
        channels: pairs of a plugin's name and its channels.
    """
    sent, received = SchemaWriter(ref_prefix=""), SchemaWriter(ref_prefix="")
    described = [
        _Described.of(name, channel, sent, received) for name, (_, channel) in channel_names(channels).items()
    ]
    out, taken = _avoid_reserved(sent.finish()), _avoid_reserved(received.finish())
    inputs = _different(out, taken)
    interfaces = [_declare(name, schema, _Form(sent=True)) for name, schema in out.items()]
    for name, schema in taken.items():
        if name in inputs or name not in out:
            word = inputs.get(name, name)
            interfaces.append(_declare(word, schema, _Form(sent=False, names=inputs)))
    parts = [one.declare(inputs) for one in described]
    return "\n".join([HEAD, *interfaces, *parts, _choice(described), _channels(described)])


@attrs.frozen
class _Form:
    """A direction, and the other names of classes in it."""

    sent: bool
    names: Mapping[str, str] = attrs.Factory(dict)


@attrs.frozen
class _Described:
    """A channel with the schemas of its messages.

    Their references are complete once all schemas are written.
    """

    word: str
    channel: DeclaredChannel
    events: Mapping[str, Schema | None]
    """None stands for binary messages."""
    pushes: Mapping[str, tuple[Schema | None, Schema]]

    @classmethod
    def of(
        cls, name: str, channel: DeclaredChannel, sent: SchemaWriter, received: SchemaWriter
    ) -> _Described:
        events = {event: _schema(one.kind, sent) for event, one in channel.outgoing.items()}
        pushes = {
            event: (_schema(one.kind, received), _reply(return_type(one), sent))
            for event, one in channel.incoming.items()
        }
        word = "".join(part[:1].upper() + part[1:] for part in name.split("_"))
        return cls(f"Topic{word}" if word[:1].isdigit() else word, channel, events, pushes)

    def declare(self, inputs: Mapping[str, str]) -> str:
        """Return the interfaces of the channel."""
        word, out, taken = self.word, _Form(sent=True), _Form(sent=False, names=inputs)
        about = " ".join(self.channel.description.split()) or f"Topics {self.channel.template.text}"
        events = [f"  {_key(event)}: {_type_of(schema, out)};" for event, schema in self.events.items()]
        pushes = [
            f"  {_key(event)}: {{ message: {_type_of(message, taken)}; reply: {_type_of(reply, out)} }};"
            for event, (message, reply) in self.pushes.items()
        ]
        return "\n".join(
            [
                f"/** {_comment(about)}: messages to the browser. */",
                *_block(f"export interface {word}Events", events),
                "",
                "/** Pushes of the browser, with their replies. */",
                *_block(f"export interface {word}Pushes", pushes),
                "",
                f"export type {word}Channel = TypedChannel<{word}Events, {word}Pushes>;",
                "",
            ]
        )


def _block(head: str, lines: list[str]) -> list[str]:
    return [f"{head} {{", *lines, "}"] if lines else [f"{head} {{}}"]


def _schema(kind: Any, writer: SchemaWriter) -> Schema | None:
    return None if kind is bytes else writer.write(kind)


def _reply(kind: Any, writer: SchemaWriter) -> Schema:
    # A handler that returns None replies with an empty object.
    return {"type": "object", "properties": {}} if kind in (None, type(None)) else writer.write(kind)


def _choice(described: list[_Described]) -> str:
    """Return the type of the channel of a topic: names without parameters come first."""
    lines = [
        '/** The channel of a topic, for example `ChannelOf<"flights:eu">`. */',
        "export type ChannelOf<Topic extends string> =",
    ]
    for one in sorted(described, key=lambda one: bool(one.channel.template.names)):
        parts = re.split(r"\{[^{}]*\}", one.channel.template.text)
        pattern = "${string}".join(re.sub(r"([\\`$])", r"\\\1", part) for part in parts)
        lines.append(f"  Topic extends `{pattern}` ? {one.word}Channel :")
    return "\n".join([*lines, "  UndeclaredChannel;", ""])


def _channels(described: list[_Described]) -> str:
    """Return the interface of all channels by the texts of their topics, for tangram-channels."""
    lines = [
        f"  {_key(one.channel.template.text)}: {{ events: {one.word}Events; pushes: {one.word}Pushes }};"
        for one in described
    ]
    about = "/** All declared channels, for `connect<Channels>()` of tangram-channels. */"
    return "\n".join([about, *_block("export interface Channels", lines), ""])


def _avoid_reserved(definitions: Mapping[str, Schema]) -> dict[str, Schema]:
    if found := sorted(_RESERVED & definitions.keys()):
        raise PluginError(
            f"a message's class is called {found[0]!r}, as a type of these declarations: rename it"
        )
    return dict(definitions)


def _different(sent: Mapping[str, Schema], received: Mapping[str, Schema]) -> dict[str, str]:
    """Return the classes that need another interface for pushes, each with its name."""
    inputs: dict[str, str] = {}
    while True:
        form = _Form(sent=False, names=inputs)
        more = [
            name
            for name, schema in received.items()
            if name in sent
            and name not in inputs
            and _declare(name, schema, form) != _declare(name, sent[name], _Form(sent=True))
        ]
        if not more:
            return inputs
        inputs |= {name: f"{name}Input" for name in more}


def _declare(name: str, schema: Schema, form: _Form) -> str:
    """Return the interface, or the type, of a class."""
    about = (
        f"/** {_comment(' '.join(str(schema['description']).split()))} */\n"
        if "description" in schema
        else ""
    )
    if "properties" in schema:
        return about + "\n".join([*_block(f"export interface {name}", _fields(schema, form)), ""])
    return f"{about}export type {name} = {_type_of(schema, form)};\n"


def _fields(schema: Schema, form: _Form) -> list[str]:
    required = set(schema.get("required", ()))
    lines = []
    for name, field in schema["properties"].items():
        # A message of the server has the fields with a default as well.
        there = name in required or (form.sent and "default" in field)
        lines.append(f"  {_key(name)}{'' if there else '?'}: {_type_of(field, form)};")
    return lines


def _type_of(schema: Schema | None, form: _Form) -> str:  # noqa: PLR0911 - a line for each kind of schema
    if schema is None:
        return "ArrayBuffer"
    if "$ref" in schema:
        return form.names.get(schema["$ref"], schema["$ref"])
    if "const" in schema:
        return json.dumps(schema["const"])
    if "enum" in schema:
        return " | ".join(map(json.dumps, schema["enum"]))
    if "anyOf" in schema:
        return " | ".join(dict.fromkeys(_type_of(one, form) for one in schema["anyOf"]))
    match schema.get("type"):
        case "array":
            return _array(schema, form)
        case "object" if "properties" in schema:
            fields = _fields(schema, form)
            return f"{{ {' '.join(line.strip() for line in fields)} }}" if fields else "Record<string, never>"
        case "object":
            values = schema.get("additionalProperties", True)
            return f"Record<string, {_type_of(values, form) if isinstance(values, dict) else 'unknown'}>"
        case str(kind):
            return _SCALARS[kind]
        case _:
            return "unknown"


def _array(schema: Schema, form: _Form) -> str:
    if "prefixItems" in schema:
        return f"[{', '.join(_type_of(one, form) for one in schema['prefixItems'])}]"
    item = _type_of(schema.get("items", {}), form)
    return f"({item})[]" if " | " in item else f"{item}[]"


def _key(name: str) -> str:
    return name if WORD.fullmatch(name) else json.dumps(name)


def _comment(text: str) -> str:
    return text.replace("*/", "* /")
