"""Hot path: a stream on its way from a provider to a client, written as it is read.

Nothing reaches the client before the first event that says something, so a failure up to there can
still be handed to another target. The end marker stays here until the request is settled.
"""

from collections.abc import Callable
from typing import Protocol

from gateway.core.errors import ApiError, Failure, UpstreamError
from gateway.core.usage import Usage
from gateway.providers.adapter import StreamDecoder
from gateway.upstream.exchange import Flow

# Of events that say nothing yet: whoever sends more has begun.
MAX_OPENING_BYTES = 64 * 1024
PING = b": still here\n\n"
# Of generated text, where no limit of tokens ends a stream: more than any model writes.
MAX_TEXT_BYTES = 128.0 * 1024 * 1024


class StreamClient(Protocol):
    """The client's side of a stream."""

    def start(self, headers: bytes) -> None:
        """Send the head, which may wait for what is written next."""
        ...

    @property
    def chunked(self) -> bool:
        """Tell whether `write_frame` may be used."""
        ...

    def write(self, data: bytes) -> None:
        """Send content."""
        ...

    def write_frame(self, frame: bytes) -> None:
        """Send content that is an HTTP chunk already."""
        ...

    def follow(self, flow: Flow | None) -> None:
        """Pause this source while the client cannot keep up."""
        ...


class Allowance(Protocol):
    """How much text a stream may deliver before more must be reserved for it."""

    @property
    def text_bytes(self) -> float:
        """Return how much in all is covered."""
        ...

    def extend(self, granted: Callable[[], None], refused: Callable[[UpstreamError], None]) -> None:
        """Reserve more, and call one of the two."""
        ...

    def close(self) -> None:
        """Ask no more."""
        ...


class Relay:
    """A sink that decodes and forwards.

    `count` counts the tokens of generated text; `opens` tells events that say nothing yet.
    """

    __slots__ = (
        "_allowance",
        "_allowed",
        "_client",
        "_clock",
        "_count",
        "_decoder",
        "_flow",
        "_folded",
        "_headers",
        "_opening",
        "_opens",
        "_pass_on",
        "_since",
        "_write",
        "careful",
        "first_event_at",
    )

    def __init__(
        self,
        decoder: StreamDecoder,
        client: StreamClient,
        headers: Callable[[], bytes],
        count: Callable[[str], int],
        clock: Callable[[], float],
        opens: Callable[[bytes], bool],
        allowance: Allowance | None = None,
    ) -> None:
        self._decoder, self._client, self._headers = decoder, client, headers
        self._count, self._clock, self._opens = count, clock, opens
        self._opening = b""
        self._write = client.write
        # Where frames go as they are: once the head has been sent, to a client that takes chunks.
        self._pass_on: Callable[[bytes], None] | None = None
        self._flow: Flow | None = None
        self._allowance = allowance
        self._allowed = _bounded(allowance)
        self.careful = allowance is not None
        self._folded = self._since = 0
        self.first_event_at = 0.0

    @property
    def started(self) -> bool:
        """Tell whether the client has had any of it."""
        return self.first_event_at != 0.0

    @property
    def decoder(self) -> StreamDecoder:
        """Return what reads the stream."""
        return self._decoder

    @property
    def usage(self) -> Usage | None:
        """Return the provider's own figure, where it came."""
        return self._decoder.usage

    @property
    def complete(self) -> bool:
        """Tell whether the answer has come to its end, and its figures are of all of it."""
        decoder = self._decoder
        return (decoder.done or decoder.finished) and decoder.told_bytes == decoder.text_bytes

    def begin(self, status: int, headers: dict[bytes, bytes], flow: Flow) -> bool:
        """Take event streams; leave errors and whole replies to be gathered."""
        kind = headers.get(b"content-type", b"").lower()
        if status != 200 or not kind.startswith(self._decoder.content_type):
            return False
        if headers.get(b"content-encoding", b"identity") != b"identity":
            raise UpstreamError(Failure.PROTOCOL, "the stream is compressed though not asked to be")
        self._flow = flow
        self._client.follow(flow)
        return True

    def feed(self, data: bytes) -> bool:
        """Forward what the client may have; True at the end marker."""
        decoder = self._decoder
        out = decoder.feed(data)
        if out:
            self._show(out)
        if decoder.text_bytes > self._allowed:
            self._ask_for_more()
        return self._attend() if decoder.attention else False

    def feed_frame(self, frame: bytes) -> bool:
        """Forward an HTTP chunk as it is framed, if there is nothing in it to look at."""
        pass_on = self._pass_on
        decoder = self._decoder
        if pass_on is None or not decoder.repeats(frame):
            return False
        pass_on(frame)
        if decoder.text_bytes > self._allowed:
            self._ask_for_more()
        return True

    def _ask_for_more(self) -> None:
        allowance = self._allowance
        if allowance is None or self._decoder.text_bytes > MAX_TEXT_BYTES:
            message = f"the stream has more than {MAX_TEXT_BYTES:.0f} bytes of text"
            raise UpstreamError(Failure.PROTOCOL, message)
        self._allowed = MAX_TEXT_BYTES  # until the answer is there
        if self._flow is not None:
            self._flow.hold()
        allowance.extend(self._granted, self._refused)

    # Answers may come late, when another source has taken over: they are about that one then.

    def _granted(self) -> None:
        self._allowed = _bounded(self._allowance)
        if self._decoder.text_bytes > self._allowed:
            self._ask_for_more()  # one read brought more than a slice
        elif self._flow is not None:
            self._flow.release()

    def _refused(self, error: UpstreamError) -> None:
        if self._flow is not None:
            self._flow.fail(error)

    def _attend(self) -> bool:
        decoder = self._decoder
        if decoder.failure is not None:
            raise UpstreamError(Failure.STREAM_ERROR, decoder.failure)
        if decoder.done:
            return True
        decoder.attention = False
        self._fold()
        return False

    def end(self) -> bytes:
        """Return the stream's last bytes for the client. Raises UpstreamError if it was cut."""
        decoder = self._decoder
        self._client.follow(None)
        if self._allowance is not None:
            self._allowance.close()
        if not decoder.done and (rest := decoder.close()):
            self._show(rest)
        if decoder.failure is not None:
            raise UpstreamError(Failure.STREAM_ERROR, decoder.failure)
        if not (decoder.done or decoder.finished):
            raise UpstreamError(Failure.STREAM_CUT, "the stream ended before its end")
        if self.first_event_at == 0.0:
            self._start()
            if self._opening:
                self._write(self._opening)
                self._opening = b""
        return decoder.finish()

    def go_on(self) -> None:
        """Take what follows from another source; count it on its own."""
        self._fold()
        self._flow, self._folded, self._since = None, 0, self._decoder.text_bytes
        self._allowed = _bounded(self._allowance)

    @property
    def goes_on(self) -> bool:
        """Tell whether the present source has given any text."""
        return self._decoder.text_bytes > self._since

    def failing(self, error: ApiError) -> bytes:
        """Return what ends a stream that failed; nothing where the dialect's own event will do."""
        return self._decoder.fail(error)

    def delivered_tokens(self) -> int:
        """Return how many tokens the text so far has, by our own count."""
        self._fold()
        return self._folded

    def ping(self) -> None:
        """Send a comment while there is nothing to show: nobody on the way gives up on silence."""
        if self.first_event_at == 0.0:
            self._client.start(self._headers())
            self._write(PING)

    def give_up(self, error: UpstreamError) -> bool:
        """End an exchange that has not begun to show anything; False where it has no head yet."""
        if self._flow is None or self.first_event_at != 0.0:
            return False
        self._flow.fail(error)
        return True

    def _show(self, out: bytes) -> None:
        if self.first_event_at == 0.0:
            if out.startswith(b":") and _says_nothing(out):
                return  # a comment begins no answer: another target may still give it
            short = len(self._opening) + len(out) <= MAX_OPENING_BYTES
            if short and not self._decoder.text_bytes and self._opens(out):
                self._opening += out
                return
            self._start()
            out, self._opening = self._opening + out, b""
        self._write(out)

    def _start(self) -> None:
        self.first_event_at = self._clock()
        self._client.start(self._headers())
        if self._client.chunked:
            self._pass_on = self._client.write_frame

    def _fold(self) -> None:
        self._folded += self._count(self._decoder.take_text())


def _bounded(allowance: Allowance | None) -> float:
    return MAX_TEXT_BYTES if allowance is None else min(allowance.text_bytes, MAX_TEXT_BYTES)


def _says_nothing(data: bytes) -> bool:
    """Tell whether these are comments alone."""
    return all(line.startswith(b":") or not line.strip() for line in data.split(b"\n"))
