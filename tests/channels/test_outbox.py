from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from tangram.channels.disconnects import IDLE, OVERLOAD, SHUTDOWN
from tangram.channels.frames import TEXT, Encoded, Run
from tangram.channels.outbox import Outbox


def item(size: int, key: str | None = None) -> Encoded:
    return Encoded(TEXT, b"x" * size, key=key)


def open_box(max_backlog: int) -> tuple[Outbox, list[int]]:
    rings: list[int] = []
    return Outbox(lambda: rings.append(1), max_backlog=max_backlog), rings


def test_everything_is_taken_at_once_in_order() -> None:
    """The whole backlog is returned at once, and the owner was woken once."""
    outbox, rings = open_box(1000)
    items = [item(10), item(20), item(30)]
    for one in items:
        outbox.put(one)

    assert outbox.take_all() == items
    assert rings == [1]
    assert outbox.pending == 60


def test_one_message_of_any_size_goes_to_an_empty_outbox() -> None:
    """The bound lies behind the first message."""
    outbox, _ = open_box(100)
    outbox.put(item(1_000_000))
    outbox.put(item(100))

    assert outbox.disconnect is None


def test_an_overflow_closes_with_overload() -> None:
    """One byte over the bound closes the connection, and frees the waiting messages."""
    outbox, rings = open_box(100)
    outbox.put(item(10))
    outbox.put(item(100))
    outbox.put(item(1))

    assert outbox.disconnect == OVERLOAD
    assert outbox.take_all() == []
    assert len(rings) == 2


def test_bytes_taken_but_not_written_still_count() -> None:
    """A transport that takes and cannot write makes no room."""
    outbox, _ = open_box(100)
    outbox.put(item(10))
    outbox.take_all()
    outbox.put(item(100))
    outbox.put(item(1))

    assert outbox.disconnect == OVERLOAD


def test_written_bytes_make_room() -> None:
    """Once everything is written the bound starts anew."""
    outbox, _ = open_box(100)
    outbox.put(item(500))
    outbox.put(item(100))
    outbox.take_all()
    outbox.written(600)
    outbox.put(item(700))

    assert outbox.disconnect is None
    assert outbox.pending == 700


def test_a_run_counts_as_put_does() -> None:
    """A run that fits is added whole; another closes at the same message as single puts."""
    outbox, rings = open_box(100)
    outbox.put_run(Run([item(60), item(60), item(40)]))

    assert outbox.disconnect is None
    assert rings == [1]

    outbox.put_run(Run([item(1)]))
    assert outbox.disconnect == OVERLOAD


def test_an_empty_outbox_returns_the_shared_run() -> None:
    """The shared run itself is returned, and the owner is woken after it is added."""
    held: list[int] = []
    outbox = Outbox(lambda: held.append(outbox.pending), max_backlog=100)
    run = Run([item(10), item(20)])
    outbox.put_run(run)

    assert outbox.take_all() is run
    assert held == [30]


def test_a_shared_run_is_never_changed() -> None:
    """Messages behind a run, or in place of one of its messages, do not change the shared run."""
    outbox, _ = open_box(1000)
    run = Run([item(10), item(20)])
    outbox.put_run(run)
    outbox.put(item(5, "k"))
    outbox.put_run(run)
    outbox.put(item(6, "k"))

    assert [len(one.data) for one in outbox.take_all()] == [10, 20, 6, 10, 20]
    assert [len(one.data) for one in run] == [10, 20]
    assert outbox.pending == 66


def test_an_exempt_message_widens_the_bound() -> None:
    """The presence state of a join widens the bound by its own size, and by no more."""
    outbox, _ = open_box(100)
    outbox.put(item(10))
    outbox.put_exempt(item(5000))
    outbox.put(item(100))
    assert outbox.disconnect is None

    outbox.put(item(1))
    assert outbox.disconnect == OVERLOAD


def test_few_messages_are_exempt_at_a_time() -> None:
    """A client that does not read cannot pile up presence states."""
    outbox = Outbox(lambda: None, max_backlog=100, max_exempt=2)
    outbox.put(item(10))
    for _ in range(2):
        outbox.put_exempt(item(5000))
    outbox.written(outbox.pending)
    outbox.put(item(10))
    for _ in range(2):
        outbox.put_exempt(item(5000))
    assert outbox.disconnect is None

    outbox.put_exempt(item(5000))
    assert outbox.disconnect == OVERLOAD


def test_only_the_newest_of_a_key_is_kept() -> None:
    """In a backlog a message replaces the one of its key that still waits."""
    outbox, _ = open_box(100)
    newest = item(30, "k")
    outbox.put(item(10, "k"))
    outbox.put(item(20))
    outbox.put(newest)

    assert [len(one.data) for one in outbox.take_all()] == [30, 20]
    assert outbox.conflated == 1
    assert outbox.pending == 50


def test_a_taken_message_is_not_replaced() -> None:
    """A newer message of a key waits behind one that the transport has taken."""
    outbox, _ = open_box(100)
    outbox.put(item(10, "k"))
    outbox.take_all()
    outbox.put(item(10, "k"))

    assert len(outbox.take_all()) == 1
    assert outbox.pending == 20


def test_the_first_reason_to_close_stays() -> None:
    """A closed outbox takes nothing, returns its messages, and keeps its first reason."""
    outbox, _ = open_box(100)
    outbox.put(item(10))
    outbox.close(IDLE)
    outbox.close(SHUTDOWN)
    outbox.put(item(10))
    outbox.put_run(Run([item(10)]))

    assert outbox.statistics().disconnect == IDLE
    assert len(outbox.take_all()) == 1


@given(
    st.lists(
        st.tuples(
            st.sampled_from(["put", "many", "take", "write"]),
            st.integers(1, 80),
            st.sampled_from([None, "a", "b"]),
        )
    )
)
def test_the_backlog_is_bounded(steps: list[tuple[str, int, str | None]]) -> None:
    """The bound holds under any steps, and the count equals the waiting bytes."""
    outbox, _ = open_box(100)
    taken = 0
    for step, size, key in steps:
        if step == "put":
            outbox.put(item(size, key))
        elif step == "many":
            outbox.put_run(Run([item(size), item(size)]))
        elif step == "take":
            taken += sum(len(one.data) for one in outbox.take_all())
        else:
            outbox.written(taken)
            taken = 0

        assert outbox.pending <= 100 + 80
        if outbox.disconnect is None:
            assert outbox.pending == taken + sum(len(one.data) for one in outbox._items)
