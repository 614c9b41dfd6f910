"""Where each API's request body is published, and what of that publication is not the wire's.

Nothing is imported before it is asked for: SDKs are slow to import, and any may be absent.
"""

import gzip
import json
from importlib import import_module
from importlib.resources import files
from typing import Any

from tests.support.published.hints import Dialect, Reader, is_model
from tests.support.published.services import Service
from tests.support.published.shapes import (
    Constant,
    Field,
    ListOf,
    Number,
    OneOf,
    Record,
    Shape,
    narrowed,
    widened,
)

# Given to the SDK among the others, sent as anthropic-user-profile-id and anthropic-workspace-id.
ANTHROPIC_HEADERS = frozenset({"user_profile_id", "workspace_id"})
BEDROCK_DESCRIPTION = "data/bedrock-runtime/2023-09-30/service-2.json.gz"
# Callers may give the models of a reply for typed dicts of a request; what is sent is the latter's.
TYPED_DICTS = Dialect(unsent=is_model)
# "Exactly one field within a Part should be set": these, the others are said of the one.
GEMINI_PART = frozenset(
    {
        "text",
        "inlineData",
        "fileData",
        "functionCall",
        "functionResponse",
        "executableCode",
        "codeExecutionResult",
        "toolCall",
        "toolResponse",
    }
)
# "Must be either 'user' or 'model'".
GEMINI_ROLE = Constant(("user", "model"))
# Classes for "not given" and for what the SDK does not know.
MISTRAL_UNSENT = ("Unset", "Unrecognized", "Unknown")


def chat() -> Shape:
    """OpenAI's chat completions."""
    return Reader(TYPED_DICTS).read(_openai("chat.completion_create_params").CompletionCreateParams)


def completions() -> Shape:
    """OpenAI's completions."""
    return Reader(TYPED_DICTS).read(_openai("completion_create_params").CompletionCreateParams)


def embeddings() -> Shape:
    """OpenAI's embeddings."""
    return Reader(TYPED_DICTS).read(_openai("embedding_create_params").EmbeddingCreateParams)


def responses() -> Shape:
    """OpenAI's Responses create."""
    return Reader(TYPED_DICTS).read(
        _openai("responses.response_create_params").ResponseCreateParams
    )


def messages(**more: Field) -> Shape:
    """Anthropic's Messages create, of the anthropic-version that the SDK sends: 2026-10-21."""
    published = import_module("anthropic.types.message_create_params")
    reader = Reader(TYPED_DICTS)
    streamed = reader.record(published.MessageCreateParamsStreaming)
    whole = reader.record(published.MessageCreateParamsNonStreaming)
    bodies = (narrowed(one, *ANTHROPIC_HEADERS) for one in (whole, streamed))
    return OneOf(tuple(widened(one, **more) for one in bodies))


def messages_2023_06_01() -> Shape:
    """The same, of the anthropic-version before: what the newer one removed was still a field."""
    fraction = Field(Number(least=0, most=1))
    top_k = Field(Number(whole=True, least=0))
    return messages(temperature=fraction, top_p=fraction, top_k=top_k)


def gemini() -> Shape:
    """Gemini's generateContent. Which fields are required and taken, the types say in prose."""
    types = import_module("google.genai.types")
    dialect = Dialect(
        taken=lambda info: "not supported in Gemini API" not in (info.description or ""),
        required=lambda info: (info.description or "").startswith("Required."),
        one_of={"Part": GEMINI_PART},
    )
    reader = Reader(dialect)
    fields = {name: Field(reader.read(hint)) for name, hint in _gemini_request(types).items()}
    image = Field(reader.record(types.ImageConfig))  # the one that GenerationConfig lacks
    generation = widened(reader.record(types.GenerationConfig), imageConfig=image)
    content = widened(reader.record(types.Content), role=Field(GEMINI_ROLE))
    fields["contents"] = Field(ListOf(content), required=True)
    fields["systemInstruction"] = Field(content)
    fields["generationConfig"] = Field(generation)
    return Record("GenerateContentRequest", lambda: fields)


def _gemini_request(types: Any) -> dict[str, Any]:
    """The hints of a request's other fields.

    google-genai has no type for a whole one, because its own arguments are flattened; this is what
    it makes of them for the Gemini API.
    """
    return {
        "tools": list[types.Tool],
        "toolConfig": types.ToolConfig,
        "safetySettings": list[types.SafetySetting],
        "cachedContent": str,
        "serviceTier": types.ServiceTier,
        "labels": dict[str, str],
        "store": bool,
        "continuationToken": bytes,
    }


def converse(operation: str) -> Shape:
    """Bedrock's Converse or ConverseStream."""
    description = files("botocore").joinpath(BEDROCK_DESCRIPTION).read_bytes()
    return Service(json.loads(gzip.decompress(description))).body(operation)


def mistral() -> Shape:
    """Mistral's chat completions, streamed or not."""
    models = import_module("mistralai.client.models")
    dialect = Dialect(unsent=lambda cls: cls.__name__.startswith(MISTRAL_UNSENT))
    return Reader(dialect).record(models.ChatCompletionRequest)


def cohere() -> Shape:
    """Cohere's chat, version 2: the arguments of the SDK's method, which adds `stream` itself."""
    client = import_module("cohere.v2.client").V2Client
    reader = Reader()
    arguments = narrowed(reader.arguments(client.chat), "request_options")
    return widened(arguments, stream=Field(reader.read(bool)))


def _openai(module: str) -> Any:
    return import_module(f"openai.types.{module}")
