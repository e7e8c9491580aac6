"""``new``: write the project of a plugin, with a service, a route, a page and tests."""

from __future__ import annotations

import keyword
import re
import shlex
import sys
from pathlib import Path
from string import Template
from typing import Final

import click

from tangram.config.names import normalise

__all__ = ["write_project"]

TEMPLATES: Final = Path(__file__).parent / "template"
NAME: Final = re.compile(r"[A-Za-z][A-Za-z0-9._-]*")
PAGE: Final = frozenset({"package/page.html.txt", "package/page.js.txt"})
SKIPPED: Final = frozenset({"page_route.txt"})


def write_project(name: str, *, folder: Path | None, front: bool) -> None:
    """Write a project into a new folder, and print the commands that install and serve it.

    Args:
        name: the name of the distribution; the import package has underscores for hyphens.
        folder: the new folder; ``./NAME`` by default.
        front: with a page for the browser.

    Raises:
        click.UsageError: the name cannot be that of a package, or the folder has files already.
    """
    package = normalise(name)
    if not NAME.fullmatch(name) or keyword.iskeyword(package) or package in sys.stdlib_module_names:
        raise click.UsageError(
            f"{name!r} cannot be the name of a Python package: expected letters, digits, - and _, and no "
            "name of the standard library, for example tank-watch"
        )
    home = folder or Path(name)
    if home.exists() and (not home.is_dir() or any(home.iterdir())):
        raise click.UsageError(f"{str(home)!r} exists already: name an empty or a new folder with --path")
    values = _values(package, front=front)
    for template in sorted(TEMPLATES.rglob("*.txt")):
        relative = template.relative_to(TEMPLATES).as_posix()
        if relative not in SKIPPED and (front or relative not in PAGE):
            _write(home / _target(relative, package), template, values)
    for command in (
        f"cd {shlex.quote(str(home))} && python -m pip install --editable '.[test]'",
        "tangram serve",
    ):
        click.echo(command)


def _values(package: str, *, front: bool) -> dict[str, str]:
    slug = package.replace("_", "-")
    title = slug.replace("-", " ").capitalize()
    page = (TEMPLATES / "page_route.txt").read_text() if front else ""
    return {
        "package": package,
        "distribution": slug,
        "slug": slug,
        "title": title,
        "page_route": page.rstrip(),
        "page_import": "from pathlib import Path\n\n" if front else "",
        "page_line": f"The page is at `/{slug}/`, " if front else "",
    }


def _target(relative: str, package: str) -> str:
    """Return the place of a template's file in the project."""
    target = relative.removesuffix(".txt")
    if target == "gitignore":
        return ".gitignore"
    return target.replace("package/", f"src/{package}/", 1)


def _write(target: Path, template: Path, values: dict[str, str]) -> None:
    target.parent.mkdir(parents=True, exist_ok=True)
    target.write_text(Template(template.read_text()).substitute(values).rstrip() + "\n")
