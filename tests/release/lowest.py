"""Run the fast tests with the lowest versions that ``pyproject.toml`` allows; ``make test-lowest`` runs this.

The tools of the tests keep their newest versions: only tangram's own requirements are promises to users.
"""

from __future__ import annotations

import sys
import tomllib
from pathlib import Path

from tests.release import interpreters


def lowest(python: Path) -> Path:
    """Resolve tangram's direct requirements to their lowest versions, and return the file of constraints."""
    table = tomllib.loads((interpreters.ROOT / "pyproject.toml").read_text())["project"]
    wanted = interpreters.ENVIRONMENTS / "lowest.in"
    extras = table["optional-dependencies"]
    wanted.write_text("\n".join([*table["dependencies"], *extras["http"], *extras["fast"]]))
    pinned = wanted.with_suffix(".txt")
    options = ["--quiet", "--resolution", "lowest-direct", "--python", str(python), "--no-header"]
    interpreters.uv("pip", "compile", *options, str(wanted), "--output-file", str(pinned))
    return pinned


def main() -> int:
    """Return pytest's exit status."""
    python = interpreters.make("lowest", Path(sys.executable))
    pinned = lowest(python)
    sys.stdout.write(pinned.read_text())
    sys.stdout.flush()
    # schemathesis wants newer versions of the same packages, and only slow tests use it.
    tools = [one for one in interpreters.dev_requirements() if not one.startswith("schemathesis")]
    interpreters.install(python, *interpreters.editables(), *tools, "--constraint", str(pinned))
    return interpreters.run_fast_tests(python)


if __name__ == "__main__":
    raise SystemExit(main())
