"""The examples of ``docs/channels.md`` run as they are."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from trio.testing import MockClock

from tangram.channels.disconnects import (
    BUSY,
    HANDLER_FAILED,
    HANDLER_TIMEOUT,
    INVALID,
    QUARANTINED,
    RESTARTING,
    STOPPED,
    UNAVAILABLE,
)
from tangram.declared.channel import REPLY_TIMEOUT
from tangram.declared.lanes import MAX_UNANSWERED, MAX_WAITING
from tangram.declared.pool import MAX_TASKS, THREADS

PAGE = (Path(__file__).parents[2] / "docs" / "channels.md").read_text()


async def test_the_examples_of_the_page_run(autojump_clock: MockClock) -> None:
    """The plugin of the page passes the test of the page."""
    names: dict[str, Any] = {"__name__": "example"}
    for example in re.findall(r"^```python\n(.*?)^```", PAGE, flags=re.MULTILINE | re.DOTALL):
        exec(compile(example, "docs/channels.md", "exec", dont_inherit=True), names)

    await names["test_select"](autojump_clock)


def test_the_page_names_the_bounds_and_reasons_of_the_code() -> None:
    """Numbers and reasons on the page are those of the code."""
    for refusal in (
        BUSY,
        HANDLER_FAILED,
        HANDLER_TIMEOUT,
        INVALID,
        QUARANTINED,
        RESTARTING,
        STOPPED,
        UNAVAILABLE,
    ):
        assert f'"reason": "{refusal.reason}"' in PAGE
    for text in (
        f"reply_timeout={REPLY_TIMEOUT}",
        f"While {MAX_UNANSWERED} pushes",
        f"with {MAX_WAITING:,} waiting pushes",
        f"{MAX_TASKS} of a plugin at most, of which {THREADS} in threads",
    ):
        assert text in PAGE
