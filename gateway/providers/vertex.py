"""Google's Vertex AI: Gemini, and Anthropic's models in its envelope.

A model is the publisher's name for it. Access tokens are added when a request is sent
(`upstream.credentials`).
"""

from typing import Any

import msgspec
from msgspec import Raw

from gateway.core.errors import Failure, UpstreamError
from gateway.core.messages import Fit, Prompt, Reply
from gateway.core.operations import Operation
from gateway.core.request import Request
from gateway.core.target import Target
from gateway.core.usage import Usage
from gateway.providers import anthropic_wire, gemini_prompt, gemini_wire
from gateway.providers.adapter import Conversation, Embedding, Endpoint, Native
from gateway.providers.anthropic import NativeMessages, own_fields
from gateway.providers.anthropic_prompt import write as write_messages
from gateway.providers.anthropic_wire import MessagesDecoder
from gateway.providers.embeddings import Vector, encode_vectors, texts_of
from gateway.providers.errors import UNREADABLE, error_message
from gateway.providers.figures import MAX_TOKENS, Count, figures
from gateway.providers.gemini_stream import GeminiDecoder
from gateway.providers.paths import segment

ENVELOPE_VERSION = "vertex-2023-10-16"
_encode = msgspec.json.Encoder().encode


class VertexMessages(NativeMessages):
    """Messages as the client wrote them; the model is in the path, the version in the body."""

    def endpoint(self, operation: Operation, target: Target, *, stream: bool) -> Endpoint:
        """Say where to send an operation."""
        method = "streamRawPredict" if stream else "rawPredict"
        passed_on = (("anthropic-beta", ""),)
        return Endpoint(_path("anthropic", target, method), _headers(target), passed_on)

    def build(self, request: Request, target: Target, fit: Fit) -> bytes:
        """Return the client's fields in the envelope."""
        fields = {name: raw for name, raw in request.fields.items() if name != "model"}
        own_fields(fields, fit)
        fields["anthropic_version"] = Raw(_encode(ENVELOPE_VERSION))
        return _encode(fields)


class VertexClaude:
    """The hub's prompts as Messages."""

    def endpoint(self, target: Target, *, stream: bool) -> Endpoint:
        """Say where prompts go."""
        method = "streamRawPredict" if stream else "rawPredict"
        return Endpoint(_path("anthropic", target, method), _headers(target))

    def build(self, prompt: Prompt, target: Target, fit: Fit) -> bytes:
        """Write a prompt."""
        fields = write_messages(prompt, target.model, target.max_output, fit)
        return _encode({"anthropic_version": ENVELOPE_VERSION, **fields})

    def parse(self, body: bytes) -> Reply:
        """Read a whole reply."""
        return anthropic_wire.parse(body)

    def decoder(self) -> MessagesDecoder:
        """Return a fresh stream decoder."""
        return MessagesDecoder()


class VertexGemini:
    """The hub's prompts as generateContent."""

    def endpoint(self, target: Target, *, stream: bool) -> Endpoint:
        """Say where prompts go."""
        method = "streamGenerateContent?alt=sse" if stream else "generateContent"
        return Endpoint(_path("google", target, method), _headers(target))

    def build(self, prompt: Prompt, target: Target, fit: Fit) -> bytes:
        """Write a prompt."""
        return _encode(gemini_prompt.write(prompt, target.model, fit))

    def parse(self, body: bytes) -> Reply:
        """Read a whole reply."""
        return gemini_wire.parse(body)

    def decoder(self) -> GeminiDecoder:
        """Return a fresh stream decoder."""
        return GeminiDecoder()


class _Statistics(msgspec.Struct):
    token_count: Count | None = None


class _Values(msgspec.Struct):
    values: Vector
    statistics: Any = None


class _Prediction(msgspec.Struct):
    embeddings: _Values


class _Predictions(msgspec.Struct):
    predictions: list[_Prediction]


class VertexEmbedding:
    """Embeddings by `predict`."""

    def endpoint(self, target: Target) -> Endpoint:
        """Say where they go."""
        return Endpoint(_path("google", target, "predict"), _headers(target))

    def build(self, request: Request, target: Target, fit: Fit) -> bytes:
        """Write an instance a text. Raises ApiError."""
        texts, dimensions = texts_of(request, fit)
        body: dict[str, object] = {"instances": [{"content": text} for text in texts]}
        if dimensions is not None:
            body["parameters"] = {"outputDimensionality": dimensions}
        return _encode(body)

    def parse(self, body: bytes, request: Request) -> tuple[bytes, Usage | None]:
        """Write the vectors as OpenAI does."""
        try:
            found = msgspec.json.decode(body, type=_Predictions).predictions
        except UNREADABLE as error:
            raise UpstreamError(Failure.PROTOCOL, f"the reply cannot be read: {error}") from None
        told = [figures(one.embeddings.statistics, _Statistics) for one in found]
        counts = [one.token_count for one in told if one is not None]
        known = [count for count in counts if count is not None]
        usage = Usage(int(min(sum(known), MAX_TOKENS))) if known else None
        return encode_vectors([one.embeddings.values for one in found], request, usage), usage


class Vertex:
    """The adapter of Google's own models."""

    natives: dict[Operation, Native] = {}
    conversation: Conversation | None = VertexGemini()
    embedding: Embedding | None = VertexEmbedding()

    def listing(self, target: Target) -> Endpoint | None:
        """Return None: models are listed publisher by publisher, without what a project may use."""
        return None

    def parse_listing(self, body: bytes) -> list[str]:
        """Return none."""
        return []

    def parse_error(self, body: bytes) -> str | None:
        """Return `error.message`."""
        return error_message(body)


class VertexAnthropic(Vertex):
    """The adapter of Anthropic's models."""

    natives: dict[Operation, Native] = {Operation.MESSAGES: VertexMessages()}
    conversation: Conversation | None = VertexClaude()
    embedding: Embedding | None = None


def _path(publisher: str, target: Target, method: str) -> str:
    project, location = target.setting("project"), target.setting("location")
    place = f"projects/{project}/locations/{location}/publishers/{publisher}"
    return f"{target.base_path}/{place}/models/{segment(target.model, keep='@')}:{method}"


def _headers(target: Target) -> tuple[tuple[str, str], ...]:
    return (("Content-Type", "application/json"), *target.headers)


ADAPTER, CLAUDE = Vertex(), VertexAnthropic()
