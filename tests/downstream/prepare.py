"""Make the environments of the downstream tests once; ``make test-downstream`` runs this.

``bare``         tangram alone, without FastAPI, pydantic or httpx
``full``         the published plugins and their dependency, the published server, then tangram
``ours-first``   tangram, then the published server: the order decides whose script ``tangram`` is
``ours-last``    the other order
``ten``          all published plugins, on Python 3.12 or newer where it is there: ``tangram-navaid`` needs it

They are made in ``.cache/downstream``, or in the folder that ``TANGRAM_DOWNSTREAM`` names.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import sysconfig
import venv
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
HOME = Path(os.environ.get("TANGRAM_DOWNSTREAM") or ROOT / ".cache" / "downstream")
PUBLISHED = ("tangram-system", "tangram-weather", "tangram-globe", "tangram-airports")
TEN = (
    *PUBLISHED,
    "tangram-explore",
    "tangram-jet1090",
    "tangram-ship162",
    "tangram-datalink",
    "tangram-history",
)
NAVAID = "tangram-navaid"
TOOLS = (
    "annotated-types",
    "hypothesis",
    "httpx[http2]",
    "psutil",
    "pytest",
    "pytest-xdist",
    "pytest-trio",
    "openapi-spec-validator",
)
"""Packages that the tests of ``tests/compat`` need, which run in ``full`` as well."""
EXTRAS = ("ipykernel", "nbclient", "obstore", "trustme")
"""A notebook and its kernel, futures of a Rust extension, and throw-away certificates."""


def python_of(name: str) -> Path:
    """Return the interpreter of an environment."""
    return HOME / name / "bin" / "python"


def is_prepared() -> bool:
    """Return whether all environments have been made."""
    return (HOME / "done").exists()


def say(*words: str) -> None:
    sys.stdout.write(" ".join(words) + "\n")
    sys.stdout.flush()


def pip(name: str, *words: str) -> None:
    python = str(python_of(name))
    # pip before 23.1 cannot install for a Python of 3.12 or newer, whose environment has its own.
    has_own = (HOME / name / "bin" / "pip").exists()
    start = [python, "-m", "pip"] if has_own else [sys.executable, "-m", "pip", "--python", python]
    command = [*start, "--quiet"]
    subprocess.run([*command, "--disable-pip-version-check", "install", *words], check=True)


def make(name: str, python: str = sys.executable) -> None:
    say("making", str(HOME / name))
    if python == sys.executable:
        venv.create(HOME / name, clear=True, symlinks=True)
    else:
        command = [python, "-m", "venv", "--clear", "--symlinks", str(HOME / name)]
        subprocess.run(command, check=True)


def newer_python() -> str | None:
    """Return a Python of 3.12 or newer, or ``None``: ``TANGRAM_NEWER_PYTHON`` may name it."""
    if sys.version_info >= (3, 12):
        return sys.executable
    named = os.environ.get("TANGRAM_NEWER_PYTHON", "python3.12")
    for name in (named, "python3.13", "python3.14"):
        found = shutil.which(name)
        if found and subprocess.run([found, "--version"], capture_output=True, check=False).returncode == 0:
            return found
    return None


def make_bare() -> None:
    make("bare")
    pip("bare", "--editable", str(ROOT))


def make_full() -> None:
    make("full")
    pip("full", *PUBLISHED)
    pip("full", "--editable", str(ROOT), *TOOLS, *EXTRAS)


def make_ten() -> None:
    newer = newer_python()
    make("ten", newer or sys.executable)
    pip("ten", *TEN, *([NAVAID] if newer else []))
    pip("ten", "--editable", str(ROOT))


def add_path(name: str, folder: object) -> None:
    """Let an environment import the packages installed in *folder* as well."""
    site = next((HOME / name / "lib").glob("python*/site-packages"))
    (site / "dependencies.pth").write_text(f"{folder}\n")


def make_orders() -> None:
    """Make two environments with the scripts alone, whose imports come from the tests' own."""
    server = ("--no-deps", "tangram_core")
    ours = ("--no-deps", "--editable", str(ROOT))
    for name, order in (("ours-first", (ours, server)), ("ours-last", (server, ours))):
        make(name)
        add_path(name, sysconfig.get_path("purelib"))
        for what in order:
            # Packages of the tests' own environment must not count as installed here.
            pip(name, "--force-reinstall", *what)


def main() -> None:
    HOME.mkdir(parents=True, exist_ok=True)
    (HOME / "done").unlink(missing_ok=True)
    try:
        make_bare()
        make_full()
        make_orders()
        make_ten()
    except subprocess.CalledProcessError as error:
        sys.exit(f"prepare: {error.cmd} ended with status {error.returncode}; its message stands above")
    (HOME / "done").touch()


if __name__ == "__main__":
    main()
