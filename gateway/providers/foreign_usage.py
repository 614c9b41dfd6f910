"""Usage in answers that nobody here understands: found by its shape, in JSON or in events."""

from typing import Any

import msgspec

from gateway.core.sse import SseReader, TooLarge
from gateway.core.usage import Usage
from gateway.providers import anthropic_wire, converse_wire, gemini_wire, openai_wire, responses
from gateway.providers.errors import UNREADABLE

# An answer whose usage stands behind more than this goes without.
MAX_SEEN_BYTES = 4 * 1024 * 1024
_MARKS = (b"sage",)  # usage, usageMetadata


class _Found(msgspec.Struct):
    """Where usage may stand."""

    usage: msgspec.Raw = msgspec.Raw(b"")
    usageMetadata: msgspec.Raw = msgspec.Raw(b"")
    message: Any = None
    response: Any = None


_SHAPES: tuple[tuple[str, Any], ...] = (
    ("prompt_tokens", openai_wire.WireUsage),
    ("cache_read_input_tokens", anthropic_wire.WireUsage),
    ("cache_creation_input_tokens", anthropic_wire.WireUsage),
    ("input_tokens", responses.WireUsage),
    ("output_tokens", responses.WireUsage),
    ("inputTokens", converse_wire.WireUsage),
    ("promptTokenCount", gemini_wire.WireUsage),
)


class ForeignUsage:
    """Looks at an answer as it passes. Memory is bounded."""

    def __init__(self) -> None:
        self._events: SseReader | None = None
        self._whole = bytearray()
        self._found: dict[str, Any] = {}

    def feed(self, data: bytes) -> None:
        """Look at a part."""
        if self._events is None and not self._whole and data.lstrip()[:1] in (b"d", b"e", b":"):
            self._events = SseReader()
        if self._events is None:
            if len(self._whole) + len(data) <= MAX_SEEN_BYTES:
                self._whole += data
            return
        try:
            for event in self._events.feed(data):
                if any(mark in event.data for mark in _MARKS):
                    self._take(event.data)
        except TooLarge:
            self._events = SseReader()

    def result(self) -> Usage | None:
        """Return what was used; None where the answer does not say."""
        if self._whole:
            self._take(bytes(self._whole))
            self._whole.clear()
        for name, shape in _SHAPES:
            if name in self._found:
                counted: Usage | None = msgspec.convert(self._found, shape, strict=False).counted()
                return counted
        return None

    def _take(self, data: bytes) -> None:
        """Remember the figures: in a stream the last of each kind counts."""
        try:
            found = msgspec.json.decode(data, type=_Found)
        except UNREADABLE:
            return
        for raw in (found.usage, found.usageMetadata):
            if bytes(raw) not in (b"", b"null"):
                figures = msgspec.json.decode(raw)
                if isinstance(figures, dict):
                    self._update(figures)
        for inner in (found.message, found.response):
            if isinstance(inner, dict) and isinstance(inner.get("usage"), dict):
                self._update(inner["usage"])

    def _update(self, figures: dict[str, Any]) -> None:
        self._found |= {name: value for name, value in figures.items() if value is not None}
