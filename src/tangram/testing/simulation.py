"""Seeded simulation: a whole server on fakes and a virtual clock, and a script of faults drawn from a seed.

``python -m tangram.testing.simulation --seeds 500`` runs many; what fails prints its seed, and ``--seed N``
plays that one again.
"""

from __future__ import annotations

import argparse
import random
import sys
from collections.abc import Iterable, Sequence
from functools import partial
from typing import Any

import structlog
import trio
import trio.testing

from tangram.plugins import Plugin
from tangram.testing.campaign import UNLIMITED
from tangram.testing.catalogue import FAULTS, Chaos
from tangram.testing.invariants import InvariantBroken
from tangram.testing.server import CHEAP, open_tangram
from tangram.testing.steps import scheduled_from

__all__ = ["Script", "main", "play", "script_of", "simulate"]

Script = tuple[tuple[float, str], ...]
"""Seconds after the last one, and what strikes then."""

SIMULATED = sorted(name for name, one in FAULTS.items() if one.on == "anything")
"""All that does not need real time."""

LONGEST_PAUSE = 2.0
MOST_FAULTS = 6


class SimulationFailed(AssertionError):
    """A script broke something; the message has the seed."""


def script_of(seed: int) -> Script:
    """The script that a seed stands for."""
    rng = random.Random(seed)  # noqa: S311 - reproducible
    count = rng.randint(1, MOST_FAULTS)
    return tuple((round(rng.uniform(0, LONGEST_PAUSE), 3), rng.choice(SIMULATED)) for _ in range(count))


def play(
    script: Script, *, plugins: Iterable[Plugin | str] = (), seed: int = 0, strategy: str = "one_for_all"
) -> None:
    """Play one script; whatever it breaks is raised."""
    limits: dict[str, Any] = {"root_restarts": UNLIMITED, "plugin_restarts": UNLIMITED, "strategy": strategy}

    async def live() -> None:
        async with open_tangram(
            plugins, {"supervisor": limits}, fakes=True, checks=(*CHEAP, "comes_to_rest")
        ) as running:
            chaos = Chaos(running, seed=seed)
            for pause, name in script:
                await trio.sleep(pause)
                struck = await chaos.strike(name)
                if struck.outcome != "up":
                    raise InvariantBroken([])

    with scheduled_from(seed):
        trio.run(live, clock=trio.testing.MockClock(autojump_threshold=0))


def simulate(seed: int, *, plugins: Iterable[Plugin | str] = ()) -> None:
    """Play the script of a seed, under the strategy that the seed says.

    Raises:
        SimulationFailed: something broke.
    """
    script = script_of(seed)
    strategy = ("one_for_all", "rest_for_one", "one_for_one")[seed % 3]
    try:
        play(script, plugins=plugins, seed=seed, strategy=strategy)
    except Exception as error:
        raise SimulationFailed(f"seed {seed} ({strategy}, {script}): {error!r}") from error


def _plugin() -> Plugin:
    """A small plugin, so that plugin faults have something to strike."""
    plugin = Plugin()

    @plugin.register_service()
    async def beat(state: Any) -> None:
        while True:
            await state.publish("to:simulation:beat", b"{}")
            await trio.sleep(0.5)

    return plugin


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one seed, or many; status 1 if any broke something."""
    parser = argparse.ArgumentParser(prog="python -m tangram.testing.simulation", description=__doc__)
    parser.add_argument("--seed", type=int, help="play this one")
    parser.add_argument("--seeds", type=int, default=20, help="play so many, from 0")
    options = parser.parse_args(arguments)
    structlog.configure(processors=[_drop])
    run = partial(simulate, plugins=[_plugin()])
    failed = []
    for seed in [options.seed] if options.seed is not None else range(options.seeds):
        try:
            run(seed)
        except SimulationFailed as error:
            failed.append(seed)
            sys.stderr.write(f"{error}\n")
    sys.stdout.write(f"failed: {failed}\n" if failed else "all seeds held\n")
    return 1 if failed else 0


def _drop(_logger: Any, _method: str, _event: Any) -> Any:
    raise structlog.DropEvent


if __name__ == "__main__":
    sys.exit(main())
