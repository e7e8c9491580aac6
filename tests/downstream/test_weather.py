"""The published weather plugin's download on both servers."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import httpx

from tests.downstream.harness import Environment, open_published
from tests.downstream.weather_server import LEVELS, Winds, open_winds
from tests.e2e.harness import open_server

WEATHER = ("tangram_weather",)


async def ask(url: str, level: int) -> tuple[int, Any]:
    """Return status and JSON; of a failure only the status, since its text differs by server."""
    async with httpx.AsyncClient(base_url=url, timeout=60) as client:
        answer = await client.get(f"/weather/wind?isobaric={level}")
        return answer.status_code, answer.json() if answer.is_success else None


async def answers_over_time(winds: Winds, url: str) -> list[tuple[int, Any]]:
    """Return one server's answers while the forecast is away, missing, broken and there."""
    answers = []
    for mode in ("away", "missing", "there"):
        winds.mode = mode
        answers.append(await ask(url, LEVELS[0]))
    return [*answers, await ask(url, LEVELS[1]), await ask(url, 1)]


async def test_the_wind_is_as_published(full: Environment, tmp_path: Path) -> None:
    """Both servers request the same files and answer with the same JSON, failures included.

    After a failed download the next run's file is requested.
    """
    async with open_winds(tmp_path / "winds") as winds:
        environ = winds.environ(tmp_path / "published" / "tmp")
        async with open_published(tmp_path / "published", WEATHER, environ=environ) as url:
            theirs = await answers_over_time(winds, url)
        asked, winds.asked = winds.asked, []
        async with open_server(full, *WEATHER, environ=winds.environ(tmp_path / "ours")) as server:
            ours = await answers_over_time(winds, server.url)
            failures = server.events("handler failed", plugin="tangram_weather")
            crashes = server.events("child crashed")

        assert [status for status, _ in theirs] == [500, 500, 200, 200, 500]
        assert ours == theirs
        assert ours[2][1] != ours[3][1]
        assert [path.rpartition("__")[0] for path in winds.asked] == [
            path.rpartition("__")[0] for path in asked
        ]
        assert len(failures) == 3
        assert crashes == []


async def test_a_broken_forecast_is_a_failed_request(full: Environment, tmp_path: Path) -> None:
    """A file that is no forecast fails the request on both servers, and nothing else."""
    async with open_winds(tmp_path / "winds") as winds:
        winds.mode = "broken"
        environ = winds.environ(tmp_path / "published" / "tmp")
        async with open_published(tmp_path / "published", WEATHER, environ=environ) as url:
            theirs = await ask(url, LEVELS[0])
        async with open_server(full, *WEATHER, environ=winds.environ(tmp_path / "ours")) as server:
            ours = await ask(server.url, LEVELS[0])

            assert ours == theirs == (500, None)
            assert (await server.get("/weather/"))["message"]
            assert await server.stop() == 0
