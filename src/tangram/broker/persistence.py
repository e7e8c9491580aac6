"""The append-only file of the embedded broker, written where a topic has a history.

1. A damaged file never prevents a start. It is repaired; if that does not help, it is set aside under another
   name; if even that fails, the broker runs in memory. Each step is logged.
2. ``identity`` is the same at two starts only if no message can be lost between them: the machine has not
   been restarted, and the file was neither repaired nor set aside. Otherwise all epochs of histories end.
3. Without a history the file of an earlier run is removed: it would lack later messages.
4. The broker gives each write to the system before it answers, and never waits for the disk: a killed broker
   loses nothing acknowledged. This process has the disk write once a second. The broker's own
   ``appendfsync everysec`` does not suffice: while the disk is slow it answers up to two seconds before it
   gives the writes to the system, and they are lost with the process.
"""

from __future__ import annotations

import os
import secrets
import shutil
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Final

import structlog
import trio

__all__ = ["Persistence"]

log = structlog.get_logger("tangram.broker")

FOLDER: Final = "appendonlydir"
"""The folder of the files, by the name that Valkey and Redis 7 give it."""
SINGLE_FILE: Final = "appendonly.aof"
"""The file of Redis 6.2."""
GENERATION: Final = "generation"
BOOT_ID: Final = Path("/proc/sys/kernel/random/boot_id")
REPAIR_TIMEOUT: Final = 30.0
"""Seconds to repair the file: one of 100 MB takes about one."""
SYNC_INTERVAL: Final = 1.0
"""Seconds between two times that the disk writes the file: a dead machine loses no more."""
_WORDS: Final = ("aof", "append only", "append-only", "appendonly", "manifest")
"""Words of which each message about the file has one, in lower case."""
_WRITE_ERRORS: Final = ("error writing to the aof file", "short write while writing to the aof file")


class Persistence:
    """The append-only file in a folder.

    Args:
        folder: the child's working folder.
    """

    def __init__(self, folder: Path | None) -> None:
        self._folder = folder
        self._steps = iter((self._repair, self._set_aside, self._give_up))
        self._off = folder is None
        self._boot = _boot_id()
        self._synced: dict[Path, tuple[int, int]] = {}
        """The inode and the size of each file that the disk has written."""

    @property
    def identity(self) -> str | None:
        """A name of the stored data; None if the broker keeps it in memory only."""
        if self._off or self._folder is None:
            return None
        return f"{self._boot}-{self._generation()}"

    def arguments(self) -> Sequence[str]:
        """Return the child's options."""
        if self._off:
            return ["--appendonly", "no"]
        return ["--appendonly", "yes", "--appendfsync", "no", "--aof-load-truncated", "no"]

    def remove(self) -> None:
        """Remove the file of an earlier run."""
        for path in self._paths():
            log.info("append-only file removed, no topic has a history", path=str(path))
            if path.is_dir():
                shutil.rmtree(path, ignore_errors=True)
            else:
                path.unlink(missing_ok=True)
        self._off = True

    def check(self) -> None:
        """Look whether the folder and the files can be used; keep the data in memory otherwise."""
        if self._off or self._folder is None:
            return
        try:
            probe = self._folder / f"probe-{secrets.token_hex(4)}"
            try:
                probe.write_bytes(b"\0" * 4096)
            finally:
                probe.unlink(missing_ok=True)
            self._generation()
        except OSError as error:
            self._stop(f"{self._folder} cannot be written: {error.strerror}")
            return
        unusable = [path for path in self._files() if not os.access(path, os.R_OK | os.W_OK)]
        if unusable:
            log.warning("append-only file belongs to another account", path=str(unusable[0]))
            self._move()

    async def failed(self, binary: Path, lines: Sequence[str]) -> bool:
        """Handle a child that has ended before it answered.

        Args:
            binary: the server.
            lines: its last output.

        Returns:
            Whether the file may be the reason, and another start is worth it.
        """
        text = " ".join(lines[-3:]).lower()
        # A port that was taken meanwhile is no fault of the file, which an ordinary start names as well.
        if self._off or "bind" in text or not any(word in text for word in _WORDS):
            return False
        step = next(self._steps, None)
        if step is None:
            return False
        await step(binary)
        return True

    def heard(self, line: str) -> bool:
        """Return whether a line of output says that the file cannot be written any more."""
        if self._off or not any(words in line.lower() for words in _WRITE_ERRORS):
            return False
        self._stop("the file cannot be written: is the disk full?")
        return True

    async def run_syncs(self, failed: Callable[[], object]) -> None:
        """Have the disk write the file once a second, if there is one.

        Args:
            failed: called when the disk cannot write it any more.
        """
        limiter = trio.CapacityLimiter(1)  # the threads of plugins must not delay it
        while not self._off:
            await trio.sleep(SYNC_INTERVAL)
            try:
                await trio.to_thread.run_sync(
                    self.sync, abandon_on_cancel=True, limiter=limiter, thread_name="append-only file"
                )
            except OSError as error:
                if not self._off:
                    self._stop(f"the disk does not write the file: {error.strerror}")
                    failed()

    def sync(self) -> None:
        """Have the disk write the files that have grown."""
        for path in self._appended():
            try:
                file = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
            except OSError as error:
                # The broker has begun a new one meanwhile, or no descriptor is free: the next time is near.
                log.debug("append-only file not opened", cause=error.strerror)
                continue
            try:
                found = os.fstat(file)
                state = found.st_ino, found.st_size
                if self._synced.get(path) != state:
                    _write_to_disk(file)
                    self._synced[path] = state
            finally:
                os.close(file)

    async def _repair(self, binary: Path) -> None:
        """Cut the damaged end off, with the checker that is part of the server's binary."""
        log.warning("append-only file is damaged and is repaired", folder=str(self._folder))
        for path in self._appended():
            with trio.move_on_after(REPAIR_TIMEOUT), suppress(OSError):
                done = await trio.run_process(
                    [f"{binary.name.partition('-')[0]}-check-aof", "--fix", str(path)],
                    executable=str(binary),
                    stdin=b"y\n",
                    capture_stdout=True,
                    capture_stderr=True,
                    check=False,
                )
                words = done.stdout.decode(errors="replace").strip().splitlines()[-1:]
                log.warning("append-only file checked", path=str(path), result=" ".join(words))
        self._new_generation()

    async def _set_aside(self, _binary: Path) -> None:
        await trio.lowlevel.checkpoint()
        self._move()

    async def _give_up(self, _binary: Path) -> None:
        await trio.lowlevel.checkpoint()
        self._stop("the broker does not start with it")

    def _move(self) -> None:
        """Rename the files, so that the broker begins with new ones."""
        for path in self._paths():
            aside = path.with_name(f"{path.name}.broken-{secrets.token_hex(3)}")
            try:
                path.rename(aside)
            except OSError as error:
                self._stop(f"{path} cannot be renamed: {error.strerror}")
                return
            log.warning("append-only file set aside, histories begin anew", path=str(aside))
        self._new_generation()

    def _stop(self, why: str) -> None:
        self._off = True
        log.warning("histories are kept in memory only", cause=why)
        with suppress(OSError):
            if self._folder is not None:
                (self._folder / GENERATION).unlink(missing_ok=True)

    def _paths(self) -> list[Path]:
        if self._folder is None:
            return []
        return [path for name in (FOLDER, SINGLE_FILE) if os.path.lexists(path := self._folder / name)]

    def _files(self) -> Iterator[Path]:
        for path in self._paths():
            yield path
            if path.is_dir() and os.access(path, os.R_OK | os.X_OK):
                yield from path.iterdir()

    def _appended(self) -> list[Path]:
        """Return the files that the broker appends to, of which the end may be damaged."""
        names = (".incr.aof", SINGLE_FILE)
        return sorted(path for path in self._files() if path.is_file() and path.name.endswith(names))

    def _generation(self) -> str:
        assert self._folder is not None
        file = self._folder / GENERATION
        with suppress(FileNotFoundError):
            return file.read_text(encoding="ascii", errors="replace").strip()[:32]
        return self._new_generation()

    def _new_generation(self) -> str:
        assert self._folder is not None
        name = secrets.token_hex(8)
        with suppress(OSError):
            (self._folder / GENERATION).write_text(name, encoding="ascii")
        return name


def _write_to_disk(file: int) -> None:
    getattr(os, "fdatasync", os.fsync)(file)  # macOS has no fdatasync


def _boot_id() -> str:
    """Return a name of this run of the machine; a new one if the machine has none."""
    try:
        return BOOT_ID.read_text(encoding="ascii").strip()
    except OSError:
        return secrets.token_hex(8)
