"""Reads the files of applications that use the ASGI extension ``pathsend``.

The application names a file, and the server sends it. FastAPI's ``FileResponse`` does so where the server
announces the extension. Otherwise it reads 64 KiB at a time in a thread, and each piece crosses from the
thread to its loop, and from there to the engine.
"""

from __future__ import annotations

import os
from typing import Final

import trio

__all__ = ["PATHSEND", "FileBody"]

PATHSEND: Final = "http.response.pathsend"
"""The name of the extension, and the type of its message."""

CHUNK: Final = 256 * 1024
"""Bytes read at once: a megabyte needs four switches to a thread."""


class FileBody:
    """A file that is read piece by piece, in threads.

    Args:
        path: The path in the application's message.
    """

    def __init__(self, path: str) -> None:
        self._path = path
        self._fd = -1
        self._size = 0
        self._read = 0

    async def next_piece(self) -> bytes:
        """Return the next bytes; the first call opens the file.

        Raises:
            OSError: The file cannot be opened or read.
        """
        return await trio.to_thread.run_sync(self._next_piece)

    @property
    def at_end(self) -> bool:
        """Whether all bytes have been read that the file had when it was opened."""
        return self._read >= self._size

    def close(self) -> None:
        """Close the file, if it is open."""
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1

    def _next_piece(self) -> bytes:
        if self._fd < 0:
            # A pipe would block the thread at open() otherwise.
            self._fd = os.open(self._path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
            self._size = os.fstat(self._fd).st_size
        data = os.pread(self._fd, min(CHUNK, self._size - self._read), self._read)
        # A file that became shorter meanwhile ends the body: the engine notices the missing bytes.
        self._read = self._read + len(data) if data else self._size
        return data
