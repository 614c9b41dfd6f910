"""JSON lines on standard output, written by a thread so that a slow reader stalls no request."""

import logging
import os
import queue
import select
import threading

import msgspec

MAX_QUEUED_BYTES = 8 * 1024 * 1024
MAX_MESSAGE_CHARS = 4000

_encode = msgspec.json.Encoder().encode
encode_lines = msgspec.json.Encoder().encode_lines


class LineWriter:
    """Hands lines to a thread; what a full queue cannot take is dropped and counted."""

    def __init__(self, fd: int) -> None:
        self._fd = fd
        self._queue: queue.SimpleQueue[bytes | None] = queue.SimpleQueue()
        self._queued = 0
        self._lock = threading.Lock()
        self.dropped = 0
        self._thread = threading.Thread(target=self._run, name="log", daemon=True)
        self._thread.start()

    def write(self, data: bytes) -> None:
        """Queue whole lines."""
        if self._queued + len(data) > MAX_QUEUED_BYTES:
            self.dropped += data.count(b"\n")
            return
        with self._lock:
            self._queued += len(data)
        self._queue.put(data)

    def close(self, seconds: float = 2.0) -> None:
        """Write what is queued, for so long at most. Idempotent."""
        self._queue.put(None)
        self._thread.join(seconds)

    def _run(self) -> None:
        while (data := self._queue.get()) is not None:
            try:
                self._write_all(memoryview(data))
            except OSError:
                self.dropped += data.count(b"\n")
            with self._lock:
                self._queued -= len(data)

    def _write_all(self, view: memoryview) -> None:
        while view:
            try:
                view = view[os.write(self._fd, view) :]
            except BlockingIOError:  # somebody made the terminal or pipe non-blocking
                select.select([], [self._fd], [], 1.0)


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
