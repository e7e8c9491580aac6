"""Every code block, command and option on the pages works: a test runs it, here or where ``RUN_BY`` says."""

from __future__ import annotations

import re
import shlex
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

import click
import pytest
import yaml

import tangram
from tangram.cli.main import cli
from tangram.config.load import load_config
from tests.docs.blocks import ROOT, Block, blocks, pages

RUN_BY: Final = {
    ("README.md", "python"): "tests/e2e/test_docs.py",
    ("docs/getting-started.md", "python"): "tests/e2e/test_docs.py",
    ("docs/channels.md", "python"): "tests/declared/test_page_of_docs.py",
    ("docs/channels.md", "js"): "tests/docs/test_scripts.py",
    ("docs/channels.md", "ts"): "tests/declared/test_documents.py",
    ("docs/compat.md", "python"): "tests/compat/test_page_of_docs.py",
    ("docs/plugins.md", "python"): "tests/plugins/test_page_of_docs.py",
    ("docs/routing.md", "python"): "tests/routing/test_docs.py",
    ("docs/routing.md", "http"): "tests/routing/test_docs.py",
    ("docs/supervision.md", "python"): "tests/supervision/test_docs.py",
    ("docs/testing.md", "python"): "tests/testing/test_docs.py",
    ("docs/nodes.md", "nginx"): "tests/e2e/test_deploy_proxies.py",
    ("docs/nodes.md", "caddy"): "tests/e2e/test_deploy_proxies.py",
    ("docs/nodes.md", "haproxy"): "tests/e2e/test_deploy_proxies.py",
    ("docs/history.md", "python"): "tests/docs/test_code_blocks.py",
    ("docs/browser.md", "js"): "tests/docs/test_scripts.py",
    ("docs/browser.md", "python"): "tests/docs/test_scripts.py",
    ("docs/browser.md", "ts"): "tests/declared/test_channel_types.py",
    ("docs/getting-started.md", "js"): "tests/docs/test_scripts.py",
    ("docs/history.md", "js"): "tests/docs/test_scripts.py",
}
"""The tests that run the blocks of a page in a language. Languages that are absent here are run below."""

CHECKED_HERE: Final = {"toml", "yaml", "sh"}
OUTPUT: Final = {"text"}
"""What a command prints."""

TOOLS: Final = {"python3", ".venv/bin/pip", "/tmp/example/bin/pip", "curl"}
"""Other programs that a reader calls, in ways that ``make dist`` and the tests of their pages run."""

SPAN: Final = re.compile(r"(?<!`)`((?:python -m )?tangram (?!ready|stopped)[a-z][^`\n]*)`(?!`)")
"""A command in a sentence; ``tangram ready`` and ``tangram stopped`` are log events."""


def say_place(block: Block) -> str:
    return block.place


@pytest.mark.parametrize("block", blocks(), ids=say_place)
def test_every_block_is_run_by_a_test(block: Block) -> None:
    """Each block is output, is checked below, or has a test that reads its page."""
    if block.language in CHECKED_HERE | OUTPUT:
        return
    by = RUN_BY[block.page, block.language]
    source = (ROOT / by).read_text()

    assert Path(block.page).name in source
    assert f"```{block.language}" in source or f'"{block.language}"' in source


@pytest.mark.parametrize("block", blocks("toml"), ids=say_place)
def test_blocks_of_toml_are_accepted(block: Block, tmp_path: Path) -> None:
    """Settings are read without a fault; other files are valid TOML."""
    tables = tomllib.loads(block.text)
    if "project" in tables or "build-system" in tables:
        return
    file = tmp_path / "tangram.toml"
    file.write_text(block.text)

    assert load_config(file, environ={}).config.source == file


@pytest.mark.parametrize("block", blocks("yaml"), ids=say_place)
def test_blocks_of_yaml_are_valid(block: Block) -> None:
    """Each is one document."""
    assert isinstance(yaml.safe_load(block.text), dict)


def test_the_declaration_of_a_history_is_accepted() -> None:
    """The block of docs/history.md makes a plugin with one rule."""
    (block,) = blocks("python", "docs/history.md")
    names: dict[str, Any] = {"tangram": tangram}
    exec(compile(block.text, block.place, "exec"), names)

    assert list(names["plugin"].history) == ["flights:*"]


def commands(block: Block) -> Iterator[list[str]]:
    """Yield the words of each command of a shell block."""
    for line in block.text.replace("\\\n", " ").splitlines():
        words = shlex.split(line, comments=True)
        while words and re.fullmatch(r"[A-Z_]+=.*", words[0]):
            del words[0]
        if words:
            yield words


@pytest.mark.parametrize("block", blocks("sh"), ids=say_place)
def test_commands_of_shell_blocks_exist(block: Block) -> None:
    """Each line calls a target of the Makefile, a command of tangram with its options, or a known tool."""
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    for words in commands(block):
        if words[0] == "make":
            assert words[1] in targets
        elif "tangram" in words[:3] or words[0].endswith("/tangram"):
            assert_known(words)
        elif words[0] == "python" and words[1].startswith("benchmarks/"):
            assert (ROOT / words[1]).exists()
        else:
            assert words[0] in TOOLS


def spans() -> list[str]:
    """Return the commands of tangram that stand in sentences and tables."""
    return sorted({found.replace("\\|", "|") for page in pages() for found in SPAN.findall(page.read_text())})


@pytest.mark.parametrize("span", spans())
def test_commands_in_sentences_exist(span: str) -> None:
    """Each names a command, and options that it has."""
    assert_known(re.sub(r"[\[\]]", " ", span).split())


def test_commands_in_sentences_are_found() -> None:
    """The pages name most of the commands."""
    assert len(spans()) >= 30


def assert_known(words: list[str]) -> None:
    """Fail if a command, or one of its options, does not exist."""
    command: click.Command = cli
    rest = words[
        next(i for i, word in enumerate(words) if word == "tangram" or word.endswith("/tangram")) + 1 :
    ]
    while rest and isinstance(command, click.Group) and not rest[0].startswith("-"):
        found = command.commands.get(rest[0])
        assert found is not None, f"no command {rest[0]!r} in {words!r}"
        command, rest = found, rest[1:]
    known = {name for parameter in command.params for name in (*parameter.opts, *parameter.secondary_opts)}
    given = {word.partition("=")[0] for word in rest if re.match(r"--?[a-z]", word)}

    assert given <= known | {"--help", "-h", "--version"}, f"unknown options in {words!r}"
