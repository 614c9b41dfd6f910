"""Hot path: OpenAI's own API, and every server that speaks it.

Same dialect in and out: the client's raw fields go to the provider; only the model name changes,
a stream is made to report its usage, and what the server is known to do otherwise (`quirks`).
"""

from functools import lru_cache

import msgspec
from msgspec import Raw

from gateway.core.messages import Fit
from gateway.core.operations import Operation
from gateway.core.raw import NOTHING, given
from gateway.core.request import Request
from gateway.core.target import Target
from gateway.core.usage import Usage
from gateway.providers.adapter import Conversation, Embedding, Endpoint, Native
from gateway.providers.chat import ChatCompletions, bearer
from gateway.providers.errors import UNREADABLE, error_message, unreadable
from gateway.providers.foreign import own_messages
from gateway.providers.openai_stream import OpenAIStream
from gateway.providers.openai_wire import (
    Written,
    decode_written,
    parse_listing,
    parse_usage,
)
from gateway.providers.quirks import HINTS, NONE, Quirks
from gateway.providers.responses import NativeResponses

PATHS = {
    Operation.CHAT: "/chat/completions",
    Operation.COMPLETIONS: "/completions",
    Operation.EMBEDDINGS: "/embeddings",
}
MAX_MODELS = 1024  # whose names are remembered as JSON
_encode = msgspec.json.Encoder().encode
_decode_fields = msgspec.json.Decoder(dict[str, Raw]).decode
_TRUE = Raw(b"true")
_SAYS_NOTHING = (b"null", b"false", b"1", b"[]")  # n of 1, no logprobs
_INCLUDE_USAGE = Raw(b'{"include_usage":true}')


class NativeOpenAI:
    """Chat completions, completions and embeddings as the client wrote them."""

    def __init__(self, quirks: Quirks) -> None:
        self._quirks = quirks
        self._plain = quirks.usage_option and not (quirks.renames or quirks.refuses)

    def endpoint(self, operation: Operation, target: Target, *, stream: bool) -> Endpoint:
        """Say where to send an operation, with the bearer key where there is one."""
        headers = (("Content-Type", "application/json"), *bearer(target))
        return Endpoint(target.base_path + PATHS[operation], headers)

    def build(self, request: Request, target: Target, fit: Fit) -> bytes:
        """Return the client's fields with the target's model name, asking a stream for usage."""
        fields = request.fields.copy()
        if request.model != target.model:
            fields["model"] = _model(target.model)
        if not self._plain:
            self._adapt(fields, fit)
        if request.operation is Operation.CHAT:
            own_messages(fields, self._quirks, target.origin.host)
        if request.stream and not request.wants_usage and self._quirks.usage_option:
            fields["stream_options"] = _with_usage(fields.get("stream_options"))
        return _encode(fields)

    def parse_usage(self, body: bytes) -> Usage | None:
        """Read `usage`; None where it is absent, not whole, or not of the known shape."""
        try:
            return parse_usage(body)
        except UNREADABLE as error:
            raise unreadable(error) from None

    def parse_text(self, body: bytes) -> str:
        """Return the text of every choice."""
        try:
            reply: Written = decode_written(body)
        except UNREADABLE:
            return ""
        return "".join(choice.generated() or "" for choice in reply.choices or ())

    def decoder(self, request: Request) -> OpenAIStream:
        """Return a fresh stream decoder for one attempt."""
        return OpenAIStream(request.wants_usage, request.texts)

    def _adapt(self, fields: dict[str, Raw], fit: Fit) -> None:
        """Rename what has another name at this server, and take out what it refuses."""
        quirks = self._quirks
        if not quirks.usage_option:
            fields.pop("stream_options", None)
        for name in quirks.refuses.intersection(fields):
            if bytes(fields.pop(name)) in _SAYS_NOTHING:
                continue
            if name in HINTS:
                fit.leave_out(name)
            else:
                fit.refuse(name)
        for name, other in quirks.renames.items():
            value = fields.pop(name, None)
            if value is not None and given(fields.get(other, NOTHING)) is None:
                fields[other] = value
        choice = fields.get("tool_choice")
        for mode, other in quirks.tool_choices.items():
            if choice is not None and bytes(choice) == b'"%b"' % mode.encode():
                fields["tool_choice"] = Raw(_encode(other))


class OpenAI:
    """The adapter. `speaks`: the client dialects that the server has."""

    embedding: Embedding | None = None

    def __init__(
        self,
        quirks: Quirks = NONE,
        speaks: frozenset[Operation] = frozenset((*PATHS, Operation.RESPONSES)),
    ) -> None:
        native = NativeOpenAI(quirks)
        self.natives: dict[Operation, Native] = {op: native for op in PATHS if op in speaks}
        if Operation.RESPONSES in speaks:
            self.natives[Operation.RESPONSES] = NativeResponses()
        self.conversation: Conversation | None = ChatCompletions(quirks)

    def listing(self, target: Target) -> Endpoint:
        """Say where a target lists its models."""
        return Endpoint(target.base_path + "/models", bearer(target))

    def parse_listing(self, body: bytes) -> list[str]:
        """Return the ids under `data`."""
        return parse_listing(body)

    def parse_error(self, body: bytes) -> str | None:
        """Return the message, whatever shape the server gives to errors."""
        return error_message(body)


@lru_cache(MAX_MODELS)
def _model(name: str) -> Raw:
    return Raw(_encode(name))


def _with_usage(options: Raw | None) -> Raw:
    """Switch `include_usage` on, keeping other options."""
    if options is None or bytes(options).strip() == b"null":
        return _INCLUDE_USAGE
    fields = _decode_fields(options)
    fields["include_usage"] = _TRUE
    return Raw(_encode(fields))


ADAPTER = OpenAI()
