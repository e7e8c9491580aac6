"""Find the Python interpreters of this machine, and make environments for them in ``.cache/pythons``."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Final

ROOT: Final = Path(__file__).resolve().parents[2]
ENVIRONMENTS: Final = ROOT / ".cache" / "pythons"
OLDEST: Final = (3, 11)
"""``requires-python`` of ``pyproject.toml``."""
NAME: Final = re.compile(r"python3\.\d+")


def version_of(python: Path) -> tuple[int, int] | None:
    """Return major and minor version of an interpreter, or ``None`` if it does not run."""
    asked = [str(python), "-c", "import sys, ssl; print(*sys.version_info[:2])"]
    try:
        answer = subprocess.run(asked, capture_output=True, text=True, timeout=20, check=True)
    except (OSError, subprocess.SubprocessError):
        return None
    major, minor = answer.stdout.split()
    return int(major), int(minor)


def candidates() -> list[Path]:
    """Return paths that look like interpreters: on ``PATH``, then those of pyenv."""
    folders = [Path(one) for one in os.environ.get("PATH", "").split(os.pathsep) if one]
    pyenv = Path(os.environ.get("PYENV_ROOT") or Path.home() / ".pyenv") / "versions"
    folders += sorted(pyenv.glob("3.*/bin"), reverse=True)
    return [
        file
        for folder in folders
        if folder.is_dir() and ".pyenv/shims" not in folder.as_posix()
        for file in sorted(folder.iterdir())
        if NAME.fullmatch(file.name)
    ]


def find() -> dict[tuple[int, int], Path]:
    """Return an interpreter for each supported version that this machine has, the running one included.

    Example:
        ``{(3, 11): Path("/usr/bin/python3.11"), (3, 13): Path("/usr/bin/python3.13")}``
    """
    found = {sys.version_info[:2]: Path(sys.executable)}
    for path in candidates():
        version = version_of(path)
        if version is not None and version >= OLDEST:
            found.setdefault(version, path)
    return dict(sorted(found.items()))


def uv(*words: str, environ: Mapping[str, str] | None = None) -> None:
    """Run uv, which installs into the environment of another interpreter.

    Certificates are those of the system, as pip takes them.

    Raises:
        subprocess.CalledProcessError: uv failed; it has printed the reason.
    """
    environment = {**os.environ, "UV_SYSTEM_CERTS": "1", **(environ or {})}
    subprocess.run([sys.executable, "-m", "uv", *words], check=True, cwd=ROOT, timeout=900, env=environment)


def make(name: str, python: Path) -> Path:
    """Make an empty environment, and return its interpreter."""
    home = ENVIRONMENTS / name
    shutil.rmtree(home, ignore_errors=True)
    uv("venv", "--quiet", "--python", str(python), str(home))
    return home / "bin" / "python"


def install(python: Path, *words: str) -> None:
    """Install packages into an environment."""
    uv("pip", "install", "--quiet", "--python", str(python), *words)


def dev_requirements() -> list[str]:
    """Return the requirements of the dependency group ``dev``."""
    table = tomllib.loads((ROOT / "pyproject.toml").read_text())
    requirements: list[str] = table["dependency-groups"]["dev"]
    return requirements


def editables() -> list[str]:
    """Return the arguments that install tangram and its examples from this folder."""
    folders = [ROOT, *(file.parent for file in sorted(ROOT.glob("examples/*/pyproject.toml")))]
    return [word for folder in folders for word in ("--editable", str(folder))]


def run_fast_tests(python: Path) -> int:
    """Run all tests that are not slow, and return pytest's exit status."""
    command = [str(python), "-m", "pytest", "-q", "--no-header", "-m", "not slow", "-p", "no:cacheprovider"]
    return subprocess.run([*command, "-n", "2"], cwd=ROOT, timeout=1200, check=False).returncode
