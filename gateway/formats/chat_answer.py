"""Chat completions read back as clients have them: whose a secret is, the client was told.

Providers' own are read by `providers.chat`, for which every secret is its provider's.
"""

import msgspec
from msgspec import Raw

from gateway.core import events
from gateway.core.events import Event
from gateway.core.messages import Part, Reply, Thinking, ToolCall, mark, marked
from gateway.providers.chat import ChatCompletions
from gateway.providers.chat_stream import ChatDecoder, merged
from gateway.providers.chat_thoughts import (
    CALL_MAKER,
    ReasoningDetail,
    google_extra,
    google_signature,
    thoughts,
)
from gateway.providers.chat_wire import Message
from gateway.providers.chat_wire import ToolCall as WireCall
from gateway.providers.decoding import raw_text
from gateway.providers.errors import UNREADABLE
from gateway.providers.quirks import NONE

_encode = msgspec.json.Encoder().encode
_decode_detail = msgspec.json.Decoder(ReasoningDetail).decode


class ChatAnswers(ChatCompletions):
    """Reads what clients of chat completions were sent."""

    def __init__(self) -> None:
        super().__init__(NONE)

    def decoder(self) -> "ChatAnswerDecoder":
        """Return a fresh stream decoder."""
        return ChatAnswerDecoder()

    def thoughts(self, message: Message) -> list[Thinking]:
        """Return what the model thought, block by block."""
        return _thoughts(message.reasoning_details or [], message.thought())

    def signature(self, call: WireCall) -> str:
        """Return a call's signature."""
        return _signature(call)


class ChatAnswerDecoder(ChatDecoder):
    """Reads a stream that a client was sent; a thought is told when all of it is there."""

    def __init__(self) -> None:
        super().__init__()
        self._thought: list[str] = []

    def think(self, delta: Message) -> list[Event]:
        """Take more of a thought."""
        self._thought.append(delta.thought())
        self._details += delta.reasoning_details or ()
        return []

    def signed(self) -> list[Event]:
        """Tell the thoughts so far."""
        thought, self._thought = "".join(self._thought), []
        details, self._details = self._details, []
        found: list[Event] = []
        for part in _thoughts([Raw(_encode(one)) for one in merged(details)], thought):
            block, self._block = self._block, self._block + 1
            if part.text:
                found.append(events.ThinkingDelta(part.text, block))
            if part.signature or part.redacted:
                found.append(events.ThinkingSigned(part.signature, part.redacted, block))
        return found

    def signature(self, call: WireCall) -> str:
        """Return a call's signature."""
        return _signature(call)


def in_others(reply: Reply) -> Reply:
    """Return an answer of chat completions as clients of other dialects are to have it.

    A call's signature that nobody has marked is Google's, by way of a provider of this dialect.
    """
    parts: list[Part] = []
    for part in reply.parts:
        if isinstance(part, ToolCall) and part.signature and not marked(part.signature):
            secret = mark(CALL_MAKER, _encode(google_extra(part.signature)).decode())
            part = msgspec.structs.replace(part, signature=secret)
        parts.append(part)
    return msgspec.structs.replace(reply, parts=tuple(parts))


def _thoughts(details: list[Raw], text: str) -> list[Thinking]:
    found = []
    for one in details:
        try:
            found.append(_decode_detail(one))
        except UNREADABLE:
            continue
    return thoughts(found, text)


def _signature(call: WireCall) -> str:
    try:
        return google_signature(msgspec.json.decode(raw_text(call.extra_content) or "null"))
    except UNREADABLE:
        return ""
