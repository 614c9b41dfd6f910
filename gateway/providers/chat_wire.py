"""All that the hub reads of chat completions, as msgspec structs. Lenient on purpose.

The few fields that matter where chunks pass as they are have structs of their own (`openai_wire`):
that is the hot path.
"""

from typing import Any

import msgspec
from msgspec import Raw

from gateway.core.raw import NOTHING
from gateway.providers.openai_wire import Custom


class Function(msgspec.Struct, gc=False):
    """A tool call's name and (partial) arguments."""

    name: str | None = None
    arguments: str | dict[str, Any] | None = None

    def text(self) -> str:
        """Return the arguments as JSON text; some servers send them as an object."""
        if isinstance(self.arguments, dict):
            return msgspec.json.encode(self.arguments).decode()
        return self.arguments or ""


class ToolCall(msgspec.Struct, gc=False):
    """One entry of `tool_calls`. `extra_content` is where Google puts a signature."""

    index: int | None = None
    id: str | None = None
    function: Function | None = None
    custom: Custom | None = None
    extra_content: Raw = NOTHING


class Message(msgspec.Struct, gc=False):
    """A message or a stream's delta."""

    content: str | list[Any] | None = None  # a list of parts: Mistral's reasoning models
    reasoning_content: str | None = None
    reasoning: str | None = None  # Groq's, OpenRouter's, vLLM's name for it
    reasoning_details: list[Raw] | None = None
    refusal: str | None = None
    tool_calls: list[ToolCall] | None = None

    def text(self) -> str:
        """Return the text that is meant for the user."""
        if isinstance(self.content, list):
            return "".join([_inner(part, "text") for part in self.content])
        return self.content or ""

    def thought(self) -> str:
        """Return what the model thought."""
        found = self.reasoning_content or self.reasoning or ""
        if not found and isinstance(self.content, list):
            return "".join([_inner(part, "thinking") for part in self.content])
        return found


def _inner(part: Any, name: str) -> str:
    """Return the text of a part of a kind, which may be a list of parts again."""
    if not isinstance(part, dict):
        return part if name == "text" and isinstance(part, str) else ""
    inner = part.get(name)
    if isinstance(inner, list):
        return "".join([_inner(one, "text") for one in inner])
    return inner if isinstance(inner, str) else ""


class Logprobs(msgspec.Struct, gc=False):
    """A choice's `logprobs`."""

    content: Raw = NOTHING


class Choice(msgspec.Struct, gc=False):
    """One choice of a reply or of a stream's chunk."""

    index: int | None = None
    delta: Message | None = None
    message: Message | None = None
    text: str | None = None
    finish_reason: str | None = None
    logprobs: Logprobs | None = None
    usage: Any = None  # Moonshot's place for it


class Chunk(msgspec.Struct, gc=False):
    """One event of a stream, or a whole reply."""

    id: str | None = None
    model: str | None = None
    choices: list[Choice] | None = None
    usage: Any = None
    error: Any = None


decode_chunk = msgspec.json.Decoder(Chunk).decode
