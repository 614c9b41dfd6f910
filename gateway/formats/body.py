"""Hot path: what the gateway must know of a request's body, in each of the client dialects.

A body is validated where the gateway must understand it and passed on as raw JSON otherwise.
"""

import random
import string
from typing import Annotated, Any

import msgspec
from msgspec import Meta, Raw

from gateway.core.errors import ApiError
from gateway.core.operations import Operation
from gateway.core.request import Request
from gateway.formats.fields import invalid_field

MOST_TOKENS = 2**31
Tokens = Annotated[int, Meta(ge=1, le=MOST_TOKENS)]
TokensOrNone = Annotated[int, Meta(ge=0, le=MOST_TOKENS)]  # 0: the prompt is only looked at
Choices = Annotated[int, Meta(ge=1, le=128)]
ModelName = Annotated[str, Meta(min_length=1, max_length=256)]

# English and code average about four bytes a token in current vocabularies; JSON's own marks make
# the estimate a little high, which is the safe side: settlement returns the surplus.
BYTES_PER_TOKEN = 4
# An image or document costs tokens by its size in pixels or pages, not by its base64 length.
INLINE_DATA_TOKENS = 1000
INLINE_DATA_MARK = b";base64,"
MOST_BEFORE_MARK = 256  # of a data URL: its media type
# Where a long text is a file: in Anthropic's dialect, Gemini's, and OpenAI's sound; in Converse; as
# OpenAI's files, what its tool has drawn, and its images; in Vertex AI.
FILE_FIELDS = (
    *(b'"data"', b'"bytes"', b'"file_data"', b'"result"', b'"b64_json"'),
    b'"bytesBase64Encoded"',
)
SHORTEST_FILE_BYTES = 1024
WINDOW_BYTES = 64  # of a text: without a blank and a quotation mark it may be a file's
# A file's text, as JSON writes it; of one that is too long to look at all of it, some parts.
BASE64 = string.ascii_letters.encode() + string.digits.encode() + b"+/-_=%\\"
MOST_LOOKED_AT, PARTS, PART_BYTES = 128 * 1024, 64, 256
MOST_MARKS = 5_000  # of one sort; what is behind more of them is text


class StreamOptions(msgspec.Struct):
    """The part of `stream_options` that decides what the client is shown."""

    include_usage: bool | None = None


class Common(msgspec.Struct):
    """Fields of chat completions and completions."""

    model: ModelName
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    n: Choices | None = None


class ChatBody(Common, kw_only=True):
    """A chat completion request."""

    messages: Annotated[list[Raw], Meta(min_length=1)]
    max_tokens: Tokens | None = None
    max_completion_tokens: Tokens | None = None


class CompletionBody(Common, kw_only=True):
    """A legacy completion request, which alone may want no output: the prompt's probabilities."""

    prompt: str | list[Raw]
    max_tokens: TokensOrNone | None = None
    best_of: Choices | None = None


class ResponsesBody(msgspec.Struct):
    """A request of the Responses API."""

    model: ModelName
    input: str | list[Raw]
    stream: bool | None = None
    background: bool | None = None
    max_output_tokens: Tokens | None = None


class MessagesBody(msgspec.Struct):
    """A request of Anthropic's Messages."""

    model: ModelName
    messages: Annotated[list[Raw], Meta(min_length=1)]
    max_tokens: Tokens
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
        if isinstance(parsed, ResponsesBody) and parsed.background:
            message = "'background' is not served: an answer is accounted for when it is made."
            raise ApiError("unsupported_parameter", message, param="background")
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
        _texts(parsed),
    )


def estimate_prompt(body: bytes) -> int:
    """Estimate the prompt's tokens from the body's length, inline files at a flat figure.

    Each string is looked at once: the time is that of reading the body.
    """
    text, files = _without_files(body, INLINE_DATA_MARK)
    if len(text) > SHORTEST_FILE_BYTES and _may_have_files(text):
        for field in FILE_FIELDS:
            text, more = _without_files(text, field)
            files += more
    return len(text) // BYTES_PER_TOKEN + files * INLINE_DATA_TOKENS + 1


def _may_have_files(body: bytes) -> bool:
    """Tell whether a body may hold a file: one goes through some window, from end to end."""
    for at in range(0, len(body) - WINDOW_BYTES + 1, SHORTEST_FILE_BYTES - WINDOW_BYTES):
        window = body[at : at + WINDOW_BYTES]
        if b" " not in window and b'"' not in window:
            return True
    return False


def _without_files(body: bytes, mark: bytes) -> tuple[bytes, int]:
    """Return a body without the files behind a mark, and how many those were."""
    kept, at, looked = list[bytes](), 0, 0
    start = body.find(mark)
    while start >= 0 and looked < MOST_MARKS:
        looked += 1
        end = start + len(mark)
        begins = _begins(body, mark, start, end)
        closing = body.find(b'"', begins) if begins else -1
        if closing >= 0:
            end = closing
            if _is_file(body, mark, begins, closing):
                kept.append(body[at:begins])
                at = closing
        start = body.find(mark, end)
    return (b"".join([*kept, body[at:]]), len(kept)) if kept else (body, 0)


def _begins(body: bytes, mark: bytes, start: int, end: int) -> int:
    """Return where a string's data would begin; 0 where the mark is none."""
    if mark is not INLINE_DATA_MARK:
        return body.find(b'"', end, end + 8) + 1
    _, quote, url = body[max(0, start - MOST_BEFORE_MARK) : start].rpartition(b'"')
    return end if quote and url[:5].lower() == b"data:" else 0


def _is_file(body: bytes, mark: bytes, start: int, end: int) -> bool:
    """Tell whether a string is a file: text with a file's mark before it is still text."""
    if mark is not INLINE_DATA_MARK and end - start < SHORTEST_FILE_BYTES:
        return False
    if end - start <= MOST_LOOKED_AT:
        return not body[start:end].translate(None, BASE64)
    # Nobody can know where it is looked at.
    places = [random.randrange(start, end - PART_BYTES) for _ in range(PARTS)]  # noqa: S311
    return not b"".join([body[at : at + PART_BYTES] for at in places]).translate(None, BASE64)


def _most(parsed: Any) -> int | None:
    """Return the output that a request outside of OpenAI's older API allows."""
    if isinstance(parsed, ResponsesBody):
        return parsed.max_output_tokens
    return parsed.max_tokens if isinstance(parsed, MessagesBody) else 0


def _max_output(parsed: Any) -> int | None:
    """Return the larger of two maxima: which of them holds is the provider's to say.

    One that is 0 counts as 1: who cannot do without output is asked for that, and it is reserved.
    """
    most: int | None = parsed.max_tokens
    if isinstance(parsed, ChatBody) and parsed.max_completion_tokens is not None:
        return max(parsed.max_completion_tokens, most or 0)
    return most if most is None else max(most, 1)


def _texts(parsed: Common) -> int:
    """Return how many texts are written, of which a client may get fewer."""
    choices = parsed.n or 1
    if not isinstance(parsed, CompletionBody):
        return choices
    prompts = parsed.prompt
    several = isinstance(prompts, list) and prompts and bytes(prompts[0])[:1] in (b'"', b"[")
    return max(choices, parsed.best_of or 1) * (len(prompts) if several else 1)
