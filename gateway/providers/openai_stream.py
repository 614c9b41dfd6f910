"""Hot path: OpenAI's stream, passed on as it came while its usage and its end are read.

Only whole events pass. The end marker is held back for `finish`, so that nothing looks complete
before it is accounted for; a usage event the client did not ask for is kept from it.
"""

from gateway.core.errors import ApiError, Failure, UpstreamError
from gateway.core.usage import Usage
from gateway.providers.adapter import EVENT_STREAM
from gateway.providers.errors import UNREADABLE
from gateway.providers.openai_wire import Chunk, decode_chunk, decode_numbered, usage_of

# A single event holds one delta; images in deltas reach some hundred kilobytes.
MAX_EVENT_BYTES = 4 * 1024 * 1024
# Text kept for a count where no usage arrives; past it whoever counts is asked to take it.
KEPT_BYTES = 16 * 1024
# Events that are remembered in the hope that more of the kind follow.
LEARNING_TRIES = 8
PROBE, OTHER_PROBE = b"~", b"!"
MAX_FRAME_BYTES = 2048
# The first line of an HTTP chunk by the length of the whole of it; b"-" where there is none.
SIZE_LINES = [b"-"] * (MAX_FRAME_BYTES + 16)
for _size in range(1, MAX_FRAME_BYTES):
    SIZE_LINES[_size + 4 + len(f"{_size:x}")] = b"%x\r\n" % _size
BOM = b"\xef\xbb\xbf"
# As numbers: looking for one byte that way is a call of memchr, looking for a bytes raises inside.
LINE_FEED, CARRIAGE_RETURN = 10, 13
END = b"data: [DONE]\n\n"


class OpenAIStream:
    """The decoder of one attempt, of so many texts. Raises UpstreamError on a too large event."""

    __slots__ = (
        "_after_cr",
        "_ended",
        "_keep_usage",
        "_pieces",
        "_pieces_size",
        "_plain",
        "_prefix",
        "_started",
        "_suffix",
        "_taken_bytes",
        "_text",
        "_texts",
        "_tries",
        "attention",
        "done",
        "failure",
        "finished",
        "text_bytes",
        "told_bytes",
        "usage",
    )

    content_type = EVENT_STREAM
    odd = False  # why it ended the client is told as it came

    def __init__(self, keep_usage: bool, texts: int = 1) -> None:
        self._keep_usage, self._texts = keep_usage, texts
        self._ended: set[int] = set()  # of several texts, the numbers of those that have ended
        self._pieces: list[bytes] = []  # of an event whose end has not come
        self._pieces_size = 0
        self._after_cr = False
        self._started = False
        self._plain = False  # at the start of an event, with nothing held and nothing over
        # What stands around the text of the last event that was decoded: see `_learn`.
        self._prefix = self._suffix = b""
        self._tries = LEARNING_TRIES
        self._text: list[str] = []
        self.text_bytes = self.told_bytes = self._taken_bytes = 0
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
                if self._tries:
                    self._learn(chunk, data)
                return data if self._take_chunk(chunk, data) else b""
        out = self._feed_any(data)
        held = self._pieces or self._after_cr
        self._plain = self._started and not (held or self.done or self.failure)
        return out

    def repeats(self, frame: bytes) -> bool:
        """Take an HTTP chunk that is the event decoded last with another text; False if it is not.

        A text without quote and backslash is what it looks like, so nothing need be decoded.
        """
        size, prefix, suffix = len(frame), self._prefix, self._suffix
        if size >= MAX_FRAME_BYTES or not (prefix and self._plain):
            return False
        before = SIZE_LINES[size] + prefix
        end = size - len(suffix)
        data = frame[len(before) : end]
        if before + data + suffix != frame:  # at half the cost of `startswith` and `endswith`
            return False
        try:
            text = data.decode()
        except UnicodeDecodeError:
            return False
        if (
            not text
            or not text.isprintable()
            or '"' in text
            or "\\" in text
            or self.text_bytes - self._taken_bytes > KEPT_BYTES
        ):
            return False
        self._text.append(text)
        self.text_bytes += len(data)
        return True

    def take_text(self) -> str:
        """Return what was generated since this was last called, and forget it."""
        text, self._text = self._text, []
        self._taken_bytes = self.text_bytes
        return "".join(text)

    def close(self) -> bytes:
        """Take the last event, where its empty line never came."""
        rest = b"".join(self._pieces)
        if self.done or not rest or not _is_whole(_data_lines(rest)):
            return b""
        return self._feed_any(b"\n\n")

    def finish(self) -> bytes:
        """Return the end marker."""
        return END

    def fail(self, error: ApiError) -> bytes:
        """Leave it to the dialect."""
        return b""

    def _learn(self, chunk: Chunk, event: bytes) -> None:
        """Remember an event that holds one text and nothing else of interest.

        A stream whose events all differ elsewhere is given up on.
        """
        if not chunk.choices or len(chunk.choices) != 1 or chunk.usage or chunk.error:
            return
        choice = chunk.choices[0]
        text = choice.delta.content if choice.delta is not None else choice.text
        if choice.finish_reason is not None or not text or choice.generated() != text:
            return
        quoted = b'"%b"' % str(text).encode()
        if event.count(quoted) != 1:
            return
        self._tries -= 1
        before, _, after = event.partition(quoted)
        prefix, suffix = before + b'"', b'"' + after
        probe = PROBE if text != PROBE.decode() else OTHER_PROBE
        try:  # it may stand elsewhere, beside the same text in another spelling
            probed = decode_chunk((prefix + probe + suffix)[6:-2])
        except UNREADABLE:
            return
        if probed.choices and probed.choices[0].generated() == probe.decode():
            self._prefix, self._suffix = prefix, suffix + b"\r\n"

    def _feed_any(self, data: bytes) -> bytes:
        if not self._started:
            data = b"".join([*self._pieces, data])
            self._pieces.clear()
            if len(data) < len(BOM) and BOM.startswith(data):
                self._pieces.append(data)
                return b""
            self._started = True
            data = data.removeprefix(BOM)
        if self._after_cr or CARRIAGE_RETURN in data:
            data = self._plain_line_ends(data)
        return self._whole_events(data)

    def _plain_line_ends(self, data: bytes) -> bytes:
        """Make every line end a LF; a CR ends a line at once, a LF right behind it is its half."""
        if self._after_cr and data:
            self._after_cr = False
            data = data.removeprefix(b"\n")
        if data:
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

    def _all_ended(self, event: bytes) -> bool:
        """Tell whether no text is left that goes on: one that ends says nothing of the others."""
        self._ended.update(_numbers(event))
        return len(self._ended) >= self._texts

    def _take_chunk(self, chunk: Chunk, event: bytes) -> bool:
        if chunk.choices:
            for choice in chunk.choices:
                if choice.finish_reason:  # some say "" while they go on
                    self.finished = self._texts == 1 or self._all_ended(event)
                if (text := choice.generated()) is not None:
                    self._text.append(text)
                    self.text_bytes += len(text) if text.isascii() else len(text.encode())
                    if self.text_bytes - self._taken_bytes > KEPT_BYTES:
                        self.attention = True
        if chunk.usage is None and chunk.error is None:
            return True
        if chunk.error is not None:
            self.failure = event.decode(errors="replace").removeprefix("data: ").strip()
            self._plain, self.attention = False, True
            return False
        used = usage_of(chunk.usage)
        if used is not None:
            self.usage, self.told_bytes = used, self.text_bytes
        return bool(chunk.choices) or self._keep_usage


def _numbers(event: bytes) -> list[int]:
    """Return the numbers of the choices that end in an event."""
    try:
        found = decode_numbered(event.removeprefix(b"data: ")).choices or ()
    except UNREADABLE:
        return []
    return [choice.index or 0 for choice in found if choice.finish_reason]


def _is_whole(payload: bytes) -> bool:
    """Tell whether an event was cut in its middle."""
    if payload == b"[DONE]":
        return True
    try:
        decode_chunk(payload)
    except UNREADABLE:
        return False
    return True


def _too_large() -> UpstreamError:
    return UpstreamError(Failure.TOO_LARGE, "an event of the stream is too large")


def _data_lines(event: bytes) -> bytes:
    """Join an event's data fields (WHATWG HTML 9.2.6: one space after the colon is dropped)."""
    lines = (line for line in event.split(b"\n") if line.startswith(b"data:"))
    return b"\n".join(line[6:] if line[5:6] == b" " else line[5:] for line in lines).strip()
