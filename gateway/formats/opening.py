"""Hot path: which events begin a stream without saying anything, in each client dialect.

While a client has had none but these, and they are held back, a failure can still be handed to
another target: a role, an empty block or a ping is no part of an answer.
"""

from collections.abc import Callable
from typing import Any

import msgspec
from msgspec import Raw

from gateway.core.operations import Operation

_EMPTY = frozenset((b'""', b"null", b"[]"))
_UNREADABLE = (msgspec.DecodeError, UnicodeDecodeError, RecursionError)


class _Choice(msgspec.Struct):
    delta: dict[str, Raw] | None = None
    text: str | None = None
    finish_reason: str | None = None


class _Chunk(msgspec.Struct):
    choices: list[_Choice]
    usage: Raw | None = None
    error: Raw | None = None


class _Block(msgspec.Struct, frozen=True):
    type: str = ""
    text: str = ""
    thinking: str = ""


class _Event(msgspec.Struct):
    type: str
    content_block: _Block = _Block()
    item: _Block = _Block()
    part: _Block = _Block()


_chunk = msgspec.json.Decoder(_Chunk).decode
_event = msgspec.json.Decoder(_Event).decode
_NAMES_OF_RESPONSES = frozenset(
    ("response.created", "response.in_progress", "response.queued", "response.output_item.added")
)
_PARTS = frozenset(("response.content_part.added", "response.reasoning_summary_part.added"))


def _chat(data: bytes) -> bool:
    chunk = _chunk(data)
    return not (_given(chunk.usage) or _given(chunk.error)) and all(
        choice.finish_reason is None
        and not choice.text
        and all(
            name == "role" or bytes(value) in _EMPTY for name, value in (choice.delta or {}).items()
        )
        for choice in chunk.choices
    )


def _given(value: Raw | None) -> bool:
    return value is not None and bytes(value) != b"null"


def _messages(data: bytes) -> bool:
    event = _event(data)
    if event.type == "content_block_start":
        block = event.content_block
        return block.type in ("text", "thinking") and not block.text and not block.thinking
    return event.type in ("message_start", "ping")


def _responses(data: bytes) -> bool:
    event = _event(data)
    if event.type in _PARTS:
        return not event.part.text
    if event.type == "response.output_item.added":
        return event.item.type in ("message", "reasoning")
    return event.type in _NAMES_OF_RESPONSES


_READERS: dict[Operation, Callable[[bytes], bool]] = {
    Operation.CHAT: _chat,
    Operation.COMPLETIONS: _chat,
    Operation.MESSAGES: _messages,
    Operation.RESPONSES: _responses,
}


def only_opens(operation: Operation, data: bytes) -> bool:
    """Tell whether these are whole events, and none of them says anything."""
    read: Any = _READERS.get(operation)
    if read is None:
        return False
    for block in data.replace(b"\r\n", b"\n").split(b"\n\n"):
        found = [line[5:] for line in block.split(b"\n") if line.startswith(b"data:")]
        try:
            if not block.isascii():
                block.decode()  # msgspec does not look inside the strings it skips
            if found and not read(b"\n".join(found)):
                return False
        except msgspec.ValidationError:
            return False  # of a shape that we do not know: it may say anything
        except _UNREADABLE:
            continue  # nor can the client read it
    return True
