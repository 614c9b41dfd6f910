"""Joins the two halves of a translated stream: a provider's decoder and a client's writer."""

import msgspec

from gateway.core import events
from gateway.core.errors import ApiError
from gateway.core.events import Event
from gateway.core.messages import (
    Refusal,
    Reply,
    Text,
    Thinking,
    ToolCall,
)
from gateway.core.usage import Usage
from gateway.formats import StreamWriter
from gateway.providers.adapter import EventDecoder
from gateway.providers.chat_thoughts import at_calls
from gateway.providers.decoding import Noted


class Translation(Noted):
    """A stream decoder that shows the client its own dialect.

    With `keeps` it remembers the text, so that another target may go on with it.
    """

    def __init__(self, decoder: EventDecoder, writer: StreamWriter, *, keeps: bool = False) -> None:
        super().__init__()
        self._decoder, self._writer = decoder, writer
        self._said: list[str] = []
        self._keeps, self._plain = keeps, True
        self._before: Usage | None = None
        self._first_block = self._blocks = 0  # of thoughts: of this decoder's, and of all

    @property
    def said(self) -> str | None:
        """Return the text so far; None where it is not kept, or there was more than text."""
        return "".join(self._said) if self._keeps and self._plain else None

    def cut(self, before: Usage) -> None:
        """Know that the stream ended too early; `before` is what was used until here."""
        self._before, self.usage, self.failure = before, None, None
        self.done = self.finished = self.attention = False

    def go_on(self, decoder: EventDecoder) -> None:
        """Take the rest from another decoder; its thoughts are no more of those before."""
        self._decoder, self._first_block = decoder, self._blocks

    @property
    def content_type(self) -> bytes:
        """Return how the provider calls its streams."""
        return self._decoder.content_type

    def feed(self, data: bytes) -> bytes:
        """Take any split of the stream; return what the client may have now."""
        return self._show(self._decoder.feed(data))

    def close(self) -> bytes:
        """Take what the end of the bytes brings to light."""
        return self._show(self._decoder.end())

    def finish(self) -> bytes:
        """Return the stream's end."""
        return self._writer.finish()

    def fail(self, error: ApiError) -> bytes:
        """Return what ends a stream that failed."""
        return self._writer.error(error)

    def _show(self, found: list[Event]) -> bytes:
        if not found or self.over:
            return b""
        self.note(found)
        if self._keeps:
            found = self._kept(found)
        return self._writer.write(found)

    def _kept(self, found: list[Event]) -> list[Event]:
        """Remember text; let what goes on look as if it were one stream."""
        shown: list[Event] = []
        for event in found:
            match event:
                case events.TextDelta(text=text):
                    self._said.append(text)
                case events.CallBegun() | events.RefusalDelta():
                    self._plain = False
                case events.ThinkingDelta(block=block) | events.ThinkingSigned(block=block):
                    block += self._first_block
                    self._blocks = max(self._blocks, block + 1)
                    event = msgspec.structs.replace(event, block=block)
                case events.Begun() if self._before is not None:
                    continue
                case events.Used(usage=used) if self._before is not None:
                    shown.append(events.Used(self._before.plus(used)))
                    continue
            shown.append(event)
        return shown


def told(reply: Reply, writer: StreamWriter) -> bytes:
    """Return a whole reply as a stream."""
    return writer.write(events_of(reply)) + writer.finish()


def events_of(reply: Reply) -> list[Event]:
    """Return a whole reply as a stream would tell it: some servers do not stream."""
    found: list[Event] = [events.Begun(reply.id, reply.model)]
    calls = 0
    for block, part in enumerate(at_calls(reply.parts)):
        match part:
            case Text(text=text, logprobs=logprobs):
                found.append(events.TextDelta(text, logprobs))
            case Refusal(text=text):
                found.append(events.RefusalDelta(text))
            case Thinking(text=text, signature=signature, redacted=redacted):
                if text:
                    found.append(events.ThinkingDelta(text, block))
                if signature or redacted:
                    found.append(events.ThinkingSigned(signature, redacted, block))
            case ToolCall(id=id, name=name, arguments=arguments, signature=signature):
                found.append(events.CallBegun(calls, id, name, signature))
                found.append(events.CallDelta(calls, arguments))
                calls += 1
    if reply.usage is not None:
        found.append(events.Used(reply.usage))
    return [*found, events.Finished(reply.finish, reply.stop_sequence, reply.odd), events.Ended()]
