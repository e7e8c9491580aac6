"""The environments of the downstream tests, made once: ``make test-downstream`` runs this.

``bare``         tangram alone, without FastAPI, pydantic or httpx
``full``         the published plugins, which bring the published server along, and then tangram
``ours-first``   tangram, and then the published server: whose script ``tangram`` is which
``ours-last``    the other way round

They go to ``.cache/downstream``, or where ``TANGRAM_DOWNSTREAM`` says.
"""

from __future__ import annotations

import os
import subprocess
import sys
import sysconfig
import venv
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
HOME = Path(os.environ.get("TANGRAM_DOWNSTREAM") or ROOT / ".cache" / "downstream")
PUBLISHED = ("tangram-system", "tangram-weather", "tangram-globe", "tangram-airports")
TOOLS = (
    "annotated-types",
    "hypothesis",
    "httpx[http2]",
    "psutil",
    "pytest",
    "pytest-trio",
    "openapi-spec-validator",
)
"""What the tests of ``tests/compat`` need, which run in ``full`` as well."""
EXTRAS = ("ipykernel", "nbclient", "obstore", "trustme")
"""A notebook and its kernel, futures of an extension in Rust, and certificates that are thrown away, for
hosts that a test stands in for.
"""


def python_of(name: str) -> Path:
    """The interpreter of an environment."""
    return HOME / name / "bin" / "python"


def is_prepared() -> bool:
    """Whether all of them are there."""
    return (HOME / "done").exists()


def say(*words: str) -> None:
    sys.stdout.write(" ".join(words) + "\n")
    sys.stdout.flush()


def pip(name: str, *words: str) -> None:
    command = [sys.executable, "-m", "pip", "--python", str(python_of(name)), "--quiet"]
    subprocess.run([*command, "--disable-pip-version-check", "install", *words], check=True)


def make(name: str) -> None:
    say("making", str(HOME / name))
    venv.create(HOME / name, clear=True, symlinks=True)


def make_bare() -> None:
    make("bare")
    pip("bare", "--editable", str(ROOT))


def make_full() -> None:
    make("full")
    pip("full", *PUBLISHED)
    pip("full", "--editable", str(ROOT), *TOOLS, *EXTRAS)


def add_path(name: str, folder: object) -> None:
    """Let an environment find what is installed in *folder* as well."""
    site = next((HOME / name / "lib").glob("python*/site-packages"))
    (site / "dependencies.pth").write_text(f"{folder}\n")


def make_orders() -> None:
    """Two with the scripts alone; what they import is found where the tests themselves run."""
    server = ("--no-deps", "tangram_core")
    ours = ("--no-deps", "--editable", str(ROOT))
    for name, order in (("ours-first", (ours, server)), ("ours-last", (server, ours))):
        make(name)
        add_path(name, sysconfig.get_path("purelib"))
        for what in order:
            # What the tests' own environment has must not count as installed here.
            pip(name, "--force-reinstall", *what)


def main() -> None:
    HOME.mkdir(parents=True, exist_ok=True)
    (HOME / "done").unlink(missing_ok=True)
    try:
        make_bare()
        make_full()
        make_orders()
    except subprocess.CalledProcessError as error:
        sys.exit(f"prepare: {error.cmd} ended with status {error.returncode}; its message stands above")
    (HOME / "done").touch()


if __name__ == "__main__":
    main()
