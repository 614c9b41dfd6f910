"""Hot path: OpenAI's own API, and every server that speaks it.

Same format in and out: the client's raw fields go to the provider; only the model name changes,
and a stream is made to report its usage.
"""

import msgspec
from msgspec import Raw

from gateway.core.operations import Operation
from gateway.core.request import Request
from gateway.core.target import Target
from gateway.core.usage import Usage
from gateway.providers.adapter import Endpoint
from gateway.providers.openai_stream import OpenAIStream
from gateway.providers.openai_wire import (
    UNREADABLE,
    Chunk,
    decode_chunk,
    decode_error,
    decode_listing,
    decode_usage,
)

_PATHS = {
    Operation.CHAT: "/chat/completions",
    Operation.COMPLETIONS: "/completions",
    Operation.EMBEDDINGS: "/embeddings",
}
_encode = msgspec.json.Encoder().encode
_decode_fields = msgspec.json.Decoder(dict[str, Raw]).decode
_TRUE = Raw(b"true")
_INCLUDE_USAGE = Raw(b'{"include_usage":true}')


class OpenAI:
    """The adapter of OpenAI's wire format."""

    operations = frozenset(_PATHS)

    def endpoint(self, operation: Operation, target: Target) -> Endpoint:
        """Say where to send an operation, with the bearer key where there is one."""
        headers = (("Content-Type", "application/json"), *_headers(target))
        return Endpoint(target.base_path + _PATHS[operation], headers)

    def listing(self, target: Target) -> Endpoint:
        """Say where a target lists its models."""
        return Endpoint(target.base_path + "/models", _headers(target))

    def parse_listing(self, body: bytes) -> list[str]:
        """Return the ids under `data`."""
        try:
            return [model.id for model in decode_listing(body).data]
        except UNREADABLE:
            return []

    def build(self, request: Request, target: Target) -> bytes:
        """Return the client's fields with the target's model name, asking a stream for usage."""
        fields = request.fields.copy()
        if request.model != target.model:
            fields["model"] = Raw(_encode(target.model))
        if request.stream and not request.wants_usage:
            fields["stream_options"] = _with_usage(fields.get("stream_options"))
        return _encode(fields)

    def parse_usage(self, body: bytes) -> Usage | None:
        """Read `usage`; None where it is absent or not of the known shape."""
        try:
            usage = decode_usage(body).usage
        except UNREADABLE:
            return None
        return None if usage is None else usage.counted()

    def parse_text(self, body: bytes) -> str:
        """Return the text of every choice."""
        try:
            reply: Chunk = decode_chunk(body)
        except UNREADABLE:
            return ""
        return "".join(choice.generated() or "" for choice in reply.choices or ())

    def parse_error(self, body: bytes) -> str | None:
        """Return `error.message`."""
        try:
            return decode_error(body).error.message or ""
        except UNREADABLE:
            return None

    def decoder(self, request: Request) -> OpenAIStream:
        """Return a fresh stream decoder for one attempt."""
        return OpenAIStream(keep_usage=request.wants_usage)


def _headers(target: Target) -> tuple[tuple[str, str], ...]:
    if target.api_key is None:
        return target.headers
    return (*target.headers, ("Authorization", f"Bearer {target.api_key}"))


def _with_usage(options: Raw | None) -> Raw:
    """Switch `include_usage` on, keeping other options."""
    if options is None or bytes(options).strip() == b"null":
        return _INCLUDE_USAGE
    fields = _decode_fields(options)
    fields["include_usage"] = _TRUE
    return Raw(_encode(fields))


ADAPTER = OpenAI()
