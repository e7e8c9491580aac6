from __future__ import annotations

from tangram.channels.hub import Publication
from tangram.channels.streaming import StreamWatch

LEAVE = Publication("from:system:leave-streaming", b'{"connectionId":"a"}')
JOIN = Publication("from:system:join-streaming", b'{"connectionId":"a"}')


def test_a_vanished_browser_is_announced_after_the_grace_time() -> None:
    """A stream without members for the grace time ends once; other topics are ignored."""
    watch = StreamWatch(grace=10)

    assert watch.compare(["streaming-a", "system"], 0.0) == []
    assert watch.compare([], 1.0) == []
    assert watch.compare([], 10.9) == []
    assert watch.compare([], 11.0) == [LEAVE]
    assert watch.compare([], 100.0) == []


def test_a_short_absence_is_not_announced() -> None:
    """A browser that returns within the grace time causes no announcement."""
    watch = StreamWatch(grace=10)
    watch.compare(["streaming-a"], 0.0)
    watch.compare([], 1.0)

    assert watch.compare(["streaming-a"], 5.0) == []
    assert watch.compare(["streaming-a"], 20.0) == []


def test_a_return_is_announced() -> None:
    """The browser sends join-streaming only once, so its return is announced for it."""
    watch = StreamWatch(grace=10)
    watch.compare(["streaming-a"], 0.0)
    watch.compare([], 1.0)
    watch.compare([], 11.0)

    assert watch.compare(["streaming-a"], 12.0) == [JOIN]
    assert watch.compare(["streaming-a"], 13.0) == []
