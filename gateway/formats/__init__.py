"""What clients speak: for each operation how it is read, answered, and refused."""

from collections.abc import Callable

import msgspec

from gateway.core.errors import ApiError
from gateway.core.messages import Prompt, Reply
from gateway.core.operations import Operation
from gateway.core.request import Request
from gateway.formats import (
    chat_prompt,
    chat_reply,
    completions,
    messages_prompt,
    messages_reply,
    openai,
    responses_prompt,
    responses_reply,
)
from gateway.formats.reply import Meta, StreamWriter

__all__ = ["DIALECTS", "FORMATS", "Dialect", "Format", "Meta", "StreamWriter"]


class Format(msgspec.Struct, frozen=True):
    """How an API writes its errors, alone and inside a stream."""

    error_body: Callable[[ApiError, str], bytes]
    error_event: Callable[[ApiError, str], bytes]


class Dialect(msgspec.Struct, frozen=True):
    """How a conversation is translated: to a prompt of the hub, and from its replies.

    `names`: the hub's names of fields -> the client's, where they differ.
    """

    prompt: Callable[[Request], Prompt]
    encode: Callable[[Reply, Meta], bytes]
    writer: Callable[[Meta], StreamWriter]
    names: dict[str, str]


_OPENAI = Format(
    lambda error, _: openai.error_body(error), lambda error, _: openai.error_event(error)
)
_ANTHROPIC = Format(messages_reply.error_body, messages_reply.error_event)
_RESPONSES = Format(
    lambda error, _: openai.error_body(error), lambda error, _: responses_reply.error_event(error)
)

FORMATS: dict[Operation, Format] = {
    Operation.CHAT: _OPENAI,
    Operation.COMPLETIONS: _OPENAI,
    Operation.EMBEDDINGS: _OPENAI,
    Operation.RESPONSES: _RESPONSES,
    Operation.MESSAGES: _ANTHROPIC,
    Operation.COUNT_TOKENS: _ANTHROPIC,
    Operation.PASSTHROUGH: _OPENAI,
}

DIALECTS: dict[Operation, Dialect] = {
    Operation.CHAT: Dialect(
        chat_prompt.prompt, chat_reply.encode, chat_reply.ChatStream, chat_prompt.NAMES
    ),
    Operation.COMPLETIONS: Dialect(
        completions.prompt, completions.encode, completions.CompletionStream, completions.NAMES
    ),
    Operation.RESPONSES: Dialect(
        responses_prompt.prompt,
        responses_reply.encode,
        responses_reply.ResponsesStream,
        responses_prompt.NAMES,
    ),
    Operation.MESSAGES: Dialect(
        messages_prompt.prompt,
        messages_reply.encode,
        messages_reply.MessagesStream,
        messages_prompt.NAMES,
    ),
}
