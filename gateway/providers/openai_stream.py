"""Hot path: OpenAI's stream, passed on as it came while its usage and its end are read.

Only whole events pass. The end marker is held back for `finish`, so that nothing looks complete
before it is accounted for; a usage event the client did not ask for is kept from it.
"""

import msgspec

from gateway.core.errors import Failure, UpstreamError
from gateway.core.usage import Usage
from gateway.providers.openai_wire import Chunk, decode_chunk

# A single event holds one delta; images in deltas reach some hundred kilobytes.
MAX_EVENT_BYTES = 4 * 1024 * 1024
BOM = b"\xef\xbb\xbf"
LINE_FEED = 10
# Events kept for a count where no usage arrives; past it whoever counts is asked to take it.
KEPT_BYTES = 16 * 1024
END = b"data: [DONE]\n\n"


class OpenAIStream:
    """The decoder of one attempt. Raises UpstreamError on an event past the size cap."""

    __slots__ = (
        "_keep_usage",
        "_kept",
        "_kept_size",
        "_pending",
        "_plain",
        "_started",
        "attention",
        "done",
        "failure",
        "finished",
        "usage",
    )

    def __init__(self, keep_usage: bool) -> None:
        self._keep_usage = keep_usage
        self._pending = b""
        self._started = False
        self._plain = False  # at the start of an event, with nothing held and nothing over
        self.usage: Usage | None = None
        self.done = self.finished = self.attention = False
        self.failure: str | None = None
        self._kept: list[bytes] = []
        self._kept_size = 0

    def feed(self, data: bytes) -> bytes:
        """Take any split of the stream; return what the client may have now."""
        # As providers send: one event, one line, with nothing in it but text. It is kept as it is
        # and decoded only if it must be counted: a quarter of the cost of decoding each.
        if (
            data.find(b"\n") == len(data) - 2
            and self._plain
            and data.find(b'"finish_reason":null') > 0
            and (data.find(b'"usage"') < 0 or data.find(b'"usage":null') > 0)
            and data.find(b'"error"') < 0
            and data.startswith(b"data: ")
            and data[-1] == LINE_FEED
        ):
            self._kept.append(data)
            self._kept_size += len(data)
            if self._kept_size > KEPT_BYTES:
                self.attention = True
            return data
        out = self._feed_any(data)
        self._plain = self._started and not (self._pending or self.done or self.failure)
        return out

    def finish(self) -> bytes:
        """Return the end marker."""
        return END

    def take_text(self) -> str:
        """Return what was generated since this was last called, and forget it."""
        kept, self._kept = self._kept, []
        self._kept_size = 0
        return "".join([_generated(event) for event in kept])

    def _feed_any(self, data: bytes) -> bytes:
        if self._pending:
            data = self._pending + data
        if not self._started:
            if len(data) < len(BOM) and BOM.startswith(data):
                self._pending = data
                return b""
            self._started = True
            data = data.removeprefix(BOM)
        if b"\r" in data:
            return self._feed_other_line_ends(data)
        return self._whole_events(data)

    def _whole_events(self, data: bytes) -> bytes:
        end = data.rfind(b"\n\n") + 2
        if end == 1:
            if len(data) > MAX_EVENT_BYTES:
                raise UpstreamError(Failure.PROTOCOL, "an event of the stream is too large")
            self._pending = data
            return b""
        self._pending = data[end:]
        if end != len(data):
            data = data[:end]
        events = [event + b"\n\n" for event in data[:-2].split(b"\n\n")]
        return b"".join([event for event in events if self._take(event)])

    def _feed_other_line_ends(self, data: bytes) -> bytes:
        # A CR at the very end may be half of a CRLF: it waits for the next byte.
        held = b"\r" if data.endswith(b"\r") else b""
        plain = data[: len(data) - len(held)].replace(b"\r\n", b"\n").replace(b"\r", b"\n")
        out = self._whole_events(plain)
        self._pending += held
        return out

    def _take(self, event: bytes) -> bool:
        """Read one event; tell whether the client may see it."""
        if self.done or self.failure is not None:
            return False
        payload = event[6:-2] if event.startswith(b"data: ") else _data_lines(event)
        if payload.find(b"\n") >= 0:
            payload = _data_lines(event)
        try:
            chunk = decode_chunk(payload)
        except msgspec.DecodeError:
            return self._take_other(payload)
        return self._take_chunk(chunk, payload)

    def _take_chunk(self, chunk: Chunk, payload: bytes) -> bool:
        if chunk.choices:
            if any(choice.finish_reason is not None for choice in chunk.choices):
                self.finished = True
            self._kept.append(payload)
            self._kept_size += len(payload)
            if self._kept_size > KEPT_BYTES:
                self.attention = True
        if chunk.usage is None and chunk.error is None:
            return True
        return self._take_rare(chunk, payload)

    def _take_rare(self, chunk: Chunk, payload: bytes) -> bool:
        if chunk.error is not None:
            self.failure = payload.decode(errors="replace")
            self._plain, self.attention = False, True
            return False
        if chunk.usage is not None:
            self.usage = chunk.usage.counted()
        return bool(chunk.choices) or self._keep_usage

    def _take_other(self, payload: bytes) -> bool:
        """Read what is not a chunk: the end marker, a comment, or the client's to judge."""
        if payload == b"[DONE]":
            self.done = self.attention = True
            return False
        return True


def _generated(event: bytes) -> str:
    """Return the text of a kept event, with or without its `data: `."""
    chunk = decode_chunk(event.removeprefix(b"data: "))
    return "".join([choice.generated() or "" for choice in chunk.choices or ()])


def _data_lines(event: bytes) -> bytes:
    """Join an event's data fields (WHATWG HTML 9.2.6: one space after the colon is dropped)."""
    lines = (line for line in event.split(b"\n") if line.startswith(b"data:"))
    return b"\n".join(line[6:] if line[5:6] == b" " else line[5:] for line in lines).strip()
