"""Build wheel and sdist, check them, and serve from both on every Python of this machine; ``make dist``."""

from __future__ import annotations

import shutil
import signal
import subprocess
import sys
import tempfile
import time
import urllib.request
import zipfile
from pathlib import Path
from typing import Final

from tests.release import interpreters

DIST: Final = interpreters.ROOT / "dist"
READY_WITHIN: Final = 20.0
"""Seconds until a fresh server must be ready; loaded machines are slow, a ready server takes a second."""


def say(words: str) -> None:
    sys.stdout.write(words + "\n")
    sys.stdout.flush()


def build() -> tuple[Path, Path]:
    """Build wheel and sdist into ``dist/``, and let twine check both."""
    shutil.rmtree(DIST, ignore_errors=True)
    interpreters.uv("build", "--quiet", "--python", sys.executable, "--out-dir", str(DIST))
    (wheel,), (sdist,) = DIST.glob("*.whl"), DIST.glob("*.tar.gz")
    # In an environment of its own: it brings cryptography, which changes the types that PyJWT declares.
    interpreters.uv("tool", "run", "--quiet", "twine", "check", "--strict", str(wheel), str(sdist))
    return wheel, sdist


def strangers(names: list[str]) -> list[str]:
    """Return the files of a wheel that do not belong to the package: tests, benchmarks, caches."""
    return [
        name for name in names if not name.startswith(("tangram/", "tangram_trio-")) or "__pycache__" in name
    ]


def contents(wheel: Path) -> list[str]:
    """Return the names of a wheel's files."""
    with zipfile.ZipFile(wheel) as archive:
        return archive.namelist()


def serve(python: Path, folder: Path) -> float:
    """Start a server in an empty folder, and return the seconds until it is ready.

    Raises:
        RuntimeError: it ended, or was not ready within ``READY_WITHIN``.
    """
    environment = {"PATH": "/usr/bin:/bin", "HOME": str(folder), "TANGRAM_SERVER__PORT": "0"}
    command = [str(python), "-m", "tangram", "serve"]
    began = time.monotonic()
    log = folder / "log"
    with (
        log.open("wb") as out,
        subprocess.Popen(command, cwd=folder, env=environment, stderr=out, stdout=out) as child,
    ):
        try:
            url = wait_for_url(child, log, began + READY_WITHIN)
            with urllib.request.urlopen(url + "-/readyz", timeout=5) as answer:
                seconds = time.monotonic() - began
                if answer.status != 200:
                    raise RuntimeError(f"/-/readyz answered {answer.status}")
        finally:
            child.send_signal(signal.SIGTERM)
            status = child.wait(timeout=20)
    if status != 0:
        raise RuntimeError(f"the server ended with {status}:\n{log.read_text()}")
    return seconds


def wait_for_url(child: subprocess.Popen[bytes], log: Path, deadline: float) -> str:
    """Return the URL that a server logs once it is ready."""
    while time.monotonic() < deadline and child.poll() is None:
        for line in log.read_text().splitlines():
            if "tangram ready" in line:
                return next(word.removeprefix("url=") for word in line.split() if word.startswith("url="))
        time.sleep(0.02)
    raise RuntimeError(f"the server is not ready:\n{log.read_text()}")


def install_as_tool(wheel: Path, *, by: str) -> None:
    """Install the wheel by uv or pipx, each as a tool with an environment of its own, and run its command."""
    with tempfile.TemporaryDirectory(prefix="tangram-tool-") as folder:
        bin_ = Path(folder) / "bin"
        if by == "uv":
            places = {"UV_TOOL_DIR": folder, "UV_TOOL_BIN_DIR": str(bin_)}
            interpreters.uv("tool", "install", "--quiet", str(wheel), environ=places)
        else:
            places = {"PIPX_HOME": folder, "PIPX_BIN_DIR": str(bin_)}
            interpreters.uv("tool", "run", "--quiet", "pipx", "install", str(wheel), environ=places)
        told = subprocess.run([bin_ / "tangram", "--version"], capture_output=True, text=True, check=True)
    say(f"{by} installs {told.stdout.strip()}")


def main() -> int:
    """Return 1 if the wheel has files that do not belong there; everything else raises."""
    wheel, sdist = build()
    names = contents(wheel)
    if found := strangers(names):
        say(f"{wheel.name} has files that do not belong there: {found}")
        return 1
    size = wheel.stat().st_size / 1024
    say(f"{wheel.name}: {size:.0f} KiB, {len(names)} files, no test or benchmark among them")
    say(f"{sdist.name}: {sdist.stat().st_size / 1024:.0f} KiB")
    for by in ("uv", "pipx"):
        install_as_tool(wheel, by=by)
    for version, path in interpreters.find().items():
        for what, kind in ((wheel, "wheel"), (sdist, "sdist")):
            name = "{}.{}".format(*version)
            python = interpreters.make(f"dist-{name}", path)
            interpreters.install(python, str(what))
            with tempfile.TemporaryDirectory(prefix="tangram-dist-") as folder:
                seconds = sorted(serve(python, Path(folder)) for _ in range(3))[1]
            say(f"Python {name} serves from the {kind}: ready after {seconds:.2f} s, the median of three")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
