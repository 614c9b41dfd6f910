"""JSON lines on standard output, written by a thread so that a slow reader stalls no request.

Workers share it: each writes a batch of whole lines in its turn.
"""

import contextlib
import fcntl
import logging
import os
import queue
import select
import stat
import threading
from collections.abc import Iterator
from pathlib import Path

import msgspec

MAX_QUEUED_BYTES = 8 * 1024 * 1024
MAX_MESSAGE_CHARS = 4000

_encode = msgspec.json.Encoder().encode
encode_lines = msgspec.json.Encoder().encode_lines


class Turns:
    """A lock file of the processes that write to one output: past PIPE_BUF a pipe mixes theirs.

    It names the output while one of them writes: who finds it so has come after one that was
    killed in a line. Each process opens it for itself, as a lock is shared by who inherits it.
    """

    def __init__(self, output: int, path: Path) -> None:
        found = os.fstat(output)
        self._name = f"{found.st_dev}:{found.st_ino}".encode()
        self._file = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)

    @contextlib.contextmanager
    def take(self) -> Iterator[bool]:
        """Wait for a turn, for a block; tell whether the output ends in half a line."""
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX)
        except OSError:  # not every file system has locks
            yield False
            return
        try:
            cut = self._marked()
            self._mark(self._name)
            yield cut
            self._mark(b"")
        finally:
            fcntl.flock(self._file, fcntl.LOCK_UN)

    def close(self) -> None:
        """Give the file back. Not idempotent."""
        os.close(self._file)

    def _marked(self) -> bool:
        with contextlib.suppress(OSError):
            return os.pread(self._file, len(self._name) + 1, 0) == self._name
        return False

    def _mark(self, name: bytes) -> None:
        with contextlib.suppress(OSError):  # a full disk must not stop the log
            os.pwrite(self._file, name, 0)
            os.ftruncate(self._file, len(name))


class LineWriter:
    """Hands lines to a thread; what a full queue cannot take is dropped and counted.

    `lock`: of those that write to the same output, where there are others.
    """

    def __init__(self, fd: int, lock: Path | None = None) -> None:
        self._fd = fd
        self._turns = _turns(fd, lock) if lock is not None else None
        self._queue: queue.SimpleQueue[bytes | None] = queue.SimpleQueue()
        self._queued = 0
        self._lock = threading.Lock()
        self.dropped = 0
        self._thread = threading.Thread(target=self._run, name="log", daemon=True)
        self._thread.start()

    def write(self, data: bytes) -> None:
        """Queue whole lines."""
        if self._queued and self._queued + len(data) > MAX_QUEUED_BYTES:
            self.dropped += data.count(b"\n")
            return
        with self._lock:
            self._queued += len(data)
        self._queue.put(data)

    def close(self, seconds: float = 2.0) -> None:
        """Write what is queued, for so long at most. Idempotent."""
        self._queue.put(None)
        self._thread.join(seconds)
        if self._turns is not None and not self._thread.is_alive():
            self._turns.close()
            self._turns = None

    def _run(self) -> None:
        while (data := self._queue.get()) is not None:
            try:
                self._write_batch(data)
            except OSError:
                self.dropped += data.count(b"\n")
            with self._lock:
                self._queued -= len(data)

    def _write_batch(self, data: bytes) -> None:
        if self._turns is None:
            self._write_all(memoryview(data))
            return
        with self._turns.take() as cut:
            self._write_all(memoryview(b"\n" + data if cut else data))

    def _write_all(self, view: memoryview) -> None:
        while view:
            try:
                view = view[os.write(self._fd, view) :]
            except BlockingIOError:  # somebody made the terminal or pipe non-blocking
                select.select([], [self._fd], [], 1.0)


def _turns(fd: int, lock: Path) -> Turns | None:
    """Return the turns at an output; none at a file that is appended to: each write is whole."""
    appends = fcntl.fcntl(fd, fcntl.F_GETFL) & os.O_APPEND
    if appends and stat.S_ISREG(os.fstat(fd).st_mode):
        return None
    with contextlib.suppress(OSError):  # better a line that is torn than none
        return Turns(fd, lock)
    return None


class JsonHandler(logging.Handler):
    """Sends the standard library's log records through the same writer."""

    def __init__(self, writer: LineWriter) -> None:
        super().__init__()
        self._writer = writer

    def emit(self, record: logging.LogRecord) -> None:
        """Encode and queue one record."""
        line = {
            "event": "log",
            "time": record.created,
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": _writable(record.getMessage()[:MAX_MESSAGE_CHARS]),
        }
        if record.exc_info:
            text = self.formatException(record.exc_info)[-MAX_MESSAGE_CHARS:]
            line["exception"] = _writable(text)
        self._writer.write(_encode(line) + b"\n")

    @staticmethod
    def formatException(info: object) -> str:
        """Format a traceback."""
        return logging.Formatter().formatException(info)  # type: ignore[arg-type]


def _writable(text: str) -> str:
    """Return a text with bytes in it that are no UTF-8 (PEP 383) as it can be written."""
    return text.encode(errors="backslashreplace").decode()


def route_logging(writer: LineWriter, level: str) -> None:
    """Send every logger's output to the writer."""
    root = logging.getLogger()
    root.handlers[:] = [JsonHandler(writer)]
    root.setLevel(level.upper())
