"""What a client makes of a reply or a stream: strictly, as its dialect has it."""

import json
from dataclasses import dataclass, replace
from typing import Any, NamedTuple


@dataclass(frozen=True)
class Heard:
    """A reply as it came."""

    status: int
    headers: dict[str, str]
    body: bytes

    @property
    def id(self) -> str:
        """The request's."""
        return self.headers["x-request-id"]

    @property
    def everything(self) -> bytes:
        """All bytes that carry meaning."""
        return json.dumps(self.headers).encode() + self.body


@dataclass(frozen=True)
class Reading:
    """What it says. `finished`: it looks whole."""

    text: str = ""
    finished: bool = False
    error: dict[str, Any] | None = None
    unreadable: int = 0  # events of a stream


def read_reply(dialect: str, heard: Heard) -> Reading:
    """Read a whole reply."""
    found = json.loads(heard.body)
    if heard.status != 200:
        assert heard.headers["content-type"] == "application/json", heard
        return Reading(error=_error(dialect, found))
    assert "error" not in found
    if dialect == "chat":
        messages = [choice.get("message") or {} for choice in found["choices"] or ()]
        return Reading("".join(one.get("content") or "" for one in messages), True)
    assert found["type"] == "message"
    return Reading("".join(block["text"] for block in found["content"] or ()), True)


def read_stream(dialect: str, heard: Heard) -> Reading:
    """Read a stream of events."""
    assert (heard.status, heard.headers["transfer-encoding"]) == (200, "chunked"), heard
    assert heard.body.endswith(b"\n\n")
    told = [event for block in heard.body.split(b"\n\n") if (event := _event(block))]
    good = [event for event in told if _is_readable(event.data)]
    read = _read_chat(good) if dialect == "chat" else _read_messages(good)
    return replace(read, unreadable=len(told) - len(good))


class Event(NamedTuple):
    """One event."""

    kind: str
    data: bytes


def _event(block: bytes) -> Event | None:
    """Read an event; None where it has no data."""
    fields = [line.partition(b":") for line in block.split(b"\n")]
    data = [value.removeprefix(b" ") for name, _, value in fields if name == b"data"]
    kinds = [value.decode().strip() for name, _, value in fields if name == b"event"]
    return Event("".join(kinds), b"\n".join(data)) if b"".join(data) else None


def _is_readable(data: bytes) -> bool:
    if data == b"[DONE]":
        return True
    try:
        json.loads(data)
    except ValueError:
        return False
    return True


def _error(dialect: str, found: Any) -> dict[str, Any]:
    """An error, in its dialect's shape."""
    error = found["error"]
    assert isinstance(error, dict)
    assert isinstance(error["message"], str)
    assert error["message"]
    if dialect == "chat":
        assert set(found) == {"error"}
        assert set(error) == {"message", "type", "param", "code"}
    else:
        assert found["type"] == "error"
        assert error["type"].endswith(("_error", "request_too_large"))
    return error


def _read_chat(told: list[Event]) -> Reading:
    text, ends = "", 0
    for place, (_, data) in enumerate(told):
        if data == b"[DONE]":
            ends += 1
            assert place == len(told) - 1, "more behind the end"
            continue
        found = json.loads(data)
        if "error" in found:
            assert place == len(told) - 1, "more behind an error"
            return Reading(text, error=_error("chat", found))
        for choice in found.get("choices") or ():
            text += (choice.get("delta") or {}).get("content") or ""
    return Reading(text, ends == 1)


def _read_messages(told: list[Event]) -> Reading:
    text, ends = "", 0
    for place, (kind, data) in enumerate(told):
        found = json.loads(data)
        assert kind in ("", found["type"])
        match found["type"]:
            case "message_start":
                assert place == 0
            case "content_block_delta":
                text += found["delta"]["text"]
            case "message_stop":
                ends += 1
                assert place == len(told) - 1, "more behind the end"
            case "error":
                assert kind == "error"
                assert place == len(told) - 1, "more behind an error"
                return Reading(text, error=_error("messages", found))
    return Reading(text, ends == 1)
