"""Usage in answers that nobody here understands: found by its shape, in JSON or in events."""

import contextlib
from collections.abc import Callable
from typing import Any

import msgspec

from gateway.core.aws_events import AwsReader, Damaged
from gateway.core.sse import SseEvent, SseReader, TooLarge
from gateway.core.usage import Usage
from gateway.providers import (
    anthropic_wire,
    cohere,
    converse_wire,
    gemini_wire,
    openai_wire,
    responses,
)
from gateway.providers.errors import UNREADABLE

# Of a body that is larger, as images are, only the end is kept.
MAX_SEEN_BYTES = 4 * 1024 * 1024
END_BYTES = 64 * 1024
_MARKS = (b"sage",)  # usage, usageMetadata
_NAMES = (b'"usage"', b'"usageMetadata"')
_BLANK = b" \t\r\n\xef\xbb\xbf"  # before the first word; a byte order mark may come in pieces


class _Found(msgspec.Struct):
    """Where usage may stand; in `delta` Cohere has it."""

    usage: msgspec.Raw = msgspec.Raw(b"")
    usageMetadata: msgspec.Raw = msgspec.Raw(b"")
    message: Any = None
    response: Any = None
    delta: Any = None


_SHAPES: tuple[tuple[str, Any], ...] = (
    ("prompt_tokens", openai_wire.WireUsage),
    ("cache_read_input_tokens", anthropic_wire.WireUsage),
    ("cache_creation_input_tokens", anthropic_wire.WireUsage),
    ("input_tokens", responses.WireUsage),
    ("output_tokens", responses.WireUsage),
    ("inputTokens", converse_wire.WireUsage),
    ("promptTokenCount", gemini_wire.WireUsage),
    ("tokens", cohere.WireUsage),
)
# Google's streams are lists, unless events are asked for.
_decode = msgspec.json.Decoder(_Found | list[_Found]).decode


class ForeignUsage:
    """Looks at an answer as it passes. Memory is bounded."""

    def __init__(self) -> None:
        self._look: Callable[[bytes], None] | None = None
        self._events, self._messages = SseReader(), AwsReader()
        self._body, self._cut = bytearray(), False
        self._found: dict[str, Any] = {}

    def feed(self, data: bytes) -> None:
        """Look at a part."""
        if self._look is None:
            data = data.lstrip(_BLANK)
            if not data:
                return
            self._look = self._reading(data[:1])
        self._look(data)

    def result(self) -> Usage | None:
        """Return what was used; None where the answer does not say."""
        with contextlib.suppress(TooLarge):
            for event in self._events.rest():
                self._see(event)
        self._take_body()
        for name, shape in _SHAPES:
            if name in self._found:
                try:
                    counted: Usage | None = msgspec.convert(
                        self._found, shape, strict=False
                    ).counted()
                except (*UNREADABLE, OverflowError):
                    return None
                return counted
        return None

    def _reading(self, first: bytes) -> Callable[[bytes], None]:
        """Choose by an answer's first byte how to look at it."""
        if first in b"{[":
            return self._keep
        if first in b"deir:":  # data, event, id, retry, or a comment
            return self._read_events
        return self._read_messages if first == b"\0" else _ignore

    def _keep(self, data: bytes) -> None:
        self._body += data
        if len(self._body) > MAX_SEEN_BYTES:
            self._cut = True
            del self._body[:-END_BYTES]

    def _read_events(self, data: bytes) -> None:
        try:
            found = self._events.feed(data)
        except TooLarge:  # that event is lost, and not those behind it
            self._events = SseReader()
            found = self._events.feed(data[-END_BYTES:])
        for event in found:
            self._see(event)

    def _read_messages(self, data: bytes) -> None:
        try:
            for message in self._messages.feed(data):
                self._take(message.payload)
        except Damaged:
            self._look = _ignore

    def _see(self, event: SseEvent) -> None:
        if any(mark in event.data for mark in _MARKS):
            self._take(event.data)

    def _take_body(self) -> None:
        body = bytes(self._body)
        self._body.clear()
        if not self._cut:
            self._take(body)
            return
        for name in _NAMES:
            at = body.rfind(name)
            if at >= 0:  # what is JSON from there to the end is the answer's own, and no part's
                self._take(b"{" + body[at:])

    def _take(self, data: bytes) -> None:
        """Remember the figures: in a stream the last of each kind counts."""
        try:
            found = _decode(data)
            for one in found if isinstance(found, list) else (found,):
                self._note(one)
        except UNREADABLE:
            return

    def _note(self, found: _Found) -> None:
        for raw in (found.usage, found.usageMetadata):
            if bytes(raw) not in (b"", b"null"):
                self._update(msgspec.json.decode(raw))
        for inner in (found.message, found.response, found.delta):
            if isinstance(inner, dict):
                self._update(inner.get("usage"))

    def _update(self, figures: Any) -> None:
        if isinstance(figures, dict):
            self._found |= {name: value for name, value in figures.items() if value is not None}


def _ignore(data: bytes) -> None:
    """See nothing: it is a picture, sound, a file."""
