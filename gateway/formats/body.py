"""Hot path: what the gateway must know of a request's body, in each of the client dialects.

A body is validated where the gateway must understand it and passed on as raw JSON otherwise.
"""

from typing import Annotated, Any

import msgspec
from msgspec import Meta, Raw

from gateway.core.errors import ApiError
from gateway.core.operations import Operation
from gateway.core.request import Request
from gateway.formats.fields import invalid_field

Tokens = Annotated[int, Meta(ge=0, le=2**31)]
Choices = Annotated[int, Meta(ge=1, le=128)]
ModelName = Annotated[str, Meta(min_length=1, max_length=256)]

# English and code average about four bytes a token in current vocabularies; JSON's own marks make
# the estimate a little high, which is the safe side: settlement returns the surplus.
BYTES_PER_TOKEN = 4
# An image or document costs tokens by its size in pixels or pages, not by its base64 length.
INLINE_DATA_TOKENS = 1000
INLINE_DATA_MARK = b";base64,"
# Where Anthropic's dialect, and OpenAI's sound, have it: a long text under this name.
DATA_FIELD = b'"data"'
SHORTEST_FILE_BYTES = 1024


class StreamOptions(msgspec.Struct):
    """The part of `stream_options` that decides what the client is shown."""

    include_usage: bool | None = None


class Common(msgspec.Struct):
    """Fields of chat completions and completions."""

    model: ModelName
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    max_tokens: Tokens | None = None
    n: Choices | None = None


class ChatBody(Common, kw_only=True):
    """A chat completion request."""

    messages: Annotated[list[Raw], Meta(min_length=1)]
    max_completion_tokens: Tokens | None = None


class CompletionBody(Common, kw_only=True):
    """A legacy completion request."""

    prompt: str | list[Raw]


class ResponsesBody(msgspec.Struct):
    """A request of the Responses API."""

    model: ModelName
    input: str | list[Raw]
    stream: bool | None = None
    max_output_tokens: Tokens | None = None


class MessagesBody(msgspec.Struct):
    """A request of Anthropic's Messages."""

    model: ModelName
    messages: Annotated[list[Raw], Meta(min_length=1)]
    max_tokens: Annotated[int, Meta(ge=1, le=2**31)]
    stream: bool | None = None


class CountBody(msgspec.Struct):
    """A request to count a prompt's tokens."""

    model: ModelName
    messages: Annotated[list[Raw], Meta(min_length=1)]


class EmbeddingBody(msgspec.Struct):
    """An embeddings request."""

    model: ModelName
    input: str | list[Raw]


_DECODERS: dict[Operation, msgspec.json.Decoder[Any]] = {
    Operation.CHAT: msgspec.json.Decoder(ChatBody),
    Operation.COMPLETIONS: msgspec.json.Decoder(CompletionBody),
    Operation.EMBEDDINGS: msgspec.json.Decoder(EmbeddingBody),
    Operation.RESPONSES: msgspec.json.Decoder(ResponsesBody),
    Operation.MESSAGES: msgspec.json.Decoder(MessagesBody),
    Operation.COUNT_TOKENS: msgspec.json.Decoder(CountBody),
}
_FIELDS = msgspec.json.Decoder(dict[str, Raw])


def decode(operation: Operation, body: bytes) -> Request:
    """Decode and validate a request body. Raises ApiError naming the field that is wrong."""
    try:
        if not body.isascii():
            body.decode()  # msgspec does not look inside the strings it skips
        parsed = _DECODERS[operation].decode(body)
        # Fields are taken from a mapping, so a key that stands twice reaches the provider once,
        # with the value that was authorised.
        fields = _FIELDS.decode(body)
    except msgspec.ValidationError as error:
        raise invalid_field(str(error)) from None
    except (msgspec.DecodeError, RecursionError) as error:
        raise ApiError("invalid_json", f"The request body is not valid JSON: {error}") from None
    except UnicodeDecodeError as error:
        message = f"The request body is not valid UTF-8 (byte {error.start})."
        raise ApiError("invalid_json", message) from None
    estimate = estimate_prompt(body)
    if not isinstance(parsed, Common):
        stream, most = bool(getattr(parsed, "stream", False)), _most(parsed)
        return Request(operation, parsed.model, stream, True, most, 1, estimate, fields)
    options = parsed.stream_options
    return Request(
        operation,
        parsed.model,
        bool(parsed.stream),
        options is not None and bool(options.include_usage),
        _max_output(parsed),
        parsed.n or 1,
        estimate,
        fields,
    )


def estimate_prompt(body: bytes) -> int:
    """Estimate the prompt's tokens from the body's length, inline files at a flat figure."""
    size, files = len(body), 0
    for mark in (INLINE_DATA_MARK, DATA_FIELD):
        start = body.find(mark)
        while start >= 0:
            end = start + len(mark)
            if mark is DATA_FIELD:
                start = body.find(b'"', end, end + 8) + 1  # where its text begins
            closing = body.find(b'"', start) if start else -1
            if closing >= 0 and (
                mark is INLINE_DATA_MARK or closing - start >= SHORTEST_FILE_BYTES
            ):
                size -= closing - start
                files += 1
                end = closing
            start = body.find(mark, end)
    return size // BYTES_PER_TOKEN + files * INLINE_DATA_TOKENS + 1


def _most(parsed: Any) -> int | None:
    """Return the output that a request outside of OpenAI's older API allows."""
    if isinstance(parsed, ResponsesBody):
        return parsed.max_output_tokens
    return parsed.max_tokens if isinstance(parsed, MessagesBody) else 0


def _max_output(parsed: Common) -> int | None:
    if isinstance(parsed, ChatBody) and parsed.max_completion_tokens is not None:
        return parsed.max_completion_tokens
    return parsed.max_tokens
