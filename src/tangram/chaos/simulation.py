"""Seeded simulation: a server on fakes and a virtual clock, and a script of faults.

The script is drawn from a seed.

``python -m tangram.chaos.simulation --seeds 500`` plays many seeds on all cores; a failure prints its
seed and script. ``--seed N`` plays one again, ``--shrink`` finds the shortest part of it that still
fails, and ``--script "0.1 crash_bus, 0 crash_web+slow_browser"`` plays the given script. At the end it
lists the abilities of supervision that no run reached.
"""

from __future__ import annotations

import argparse
import random
import sys
from collections.abc import Callable, Iterable, Sequence
from functools import partial
from importlib import import_module
from typing import Any, Final, get_args

import attrs
import trio
import trio.testing

from tangram.chaos.campaign import UNLIMITED
from tangram.chaos.observers import KEPT, OBSERVED_INVARIANTS, Observations, open_observers
from tangram.plugins import Plugin
from tangram.supervision import SupervisionEvent
from tangram.supervision.spec import Strategy
from tangram.testing.checks.invariants import Evidence, InvariantBroken, broken, check
from tangram.testing.checks.log_records import quiet
from tangram.testing.checks.sometimes import SUPERVISION, Reached, collecting, observe, sometimes
from tangram.testing.faults.catalogue import FAULTS, Chaos
from tangram.testing.faults.catalogue.base import gave_up
from tangram.testing.faults.steps import scheduled_from
from tangram.testing.injection.child_faults import NothingToStrike
from tangram.testing.run.server import CHEAP, TangramEnded, open_tangram
from tangram.testing.run.workers import cores, in_processes

__all__ = [
    "EXPECTED",
    "SIMULATED",
    "Script",
    "SimulationFailed",
    "main",
    "play",
    "script_from",
    "script_of",
    "setting_of",
    "shrink",
    "simulate",
    "simulate_many",
    "written",
]

Script = tuple[tuple[float, str], ...]
"""Steps of a script: seconds after the last step, and the name of a fault, or two names with a plus
between them.
"""

SIMULATED: Final = sorted(name for name, one in FAULTS.items() if one.on == "anything")
"""Faults that do not need real time."""

LONGEST_PAUSE: Final = 2.0
MOST_FAULTS: Final = 6
STORM: Final = 10
"""Crashes in a row that reach the longest back-off: 50 ms doubled to 5 s takes eight."""
CRASHES: Final = ("crash_bus", "crash_channels", "crash_plugin", "crash_web")

BESIDE: Final = (*CRASHES, "browser_reset", "browser_half_frame", "slow_browser", "upgrade_with_extra_byte")
"""Faults that may strike together with a crash.

These are crashes, of which each counts, and faults without a promise that a crash would break.
"""

CHECKS: Final = (*CHEAP, "comes_to_rest")
"""Invariants judged when the server has ended; those of the observers are judged before."""

FORGIVEN: Final = frozenset({"ends_as_promised", "faults_are_counted"})
"""Invariants that a server cannot keep when it gives up in the middle of a fault.

After a quarantine nothing is forgiven.
"""

LOOK_EVERY: Final = 0.1
"""Virtual seconds between two connections, and between two messages, of the observers."""

EXPECTED: Final[tuple[str, ...]] = (
    *SUPERVISION,
    "two faults at once",
    "a browser got messages",
    "a client that does not read was closed",
    "a client recovered",
    "a client was told of a gap",
    *(f"fault: {name}" for name in SIMULATED),
)
"""Names that 500 seeds have to reach."""


class SimulationFailed(AssertionError):
    """A script broke a promise; the message has the seed and the script."""


def script_of(seed: int) -> Script:
    """Return the script of a seed: a few faults, sometimes two at once, or a storm of one."""
    rng = random.Random(seed)  # noqa: S311 - reproducible
    if rng.random() < 0.1:
        name = rng.choice(CRASHES)
        return tuple((round(rng.uniform(0, 0.2), 3), name) for _ in range(STORM))
    return tuple(
        (round(rng.uniform(0, LONGEST_PAUSE), 3), _drawn(rng)) for _ in range(rng.randint(1, MOST_FAULTS))
    )


def _drawn(rng: random.Random) -> str:
    if rng.random() < 0.1:
        return f"{rng.choice(CRASHES)}+{rng.choice(BESIDE)}"
    return rng.choice(SIMULATED)


def written(script: Script) -> str:
    """Return a script in the notation of ``--script``."""
    return ", ".join(f"{pause:g} {name}" for pause, name in script)


def script_from(text: str) -> Script:
    """Parse a script in the notation of ``--script``.

    Raises:
        ValueError: it is invalid; the message says where.
    """
    script = []
    for part in filter(None, (part.strip() for part in text.split(","))):
        pause, _, name = part.partition(" ")
        unknown = [one for one in name.split("+") if one not in FAULTS]
        try:
            seconds = float(pause)
        except ValueError:
            seconds = -1.0
        if seconds < 0 or unknown:
            raise ValueError(
                f"{part!r} is no step of a script; expected seconds and a fault, as '0.5 crash_bus'"
            )
        script.append((seconds, name))
    return tuple(script)


@attrs.frozen
class Setting:
    """The limits under which a script is played."""

    strategy: Strategy = "one_for_all"
    limited: bool = False
    """Whether the usual budgets hold, so that plugins are quarantined and the root gives up."""
    history: bool = False
    """Whether topics have a history, and clients recover."""


def setting_of(seed: int) -> Setting:
    """Return the setting of a seed.

    Each strategy has its turn, a third of the seeds has the usual budgets, and a quarter has histories.
    """
    strategies = get_args(Strategy)
    turn = seed // len(strategies)
    return Setting(strategies[seed % len(strategies)], limited=turn % 3 == 2, history=turn // 3 % 4 == 1)


def play(
    script: Script,
    *,
    plugins: Iterable[Plugin | str] = (),
    seed: int = 0,
    strategy: str = "one_for_all",
    limited: bool = False,
    history: bool = False,
) -> list[SupervisionEvent]:
    """Play one script and return the events; every broken promise is raised.

    Args:
        script: the steps.
        plugins: as for ``open_tangram``.
        seed: of the order of tasks, and of all jitter.
        strategy: of ``[supervisor]``.
        limited: keep the usual restart budgets.
        history: keep the messages of two topics, which clients that recover read.
    """
    kept = [{"topics": KEPT}] if history else []
    limits: dict[str, Any] = {"strategy": strategy}
    if not limited:
        limits |= {"root_restarts": UNLIMITED, "plugin_restarts": UNLIMITED}
    events: list[SupervisionEvent] = []

    async def live() -> None:
        async with open_tangram(
            plugins,
            {"supervisor": limits, "channel": {"history": kept}},
            fakes=True,
            memory_port=True,
            seed=seed,
            checks=CHECKS,
        ) as running:
            nonlocal events
            events = running.events
            seen = Observations()
            async with open_observers(running, seen, every=LOOK_EVERY, seed=seed):
                await _play_to(Chaos(running, seed=seed), script, limited=limited)
                await seen.wait_message_after_faults(running)
            check(seen.evidence(running), OBSERVED_INVARIANTS)
            sometimes("a client that does not read was closed", seen.sent_away > 0)
            sometimes("a browser got messages", len(seen.messages) > 0)
            sometimes("a client recovered", any(log.recovered for log in seen.kept.values()))
            sometimes("a client was told of a gap", any(log.told for log in seen.kept.values()))

    with scheduled_from(seed):
        try:
            trio.run(live, clock=trio.testing.MockClock(autojump_threshold=0))
        except TangramEnded:
            if not limited:
                raise
    observe(events)
    return events


async def _play_to(chaos: Chaos, script: Script, *, limited: bool) -> None:
    for pause, name in script:
        await trio.sleep(pause)
        names = name.split("+")
        sometimes("two faults at once", len(names) > 1)
        outcome = await _struck(chaos, names, limited=limited)
        if outcome == "ended":
            return
        if outcome != "up" and not limited:
            seen = Evidence(steady=False, missing=chaos.tangram.missing())
            raise InvariantBroken(broken(seen, ["comes_to_rest"]))


async def _struck(chaos: Chaos, names: Sequence[str], *, limited: bool) -> str:
    tangram = chaos.tangram
    try:
        outcome = (await chaos.strike(*names)).outcome
    except (NothingToStrike, InvariantBroken) as error:
        if not (limited and _may_be_missed(error, tangram.events)):
            raise
        # Its target may be in quarantine, or the server at its end. Otherwise the error stands.
        outcome = await tangram.wait_steady()
        if outcome == "up":
            raise
        return outcome
    for name in names:
        sometimes(f"fault: {name}")
    return outcome


def _may_be_missed(error: NothingToStrike | InvariantBroken, events: Sequence[SupervisionEvent]) -> bool:
    """Return whether a spent budget explains a failed fault.

    Its target may be in quarantine, or the server may have given up before the fault could end as
    promised.
    """
    if isinstance(error, NothingToStrike):
        return True
    return gave_up(events) and all(one.invariant in FORGIVEN for one in error.broken)


def simulate(seed: int, *, plugins: Iterable[Plugin | str] = ()) -> list[SupervisionEvent]:
    """Play the script of a seed under the setting of the seed, and return the events.

    Args:
        seed: of script, setting and jitter.
        plugins: as for ``open_tangram``.

    Raises:
        SimulationFailed: a promise was broken.
    """
    script, setting = script_of(seed), setting_of(seed)
    try:
        return play(script, plugins=plugins, seed=seed, **attrs.asdict(setting))
    except Exception as error:
        raise SimulationFailed(f"seed {seed} ({setting}), script {written(script)!r}: {error!r}") from error


def shrink(script: Script, fails: Callable[[Script], bool]) -> Script:
    """Return the shortest part of a script that still fails; needs hypothesis.

    Args:
        script: one that fails.
        fails: plays a script, and returns whether it broke a promise.
    """
    from hypothesis import HealthCheck, Phase, find, settings
    from hypothesis import strategies as st

    # One flag for each step, so that the simplest choice leaves all of them out.
    keep = st.tuples(*(st.booleans() for _ in script))

    def kept(choice: Sequence[bool]) -> Script:
        return tuple(step for step, stays in zip(script, choice, strict=True) if stays)

    quick = settings(
        database=None,
        deadline=None,
        max_examples=200,
        phases=[Phase.explicit, Phase.generate, Phase.shrink],
        suppress_health_check=list(HealthCheck),
    )
    return kept(find(keep, lambda choice: fails(kept(choice)), settings=quick, random=random.Random(0)))  # noqa: S311 - not used for secrets


@attrs.define
class Outcome:
    """The result of many seeds."""

    failed: dict[int, str] = attrs.field(factory=dict)
    """Messages, by seed."""
    reached: Reached = attrs.field(factory=Reached)


def simulate_many(seeds: Sequence[int], *, jobs: int = 1) -> Outcome:
    """Play many seeds with a small plugin.

    Args:
        seeds: to play.
        jobs: number of processes that share them.
    """
    if jobs > 1:
        shares = in_processes([partial(simulate_many, seeds[number::jobs]) for number in range(jobs)])
    else:
        shares = [_play_share(seeds)]
    whole = Outcome()
    whole.reached.expect(EXPECTED)
    for share in shares:
        whole.failed |= share.failed
        whole.reached.merge(share.reached)
    return whole


def _play_share(seeds: Sequence[int]) -> Outcome:
    outcome = Outcome()
    with quiet(), collecting() as outcome.reached:
        for seed in seeds:
            try:
                simulate(seed, plugins=[_plugin()])
            except SimulationFailed as error:
                outcome.failed[seed] = str(error)
    return outcome


def _plugin() -> Plugin:
    """Return a small plugin, as a target for faults of plugins."""
    plugin = Plugin()

    @plugin.register_service()
    async def beat(state: Any) -> None:
        while True:
            await state.publish("to:simulation:beat", b"{}")
            await trio.sleep(0.5)

    return plugin


def main(arguments: Sequence[str] | None = None) -> int:
    """Play one seed, one script, or many seeds; return 1 if one broke a promise."""
    parser = argparse.ArgumentParser(prog="python -m tangram.chaos.simulation", description=__doc__)
    parser.add_argument("--seed", type=int, help="play this one")
    parser.add_argument("--seeds", type=int, default=20, help="play so many, from 0")
    parser.add_argument("--script", help="play this script, in the setting of --seed")
    parser.add_argument("--shrink", action="store_true", help="find the shortest part that still fails")
    parser.add_argument("--jobs", type=int, default=cores(), help="processes for many seeds (one a core)")
    options = parser.parse_args(arguments)
    if options.seed is None and options.script is None:
        return _print_many(simulate_many(range(options.seeds), jobs=min(options.jobs, options.seeds)))
    seed = options.seed or 0
    try:
        script = script_of(seed) if options.script is None else script_from(options.script)
    except ValueError as error:
        parser.error(str(error))
    with quiet():
        return _print_one(seed, script, shorten=options.shrink)


def _print_one(seed: int, script: Script, *, shorten: bool) -> int:
    fault = _failure(seed, script)
    if fault is None:
        sys.stdout.write("it held\n")
        return 0
    sys.stderr.write(f"{written(script)!r} broke: {fault!r}\n")
    if shorten:
        least = shrink(script, lambda part: _failure(seed, part) is not None)
        sys.stderr.write(f"shortest: --seed {seed} --script {written(least)!r}\n")
    return 1


def _failure(seed: int, script: Script) -> Exception | None:
    try:
        play(script, plugins=[_plugin()], seed=seed, **attrs.asdict(setting_of(seed)))
    except Exception as error:  # noqa: BLE001 - every exception is a failure of the script
        return error
    return None


def _print_many(outcome: Outcome) -> int:
    for why in outcome.failed.values():
        sys.stderr.write(f"{why}\n")
    sys.stdout.write(f"{outcome.reached}\n")
    sys.stdout.write(f"failed: {sorted(outcome.failed)}\n" if outcome.failed else "all seeds held\n")
    return 1 if outcome.failed else 0


if __name__ == "__main__":
    # Imported by name, because worker processes unpickle functions of this module by its name.
    sys.exit(import_module("tangram.chaos.simulation").main())
