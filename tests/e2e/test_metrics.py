"""The metrics of a real server, read by Prometheus and its promtool."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest
import trio

from tests.e2e.harness import LONG, Home, Server, free_port, open_server, wait_until
from tests.e2e.prepare import PROMETHEUS, ROOT

RULES = ROOT / "share" / "prometheus" / "alerts.yml"
DASHBOARD = ROOT / "share" / "grafana" / "tangram.json"

pytestmark = pytest.mark.skipif(
    not all(map(shutil.which, PROMETHEUS)),
    reason="Prometheus is not installed and could not be: apt-get install prometheus",
)

CONFIG = """
global: {{scrape_interval: 500ms, scrape_timeout: 500ms, evaluation_interval: 500ms}}
rule_files: [{rules}]
scrape_configs:
  - job_name: tangram
    metrics_path: /-/metrics
    authorization: {{credentials_file: {token}}}
    static_configs: [{{targets: ["{target}"]}}]
"""
IDLE = {
    "tangram_declared_handler_duration_seconds",
    "tangram_declared_pushes_total",
    "tangram_lease_held",
    "tangram_disconnects_total",
    "tangram_restarts_total",
    "tangram_topic_deliveries_total",
}
"""Without a client, a crash or a named topic with members these have no sample yet. A server that is alone
has no lease, and the demo declares no channel.
"""
METRIC = re.compile(r"\b(?:tangram|http_server|process)_\w+")


def promtool(*arguments: str, given: str = "") -> str:
    done = subprocess.run(
        ["promtool", *arguments], input=given, capture_output=True, text=True, timeout=LONG, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout + done.stderr


def expressions() -> list[str]:
    """Return the expressions of the dashboard as Prometheus gets them from Grafana."""
    dashboard = json.loads(DASHBOARD.read_text())
    found = [target["expr"] for panel in dashboard["panels"] for target in panel["targets"]]
    found += [one["expr"] for one in dashboard["annotations"]["list"]]
    for name, value in (
        ("$__rate_interval", "1m"),
        ("$__interval", "1m"),
        ("$job", ".*"),
        ("$instance", ".*"),
    ):
        found = [one.replace(name, value) for one in found]
    return found


def names_of(expression: str) -> set[str]:
    return {re.sub(r"_(bucket|count|sum)$", "", name) for name in METRIC.findall(expression)}


@asynccontextmanager
async def open_prometheus(folder: Path, server: Server) -> AsyncIterator[httpx.AsyncClient]:
    port = free_port()
    config = folder / "prometheus.yml"
    token = server.home.state / "operator-token"
    target = server.url.rstrip("/").removeprefix("http://")
    config.write_text(CONFIG.format(rules=RULES, token=token, target=target))
    process = await trio.lowlevel.open_process(
        [
            "prometheus",
            f"--config.file={config}",
            f"--storage.tsdb.path={folder / 'data'}",
            f"--web.listen-address=127.0.0.1:{port}",
            "--log.level=error",
        ],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    try:
        async with httpx.AsyncClient(base_url=f"http://127.0.0.1:{port}/api/v1", timeout=LONG) as client:
            yield client
    finally:
        process.kill()
        with trio.CancelScope(shield=True):
            await process.wait()


async def query(client: httpx.AsyncClient, expression: str) -> list[Any]:
    response = await client.get("/query", params={"query": expression})
    response.raise_for_status()
    answer = response.json()
    assert answer["status"] == "success", answer
    return list(answer["data"]["result"])


async def test_promtool_accepts_the_metrics_and_the_rules(home: Home, tmp_path: Path) -> None:
    """promtool finds no fault in a real scrape, in the alert rules and in the dashboard's expressions."""
    async with open_server(home, "tangram_demo") as server:
        scraped = (await server.request("GET", "/-/metrics")).text
    rules = {"groups": [{"name": "d", "rules": [{"record": "r", "expr": one} for one in expressions()]}]}
    dashboard = tmp_path / "dashboard.yml"
    dashboard.write_text(json.dumps(rules))

    promtool("check", "metrics", given=scraped)
    assert "rules found" in promtool("check", "rules", str(RULES))
    promtool("check", "rules", "--lint=none", str(dashboard))


async def test_prometheus_scrapes_a_server_and_knows_every_name(home: Home, tmp_path: Path) -> None:
    """A real Prometheus loads the rules, and finds every metric that rules and dashboard name."""
    async with (
        open_server(home, "tangram_demo", extra='[metrics]\ntopics = ["admin"]\n') as server,
        open_prometheus(tmp_path, server) as client,
    ):
        await server.request("GET", "/-/healthz")  # so that there is a request to be scraped

        async def scraped() -> bool:
            return [one["value"][1] for one in await query(client, "up")] == ["1"]

        await wait_until(scraped)
        (group,) = (await client.get("/rules")).json()["data"]["groups"]
        alerts = [rule["query"] for rule in group["rules"]]
        named = set().union(*(names_of(one) for one in [*alerts, *expressions()]))

        async def all_known() -> bool:
            # The first scrape may come before the plugin's first message, and one may come too late.
            known = set((await client.get("/label/__name__/values")).json()["data"])
            known |= {re.sub(r"_(bucket|count|sum)$", "", name) for name in known}
            assert named - known - IDLE == set()
            return len(await query(client, "tangram_bus_up == 1")) == 1

        await wait_until(all_known)
        for expression in expressions():
            await query(client, expression)

    assert len(group["rules"]) >= 10
