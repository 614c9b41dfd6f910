"""Hot path: an answer that is kept, and how it is written for whoever asks, in any dialect."""

import hashlib
import re
from collections.abc import Callable

import msgspec

from gateway.core import events
from gateway.core.errors import UpstreamError
from gateway.core.events import Event
from gateway.core.messages import STOP, TOOL_CALLS, Refusal, Reply, Text, Thinking, ToolCall
from gateway.core.operations import Operation
from gateway.core.usage import Usage
from gateway.formats import DIALECTS, Meta
from gateway.formats.chat_answer import ChatAnswers, in_others
from gateway.pipeline.call import Call
from gateway.pipeline.translation import events_of
from gateway.providers.adapter import Conversation, EventDecoder
from gateway.providers.anthropic import MessagesConversation
from gateway.providers.responses import ResponsesConversation
from gateway.store.answers import Answer

EVENT_STREAM = "text/event-stream"
OVERHEAD_BYTES = 2048  # of an answer in memory, beside its texts
VERSION_HEADER = "anthropic-version"  # says how a reply is written, not what it says
# Pieces of a text that is replayed: about a line each, and not more than so many.
PIECE_CHARS, MOST_PIECES = 64, 256

# Who reads what a client of a dialect was sent.
_READERS: dict[Operation, Conversation] = {
    Operation.CHAT: ChatAnswers(),
    Operation.COMPLETIONS: ChatAnswers(),
    Operation.MESSAGES: MessagesConversation(),
    Operation.RESPONSES: ResponsesConversation(),
}
_pack = msgspec.msgpack.Encoder().encode

# How a reply says why it ended, and which ends are good. Inside of texts its quotes are escaped.
_CHAT_ENDINGS = (
    re.compile(rb'"finish_reason"\s*:\s*"([^"\\]*)"'),
    frozenset((b"stop", b"eos", b"tool_calls", b"function_call")),
)
_ENDINGS: dict[Operation, tuple[re.Pattern[bytes], frozenset[bytes]]] = {
    Operation.CHAT: _CHAT_ENDINGS,
    Operation.COMPLETIONS: _CHAT_ENDINGS,
    Operation.MESSAGES: (
        re.compile(rb'"stop_reason"\s*:\s*"([^"\\]*)"'),
        frozenset((b"end_turn", b"stop_sequence", b"tool_use")),
    ),
}
_COMPLETED = re.compile(rb'"type"\s*:\s*"response\.completed"')
# Of a request, what a response says again though it changes no answer.
_REPEATED = (
    *("metadata", "user", "safety_identifier", "prompt_cache_key", "prompt_cache_retention"),
    *("service_tier", "store"),
)


class Entry:
    """An answer in this worker's memory; times are the loop's.

    What has been written of it for one dialect is kept for the next who asks in it.
    """

    __slots__ = ("_size", "answer", "born", "name", "until", "written")

    def __init__(self, name: str, answer: Answer, age_seconds: float, now: float) -> None:
        self.name, self.answer = name, answer
        self.born = now - age_seconds
        self.until = self.born + answer.kept_ms / 1000
        self.written: dict[tuple[Operation, bool, bool], list[bytes]] = {}
        self._size = 0

    @property
    def size(self) -> int:
        """Return how many bytes it takes in memory, about."""
        if not self._size:
            answer = self.answer
            self._size = OVERHEAD_BYTES + len(answer.body) + len(answer.reply)
            self._size += sum(map(len, answer.logprobs))
        return self._size

    @size.setter
    def size(self, size: int) -> None:
        self._size = size

    def age(self, now: float) -> float:
        """Return how old the answer is, in seconds."""
        return max(0.0, now - self.born)

    def is_fresh(self, now: float, max_age: float | None) -> bool:
        """Tell whether it may be given without asking again."""
        most = self.answer.ttl_ms / 1000
        return now - self.born < most and (max_age is None or now - self.born <= max_age)


def dialect_of(call: Call) -> str:
    """Return how a call's answer is written: its operation, and what else its form depends on.

    Anthropic's version, and what a response repeats of its request.
    """
    operation, request = call.operation, call.request
    assert request is not None
    if operation is Operation.RESPONSES:
        told = [bytes(request.fields.get(name, b"")) for name in _REPEATED]
        return f"{operation.value}@{hashlib.blake2b(_pack(told), digest_size=12).hexdigest()}"
    versions = [value for name, value in call.passed_on if name == VERSION_HEADER and value]
    return "@".join((operation.value, *versions)) if versions else operation.value


def form_of(call: Call) -> str:
    """Return how a call's answer is written, to the byte."""
    request = call.request
    assert request is not None
    dialect = dialect_of(call)
    if not request.stream:
        return dialect
    return f"{dialect} stream {'with' if request.wants_usage else 'without'} usage"


def may_answer(answer: Answer, call: Call) -> bool:
    """Tell whether a request in this dialect can be answered."""
    return bool(answer.reply) or answer.form == form_of(call)


def written(
    entry: Entry, call: Call, form: str, grown: Callable[[Entry, int], None]
) -> list[bytes]:
    """Return an answer as this client is to have it: a whole body, or the pieces of a stream.

    `form` is the call's; `grown` learns how much more memory the entry takes. Raises UpstreamError.
    """
    request = call.request
    assert request is not None
    answer = entry.answer
    if answer.body and answer.form == form:
        return _events(answer.body) if request.stream else [answer.body]
    kind = (call.operation, request.stream, request.wants_usage)
    found = entry.written.get(kind)
    if found is None:
        found = _write(answer, call)
        if call.operation is not Operation.RESPONSES:  # which repeats the request's own fields
            entry.written[kind] = found
            grown(entry, sum(map(len, found)))
    return found


def _events(body: bytes) -> list[bytes]:
    """Return a stream's events, many of them together where there are many."""
    found = body.split(b"\n\n")
    step = len(found) // MOST_PIECES + 1
    pieces = [b"\n\n".join(found[i : i + step]) + b"\n\n" for i in range(0, len(found), step)]
    pieces[-1] = pieces[-1].removesuffix(b"\n\n")
    return [piece for piece in pieces if piece]


def _write(answer: Answer, call: Call) -> list[bytes]:
    request, reply = call.request, answer.whole()
    assert request is not None
    assert reply is not None
    meta = Meta(
        id=call.id,
        model=answer.model,
        created=answer.created,
        wants_usage=request.wants_usage,
        prompt_tokens=answer.usage.prompt_tokens,
        echo=request.fields,
    )
    dialect = DIALECTS[call.operation]
    if call.operation is not Operation.CHAT:
        reply = in_others(reply)
    if not request.stream:
        return [dialect.encode(reply, meta)]
    writer = dialect.writer(meta)
    pieces = [writer.write([event]) for event in _in_pieces(reply)]
    return [piece for piece in (*pieces, writer.finish()) if piece]


def _in_pieces(reply: Reply) -> list[Event]:
    """Return a reply's events, its texts in pieces that end between words where they can."""
    found: list[Event] = []
    for event in events_of(reply):
        match event:
            case events.TextDelta(text=text, logprobs=None):
                found += [events.TextDelta(piece) for piece in _cut(text)]
            case events.ThinkingDelta(text=text, block=block):
                found += [events.ThinkingDelta(piece, block) for piece in _cut(text)]
            case events.CallDelta(index=index, arguments=text):
                found += [events.CallDelta(index, piece) for piece in _cut(text)]
            case _:
                found.append(event)
    return found


def _cut(text: str) -> list[str]:
    size = max(PIECE_CHARS, len(text) // MOST_PIECES + 1)
    found, start = [], 0
    while len(text) - start > size:
        end = text.find(" ", start + size, start + 2 * size) + 1 or start + size
        found.append(text[start:end])
        start = end
    return [*found, text[start:]]


def read_whole(operation: Operation, body: bytes) -> Reply | None:
    """Read a reply as a client had it; None where the hub has no view. Raises UpstreamError."""
    reader = _READERS.get(operation)
    return reader.parse(body) if reader is not None else None


def read_stream(operation: Operation, data: bytes) -> Reply | None:
    """Read a whole stream as a client had it; None where it is not whole. Raises UpstreamError."""
    decoder = _READERS[operation].decoder()
    return _told(decoder, data)


def _told(decoder: EventDecoder, data: bytes) -> Reply | None:
    """Put a stream's events together."""
    made = _Maker()
    for event in (*decoder.feed(data), *decoder.end()):
        made.take(event)
    return made.reply()


class _Maker:
    """Makes a reply of events."""

    def __init__(self) -> None:
        self._id = self._model = self._finish = self._sequence = ""
        self._usage: Usage | None = None
        self._parts: list[tuple[str, object]] = []
        self._texts: dict[object, list[str]] = {}
        self._logprobs: dict[object, list[bytes]] = {}
        self._signed: dict[object, tuple[str, str]] = {}
        self._calls: dict[object, tuple[str, str, str]] = {}
        self._failed = False

    def take(self, event: Event) -> None:
        match event:
            case events.Begun(id=id, model=model):
                self._id, self._model = id or self._id, model or self._model
            case events.TextDelta(text=text, logprobs=logprobs):
                key = self._add("text", text, None)
                if logprobs is not None:
                    self._logprobs.setdefault(key, []).append(bytes(logprobs).strip()[1:-1])
            case events.RefusalDelta(text=text):
                self._add("refusal", text, None)
            case events.ThinkingDelta(text=text, block=block):
                self._add("thinking", text, block)
            case events.ThinkingSigned(signature=signature, redacted=redacted, block=block):
                key = self._add("thinking", "", block)
                self._signed[key] = (signature, redacted)
            case events.CallBegun(index=index, id=id, name=name, signature=signature):
                self._calls[self._add("call", "", index)] = (id, name, signature)
            case events.CallDelta(index=index, arguments=text):
                self._add("call", text, index)
            case events.Finished(reason=reason, stop_sequence=sequence):
                self._finish, self._sequence = reason, sequence
            case events.Used(usage=usage):
                self._usage = usage
            case events.Failed():
                self._failed = True

    def _add(self, kind: str, text: str, number: int | None) -> object:
        """Add to a part: the last one, or the one of this number."""
        if number is None:
            last = self._parts[-1] if self._parts else ("", None)
            key = last[1] if last[0] == kind else (kind, len(self._parts))
        else:
            key = (kind, "number", number)
        if key not in self._texts:
            self._parts.append((kind, key))
            self._texts[key] = []
        if text:
            self._texts[key].append(text)
        return key

    def reply(self) -> Reply | None:
        if self._failed or not self._finish:
            return None
        return Reply(
            id=self._id,
            model=self._model,
            parts=tuple([self._part(kind, key) for kind, key in self._parts]),
            finish=self._finish,
            stop_sequence=self._sequence,
            usage=self._usage,
        )

    def _part(self, kind: str, key: object) -> Text | Refusal | Thinking | ToolCall:
        text = "".join(self._texts[key])
        if kind == "text":
            joined = b",".join([one for one in self._logprobs.get(key, ()) if one])
            return Text(text, logprobs=msgspec.Raw(b"[%b]" % joined) if joined else None)
        if kind == "refusal":
            return Refusal(text)
        if kind == "thinking":
            signature, redacted = self._signed.get(key, ("", ""))
            return Thinking(text, signature, redacted)
        id, name, signature = self._calls.get(key, ("", "", ""))
        return ToolCall(id, name, text or "{}", signature)


def may_be_kept(operation: Operation, reply: Reply, data: bytes, *, streamed: bool) -> bool:
    """Tell whether a reply is a whole answer: not truncated, filtered or refused, nor empty."""
    return (
        _ended_well(operation, data, streamed=streamed)
        and reply.finish in (STOP, TOOL_CALLS)
        and any(
            isinstance(part, ToolCall) or (isinstance(part, Text) and part.text)
            for part in reply.parts
        )
        and not any(isinstance(part, Refusal) for part in reply.parts)
    )


def _ended_well(operation: Operation, data: bytes, *, streamed: bool) -> bool:
    """Tell whether a reply says itself that it is whole, in words that are known."""
    if operation is Operation.RESPONSES:
        if streamed:
            return _COMPLETED.search(data) is not None
        return msgspec.json.decode(data, type=_WithStatus).status == "completed"
    pattern, good = _ENDINGS[operation]
    said = pattern.findall(data)
    return bool(said) and good.issuperset(said)


class _WithStatus(msgspec.Struct):
    status: str = ""


def readable(operation: Operation, *, streamed: bool, data: bytes) -> Reply | None:
    """Read what a client had; None where it cannot be read, or is not whole."""
    try:
        return read_stream(operation, data) if streamed else read_whole(operation, data)
    except (UpstreamError, msgspec.MsgspecError, RecursionError, UnicodeDecodeError):
        return None
