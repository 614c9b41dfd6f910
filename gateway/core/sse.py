"""Hot path: events of a text/event-stream out of any split of its bytes (WHATWG HTML 9.2.6)."""

import msgspec

# A single event holds one delta; images in deltas reach some hundred kilobytes.
MAX_EVENT_BYTES = 4 * 1024 * 1024
# Where an event may hold all of an answer, pictures too: as much as a whole reply.
MAX_WHOLE_BYTES = 64 * 1024 * 1024
BOM = b"\xef\xbb\xbf"
CARRIAGE_RETURN, LINE_FEED = 13, 10


class TooLarge(ValueError):
    """An event is past the cap."""


class SseEvent(msgspec.Struct, frozen=True, gc=False):
    """One event: its type (empty where it has none), its data lines joined, and its bytes."""

    type: bytes
    data: bytes
    raw: bytes


class SseReader:
    """Cuts a stream into events, each of `most` bytes. Raises TooLarge; it holds no more."""

    __slots__ = ("_after_cr", "_held", "_held_size", "_most", "_started")

    def __init__(self, most: int = MAX_EVENT_BYTES) -> None:
        self._most = most
        self._held: list[bytes] = []
        self._held_size = 0
        self._after_cr = self._started = False

    @property
    def holds(self) -> bool:
        """Tell whether an event's end is missing."""
        return bool(self._held)

    def feed(self, data: bytes) -> list[SseEvent]:
        """Take any split of the stream; return the events that are whole."""
        if not data:
            return []
        if not self._started:
            data = b"".join([*self._held, data])
            self._held.clear()
            self._held_size = 0
            if len(data) < len(BOM) and BOM.startswith(data):
                self._hold(data)
                return []
            self._started = True
            data = data.removeprefix(BOM)
        if self._after_cr or CARRIAGE_RETURN in data:
            data = self._plain_line_ends(data)
        if (
            not self._held
            and data.find(b"\n") == len(data) - 2
            and data.startswith(b"data: ")
            and data[-1] == LINE_FEED
            and len(data) <= self._most
        ):
            return [SseEvent(b"", data[6:-2], data)]  # one event of one line, as most are
        return self._events(data)

    def rest(self) -> list[SseEvent]:
        """Return the event whose empty line never came, at the end of the stream."""
        data = b"".join(self._held).strip(b"\n")
        self._held.clear()
        self._held_size = 0
        return [self._event(data + b"\n\n")] if data else []

    def _plain_line_ends(self, data: bytes) -> bytes:
        """Make every line end a LF; a CR ends a line at once, a LF right behind it is its half."""
        if self._after_cr:
            data = data.removeprefix(b"\n")
        self._after_cr = data.endswith(b"\r")
        return data.replace(b"\r\n", b"\n").replace(b"\r", b"\n")

    def _events(self, data: bytes) -> list[SseEvent]:
        held = self._held
        if held:
            across = data.startswith(b"\n") and held[-1].endswith(b"\n")
            if not across and b"\n\n" not in data:
                self._hold(data)  # only the new end was searched: time stays linear
                return []
            data = b"".join([*held, data])
            held.clear()
            self._held_size = 0
        end = data.rfind(b"\n\n") + 2
        if end == 1:
            self._hold(data)
            return []
        self._hold(data[end:])
        found = data[: end - 2].split(b"\n\n")
        return [self._event(raw + b"\n\n") for raw in found if raw.strip()]

    def _hold(self, data: bytes) -> None:
        if data:
            self._held.append(data)
            self._held_size += len(data)
            if self._held_size > self._most:
                raise TooLarge

    def _event(self, raw: bytes) -> SseEvent:
        if len(raw) > self._most:
            raise TooLarge
        return _parsed(raw)


def _parsed(raw: bytes) -> SseEvent:
    kind, data = b"", []
    for line in raw.split(b"\n"):
        if line.startswith(b"data:"):
            data.append(line[6:] if line[5:6] == b" " else line[5:])
        elif line.startswith(b"event:"):
            kind = line[6:].strip()
    return SseEvent(kind, b"\n".join(data), raw)


def frame(kind: str, data: bytes) -> bytes:
    """Write an event with a type."""
    return b"event: %b\ndata: %b\n\n" % (kind.encode(), data)
