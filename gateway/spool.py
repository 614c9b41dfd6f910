"""Lines on disk for somebody who is away: they outlive the worker that wrote them. Bounded.

A file is its worker's while it is locked; one that nobody locks is anybody's to read and remove.
All of it is written and read by one thread, so that a slow disk stalls no request; another one
syncs what is written, so that the next lines do not wait for that, and outlive a killed worker.
"""

import asyncio
import contextlib
import fcntl
import logging
import os
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import BinaryIO

logger = logging.getLogger("sluice.spool")

MAX_QUEUED_BYTES = 16 * 1024 * 1024
MAX_BATCH_LINES, MAX_BATCH_BYTES = 256, 256 * 1024  # the first line is read, whatever it has
MAX_FILES = 100_000  # of all workers in a directory: 0.1 s to list, 0.2 s to measure
SHARES = 512  # a worker writes this part of the room that it saw, then looks again
LEAST_LARGE_BYTES, LARGE_PARTS = 2**20, 256  # a large file has this, and this part of the bound
NEWBORN_SECONDS = 60.0  # an empty file that is younger is about to be locked
_SUFFIX = ".spool"


class Spool:
    """One worker's files in a directory, made when there is something to write.

    `lost` counts the lines that disk could not take, or did not within the bound: the newest where
    there are too many bytes, the oldest file's where there are too many files. `unreadable` has
    the names of files that nobody has, and that cannot be opened all the same.
    """

    def __init__(self, directory: Path, name: str, most_bytes: int) -> None:
        """Use a directory; all workers in it share the bound. Raises OSError."""
        directory.mkdir(parents=True, exist_ok=True, mode=0o700)
        if not os.access(directory, os.W_OK | os.X_OK):
            raise PermissionError(13, "Permission denied", str(directory))
        self._directory, self._name, self._most = directory, name, most_bytes
        self._loop = asyncio.get_running_loop()
        self._thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="spool")
        self._syncer = ThreadPoolExecutor(max_workers=1, thread_name_prefix="sync")
        self._syncing = False  # a sync is to come, of all that is written until then
        self._lock = threading.Lock()
        self._queue: list[bytes] = []
        self._queued = self._given = 0
        self._scheduled = False
        self._fd = -1
        self._path: Path | None = None
        self._room = 0  # what may be written without another look at the directory
        self.lost = 0
        self.unreadable = set[str]()  # files of others

    @property
    def written(self) -> int:
        """Return how many of the bytes that were given to it have been put to the disk."""
        return self._given - self._queued

    def write(self, lines: bytes) -> int:
        """Queue whole lines; return how many bytes are `written` once these are."""
        with self._lock:
            full = self._queued + len(lines) > MAX_QUEUED_BYTES
            if not full:
                self._queue.append(lines)
                self._queued += len(lines)
                self._given += len(lines)
        if full:
            self._lose(lines, "the disk is too slow")
        elif not self._scheduled:
            self._scheduled = True
            self._loop.call_soon(self._start_writing)
        return self._given

    def clear(self) -> None:
        """Remove what this worker has written: it is no longer needed."""
        with self._lock:
            self._queued -= sum(map(len, self._queue))
            self._queue.clear()
        self._submit(self._remove)

    def leave(self) -> None:
        """Let somebody read what is written, and begin another file."""
        self._submit(self._close)

    def leave_large(self) -> None:
        """Leave what is written where it is a large file; a smaller one grows on."""
        self._submit(self._close_large)

    def has_name_of(self, file: str) -> bool:
        """Tell whether a file was written under this one's name, by whatever process."""
        return file.rpartition("-")[0].endswith(f"-{self._name}")

    async def left(self) -> list[str]:
        """Return the names of the files, oldest first: this worker's own is not among them."""
        return await self._loop.run_in_executor(self._thread, self._others)

    async def take(self, name: str) -> "Left | None":
        """Take a file unless somebody writes or reads it, or it is gone; close it in the end."""
        return await self._loop.run_in_executor(self._thread, self._take, name)

    async def read(self, left: "Left") -> list[bytes]:
        """Return a file's next lines; none at its end."""
        return await self._loop.run_in_executor(self._thread, left.read)

    async def aclose(self) -> None:
        """Write what is queued; a file with anything in it stays for others. Idempotent."""
        with contextlib.suppress(RuntimeError):  # closed before
            self.leave()
        await asyncio.to_thread(self._thread.shutdown)
        await asyncio.to_thread(self._syncer.shutdown)

    def _start_writing(self) -> None:
        self._scheduled = False
        with contextlib.suppress(RuntimeError):  # closed
            self._thread.submit(self._write_queued, self._queue)

    def _submit(self, action: Callable[[], None]) -> None:
        """Do this after all lines so far are written, and before any later one is."""
        queue, self._queue = self._queue, []
        self._thread.submit(self._write_queued, queue)
        self._thread.submit(action)

    def _write_queued(self, queue: list[bytes]) -> None:
        with self._lock:
            lines, queue[:] = tuple(queue), ()
        data = b"".join(lines)
        if not data:
            return
        try:
            fitting = data[: self._fitting(data)]
            if fitting:
                self._append(fitting)
            self._lose(data[len(fitting) :], "the spool is full")
        except OSError as error:
            self._lose(data, error)
        with self._lock:
            self._queued -= len(data)

    def _fitting(self, data: bytes) -> int:
        """Return how many bytes of whole lines may be written."""
        if len(data) > self._room:
            room = max(self._most - self._size(), 0)
            fitting = len(data) if len(data) <= room else data.rfind(b"\n", 0, room) + 1
            self._room = (room - fitting) // SHARES  # the others write meanwhile
            return fitting
        self._room -= len(data)
        return len(data)

    def _lose(self, lines: bytes, why: object) -> None:
        """Give up lines of this worker's own."""
        self._count_lost(lines.count(b"\n"), why)

    def _count_lost(self, lines: int, why: object) -> None:
        if lines and not self.lost:
            logger.warning("lines for %s are lost: %s", self._directory, why)
        self.lost += lines

    def _append(self, data: bytes) -> None:
        if self._fd >= 0 and os.fstat(self._fd).st_nlink == 0:  # somebody has removed it
            self._close()
        if self._fd < 0:
            self._drop_oldest()
            path = self._directory / f"{time.time_ns()}-{self._name}-{os.getpid()}{_SUFFIX}"
            self._directory.mkdir(parents=True, exist_ok=True, mode=0o700)  # it may be gone
            flags = os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC
            self._fd, self._path = os.open(path, flags, 0o600), path
            fcntl.flock(self._fd, fcntl.LOCK_EX)
        before, view = os.fstat(self._fd).st_size, memoryview(data)
        try:
            while view:
                view = view[os.write(self._fd, view) :]
        except OSError:
            os.ftruncate(self._fd, before)  # or the next line would be glued to half of one
            raise
        if not self._syncing:
            with contextlib.suppress(
                OSError
            ):  # no more descriptors: it is synced with what follows
                fd = os.dup(self._fd)
                self._syncing = True
                self._syncer.submit(self._sync, fd)

    def _sync(self, fd: int) -> None:
        self._syncing = False
        try:
            os.fsync(fd)
        except OSError as error:
            logger.warning("lines in %s may not outlive the machine: %s", self._directory, error)
        finally:
            os.close(fd)

    def _size(self) -> int:
        total = 0
        with contextlib.suppress(FileNotFoundError), os.scandir(self._directory) as found:
            for entry in found:
                with contextlib.suppress(FileNotFoundError):  # read and removed by now
                    total += entry.stat().st_size
        return total

    def _drop_oldest(self) -> None:
        """Make room for another file."""
        names = self._others()
        for name in names[: max(len(names) + 1 - MAX_FILES, 0)]:
            if file := self._take(name):
                self._count_lost(sum(map(len, iter(file.read, []))), "too many files")
                file.remove()

    def _remove(self) -> None:
        if self._path is not None:
            self._path.unlink(missing_ok=True)
        self._close()

    def _close(self) -> None:
        if self._fd >= 0:
            fcntl.flock(self._fd, fcntl.LOCK_UN)  # a sync under way holds the file open, and locked
            os.close(self._fd)
        self._fd, self._path = -1, None

    def _close_large(self) -> None:
        large = max(LEAST_LARGE_BYTES, self._most // LARGE_PARTS)
        if self._fd >= 0 and os.fstat(self._fd).st_size >= large:
            self._close()

    def _others(self) -> list[str]:
        own = self._path.name if self._path is not None else None
        try:
            names = os.listdir(self._directory)
        except FileNotFoundError:  # it is made again with the next file
            return []
        found = [name for name in names if name.endswith(_SUFFIX)]
        return sorted(name.removesuffix(_SUFFIX) for name in found if name != own)

    def _take(self, name: str) -> "Left | None":
        try:
            return Left(self._directory / f"{name}{_SUFFIX}")
        except (BlockingIOError, FileNotFoundError):  # somebody else has it, or has had it
            return None
        except OSError as error:
            if name not in self.unreadable:
                self.unreadable.add(name)
                logger.error("%s cannot be read, and is left alone: %s", name, error.strerror)
            return None


def is_left(name: str) -> bool:
    """Tell whether the process that has written a file of this name is gone."""
    pid = name.rpartition("-")[2]
    try:
        os.kill(int(pid), 0)
    except ProcessLookupError:
        return True
    except (ValueError, OSError):  # somebody else's, or not of ours at all
        pass
    return False


class Left:
    """A file that nobody writes any more, locked. Raises OSError where it is not ours to have."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._file: BinaryIO = path.open("rb")
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            stat = os.fstat(self._file.fileno())
            newborn = stat.st_size == 0 and time.time() - stat.st_mtime < NEWBORN_SECONDS
            if newborn or stat.st_nlink == 0:
                raise FileNotFoundError(path)
        except OSError:
            self._file.close()
            raise

    @property
    def name(self) -> str:
        """Return the file's name: unlike that of any file before it."""
        return self._path.stem

    def read(self) -> list[bytes]:
        """Return the next lines: the same ones each time that a file is read."""
        found, size = list[bytes](), 0
        while len(found) < MAX_BATCH_LINES and size < MAX_BATCH_BYTES:
            line = self._file.readline()
            if not line:
                break
            found.append(line)
            size += len(line)
        return found

    def remove(self) -> None:
        """Delete the file: it has been read."""
        self._path.unlink(missing_ok=True)
        self.close()

    def close(self) -> None:
        """Leave the file to others. Idempotent."""
        self._file.close()
