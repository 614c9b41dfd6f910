"""Google's Gemini API (generativelanguage.googleapis.com)."""

from typing import Any

import msgspec

from gateway.core.errors import Failure, UpstreamError
from gateway.core.messages import Fit, Prompt, Reply
from gateway.core.operations import Operation
from gateway.core.request import Request
from gateway.core.target import Target
from gateway.core.usage import Usage
from gateway.providers import gemini_wire
from gateway.providers.adapter import Conversation, Embedding, Endpoint, Native
from gateway.providers.embeddings import NO_VECTOR, Vector, encode_vectors, texts_of
from gateway.providers.errors import UNREADABLE, error_message
from gateway.providers.figures import figures
from gateway.providers.gemini_prompt import write
from gateway.providers.gemini_stream import GeminiDecoder
from gateway.providers.paths import segment

_encode = msgspec.json.Encoder().encode

Json = dict[str, Any]


class GeminiConversation:
    """The hub's prompts as generateContent."""

    def endpoint(self, target: Target, *, stream: bool) -> Endpoint:
        """Say where prompts go: the method is in the path."""
        method = "streamGenerateContent?alt=sse" if stream else "generateContent"
        path = f"{target.base_path}/{model_path(target.model)}:{method}"
        return Endpoint(path, _headers(target))

    def build(self, prompt: Prompt, target: Target, fit: Fit) -> bytes:
        """Write a prompt."""
        return _encode(write(prompt, target.model, fit))

    def parse(self, body: bytes) -> Reply:
        """Read a whole reply."""
        return gemini_wire.parse(body)

    def decoder(self) -> GeminiDecoder:
        """Return a fresh stream decoder."""
        return GeminiDecoder()


class _Values(msgspec.Struct):
    values: Vector = NO_VECTOR


class _EmbedUsage(msgspec.Struct, rename="camel"):
    prompt_token_count: int | None = None


class _Embeddings(msgspec.Struct, rename="camel"):
    embeddings: list[_Values]
    usage_metadata: Any = None


class GeminiEmbedding:
    """Embeddings as batchEmbedContents."""

    def endpoint(self, target: Target) -> Endpoint:
        """Say where to send them."""
        path = f"{target.base_path}/{model_path(target.model)}:batchEmbedContents"
        return Endpoint(path, _headers(target))

    def build(self, request: Request, target: Target, fit: Fit) -> bytes:
        """Write a request a text. Raises ApiError."""
        texts, dimensions = texts_of(request, fit)
        model = model_path(target.model)
        requests: list[Json] = []
        for text in texts:
            one: Json = {"model": model, "content": {"parts": [{"text": text}]}}
            if dimensions is not None:
                one["outputDimensionality"] = dimensions
            requests.append(one)
        return _encode({"requests": requests})

    def parse(self, body: bytes, request: Request) -> tuple[bytes, Usage | None]:
        """Write the vectors as OpenAI does."""
        try:
            found = msgspec.json.decode(body, type=_Embeddings)
        except UNREADABLE as error:
            raise UpstreamError(Failure.PROTOCOL, f"the reply cannot be read: {error}") from None
        told = figures(found.usage_metadata, _EmbedUsage)
        count = told.prompt_token_count if told is not None else None
        usage = Usage(count) if count is not None else None
        return encode_vectors([one.values for one in found.embeddings], request, usage), usage


class Gemini:
    """The adapter."""

    natives: dict[Operation, Native] = {}
    conversation: Conversation | None = GeminiConversation()
    embedding: Embedding | None = GeminiEmbedding()

    def listing(self, target: Target) -> Endpoint:
        """Say where a target lists its models."""
        return Endpoint(target.base_path + "/models?pageSize=1000", _headers(target))

    def parse_listing(self, body: bytes) -> list[str]:
        """Return the names under `models`, as they stand in requests."""
        try:
            found = msgspec.json.decode(body, type=_Models)
        except UNREADABLE:
            return []
        return [model.name.removeprefix("models/") for model in found.models]

    def parse_error(self, body: bytes) -> str | None:
        """Return `error.message`."""
        return error_message(body)


class _Model(msgspec.Struct):
    name: str


class _Models(msgspec.Struct):
    models: list[_Model]


def model_path(model: str) -> str:
    """Return a model's resource name."""
    name = model if model.startswith(("models/", "tunedModels/")) else f"models/{model}"
    return segment(name, keep="/")


def _headers(target: Target) -> tuple[tuple[str, str], ...]:
    found = (("Content-Type", "application/json"), *target.headers)
    return found if target.api_key is None else (*found, ("x-goog-api-key", target.api_key))


ADAPTER = Gemini()
