"""Install the tools of tests: Chromium, npm's ``phoenix``, nginx, HAProxy, Prometheus and a Redis with TLS.

``make test`` runs this once; the tests call :func:`find_browser` and its siblings. Programs that are
installed are used. The others come from the packages of the system (as root), and from npm into ``.cache/``.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
CACHE = ROOT / ".cache" / "npm"
CERTIFICATES = Path("/etc/ssl/certs/ca-certificates.crt")
BROWSERS = ("chromium", "chromium-browser", "google-chrome-stable", "google-chrome")
PROXIES = ("nginx", "haproxy", "caddy")
PROMETHEUS = ("prometheus", "promtool")
"""The programs of Debian's package ``prometheus``."""
REDIS = ("redis-server", "valkey-server")
"""Programs of Debian's packages of the same names, both built with TLS."""
POLICY = Path("/usr/sbin/policy-rc.d")
"""Says on Debian whether a package may start its service."""
PHOENIX = ("1.8.16", "1.8.9", "1.7.23")
"""The newest; the one that published front ends are locked to; the newest of the minor version before."""
WS = "8.18.3"
"""npm's ``ws``: the WebSocket under ``phoenix`` where there is no browser, but Node."""

REALTIME = "2.119.1"
"""npm's ``@supabase/realtime-js``, a client of the same protocol."""
CHECKERS = {
    "@asyncapi/parser": "3.6.6",
    "@types/phoenix": "1.6.7",
    "pyright": "1.1.414",
    "typescript": "5.9.3",
}
"""Packages that check documents and types."""


def say(*words: str) -> None:
    sys.stdout.write(" ".join(words) + "\n")
    sys.stdout.flush()


class NotPreparedError(Exception):
    """Something is missing that this script could not install; the message says what to do."""


def find_browser() -> str:
    """The browser's path; ``TANGRAM_BROWSER`` wins."""
    for name in (os.environ.get("TANGRAM_BROWSER", ""), *BROWSERS):
        if path := shutil.which(name):
            return path
    raise NotPreparedError(
        "no Chromium was found: install one (apt-get install chromium), or name it in TANGRAM_BROWSER"
    )


def find_proxy(name: str) -> str | None:
    """Return the path of ``nginx``, ``haproxy`` or ``caddy``; Debian installs them in /usr/sbin."""
    return shutil.which(name, path=os.pathsep.join((os.environ.get("PATH", ""), "/usr/sbin")))


def find_redis() -> Path | None:
    """Return a Redis or Valkey server of the system that was built with TLS.

    The tests that need another server than the wheel's use it; the broker of all others comes from the wheel,
    which has no TLS.
    """
    folders = [*os.environ.get("PATH", "").split(os.pathsep), "/usr/bin"]
    found = (shutil.which(name, path=folder) for folder in folders for name in REDIS)
    return next((Path(one) for one in found if one is not None and has_tls(one)), None)


def has_tls(server: str) -> bool:
    """Return whether a server was built with TLS; without a certificate both kinds end at once."""
    words = [server, "--port", "0", "--tls-port", "6379"]
    ended = subprocess.run(words, capture_output=True, text=True, check=False, timeout=60)
    return "No tls-cert-file configured" in ended.stdout


def find_phoenix(version: str = PHOENIX[0]) -> Path:
    """The unmodified ES module of npm's ``phoenix``."""
    path = CACHE / "node_modules" / f"phoenix-{version}" / "priv" / "static" / "phoenix.mjs"
    if not path.exists():
        raise NotPreparedError(
            f"npm's phoenix {version} is not at {path}: run `make test`, or {Path(__file__).name}"
        )
    return path


def find_node() -> tuple[str, Path]:
    """Node's path, and the folder of packages in which it finds ``phoenix`` and ``ws``."""
    node = shutil.which("node")
    if node is None:
        raise NotPreparedError(f"Node was not found: run `make test`, or {Path(__file__).name}")
    for version in PHOENIX:
        find_phoenix(version)
    path = CACHE / "node_modules"
    if not (path / "ws" / "package.json").exists():
        raise NotPreparedError(f"npm's ws {WS} is not in {path}: run `make test`, or {Path(__file__).name}")
    for name in ("@supabase/realtime-js", *CHECKERS):
        if not (path / name / "package.json").exists():
            raise NotPreparedError(
                f"npm's {name} is not in {path}: run `make test`, or {Path(__file__).name}"
            )
    return node, path


def apt_install(*packages: str) -> None:
    """Install Debian packages as root; elsewhere print which packages are missing."""
    if shutil.which("apt-get") is None or os.geteuid() != 0:
        raise NotPreparedError(
            f"the end-to-end tests need {' and '.join(packages)}, and this is no Debian, or you are not root;"
            f" as root: apt-get update && apt-get install -y {' '.join(packages)}"
        )
    say("installing from the system's packages:", *packages)
    environ = {**os.environ, "DEBIAN_FRONTEND": "noninteractive"}
    subprocess.run(["apt-get", "update", "-qq"], check=True, env=environ)
    subprocess.run(
        ["apt-get", "install", "-y", "-qq", "--no-install-recommends", *packages],
        check=True,
        env=environ,
        stdout=subprocess.DEVNULL,
    )


def ensure_browser() -> str:
    try:
        return find_browser()
    except NotPreparedError:
        apt_install("chromium")
        return find_browser()


def ensure_proxies() -> None:
    """Install the proxies; where that cannot be done, their tests are skipped."""
    _ensure([name for name in PROXIES if find_proxy(name) is None])


def ensure_prometheus() -> None:
    """Install Prometheus; where that cannot be done, its tests are skipped."""
    _ensure([] if all(map(shutil.which, PROMETHEUS)) else ["prometheus"])


def ensure_redis() -> None:
    """Install a Redis with TLS; where that cannot be done, the tests of sentinels and clusters skip TLS."""
    _ensure([] if find_redis() is not None else [REDIS[0]])


def _ensure(missing: list[str]) -> None:
    """Install packages without starting their services; say so where that cannot be done."""
    if not missing:
        return
    # Without this file the packages would start their services.
    keep_stopped = None if POLICY.exists() else POLICY
    try:
        if keep_stopped is not None and os.geteuid() == 0:
            keep_stopped.write_text("#!/bin/sh\nexit 101\n")
            keep_stopped.chmod(0o755)
        apt_install(*missing)
    except NotPreparedError as error:
        say(f"no test with {' and '.join(missing)}:", str(error))
    finally:
        if keep_stopped is not None:
            keep_stopped.unlink(missing_ok=True)


def npm_environ() -> dict[str, str]:
    """Return an environment in which Node trusts the certificates of the system."""
    system = {"NODE_EXTRA_CA_CERTS": str(CERTIFICATES)} if CERTIFICATES.exists() else {}
    return {**system, **os.environ}


def ensure_phoenix() -> None:
    try:
        find_node()
    except NotPreparedError:
        if shutil.which("npm") is None:
            apt_install("nodejs", "npm")
        say("fetching npm's phoenix", *PHOENIX, "and ws", WS, "and realtime-js", REALTIME, "and", *CHECKERS)
        CACHE.mkdir(parents=True, exist_ok=True)
        options = [
            "--no-save",
            "--no-package-lock",
            "--no-audit",
            "--no-fund",
            "--ignore-scripts",
            "--loglevel=error",
            "--fetch-retries=1",
        ]
        names = [f"phoenix-{version}@npm:phoenix@{version}" for version in PHOENIX]
        subprocess.run(
            [
                "npm",
                "install",
                "--prefix",
                str(CACHE),
                "--cache",
                str(CACHE / "_cache"),
                *options,
                *names,
                f"ws@{WS}",
                f"@supabase/realtime-js@{REALTIME}",
                *(f"{name}@{version}" for name, version in CHECKERS.items()),
            ],
            check=True,
            cwd=CACHE,
            env=npm_environ(),
            stdout=subprocess.DEVNULL,
        )


def main() -> None:
    try:
        say("browser:", ensure_browser())
        ensure_phoenix()
        ensure_proxies()
        ensure_prometheus()
        ensure_redis()
    except NotPreparedError as error:
        sys.exit(f"prepare: {error}")
    except subprocess.CalledProcessError as error:
        sys.exit(f"prepare: {error.cmd[0]} ended with status {error.returncode}; its message stands above")


if __name__ == "__main__":
    main()
