"""Run the fast tests on every other Python of this machine; ``make test-pythons`` runs this.

``--one`` runs the newest other interpreter only, as continuous integration does.
"""

from __future__ import annotations

import sys

from tests.release import interpreters


def say(words: str) -> None:
    sys.stdout.write(words + "\n")
    sys.stdout.flush()


def main(words: list[str]) -> int:
    """Return 1 if the tests fail on any interpreter."""
    others = {
        version: path for version, path in interpreters.find().items() if version != sys.version_info[:2]
    }
    if not others:
        say("no other Python of 3.11 or newer is on this machine: nothing to test")
        return 0
    chosen = list(others)[-1:] if "--one" in words else list(others)
    failed = []
    for version in chosen:
        name = "{}.{}".format(*version)
        say(f"== the fast tests on Python {name} ({others[version]})")
        python = interpreters.make(name, others[version])
        interpreters.install(python, *interpreters.editables(), *interpreters.dev_requirements())
        if interpreters.run_fast_tests(python):
            failed.append(name)
    say(f"failed on Python {', '.join(failed)}" if failed else "all passed")
    return int(bool(failed))


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
