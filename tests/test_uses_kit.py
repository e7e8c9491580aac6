"""Tests start servers, supervisors, engines and brokers through the kit, as authors do."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

TESTS = Path(__file__).parent

CALLED = frozenset({"EmbeddedBroker", "Server", "Supervisor"})
"""Classes of servers and brokers. A name without a call is an annotation."""

NAMED = frozenset(
    {
        "open_supervisor",
        "run_server",
        "run_supervisor",
        "serve",
        "serve_hypercorn",
        "serve_native",
        "serve_site",
        "start_server",
        "Popen",
        "create_subprocess_exec",
        "create_subprocess_shell",
        "open_process",
        "run_process",
    }
)
"""Functions that start one, called here or handed to a caller.

``subprocess.run`` is not among them: it returns after the program has ended.
"""

HOMES = (
    "asyncio",
    "hypercorn",
    "subprocess",
    "tangram.app",
    "tangram.broker",
    "tangram.supervision",
    "tangram.http",
    "trio",
)
"""Packages of these names. The kit has an ``open_process`` of its own."""

ITSELF = "the test of that function itself"
PROGRAM = "another program, which is no server of ours"

EXCEPTIONS: dict[str, tuple[set[str], str]] = {
    "app/test_crash_matrix.py": ({"open_process"}, "a client that polls, in a process of its own"),
    "broker/test_accounts.py": ({"EmbeddedBroker"}, ITSELF),
    "broker/test_persistence.py": ({"EmbeddedBroker"}, ITSELF),
    "broker/test_sockets.py": ({"EmbeddedBroker"}, ITSELF),
    "broker/test_embedded.py": ({"EmbeddedBroker", "Popen", "run_process"}, ITSELF),
    "broker/test_process.py": ({"start_server"}, ITSELF),
    "cli/test_force_exit.py": ({"Popen"}, "a process that sleeps in the broker's place"),
    "compat/test_guards.py": (
        {"create_subprocess_exec", "start_server"},
        "processes that a plugin leaves open, in the plugin's own code",
    ),
    "downstream/weather_server.py": ({"run_process"}, PROGRAM),
    "e2e/browser.py": ({"open_process"}, "a browser"),
    "flaky.py": ({"Popen"}, "runs of the tests, which start by the kit"),
    "mutants/workshop.py": ({"Popen"}, "the runner of a mutant's tests, which start by the kit"),
    "testing/test_brokers.py": ({"Popen"}, "a test run that is killed while it holds a broker of the kit"),
    "chaos/test_campaign.py": ({"open_process"}, "the command chaos, which starts its servers by the kit"),
    "testing/test_census.py": ({"Popen"}, "a process that is left behind"),
    "testing/test_process.py": ({"Popen"}, "a listener that takes the port of an ended server"),
    "chaos/test_conformance.py": ({"EmbeddedBroker"}, "the real broker beside the one in memory"),
    "http/test_engine_start.py": ({"serve_native"}, ITSELF),
    "http/test_phoenix.py": ({"run_process"}, "node, for phoenix.js"),
    "history/test_phoenix.py": ({"run_process"}, "node, for phoenix.js"),
    "docs/test_scripts.py": ({"run_process"}, "node, for the scripts of the pages"),
    "e2e/test_proxies.py": ({"open_process"}, "nginx and HAProxy"),
    "e2e/test_deploy_proxies.py": ({"open_process"}, "nginx and HAProxy"),
    "e2e/test_workers_clients.py": ({"open_process"}, "a program that hands over a socket, as systemd does"),
    "e2e/test_metrics.py": ({"open_process"}, "prometheus"),
    "release/dist.py": ({"Popen"}, "a server of an environment without the kit's own requirements"),
    "gateway/test_other_clients.py": ({"run_process"}, "clients of other authors"),
    "openapi/test_behaviour.py": ({"run_process"}, PROGRAM),
    "web/test_quart_app.py": ({"run_process"}, "an interpreter that imports and ends"),
}
"""Starts without the kit, by file, with the reason. A test fails for one that is not used."""


def bound(tree: ast.Module) -> dict[str, str]:
    """Return the full names behind the names that a module imports."""
    found: dict[str, str] = {}
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and node.module and not node.level:
            found |= {one.asname or one.name: f"{node.module}.{one.name}" for one in node.names}
        elif isinstance(node, ast.Import):
            for one in node.names:
                first = one.name.partition(".")[0]
                found[one.asname or first] = one.name if one.asname else first
    return found


def full_name(node: ast.expr, names: dict[str, str]) -> str:
    first, dot, rest = ast.unparse(node).partition(".")
    return names.get(first, "") + dot + rest


def starters(source: str) -> Iterator[str]:
    """Yield the starts of a module: classes called, functions called or handed on."""
    tree = ast.parse(source)
    names = bound(tree)
    below = {
        id(argument)
        for call in ast.walk(tree)
        if isinstance(call, ast.Call) and ast.unparse(call.func) in {"Child", "partial"}
        for argument in call.args
    }
    called = {id(call.func) for call in ast.walk(tree) if isinstance(call, ast.Call)}
    for node in ast.walk(tree):
        if not isinstance(node, ast.Name | ast.Attribute):
            continue
        home, _, name = full_name(node, names).rpartition(".")
        if not any(f"{home}.".startswith(f"{one}.") for one in HOMES):
            continue
        # A supervisor that runs as a child stands below one that was opened.
        child = name == "run_supervisor" and id(node) in below
        if (name in NAMED and not child) or (name in CALLED and id(node) in called):
            yield name


def used() -> dict[str, set[str]]:
    found = {str(path.relative_to(TESTS)): set(starters(path.read_text())) for path in TESTS.rglob("*.py")}
    return {name: starts for name, starts in found.items() if starts}


@pytest.mark.slow
def test_everything_is_started_by_the_kit() -> None:
    """Each start without the kit is listed with its reason, and no listed one is unused."""
    assert used() == {name: starts for name, (starts, _) in EXCEPTIONS.items()}


@pytest.mark.parametrize(
    "code",
    [
        "from tangram.supervision import open_supervisor\nopen_supervisor([])",
        "import tangram.supervision as sup\nsup.open_supervisor([])",
        "from tangram.supervision import run_supervisor\nnursery.start(run_supervisor, [])",
        "from tangram.app import Server\nServer(boot)",
        "from tangram.app.server import run_server as go\ntrio.run(go)",
        "from tangram.http.native import serve_native\npartial(serve_native, app)",
        "from hypercorn.trio import serve\nserve(app)",
        "import subprocess\nsubprocess.Popen(['valkey-server'])",
        "import trio\ntrio.lowlevel.open_process(['tangram'])",
        "from trio.lowlevel import open_process\nopen_process(['tangram'])",
        "from tangram.broker import EmbeddedBroker\nEmbeddedBroker(config)",
    ],
)
def test_each_way_around_the_kit_is_seen(code: str) -> None:
    """A start is found under every name, called here or handed on."""
    assert len(list(starters(code))) == 1


@pytest.mark.parametrize(
    "code",
    [
        "from tangram.testing import open_process\nopen_process(home)",
        "from tangram.supervision import Supervisor\ndef look(it: Supervisor): ...",
        "from tangram.supervision import Child, run_supervisor\nChild('inner', partial(run_supervisor, []))",
        "import subprocess\nsubprocess.run(['git', 'ls-files'])",
    ],
)
def test_the_kit_and_programs_that_end_are_no_starts(code: str) -> None:
    """The kit's functions, annotations, supervisors as children, and programs that end."""
    assert list(starters(code)) == []
