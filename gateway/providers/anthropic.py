"""Anthropic's own API: Messages as they come, and all other conversations translated."""

import msgspec
from msgspec import Raw

from gateway.core.errors import UpstreamError
from gateway.core.messages import Fit, Prompt, Reply, written
from gateway.core.operations import Operation
from gateway.core.request import Request
from gateway.core.target import Target
from gateway.core.usage import Usage
from gateway.providers import anthropic_wire
from gateway.providers.adapter import Conversation, Embedding, Endpoint, Native
from gateway.providers.anthropic_prompt import write
from gateway.providers.anthropic_wire import MessagesDecoder
from gateway.providers.decoding import NativeStream
from gateway.providers.errors import UNREADABLE, error_message
from gateway.providers.foreign import own_turns
from gateway.providers.openai_wire import parse_listing

VERSION = "2023-06-01"
_PATHS = {Operation.MESSAGES: "/messages", Operation.COUNT_TOKENS: "/messages/count_tokens"}
_ENDING = b'event: message_stop\ndata: {"type":"message_stop"}\n\n'
_encode = msgspec.json.Encoder().encode
_decode_fields = msgspec.json.Decoder(dict[str, Raw]).decode
_decode_edits = msgspec.json.Decoder(list[dict[str, Raw]]).decode


class NativeMessages:
    """Messages as the client wrote them, under the target's name for the model."""

    def endpoint(self, operation: Operation, target: Target, *, stream: bool) -> Endpoint:
        """Say where to send an operation; version and betas are the client's to choose."""
        passed_on = (("anthropic-version", VERSION), ("anthropic-beta", ""))
        return Endpoint(target.base_path + _PATHS[operation], _headers(target), passed_on)

    def build(self, request: Request, target: Target, fit: Fit) -> bytes:
        """Return the client's fields."""
        fields = request.fields.copy()
        if request.model != target.model:
            fields["model"] = Raw(_encode(target.model))
        own_fields(fields, fit)
        return _encode(fields)

    def parse_usage(self, body: bytes) -> Usage | None:
        """Read `usage`."""
        return anthropic_wire.parse_usage(body)

    def parse_text(self, body: bytes) -> str:
        """Return what was written in all blocks."""
        try:
            return written(anthropic_wire.parse(body).parts)
        except UpstreamError:
            return ""

    def decoder(self, request: Request) -> NativeStream:
        """Return a fresh stream decoder."""
        return NativeStream(MessagesDecoder(), _ENDING)


def own_fields(fields: dict[str, Raw], fit: Fit) -> None:
    """Take out what only other providers can read, and thinking where that makes it impossible."""
    if own_turns(fields) and b"disabled" not in bytes(fields.get("thinking", b"disabled")):
        del fields["thinking"]
        fit.leave_out("thinking")
        _clear_no_thinking(fields, fit)


def _clear_no_thinking(fields: dict[str, Raw], fit: Fit) -> None:
    """Take out edits that clear thinking: they are refused where there is none."""
    try:
        context = _decode_fields(fields.get("context_management", b"{}"))
        said = _decode_edits(context.get("edits", b"[]"))
    except UNREADABLE:
        return  # Anthropic's to refuse
    edits = [edit for edit in said if not _clears_thinking(edit)]
    if len(edits) == len(said):
        return
    fit.leave_out("context_management")
    context["edits"] = Raw(_encode(edits))
    if edits or len(context) > 1:
        fields["context_management"] = Raw(_encode(context))
    else:
        del fields["context_management"]


def _clears_thinking(edit: dict[str, Raw]) -> bool:
    return bytes(edit.get("type", b"")).startswith(b'"clear_thinking_')


class MessagesConversation:
    """The hub's prompts as Messages."""

    def endpoint(self, target: Target, *, stream: bool) -> Endpoint:
        """Say where prompts go."""
        headers = (*_headers(target), ("anthropic-version", VERSION))
        return Endpoint(target.base_path + "/messages", headers)

    def build(self, prompt: Prompt, target: Target, fit: Fit) -> bytes:
        """Write a prompt."""
        fields = write(prompt, target.model, target.max_output, fit)
        return _encode({"model": target.model, **fields})

    def parse(self, body: bytes) -> Reply:
        """Read a whole reply."""
        return anthropic_wire.parse(body)

    def decoder(self) -> MessagesDecoder:
        """Return a fresh stream decoder."""
        return MessagesDecoder()


class Anthropic:
    """The adapter."""

    natives: dict[Operation, Native] = dict.fromkeys(_PATHS, NativeMessages())
    conversation: Conversation | None = MessagesConversation()
    embedding: Embedding | None = None

    def listing(self, target: Target) -> Endpoint:
        """Say where a target lists its models."""
        headers = (*_headers(target), ("anthropic-version", VERSION))
        return Endpoint(target.base_path + "/models?limit=1000", headers)

    def parse_listing(self, body: bytes) -> list[str]:
        """Return the ids under `data`."""
        return parse_listing(body)

    def parse_error(self, body: bytes) -> str | None:
        """Return `error.message`."""
        return error_message(body)


def _headers(target: Target) -> tuple[tuple[str, str], ...]:
    found = (("Content-Type", "application/json"), *target.headers)
    return found if target.api_key is None else (*found, ("x-api-key", target.api_key))


ADAPTER = Anthropic()
