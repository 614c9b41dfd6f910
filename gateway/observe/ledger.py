"""Finished requests as JSON lines in files that are rotated, for whoever keeps books.

Written by a thread, a batch at a time; the newest file has no number, the oldest the highest.
"""

import logging
import os
from pathlib import Path

from gateway.observe.log import LineWriter

logger = logging.getLogger("sluice.ledger")


class LedgerFile(LineWriter):
    """One worker's file. Raises OSError when it cannot be opened; what fails later is dropped."""

    def __init__(self, path: Path, most_bytes: int, keep: int) -> None:
        self._path, self._most, self._keep = path, most_bytes, keep
        path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        fd = self._open(path)
        self._size = os.fstat(fd).st_size
        # The next line would be glued to one that a crash has cut short.
        self._torn = bool(self._size) and os.pread(fd, 1, self._size - 1) != b"\n"
        super().__init__(fd)

    def close(self, seconds: float = 2.0) -> None:
        """Write what is queued, for so long at most. Idempotent."""
        super().close(seconds)
        if self._fd >= 0 and not self._thread.is_alive():
            os.close(self._fd)
            self._fd = -1

    def _write_all(self, view: memoryview) -> None:
        if self._size and self._size + len(view) > self._most:
            try:
                self._rotate()
            except OSError as error:
                logger.warning("%s cannot be rotated: %s", self._path, error.strerror)
                self._size = 0  # it grows once more before the next try
        if self._torn:
            view = memoryview(b"\n" + view)
        before = os.fstat(self._fd).st_size
        try:
            super()._write_all(view)
        except OSError:
            os.ftruncate(self._fd, before)  # or the next line would be glued to half of one
            raise
        self._size += len(view)
        self._torn = False

    def _rotate(self) -> None:
        fresh = self._path.with_name(f"{self._path.name}.new")
        fd = self._open(fresh)  # first: where this fails, nothing has been moved
        try:
            if self._path.exists():  # else somebody has moved it already
                self._shift()
            fresh.replace(self._path)
        except OSError:
            os.close(fd)
            raise
        full, self._fd = self._fd, fd
        os.close(full)
        self._size, self._torn = 0, False

    def _shift(self) -> None:
        """Number the files anew; the oldest one goes."""
        for number in range(self._keep - 1, 0, -1):
            older = self._numbered(number)
            if older.exists():
                older.replace(self._numbered(number + 1))
        if self._keep:
            self._path.replace(self._numbered(1))

    def _numbered(self, number: int) -> Path:
        return self._path.with_name(f"{self._path.name}.{number}")

    @staticmethod
    def _open(path: Path) -> int:
        return os.open(path, os.O_RDWR | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o600)
