"""A campaign: a configured server, faults drawn from a seed, and observing clients."""

from __future__ import annotations

import tempfile
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, Final

import attrs
import trio

from tangram.chaos.observers import KEPT, OBSERVED_INVARIANTS, Observations, open_observers
from tangram.config import LoadedConfig
from tangram.config.model import HistoryEntry
from tangram.errors import PluginError
from tangram.supervision import SupervisionEvent
from tangram.testing.checks.invariants import INVARIANTS, Broken, InvariantBroken, broken
from tangram.testing.faults.catalogue import FAULTS, Chaos, Struck, no_such_fault
from tangram.testing.injection.child_faults import NothingToStrike, StruckAlready
from tangram.testing.run.server import RunningTangram, open_tangram
from tangram.testing.run.setup import configure, load_given

__all__ = ["Campaign", "own_config", "run_campaign"]

REST: Final = (0.05, 0.3)
"""Seconds between two faults."""

REST_SECONDS: Final = 30.0
"""Seconds for everything to be up again at the end."""

LONGEST_BACKOFF: Final = 0.1
"""Seconds of the longest back-off, where no shorter one is configured."""

UNLIMITED: Final = 1_000_000
"""Restart budget: a campaign tests how the server heals, not when it gives up."""


@attrs.define
class Campaign:
    """The state and result of a campaign, from which the report is made."""

    seed: int
    began: float = 0.0
    ended: float = 0.0
    struck: list[Struck] = attrs.field(factory=list)
    skipped: dict[str, str] = attrs.field(factory=dict)
    """Faults that had no target or no turn, and why."""
    broken: list[Broken] = attrs.field(factory=list)
    events: list[SupervisionEvent] = attrs.field(factory=list)
    down: list[str] = attrs.field(factory=list)
    """Children that should run and do not, now."""
    now: str | None = None
    """The fault that strikes now."""
    interrupted: bool = False
    """Whether it was ended before its time."""
    seen: Observations = attrs.field(factory=Observations)
    """Observations of the clients beside the faults."""

    @property
    def passed(self) -> bool:
        """Return whether every invariant held, and at least one fault struck."""
        return not self.broken and bool(self.struck or self.interrupted)

    @property
    def restarts(self) -> Counter[str]:
        """Return the number of crashes, by child."""
        return Counter(event.child or "" for event in self.events if event.kind == "crashed")

    def to_dict(self) -> dict[str, Any]:
        """Return the campaign as plain values for JSON."""
        return {
            "seed": self.seed,
            "seconds": round(self.ended - self.began, 3),
            "passed": self.passed,
            "interrupted": self.interrupted,
            "faults": [
                attrs.asdict(attrs.evolve(one, at=round(one.at - self.began, 3), healed=round(one.healed, 3)))
                for one in self.struck
            ],
            "skipped": self.skipped,
            "restarts": dict(self.restarts),
            "connections": {"made": self.seen.connections, "refused": self.seen.refused},
            "messages": len(self.seen.messages),
            "recoveries": self.seen.recoveries,
            "invariants": {
                name: [one.message for one in self.broken if one.invariant == name] for name in INVARIANTS
            },
            "events": [
                {
                    "at": round(event.at - self.began, 4),
                    "kind": event.kind,
                    "supervisor": event.supervisor,
                    "child": event.child,
                    "path": list(event.path),
                    "incarnation": event.incarnation,
                    "cause": event.cause,
                }
                for event in self.events
            ],
        }


def own_config(loaded: LoadedConfig, folder: Path, *, history: bool = False) -> LoadedConfig:
    """Return the configuration with addresses, state and broker of the campaign's own.

    The observers know no certificate, so there is no TLS. Budgets are lifted and back-off is short, so that
    many faults fit into little time.

    Args:
        loaded: the operator's configuration; everything else of it stays.
        folder: for the state.
        history: whether a topic has a history, by the configuration or by a plugin. Then topics of the
            observers have one as well. A server without any is tested without: its broker keeps nothing.
    """
    config = loaded.config
    observed = (HistoryEntry(topics=KEPT),) if history or config.channel.history else ()
    server, limits = config.server, config.supervisor
    own = attrs.evolve(
        config,
        core=attrs.evolve(config.core, redis_url=None),
        server=attrs.evolve(
            server,
            host="127.0.0.1",
            port=0,
            state_dir=folder / "state",
            engine=server.effective_engine,
            tls_cert=None,
            tls_key=None,
        ),
        channel=attrs.evolve(
            config.channel,
            host=None,
            port=None,
            public_url=None,
            history=(*observed, *config.channel.history),
        ),
        broker=attrs.evolve(config.broker, port=0),
        supervisor=attrs.evolve(
            limits,
            root_restarts=UNLIMITED,
            plugin_restarts=UNLIMITED,
            backoff_initial=min(limits.backoff_initial, LONGEST_BACKOFF),
            backoff_max=min(limits.backoff_max, LONGEST_BACKOFF),
        ),
    )
    return loaded._replace(config=own)


async def run_campaign(
    plugins: Sequence[Any] = (),
    config: Mapping[str, Any] | LoadedConfig | None = None,
    *,
    seed: int = 0,
    duration: float = 10.0,
    faults: Sequence[str] = (),
    only: str | None = None,
    once: bool = False,
    fakes: bool = False,
    on_news: Callable[[Campaign], None] = lambda _campaign: None,
    until: Callable[[], Awaitable[object]] = trio.sleep_forever,
) -> Campaign:
    """Inject faults for ``duration`` seconds, and return which promises held.

    Args:
        plugins: as for ``open_tangram``.
        config: as for ``open_tangram``; see `own_config`.
        seed: of the order and times of faults.
        duration: seconds of the loop's clock.
        faults: names of `FAULTS`; all of them unless given.
        only: strike this plugin and nothing else.
        once: end as soon as each fault has struck once, or cannot strike.
        fakes: as for ``open_tangram``.
        on_news: called before and after each fault, and after each event.
        until: when it returns, the campaign ends early, in order.

    Raises:
        LookupError: there is no fault of that name, none that strikes a plugin alone, or no such
            plugin.
        PluginError: a plugin cannot be loaded, or does not start.
    """
    names = _chosen(faults, only)
    campaign = Campaign(seed, began=trio.current_time())
    try:
        async with _open_own(plugins, config, fakes=fakes) as running:
            _must_run(running, only)
            campaign.events = running.events

            def note(_event: SupervisionEvent) -> None:
                if not running.server.stopping:
                    campaign.down = running.missing()
                on_news(campaign)

            running.server.event_log.listen(note)
            async with open_observers(running, campaign.seen, seed=seed), trio.open_nursery() as nursery:
                with trio.CancelScope() as strikes:
                    nursery.start_soon(_end_early, until, campaign, strikes)
                    chaos = Chaos(running, seed=seed, plugin=only)
                    await _strike(chaos, campaign, names, duration, on_news, once=once)
                await _come_to_rest(running, campaign)
                await campaign.seen.wait_message_after_faults(running)
                nursery.cancel_scope.cancel()
            campaign.broken += broken(campaign.seen.evidence(running), OBSERVED_INVARIANTS)
    except InvariantBroken as error:
        campaign.broken += error.broken
    campaign.ended = trio.current_time()
    return campaign


@asynccontextmanager
async def _open_own(
    plugins: Sequence[Any], config: Mapping[str, Any] | LoadedConfig | None, *, fakes: bool
) -> AsyncIterator[RunningTangram]:
    with tempfile.TemporaryDirectory(prefix="tangram-chaos-") as folder:
        home = Path(folder)
        loaded = config if isinstance(config, LoadedConfig) else configure(config or {}, home)
        given = load_given(plugins, loaded.config.plugins)
        own = own_config(loaded, home, history=any(one.plugin.history for one in given.plugins))
        async with open_tangram(given, own, fakes=fakes, checks=tuple(INVARIANTS)) as running:
            yield running


def _must_run(running: RunningTangram, only: str | None) -> None:
    for event in running.events:
        if event.kind == "quarantined":
            name = (event.child or "").removeprefix("plugin:")
            raise PluginError(f"plugin {name!r} does not start: {event.cause}", plugin=name)
    plugins = [name.removeprefix("plugin:") for name in running.ports.names if name.startswith("plugin:")]
    if only is not None and only not in plugins:
        raise LookupError(f"no plugin {only!r} runs; expected one of {', '.join(plugins) or 'none'}")


async def _end_early(
    until: Callable[[], Awaitable[object]], campaign: Campaign, strikes: trio.CancelScope
) -> None:
    await until()
    campaign.interrupted = True
    strikes.cancel()


async def _come_to_rest(running: RunningTangram, campaign: Campaign) -> None:
    """Wait until the server is at rest.

    A fault that was cut short must be healed before anything is judged.
    """
    try:
        await running.wait_steady(seconds=REST_SECONDS)
    except AssertionError:
        campaign.broken.append(Broken("comes_to_rest", f"missing: {', '.join(running.missing())}"))
    campaign.now, campaign.down = None, running.missing()


def _chosen(faults: Sequence[str], only: str | None) -> list[str]:
    names = list(dict.fromkeys(faults)) or sorted(FAULTS)
    for name in names:
        if name not in FAULTS:
            raise LookupError(no_such_fault(name))
    chosen = [name for name in names if only is None or FAULTS[name].strikes_plugin]
    if not chosen:
        known = ", ".join(sorted(name for name, one in FAULTS.items() if one.strikes_plugin))
        raise LookupError(f"none of {', '.join(names)} strikes a plugin and nothing else; these do: {known}")
    return chosen


async def _strike(
    chaos: Chaos,
    campaign: Campaign,
    names: list[str],
    duration: float,
    on_news: Callable[[Campaign], None],
    *,
    once: bool,
) -> None:
    end = trio.current_time() + duration
    left: list[str] = []
    late: dict[str, str] = {}
    try:
        while trio.current_time() < end and len(campaign.skipped) < len(names):
            if not left:  # each once before any comes again
                left = chaos.rng.sample(names, len(names))
                if once:
                    done = {one.name for one in campaign.struck} | campaign.skipped.keys()
                    left = [name for name in left if name not in done]
                    if not left:
                        return
            name = left.pop()
            if name in campaign.skipped:
                continue
            campaign.now = name
            on_news(campaign)
            await _strike_one(chaos, campaign, name, late)
            campaign.now, campaign.down = None, chaos.tangram.missing()
            on_news(campaign)
            if chaos.tangram.ended:
                campaign.broken.append(Broken("comes_to_rest", f"{name} ended the server"))
                return
            await trio.sleep(chaos.rng.uniform(*REST))
    finally:
        # An operator who asked for a fault must not take its absence for a success.
        begun = {one.name for one in campaign.struck} | {campaign.now}
        for name in names:
            if name not in begun:
                campaign.skipped.setdefault(name, late.get(name, "the campaign was over before its turn"))


async def _strike_one(chaos: Chaos, campaign: Campaign, name: str, late: dict[str, str]) -> None:
    began, over = trio.current_time(), False
    try:
        campaign.struck.append(await chaos.strike(name))
        over = True
    except StruckAlready as error:  # it has another turn in the next round
        late[name], over = str(error), True
    except NothingToStrike as error:
        campaign.skipped[name], over = str(error), True
    except InvariantBroken as error:
        campaign.broken += error.broken
        over = True
        campaign.struck.append(Struck(name, began, trio.current_time() - began, "broken"))
    finally:
        if not over:
            campaign.struck.append(Struck(name, began, trio.current_time() - began, "interrupted"))
