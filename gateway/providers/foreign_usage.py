"""Usage in answers that nobody here understands: found by its shape, in JSON or in events.

Also what was written in events, for a stream that does not say or does not come to its end.
"""

import binascii
import contextlib
import json
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

import msgspec

from gateway.core.aws_events import AwsReader, Damaged
from gateway.core.sse import SseEvent, SseReader, TooLarge
from gateway.core.usage import Usage
from gateway.providers import gemini_wire, responses_wire
from gateway.providers.errors import UNREADABLE
from gateway.providers.foreign_figures import counted, is_half, told_by

# Of a body that is larger, as images are, only the end is kept.
MAX_SEEN_BYTES = 4 * 1024 * 1024
END_BYTES = 64 * 1024
MAX_TEXT_CHARS = 1024 * 1024  # more than any model writes at once
# usage, usageMetadata, Bedrock's metrics of an invocation, and text
_MARKS = (
    *(b"sage", b"delta", b"candidates", b'"text"', b"Metrics", b'"generation"', b'"outputText"'),
    b"billed_units",  # without `usage`: Cohere's v1
    *(b'"content"', b'"response"', b'"token"', b"eval_count", b"tokens_predicted"),  # see `_hear`
    b"generated_tokens",
)
_OTHERS, _GOOGLES, _TOOLS = '"usage"', '"usageMetadata"', '"tool_usage"'
_BLANK = b" \t\r\n\xef\xbb\xbf"  # before the first word; a byte order mark may come in pieces


class _Found(msgspec.Struct):
    """Where usage and text may stand; in `delta` Cohere has both."""

    usage: msgspec.Raw = msgspec.Raw(b"")
    usageMetadata: msgspec.Raw = msgspec.Raw(b"")
    tool_usage: Any = None
    message: Any = None
    response: Any = None
    delta: Any = None
    choices: Any = None
    candidates: Any = None
    output: Any = None
    outputs: Any = None
    generation: Any = None
    outputText: Any = None
    interaction: Any = None
    meta: Any = None
    event_type: Any = None
    text: Any = None
    content: Any = None
    token: Any = None
    details: Any = None
    tokens_evaluated: Any = None
    tokens_predicted: Any = None
    prompt_eval_count: Any = None
    eval_count: Any = None
    prompt_token_count: Any = None
    generation_token_count: Any = None
    inputTextTokenCount: Any = None
    results: Any = None
    metrics: Any = msgspec.field(name="amazon-bedrock-invocationMetrics", default=None)


class _Packed(msgspec.Struct):
    """A message of InvokeModelWithResponseStream: an event of the model's own API, in base64."""

    bytes: str


# What a model writes, in events of OpenAI's, Anthropic's, Google's, Cohere's, Bedrock's.
_WRITTEN = frozenset(
    (
        *("content", "text", "reasoning_content", "reasoning", "thinking", "refusal"),
        *("arguments", "partial_json", "tool_plan", "input", "generation", "outputText"),
        *("response", "generated_text"),
    )
)
# Google's streams are lists, unless events are asked for.
_decode = msgspec.json.Decoder(_Found | list[_Found]).decode


# What Bedrock says in an answer's head, as an answer of a model's own API need not have it.
_HEADERS = (
    (b"x-amzn-bedrock-input-token-count", "inputTokenCount"),
    (b"x-amzn-bedrock-output-token-count", "outputTokenCount"),
    (b"x-amzn-bedrock-cache-read-input-token-count", "cacheReadInputTokenCount"),
    (b"x-amzn-bedrock-cache-write-input-token-count", "cacheWriteInputTokenCount"),
)
_raw_decode = json.JSONDecoder().raw_decode
_BETWEEN = frozenset(" \t\r\n,")
_FIELDS = (b"data:", b"event:", b"id:", b"retry:", b":", b"{", b"[")  # of events, or JSON
EVENTS, MESSAGES, LINES = "events", "messages", "lines"
_LINES = (b"ndjson", b"stream+json", b"jsonlines", b"jsonl")  # a line of JSON is an event


class ForeignUsage:
    """Looks at an answer as it passes. Memory is bounded.

    `text_bytes` is how much was written in a stream; `framing` is EVENTS, MESSAGES, LINES, or none;
    `outdated` tells that text came after the last figures, or that they are of the prompt alone;
    `opaque` that nothing of it can be read: it is sound, a picture, a file.
    """

    def __init__(self) -> None:
        self._look: Callable[[bytes], None] | None = None
        self._events, self._messages = SseReader(), AwsReader()
        self._tail = bytearray()  # of an event that is too large
        self._body, self._cut = bytearray(), False
        self._found: dict[str, Any] = {}
        self._text: list[str] = []
        self._text_chars = 0
        self._searches, self._drawn = 0, responses_wire.NOTHING_DRAWN
        self.text_bytes = 0
        self.framing = ""
        self.outdated = self._told = False
        self.opaque = self._lines = self._text_alone = False
        self._half_line = 0  # what is left of lines at their end

    def head(self, headers: Mapping[bytes, bytes]) -> None:
        """Look at an answer's head; what its body says counts more."""
        for field, name in _HEADERS:
            value = headers.get(field, b"")
            if value.isdigit():
                self._found[name] = value.decode()
        kind = headers.get(b"content-type", b"").lower()
        self._lines = any(one in kind for one in _LINES)
        self._text_alone = kind.startswith(b"text/") and b"event-stream" not in kind

    def unfinished(self) -> int:
        """Return how many bytes of the answer's end belong to a message that is not whole yet."""
        return self._messages.held or self._half_line or len(self._body)

    def feed(self, data: bytes) -> None:
        """Look at a part."""
        if self._look is None:
            data = data.lstrip(_BLANK)
            if not data:
                return
            plain = self._text_alone and not data.startswith(_FIELDS)
            self._look = self._read_text if plain else self._reading(data[:1])
        self._look(data)

    def result(self) -> Usage | None:
        """Return what was used; None where the answer does not say."""
        with contextlib.suppress(TooLarge):
            for event in self._events.rest():
                self._see(event.data)
        self._take_body()
        told = told_by(self._found)
        usage = counted(told)
        if usage is not None and self.text_bytes and is_half(told):
            if not isinstance(told, gemini_wire.WireUsage) or told.prompt_token_count is None:
                return None
            self.outdated = True
        if usage is None:
            return None
        if self._searches:
            usage = msgspec.structs.replace(usage, web_searches=self._searches)
        return usage if self._drawn is responses_wire.NOTHING_DRAWN else usage.plus(self._drawn)

    def text(self) -> str:
        """Return what was written in a stream, as far as is known."""
        return "".join(self._text)

    def _reading(self, first: bytes) -> Callable[[bytes], None]:
        """Choose by an answer's first byte how to look at it."""
        if first == b"{" and self._lines:
            self.framing = LINES
            return self._read_lines
        if first in b"{[":
            return self._keep
        if first in b"deir:":  # data, event, id, retry, or a comment
            self.framing = EVENTS
            return self._read_events
        if first != b"\0":
            self.opaque = True
            return _ignore
        self.framing = MESSAGES
        return self._read_messages

    def _keep(self, data: bytes) -> None:
        self._body += data
        if len(self._body) > MAX_SEEN_BYTES:
            self._cut = True
            del self._body[:-END_BYTES]

    def _read_text(self, data: bytes) -> None:
        """Take all of it for what was written, as a transcript is."""
        self._write((data.decode(errors="replace"),))

    def _read_lines(self, data: bytes) -> None:
        *whole, rest = (bytes(self._body) + data).split(b"\n")
        self._body[:] = rest if len(rest) <= MAX_SEEN_BYTES else b""
        for line in whole:
            self._see(line)

    def _read_events(self, data: bytes) -> None:
        try:
            found = self._events.feed(data)
        except TooLarge:  # that event is lost but for its end, and not those behind it
            self._events, self._tail = SseReader(), bytearray(b"\n")
            found = []
        if self._tail:
            found = self._skip(data)
        for event in found:
            self._see(event.data)

    def _skip(self, data: bytes) -> list[SseEvent]:
        """Look for figures at the end of an event that is too large; return those behind it."""
        self._tail += data.replace(b"\r", b"")
        while True:
            end = self._tail.find(b"\n\n", 1)
            if end < 0:
                del self._tail[1:-END_BYTES]
                return []
            self._look_back(bytes(self._tail[:end]), _OTHERS, _GOOGLES, _TOOLS)
            self._tail, rest = bytearray(), bytes(self._tail[end + 2 :])
            try:
                return self._events.feed(rest) if rest else []
            except TooLarge:
                self._events, self._tail = SseReader(), bytearray(b"\n" + rest)

    def _look_back(self, data: bytes, *names: str) -> None:
        """Take the last figures by these names in an end of JSON whose beginning is gone."""
        text = data.decode(errors="replace")
        for name in names:
            at = text.rfind(name)
            if at >= 0:
                with contextlib.suppress(ValueError, RecursionError):
                    start = text.index(":", at + len(name)) + 1
                    blank = len(text[start:]) - len(text[start:].lstrip())
                    value = _raw_decode(text, start + blank)[0]
                    if name == _TOOLS:
                        self._drawn = responses_wire.drawn_by(value)
                    else:
                        self._update(value)

    def _read_messages(self, data: bytes) -> None:
        try:
            for message in self._messages.feed(data):
                self._see(_unpacked(message.payload))
        except Damaged:
            self._look = _ignore

    def _see(self, data: bytes) -> None:
        if any(mark in data for mark in _MARKS):
            self._told, before = False, self.text_bytes
            with contextlib.suppress(RecursionError):
                for found in self._take(data):
                    self._hear(found)
            if self._told:
                self.outdated = False
            elif self.text_bytes > before:
                self.outdated = True

    def _hear(self, found: _Found) -> None:
        delta = {"text": found.delta} if isinstance(found.delta, str) else found.delta
        named = {"generation": found.generation, "outputText": found.outputText}
        if found.event_type == "text-generation":  # Cohere's v1; its last event has all of it again
            named["text"] = found.text
        # llama.cpp's own events; Ollama's own lines; TGI's, whose last event has all of it again
        named["content"] = found.content if isinstance(found.content, str) else None
        named["text"] = named.get("text") or (
            found.response if isinstance(found.response, str) else None
        )
        token = found.token if isinstance(found.token, dict) else {}
        own = (token.get("text") and {"text": token["text"]}, found.message)
        parts = (delta, found.choices, found.candidates, found.outputs, named, own)
        self._write(_written(parts))

    def _write(self, texts: Iterable[str]) -> None:
        for text in texts:
            self.text_bytes += len(text.encode(errors="surrogatepass"))
            if self._text_chars + len(text) <= MAX_TEXT_CHARS:
                self._text.append(text)
                self._text_chars += len(text)

    def _take_body(self) -> None:
        body = bytes(self._body)
        self._body.clear()
        if self.framing == LINES:
            self._half_line = len(body)
            self._see(body)
            return
        if not body:
            return
        if self._cut:
            at = body.rfind(b'"usage"')
            if at >= 0:  # what is JSON from there to the end is the answer's own, and no part's
                self._take(b"{" + body[at:])
            self._look_back(body, _GOOGLES, _TOOLS)  # which stand in no part of anything else
            return
        parts = self._take(body) or self._take_list(body) or self._take_lines(body)
        if not self._found or is_half(told_by(self._found)):  # then its text counts
            with contextlib.suppress(*UNREADABLE, RecursionError):
                for part in parts:
                    self._hear(part)
                self._write(_written(msgspec.json.decode(body)) if not self.text_bytes else ())

    def _take_list(self, body: bytes) -> list[_Found]:
        """Take the elements of a list that broke off, as Google's streams may."""
        found: list[_Found] = []
        text = body.decode(errors="replace")
        at = 1 if text.startswith("[") else len(text)
        with contextlib.suppress(ValueError, RecursionError):
            while at < len(text):
                while text[at : at + 1] in _BETWEEN:
                    at += 1
                end = _raw_decode(text, at)[1]
                taken = self._take(text[at:end].encode(errors="surrogatepass"))
                for one in taken:
                    self._hear(one)
                found, at = found + taken, end
        self.outdated = self.outdated or bool(found)
        return []

    def _take_lines(self, body: bytes) -> list[_Found]:
        """Take events that are a line of JSON each, as Cohere's v1 writes them."""
        lines = body.splitlines()
        if len(lines) > 1 and self._take(lines[0]):
            for line in lines:
                self._see(line)
        return []

    def _take(self, data: bytes) -> list[_Found]:
        """Remember the figures: in a stream the last of each kind counts."""
        try:
            found = _decode(data)
            parts = found if isinstance(found, list) else [found]
            for one in parts:
                self._note(one)
        except UNREADABLE:
            return []
        return parts

    def _note(self, found: _Found) -> None:
        for raw in (found.usage, found.usageMetadata):
            if bytes(raw) not in (b"", b"null"):
                self._update(msgspec.json.decode(raw))
        for inner in (found.message, found.response, found.delta, found.interaction):
            if isinstance(inner, dict):
                self._update(inner.get("usage"))
                self._update(inner.get("meta"))
                self._note_tools(inner.get("output"), inner.get("tool_usage"))
        self._note_tools(found.output, found.tool_usage)
        self._update(found.metrics)
        self._update(found.meta)
        self._note_invoked(found)
        if isinstance(found.choices, list):  # Moonshot's
            for choice in found.choices:
                self._update(choice.get("usage") if isinstance(choice, dict) else None)

    def _note_invoked(self, found: _Found) -> None:
        """Take the figures of Llama's and Titan's own APIs."""
        if found.prompt_token_count is not None and found.generation_token_count is not None:
            given, made = found.prompt_token_count, found.generation_token_count
        elif found.inputTextTokenCount is not None:
            results = found.results if isinstance(found.results, list) else []
            given = found.inputTextTokenCount
            made = sum([one.get("tokenCount", 0) for one in results if isinstance(one, dict)])
        elif found.tokens_evaluated is not None and found.tokens_predicted is not None:
            given, made = found.tokens_evaluated, found.tokens_predicted  # llama.cpp's
        elif found.prompt_eval_count is not None and found.eval_count is not None:
            given, made = found.prompt_eval_count, found.eval_count  # Ollama's
        elif isinstance(found.details, dict) and found.details.get("input_length") is not None:
            given = found.details["input_length"]  # TGI's
            made = found.details.get("generated_tokens", 0)
        else:
            return
        self._update({"inputTokenCount": given, "outputTokenCount": made})

    def _note_tools(self, output: Any, tool_usage: Any) -> None:
        """Count the web searches and the pictures of a response that is whole."""
        if tool_usage is not None:
            self._drawn = responses_wire.drawn_by(tool_usage)
        if isinstance(output, list):
            items = [one for one in output if isinstance(one, dict)]
            made = [
                one for one in items if responses_wire.searched(one.get("type"), one.get("action"))
            ]
            self._searches = max(self._searches, len(made))

    def _update(self, figures: Any) -> None:
        if isinstance(figures, dict):
            self._found |= {name: value for name, value in figures.items() if value is not None}
            self._told = True


def _written(value: Any) -> Iterator[str]:
    """Find the text in a part of an event, however it is nested."""
    if isinstance(value, dict):
        for name, inner in value.items():
            if isinstance(inner, str) and name in _WRITTEN:
                yield inner
            else:
                yield from _written(inner)
    elif isinstance(value, list | tuple):
        for inner in value:
            yield from _written(inner)


def _unpacked(payload: bytes) -> bytes:
    """Return the event that Bedrock packs into a message, or the message's own JSON."""
    if not payload.startswith(b'{"bytes"'):
        return payload
    try:
        packed = msgspec.json.decode(payload, type=_Packed)
        return binascii.a2b_base64(packed.bytes)
    except UNREADABLE:
        return payload


def _ignore(data: bytes) -> None:
    """See nothing: it is a picture, sound, a file."""
