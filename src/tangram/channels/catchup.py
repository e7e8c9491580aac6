"""The messages that members missed, encoded once for all of them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Final, TypeAlias

import attrs

from tangram.channels import codec
from tangram.channels.frames import MAX_FIELD, Encoded, Run
from tangram.channels.json_text import is_document
from tangram.channels.serializers import BroadcastHeader, Serializer

__all__ = ["POSITION_EVENT", "REPLY_ROOM", "Catchup", "Form", "encode_position"]

POSITION_EVENT: Final = "tangram:position"
REPLY_ROOM: Final = 1024
"""Bytes for the reply of a join before the messages that were missed."""

Form: TypeAlias = tuple[Serializer, str | None, bool]
"""A serializer, the ``join_ref`` of broadcasts or None, and whether positions are sent."""


def encode_position(topic: str, form: Form, position: bytes) -> Encoded:
    """Return the event that tells a member the position behind the messages so far."""
    serializer, join_ref, _ = form
    return serializer.encode_text(join_ref, None, topic, POSITION_EVENT, position)


@attrs.define(eq=False)
class Catchup:
    """The messages that members missed."""

    response: Mapping[str, object]
    """The fields of the join's reply."""
    events: Sequence[tuple[str, bytes]]
    """Events and payloads, sent behind the reply."""
    position: str
    """The position behind the events."""
    follows: bool = True
    """Whether further positions come."""
    _runs: dict[Form, Run] = attrs.Factory(dict)

    def encode(self, topic: str, form: Form) -> Run:
        """Return the events and the position behind them; the result is kept for the next member."""
        run = self._runs.get(form)
        if run is None:
            items = self._encode_events(topic, form)
            if items:
                items.append(encode_position(topic, form, codec.encode_json({"at": self.position})))
            run = self._runs[form] = Run(items)
        return run

    def _encode_events(self, topic: str, form: Form) -> list[Encoded]:
        serializer, join_ref, _ = form
        headers: dict[str, BroadcastHeader] = {}
        items = []
        for event, payload in self.events:
            header = headers.get(event)
            if header is None:
                header = headers[event] = serializer.broadcast_header(topic, event, join_ref)
            document = is_document(payload)
            if document or len(event.encode()) <= MAX_FIELD:
                item = header.encode(payload, None, document=document)
                if item is not None:
                    items.append(item)
        return items
