"""What decoders of event streams share: cutting into events, and noting what a stream comes to."""

from abc import ABC, abstractmethod

import msgspec
from msgspec import Raw

from gateway.core import events
from gateway.core.errors import ApiError, Failure, UpstreamError
from gateway.core.events import Event
from gateway.core.raw import given
from gateway.core.sse import MAX_EVENT_BYTES, SseEvent, SseReader, TooLarge
from gateway.core.usage import Usage
from gateway.providers.adapter import EVENT_STREAM
from gateway.providers.errors import UNREADABLE, unreadable

# Text kept for a count where no usage arrives; past it whoever counts is asked to take it.
KEPT_BYTES = 16 * 1024
_LAST = (events.Ended, events.Failed)


class SseDecoder(ABC):
    """Reads a stream of server-sent events into the hub's; a provider says what each one is."""

    content_type = EVENT_STREAM
    max_event_bytes = MAX_EVENT_BYTES

    def __init__(self) -> None:
        self._reader = SseReader(self.max_event_bytes)
        self._over = False

    def cut(self, data: bytes) -> list[SseEvent]:
        """Return the whole events. Raises UpstreamError where one is past the cap."""
        try:
            return self._reader.feed(data)
        except TooLarge:
            raise _too_large() from None

    def feed(self, data: bytes) -> list[Event]:
        """Take any split of the stream. Raises UpstreamError where an event cannot be read."""
        return [event for one in self.cut(data) for event in self.take(one, strictly=True)]

    def rest(self) -> list[SseEvent]:
        """Return the event whose empty line never came, which may be cut. Raises UpstreamError."""
        try:
            return self._reader.rest()
        except TooLarge:
            raise _too_large() from None

    def end(self) -> list[Event]:
        """Take an event whose empty line never came."""
        return [event for one in self.rest() for event in self.take(one)]

    def take(self, event: SseEvent, *, strictly: bool = False) -> list[Event]:
        """Return what an event says: nothing where it is of no shape we know, or follows the end.

        Raises UpstreamError, if strictly, where it is no JSON: a part of the answer is lost.
        """
        if self._over or not event.data.strip():
            return []
        try:
            found = self.read(event)
        except msgspec.ValidationError:
            return []  # not a shape we know, and no reason to end
        except UNREADABLE as error:
            if strictly:
                raise unreadable(error) from None
            return []
        self._over = bool(found) and isinstance(found[-1], _LAST)
        return found

    @abstractmethod
    def read(self, event: SseEvent) -> list[Event]:
        """Return what an event says. May raise what decoding it raises."""


def _too_large() -> UpstreamError:
    return UpstreamError(Failure.TOO_LARGE, "an event of the stream is too large")


def raw_text(raw: Raw) -> str:
    """Return JSON that nobody looks into as text; empty where there is none.

    msgspec does not look inside the strings it skips, so what is not UTF-8 comes to light here.
    """
    return bytes(given(raw) or b"").decode(errors="replace")


def inner_json(raw: Raw) -> str:
    """Return JSON that stands in a string, as a call's arguments mostly do, or by itself."""
    text = raw_text(raw)
    try:
        return msgspec.json.decode(text or '""', type=str)
    except msgspec.ValidationError:
        return text


class Noted:
    """What a stream has come to so far: the part of a `StreamDecoder` that is read from events."""

    def __init__(self) -> None:
        self.usage: Usage | None = None
        self.done = self.finished = self.odd = self.attention = False
        self.failure: str | None = None
        self.text_bytes = self.told_bytes = self._taken_bytes = 0
        self._text: list[str] = []

    @property
    def over(self) -> bool:
        """Tell whether nothing more is of interest."""
        return self.done or self.failure is not None

    def note(self, found: list[Event]) -> None:
        """Take note of events."""
        for event in found:
            match event:
                case (
                    events.TextDelta(text=text)
                    | events.ThinkingDelta(text=text)
                    | events.CallDelta(arguments=text)
                    | events.RefusalDelta(text=text)
                    | events.OtherDelta(text=text)
                    | events.CallBegun(name=text)
                ):
                    self._text.append(text)
                    self.text_bytes += len(text) if text.isascii() else len(text.encode())
                    if self.text_bytes - self._taken_bytes > KEPT_BYTES:
                        self.attention = True
                case events.Used(usage=used):
                    self.usage, self.told_bytes = used, self.text_bytes
                case events.Finished(odd=odd):
                    self.finished, self.odd = True, odd
                case events.Failed(body=body):
                    self.failure, self.attention = body, True
                case events.Ended():
                    self.done = self.attention = True

    def repeats(self, frame: bytes) -> bool:
        """Take no frame as it is."""
        return False

    def fail(self, error: ApiError) -> bytes:
        """Leave it to the dialect."""
        return b""

    def take_text(self) -> str:
        """Return what was generated since this was last called, and forget it."""
        text, self._text = self._text, []
        self._taken_bytes = self.text_bytes
        return "".join(text)


class NativeStream(Noted):
    """A stream in the client's own dialect, passed on as it came; its last event is held back."""

    content_type = EVENT_STREAM

    def __init__(self, decoder: SseDecoder, ending: bytes) -> None:
        super().__init__()
        self._decoder, self._ending = decoder, ending

    def feed(self, data: bytes) -> bytes:
        """Take any split of the stream; return what the client may have now."""
        shown = []
        for event in self._decoder.cut(data):
            if not self.over:
                self.note(self._decoder.take(event))
                if self.done:
                    self._ending = event.raw
                elif not self.over:
                    shown.append(event.raw)
        return b"".join(shown)

    def close(self) -> bytes:
        """Take the last event, where its empty line never came; one that is cut is not shown."""
        if not self.over:
            for event in self._decoder.rest():
                found = self._decoder.take(event)
                self.note(found)
                if self.done:
                    self._ending = event.raw
                elif found and not self.over:
                    return event.raw
        return b""

    def finish(self) -> bytes:
        """Return the last event, or one like it where the stream ended without."""
        return self._ending
