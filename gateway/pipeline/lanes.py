"""Hot path: how one operation reaches one target, and how its answer comes back.

Three ways: as it is, where the provider speaks the client's dialect; as a conversation through the
hub; as embeddings.
"""

from collections.abc import Callable
from typing import Protocol

import msgspec

from gateway.core.errors import ApiError, Failure, UpstreamError
from gateway.core.messages import ASSISTANT, USER, Fit, Message, Prompt, Text, written
from gateway.core.operations import CONVERSATIONS, Operation
from gateway.core.request import Request
from gateway.core.target import Target
from gateway.core.usage import Usage
from gateway.formats import DIALECTS, Dialect, Meta
from gateway.pipeline.translation import Translation, told
from gateway.policy.tokens import count_tokens
from gateway.providers.adapter import (
    Adapter,
    Conversation,
    Embedding,
    Endpoint,
    EventDecoder,
    Native,
    StreamDecoder,
)

JSON = "application/json"
# What a target is asked that is to go on with another's text.
GO_ON = (
    "Your previous message was cut off. Continue it exactly where it stops, with the next "
    "character. Do not repeat any of it, do not comment on this, and do not begin anew."
)


class Built(msgspec.Struct, frozen=True, gc=False):
    """A request's body, and the client's fields that are not in it."""

    body: bytes
    dropped: tuple[str, ...] = ()


class Answer(msgspec.Struct, frozen=True, gc=False):
    """A whole reply as the client is to have it.

    `text` is asked for where no usage came, or `half`: figures of the prompt alone.
    """

    body: bytes
    usage: Usage | None
    text: Callable[[], str]
    content_type: str = ""  # empty: the provider's own
    streamed: bool = False  # the body is a whole stream of events
    odd: bool = False  # it ended for a reason that nobody here knows
    half: Usage | None = None


class Lane(Protocol):
    """One operation's way to a target."""

    @property
    def native(self) -> bool:
        """Tell whether replies are in the client's dialect as they come."""
        ...

    def endpoint(self, *, stream: bool) -> Endpoint:
        """Say where requests go."""
        ...

    def build(self, request: Request) -> Built:
        """Return the request's body. Raises ApiError."""
        ...

    def read(self, body: bytes, request: Request, meta: Meta) -> Answer:
        """Read a whole reply. Raises UpstreamError."""
        ...

    def decoder(self, request: Request, meta: Meta) -> StreamDecoder:
        """Return a fresh stream decoder for one attempt."""
        ...


_NOTHING_DROPPED: tuple[str, ...] = ()


class NativeLane:
    """The provider speaks the client's dialect."""

    native = True

    def __init__(self, native: Native, operation: Operation, target: Target, *, drop: bool) -> None:
        self._native, self._operation, self._target = native, operation, target
        self._drop = drop

    def endpoint(self, *, stream: bool) -> Endpoint:
        """Say where requests go."""
        return self._native.endpoint(self._operation, self._target, stream=stream)

    def build(self, request: Request) -> Built:
        """Return the request's body."""
        fit = Fit()
        body = self._native.build(request, self._target, fit)
        if not fit.refused and not fit.left_out:
            return Built(body, _NOTHING_DROPPED)
        return Built(body, _dropped(fit, {}, self._target, drop=self._drop))

    def read(self, body: bytes, request: Request, meta: Meta) -> Answer:
        """Read a whole reply's usage."""
        native = self._native
        return Answer(body, native.parse_usage(body), lambda: native.parse_text(body))

    def decoder(self, request: Request, meta: Meta) -> StreamDecoder:
        """Return a fresh stream decoder."""
        return self._native.decoder(request)


class HubLane:
    """The conversation is translated."""

    native = False

    def __init__(
        self,
        dialect: Dialect,
        conversation: Conversation,
        target: Target,
        *,
        drop: bool,
        keeps: bool = False,
    ) -> None:
        self._dialect, self._conversation, self._target = dialect, conversation, target
        self._drop, self._keeps = drop, keeps

    def endpoint(self, *, stream: bool) -> Endpoint:
        """Say where requests go."""
        return self._conversation.endpoint(self._target, stream=stream)

    def build(self, request: Request) -> Built:
        """Return the request's body in the provider's dialect."""
        return self._built(self._dialect.prompt(request))

    def build_rest(self, request: Request, said: str) -> Built:
        """Return the body that asks to go on with what another target has said."""
        prompt = self._dialect.prompt(request)
        turns = (Message(ASSISTANT, (Text(said),)), Message(USER, (Text(GO_ON),)))
        most = prompt.max_output
        if most is not None:
            most = max(1, most - count_tokens(said))
        messages = (*prompt.messages, *turns) if said else prompt.messages
        return self._built(msgspec.structs.replace(prompt, messages=messages, max_output=most))

    def _built(self, prompt: Prompt) -> Built:
        fit = Fit()
        body = self._conversation.build(prompt, self._target, fit)
        return Built(body, _dropped(fit, self._dialect.names, self._target, drop=self._drop))

    def rest_decoder(self) -> EventDecoder:
        """Return what reads the rest of a stream."""
        return self._conversation.decoder()

    def read(self, body: bytes, request: Request, meta: Meta) -> Answer:
        """Translate a whole reply, into a stream where one was asked for."""
        reply = self._conversation.parse(body)

        def text() -> str:
            return written(reply.parts)

        if not request.stream:
            body = self._dialect.encode(reply, meta)
            return Answer(body, reply.usage, text, JSON, odd=reply.odd, half=reply.half)
        content = told(reply, self._dialect.writer(meta))
        return Answer(content, reply.usage, text, streamed=True, odd=reply.odd, half=reply.half)

    def decoder(self, request: Request, meta: Meta) -> StreamDecoder:
        """Return a fresh stream decoder."""
        decoder, writer = self._conversation.decoder(), self._dialect.writer(meta)
        return Translation(decoder, writer, keeps=self._keeps)


class EmbeddingLane:
    """Embeddings that the provider has otherwise."""

    native = False

    def __init__(self, embedding: Embedding, target: Target, *, drop: bool) -> None:
        self._embedding, self._target, self._drop = embedding, target, drop

    def endpoint(self, *, stream: bool) -> Endpoint:
        """Say where requests go."""
        return self._embedding.endpoint(self._target)

    def build(self, request: Request) -> Built:
        """Return the request's body in the provider's dialect."""
        fit = Fit()
        body = self._embedding.build(request, self._target, fit)
        return Built(body, _dropped(fit, {}, self._target, drop=self._drop))

    def read(self, body: bytes, request: Request, meta: Meta) -> Answer:
        """Translate a whole reply."""
        content, usage = self._embedding.parse(body, request)
        return Answer(content, usage, lambda: "", JSON)

    def decoder(self, request: Request, meta: Meta) -> StreamDecoder:
        """Fail: embeddings do not stream, and `decode` has seen to it."""
        raise UpstreamError(Failure.PROTOCOL, "embeddings do not stream")


def lane(
    adapter: Adapter, operation: Operation, target: Target, *, drop: bool, keeps: bool = False
) -> Lane | None:
    """Return the way of an operation to a target; None where there is none.

    `keeps`: of a stream, in such a way that another target can go on with it.
    """
    if keeps and operation in CONVERSATIONS and adapter.conversation is not None:
        dialect = DIALECTS[operation]
        return HubLane(dialect, adapter.conversation, target, drop=drop, keeps=True)
    native = adapter.natives.get(operation)
    if native is not None:
        return NativeLane(native, operation, target, drop=drop)
    if operation in CONVERSATIONS and adapter.conversation is not None:
        return HubLane(DIALECTS[operation], adapter.conversation, target, drop=drop)
    if operation is Operation.EMBEDDINGS and adapter.embedding is not None:
        return EmbeddingLane(adapter.embedding, target, drop=drop)
    return None


def _dropped(fit: Fit, names: dict[str, str], target: Target, *, drop: bool) -> tuple[str, ...]:
    """Return what was left out, in the client's words; or refuse, where that changes answers."""
    if fit.refused and not drop:
        field, why = next(iter(fit.refused.items()))
        name = names.get(field, field)
        reason = f" ({why})" if why else ""
        message = f"'{name}' cannot be used with the provider '{target.provider}'{reason}."
        raise ApiError("unsupported_parameter", message, param=name)
    return tuple([names.get(field, field) for field in (*fit.refused, *fit.left_out)])
