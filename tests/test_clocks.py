"""A virtual clock counts only where the test itself names it."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

TESTS = Path(__file__).parent
CLOCKS = frozenset({"autojump_clock", "mock_clock"})

Function = ast.FunctionDef | ast.AsyncFunctionDef


def arguments(function: Function) -> set[str]:
    return {one.arg for one in (*function.args.args, *function.args.kwonlyargs)}


def real_time(tree: ast.Module) -> Iterator[str]:
    """Yield the tests of a module with a fixture that names a clock, and without one of their own."""
    functions = [one for one in tree.body if isinstance(one, Function)]
    fixtures = {
        one.name: arguments(one)
        for one in functions
        if any("fixture" in ast.unparse(decorator) for decorator in one.decorator_list)
    }
    for function in functions:
        wanted = arguments(function)
        used: set[str] = set()
        while new := {name for name in wanted if name in fixtures} - used:
            used |= new
            wanted = wanted.union(*(fixtures[name] for name in new))
        if function.name.startswith("test_") and wanted & CLOCKS and not arguments(function) & CLOCKS:
            yield function.name


@pytest.mark.slow
def test_each_test_names_the_clock_of_its_fixtures() -> None:
    """Otherwise it runs in real time: pytest-trio looks for a clock among the test's own arguments."""
    found = [
        f"{path.relative_to(TESTS)}: {name}"
        for path in sorted(TESTS.rglob("test_*.py"))
        if "_clock" in (text := path.read_text())
        for name in real_time(ast.parse(text))
    ]

    assert found == []


@pytest.mark.parametrize(
    ("test", "found"),
    [
        ("server", ["test_it"]),
        ("client", ["test_it"]),
        ("autojump_clock, client", []),
        ("other", []),
    ],
)
def test_a_clock_of_a_fixture_alone_is_found(test: str, found: list[str]) -> None:
    """It is found through other fixtures as well."""
    text = (
        "@pytest.fixture\nasync def server(autojump_clock): ...\n"
        "@pytest.fixture\nasync def client(server): ...\n"
        f"async def test_it({test}): ...\n"
    )

    assert list(real_time(ast.parse(text))) == found
