"""Figures of usage by their shape, whichever API they are of."""

from typing import Any

import msgspec

from gateway.core.usage import Usage
from gateway.providers import (
    anthropic_wire,
    cohere_wire,
    converse_wire,
    gemini_wire,
    openai_wire,
    responses_wire,
)
from gateway.providers.errors import UNREADABLE

_SHAPES: tuple[tuple[str, Any], ...] = (
    ("prompt_tokens", openai_wire.WireUsage),
    ("cache_read_input_tokens", anthropic_wire.WireUsage),
    ("cache_creation_input_tokens", anthropic_wire.WireUsage),
    ("server_tool_use", anthropic_wire.WireUsage),
    ("iterations", anthropic_wire.WireUsage),
    ("input_tokens", responses_wire.WireUsage),
    ("output_tokens", responses_wire.WireUsage),
    ("inputTokens", converse_wire.WireUsage),
    ("inputTokenCount", converse_wire.Invoked),
    ("total_input_tokens", gemini_wire.InteractionUsage),
    ("promptTokenCount", gemini_wire.WireUsage),
    ("tokens", cohere_wire.WireUsage),
    ("billed_units", cohere_wire.WireUsage),
)


def told_by(figures: dict[str, Any]) -> Any:
    """Return figures in their shape; None where they have none, or cannot be understood."""
    shape = next((shape for name, shape in _SHAPES if name in figures), None)
    try:
        return msgspec.convert(figures, shape, strict=False) if shape is not None else None
    except (*UNREADABLE, OverflowError):
        return None


def counted(told: Any) -> Usage | None:
    """Return figures as the gateway counts; None where they cannot be."""
    try:
        usage: Usage | None = told.counted() if told is not None else None
    except OverflowError:
        return None
    return usage


def is_half(told: Any) -> bool:
    """Tell whether figures leave out what an answer with text came to."""
    match told:
        case None:
            return False
        case gemini_wire.WireUsage():
            return not told.whole(said=True, thought=True)
        case cohere_wire.WireUsage():  # other things than chats are billed in other units
            return not told.whole and not told.otherwise
    return not told.whole
