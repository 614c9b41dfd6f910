"""Finished requests as JSON lines in files that are rotated, for whoever keeps books.

Written by a thread, a batch at a time; the newest file has no number, the oldest the highest.
"""

import os
from pathlib import Path

from gateway.observe.log import LineWriter


class LedgerFile(LineWriter):
    """One worker's file. Raises OSError when it cannot be opened; what fails later is dropped."""

    def __init__(self, path: Path, most_bytes: int, keep: int) -> None:
        self._path, self._most, self._keep = path, most_bytes, keep
        path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        fd = self._open()
        self._size = os.fstat(fd).st_size
        super().__init__(fd)

    def close(self, seconds: float = 2.0) -> None:
        """Write what is queued, for so long at most. Idempotent."""
        super().close(seconds)
        if self._fd >= 0 and not self._thread.is_alive():
            os.close(self._fd)
            self._fd = -1

    def remove(self) -> None:
        """Delete the file, where it was opened just to see that it can be."""
        self._path.unlink(missing_ok=True)

    def _write_all(self, view: memoryview) -> None:
        if self._size and self._size + len(view) > self._most:
            self._rotate()
        super()._write_all(view)
        self._size += len(view)

    def _rotate(self) -> None:
        for number in range(self._keep - 1, 0, -1):
            older = self._numbered(number)
            if older.exists():
                older.replace(self._numbered(number + 1))
        if self._keep:
            self._path.replace(self._numbered(1))
        else:
            self._path.unlink()
        full, self._fd = self._fd, self._open()
        os.close(full)  # last: until here what fails leaves a file that can be written
        self._size = 0

    def _numbered(self, number: int) -> Path:
        return self._path.with_name(f"{self._path.name}.{number}")

    def _open(self) -> int:
        return os.open(self._path, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o600)
