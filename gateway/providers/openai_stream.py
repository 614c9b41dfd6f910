"""Hot path: OpenAI's stream, passed on as it came while its usage and its end are read.

Only whole events pass. The end marker is held back for `finish`, so that nothing looks complete
before it is accounted for; a usage event the client did not ask for is kept from it.
"""

from gateway.core.errors import Failure, UpstreamError
from gateway.core.usage import Usage
from gateway.providers.openai_wire import UNREADABLE, Chunk, decode_chunk

# A single event holds one delta; images in deltas reach some hundred kilobytes.
MAX_EVENT_BYTES = 4 * 1024 * 1024
# Text kept for a count where no usage arrives; past it whoever counts is asked to take it.
KEPT_CHARS = 16 * 1024
BOM = b"\xef\xbb\xbf"
LINE_FEED = 10
END = b"data: [DONE]\n\n"


class OpenAIStream:
    """The decoder of one attempt. Raises UpstreamError on an event past the size cap."""

    __slots__ = (
        "_after_cr",
        "_keep_usage",
        "_pieces",
        "_pieces_size",
        "_plain",
        "_started",
        "_text",
        "_text_size",
        "attention",
        "done",
        "failure",
        "finished",
        "usage",
    )

    def __init__(self, keep_usage: bool) -> None:
        self._keep_usage = keep_usage
        self._pieces: list[bytes] = []  # of an event whose end has not come
        self._pieces_size = 0
        self._after_cr = False
        self._started = False
        self._plain = False  # at the start of an event, with nothing held and nothing over
        self._text: list[str] = []
        self._text_size = 0
        self.usage: Usage | None = None
        self.done = self.finished = self.attention = False
        self.failure: str | None = None

    def feed(self, data: bytes) -> bytes:
        """Take any split of the stream; return what the client may have now."""
        # As providers send: one event, one line. What does not decode (two events under other
        # line ends, the end marker) goes the long way.
        if (
            data.find(b"\n") == len(data) - 2
            and self._plain
            and data[-1] == LINE_FEED
            and data.startswith(b"data: ")
        ):
            try:
                chunk = decode_chunk(data[6:-2])
            except UNREADABLE:
                pass
            else:
                return data if self._take_chunk(chunk, data) else b""
        out = self._feed_any(data)
        held = self._pieces or self._after_cr
        self._plain = self._started and not (held or self.done or self.failure)
        return out

    def take_text(self) -> str:
        """Return what was generated since this was last called, and forget it."""
        text, self._text = self._text, []
        self._text_size = 0
        return "".join(text)

    def finish(self) -> bytes:
        """Return the end marker."""
        return END

    def _feed_any(self, data: bytes) -> bytes:
        if not self._started:
            data = b"".join([*self._pieces, data])
            self._pieces.clear()
            if len(data) < len(BOM) and BOM.startswith(data):
                self._pieces.append(data)
                return b""
            self._started = True
            data = data.removeprefix(BOM)
        if self._after_cr or b"\r" in data:
            data = self._plain_line_ends(data)
        return self._whole_events(data)

    def _plain_line_ends(self, data: bytes) -> bytes:
        """Make every line end a LF; a CR ends a line at once, a LF right behind it is its half."""
        if self._after_cr:
            data = data.removeprefix(b"\n") if data else data
        self._after_cr = data.endswith(b"\r")
        return data.replace(b"\r\n", b"\n").replace(b"\r", b"\n")

    def _whole_events(self, data: bytes) -> bytes:
        pieces = self._pieces
        if pieces:
            across = data.startswith(b"\n") and pieces[-1].endswith(b"\n")
            if not across and b"\n\n" not in data:
                return self._hold(data)  # only the new end was searched: time stays linear
            data = b"".join([*pieces, data])
            pieces.clear()
            self._pieces_size = 0
        end = data.rfind(b"\n\n") + 2
        if end == 1:
            return self._hold(data)
        if end != len(data):
            self._hold(data[end:])
            data = data[:end]
        events = [event + b"\n\n" for event in data[:-2].split(b"\n\n")]
        return b"".join([event for event in events if self._take(event)])

    def _hold(self, data: bytes) -> bytes:
        if data:
            self._pieces.append(data)
            self._pieces_size += len(data)
            if self._pieces_size > MAX_EVENT_BYTES:
                raise _too_large()
        return b""

    def _take(self, event: bytes) -> bool:
        """Read one event; tell whether the client may see it."""
        if self.done or self.failure is not None:
            return False
        if len(event) > MAX_EVENT_BYTES:
            raise _too_large()
        payload = event[6:-2] if event.startswith(b"data: ") else _data_lines(event)
        if payload.find(b"\n") >= 0:
            payload = _data_lines(event)
        if payload.strip() == b"[DONE]":
            self.done = self.attention = True
            return False
        try:
            chunk = decode_chunk(payload)
        except UNREADABLE:
            return True  # a comment, or not a shape we know: the client's to judge
        return self._take_chunk(chunk, payload)

    def _take_chunk(self, chunk: Chunk, event: bytes) -> bool:
        if chunk.choices:
            for choice in chunk.choices:
                if choice.finish_reason is not None:
                    self.finished = True
                if (text := choice.generated()) is not None:
                    self._text.append(text)
                    self._text_size += len(text)
                    if self._text_size > KEPT_CHARS:
                        self.attention = True
        if chunk.usage is None and chunk.error is None:
            return True
        if chunk.error is not None:
            self.failure = event.decode(errors="replace").removeprefix("data: ").strip()
            self._plain, self.attention = False, True
            return False
        assert chunk.usage is not None
        self.usage = chunk.usage.counted()
        return bool(chunk.choices) or self._keep_usage


def _too_large() -> UpstreamError:
    return UpstreamError(Failure.PROTOCOL, "an event of the stream is too large")


def _data_lines(event: bytes) -> bytes:
    """Join an event's data fields (WHATWG HTML 9.2.6: one space after the colon is dropped)."""
    lines = (line for line in event.split(b"\n") if line.startswith(b"data:"))
    return b"\n".join(line[6:] if line[5:6] == b" " else line[5:] for line in lines).strip()
