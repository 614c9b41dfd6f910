"""Hot path: OpenAI's stream, passed on as it came while its usage and its end are read.

Only whole events pass. The end marker is held back for `finish`, so that nothing looks complete
before it is accounted for; a usage event the client did not ask for is kept from it.
"""

import msgspec

from gateway.core.errors import Failure, UpstreamError
from gateway.core.usage import Usage
from gateway.providers.openai_wire import decode_chunk

# A single event holds one delta; images in deltas reach some hundred kilobytes.
MAX_EVENT_BYTES = 4 * 1024 * 1024
BOM = b"\xef\xbb\xbf"
END = b"data: [DONE]\n\n"


class OpenAIStream:
    """The decoder of one attempt. Raises UpstreamError on an event past the size cap."""

    __slots__ = (
        "_keep_usage",
        "_pending",
        "_started",
        "done",
        "failure",
        "finished",
        "text",
        "text_size",
        "usage",
    )

    def __init__(self, keep_usage: bool) -> None:
        self._keep_usage = keep_usage
        self._pending = b""
        self._started = False
        self.usage: Usage | None = None
        self.done = self.finished = False
        self.failure: str | None = None
        self.text: list[str] = []
        self.text_size = 0

    def feed(self, data: bytes) -> bytes:
        """Take any split of the stream; return what the client may have now."""
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

    def finish(self) -> bytes:
        """Return the end marker."""
        return END

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
        if data.find(b"\n\n") + 2 == end:  # the usual case: one event a packet
            return data if self._take(data) else b""
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
        if b"\n" in payload:
            payload = _data_lines(event)
        if not payload:
            return True  # a comment: keeps the client's connection alive too
        if payload == b"[DONE]":
            self.done = True
            return False
        try:
            chunk = decode_chunk(payload)
        except msgspec.DecodeError:
            return True  # not a shape we know: the client's to judge
        if chunk.error is not None:
            self.failure = payload.decode(errors="replace")
            return False
        if chunk.usage is not None:
            self.usage = chunk.usage.counted()
            if not chunk.choices:
                return self._keep_usage
        for choice in chunk.choices or ():
            if choice.finish_reason is not None:
                self.finished = True
            if text := choice.generated():
                self.text.append(text)
                self.text_size += len(text)
        return True


def _data_lines(event: bytes) -> bytes:
    """Join an event's data fields (WHATWG HTML 9.2.6: one space after the colon is dropped)."""
    lines = (line for line in event.split(b"\n") if line.startswith(b"data:"))
    return b"\n".join(line[6:] if line[5:6] == b" " else line[5:] for line in lines).strip()
