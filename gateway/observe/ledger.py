"""Finished requests as JSON lines in files that are rotated, for whoever keeps books.

Written by a thread, a batch at a time; the newest file has no number, the oldest the highest.
"""

import contextlib
import fcntl
import logging
import os
from pathlib import Path

from gateway.observe.log import LineWriter

logger = logging.getLogger("sluice.ledger")


class LedgerFile(LineWriter):
    """One worker's file, and for a while that of who takes its place.

    What cannot be written is dropped; the file, and its folder, are made again when that is
    possible. A worker that cannot have its file serves all the same.
    """

    def __init__(self, path: Path, most_bytes: int, keep: int) -> None:
        self._path, self._most, self._keep = path, most_bytes, keep
        self._bound = most_bytes  # grows where the file cannot be rotated
        self._failing = False
        fd = -1
        try:
            fd = self._open_own()
        except OSError as error:
            self._fails(error)
        super().__init__(fd)

    def close(self, seconds: float = 2.0) -> None:
        """Write what is queued, for so long at most. Idempotent."""
        super().close(seconds)
        if self._fd >= 0 and not self._thread.is_alive():
            os.close(self._fd)
            self._fd = -1

    def _write_all(self, view: memoryview) -> None:
        others = self._keep_out()
        try:
            self._append(view)
        except OSError as error:
            self._fails(error)
            raise
        finally:
            if others is not None:
                os.close(others)
        if self._failing:
            self._failing = False
            logger.warning("%s takes lines again; %d were lost", self._path, self.dropped)

    def _fails(self, error: OSError) -> None:
        if not self._failing:
            self._failing = True
            logger.error("%s takes no lines, which are lost: %s", self._path, error.strerror)

    def _append(self, view: memoryview) -> None:
        self._follow()
        size = os.fstat(self._fd).st_size
        if size and size + len(view) > self._bound:
            try:
                self._rotate()
                size = 0
            except OSError as error:
                logger.warning("%s cannot be rotated: %s", self._path, error.strerror)
                self._bound = size + self._most  # it grows once more before the next try
        if size and os.pread(self._fd, 1, size - 1) != b"\n":  # a crash has cut the last line short
            view = memoryview(b"\n" + view)
        try:
            super()._write_all(view)
        except OSError:
            os.ftruncate(self._fd, size)  # or the next line would be glued to half of one
            raise

    def _keep_out(self) -> int | None:
        """Keep others out who write to this folder, until what is returned is closed.

        None where that cannot be: not every file system has locks.
        """
        try:
            folder = os.open(self._path.parent, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        except OSError:
            return None
        with contextlib.suppress(OSError):
            fcntl.flock(folder, fcntl.LOCK_EX)
        return folder

    def _follow(self) -> None:
        """Open the file anew where another process has rotated it, or moved it away."""
        with contextlib.suppress(FileNotFoundError):
            if self._fd >= 0 and os.path.samestat(os.stat(self._path), os.fstat(self._fd)):
                return
        self._take(self._open_own())

    def _take(self, fd: int) -> None:
        before, self._fd = self._fd, fd
        if before >= 0:
            os.close(before)
        self._bound = self._most

    def _open_own(self) -> int:
        self._path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        return self._open(self._path)

    def _rotate(self) -> None:
        fresh = self._path.with_name(f"{self._path.name}.new")
        fd = self._open(fresh)  # first: where this fails, nothing has been moved
        try:
            self._shift()
            fresh.replace(self._path)
        except OSError:
            os.close(fd)
            raise
        self._take(fd)

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
