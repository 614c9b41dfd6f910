"""Whole replies told as streams, in the client's own dialect: some servers do not stream."""

import msgspec
from msgspec import Raw

from gateway.core.operations import Operation
from gateway.core.request import Request
from gateway.formats import DIALECTS, Meta, StreamWriter
from gateway.formats.chat_reply import END
from gateway.formats.messages_reply import MessagesStream
from gateway.pipeline.lanes import Answer
from gateway.pipeline.replay import read_whole
from gateway.pipeline.translation import told
from gateway.providers.chat_thoughts import text_of
from gateway.providers.errors import UNREADABLE, unreadable

Fields = dict[str, Raw]

_encode = msgspec.json.Encoder().encode
_decode = msgspec.json.Decoder(Fields).decode
_decode_list = msgspec.json.Decoder(list[Fields]).decode
_CHUNK = Raw(b'"chat.completion.chunk"')
_NONE, _NULL = Raw(b"[]"), Raw(b"null")


def retold(answer: Answer, request: Request, meta: Meta) -> Answer:
    """Return an answer in the client's dialect as a stream. Raises UpstreamError."""
    if request.operation in (Operation.CHAT, Operation.COMPLETIONS):
        try:
            content, odd = _chunks(answer.body, request), answer.odd
        except UNREADABLE as error:
            raise unreadable(error) from None
    else:
        reply = read_whole(request.operation, answer.body)
        assert reply is not None
        content, odd = told(reply, _writer(answer.body, request, meta)), reply.odd
    return Answer(content, answer.usage, answer.text, streamed=True, odd=odd)


def _writer(body: bytes, request: Request, meta: Meta) -> StreamWriter:
    """Return what writes the stream; some reasons to stop have words in Messages alone."""
    if request.operation is not Operation.MESSAGES:
        return DIALECTS[request.operation].writer(meta)
    return MessagesStream(meta, text_of(_decode(body).get("stop_reason")))


def _chunks(body: bytes, request: Request) -> bytes:
    """Return OpenAI's older replies as their chunks: with all that the server said, known or not.

    Ends of lines stand between the tokens of JSON alone.
    """
    reply = _decode(body.translate(None, b"\r\n"))
    choices, used = reply.pop("choices", _NULL), reply.pop("usage", _NULL)
    if request.operation is Operation.CHAT:
        reply["object"] = _CHUNK
    found = [{**reply, "choices": [_delta(choice)]} for choice in _decode_list(choices)]
    if used != _NULL and request.wants_usage:
        found.append({**reply, "choices": _NONE, "usage": used})
    return b"".join([b"data: %b\n\n" % _encode(one) for one in found]) + END


def _delta(choice: Fields) -> dict[str, object]:
    """Return a choice as a chunk has it: a message is a delta, whose calls are numbered."""
    if "message" not in choice:
        return dict(choice)
    message = _decode(choice.pop("message"))
    calls = message.pop("tool_calls", _NULL)
    delta: dict[str, object] = {**message}
    if calls != _NULL:
        delta["tool_calls"] = [{"index": i, **one} for i, one in enumerate(_decode_list(calls))]
    return {**choice, "delta": delta}
