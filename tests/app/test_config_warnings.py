from __future__ import annotations

from tangram.testing import open_tangram


async def test_tables_of_plugins_that_do_not_run_are_warnings() -> None:
    """The log names the table, and the enabled plugin with the nearest name."""
    tables = {"plugins": {"tangram_dmo": {"a": 1}, "tangram_demo": {}}}
    async with open_tangram(["tangram_demo"], tables, fakes=True) as running:
        found = [one for one in running.logs if one["event"] == "unknown setting is ignored"]

    assert [one["cause"] for one in found] == [
        "[plugins.tangram_dmo] belongs to no enabled plugin: did you mean [plugins.tangram_demo]?"
    ]
