"""The message of an error reply, in any of the shapes that providers give to one."""

from typing import Any

import msgspec

from gateway.core.errors import Failure, UpstreamError

# What decoding bytes of an upstream can raise: msgspec lets the last two through.
UNREADABLE = (msgspec.DecodeError, UnicodeDecodeError, RecursionError)
_decode_fields = msgspec.json.Decoder(dict[str, msgspec.Raw]).decode
_NAMES = ("message", "error", "errors", "detail", "msg", "Message", "title", "error_message")


def unreadable(error: Exception) -> UpstreamError:
    """Return the error of a reply that is not what it says: cut, garbled, or no JSON at all."""
    return UpstreamError(Failure.PROTOCOL, f"the reply cannot be read: {error}")


def has_field(body: bytes, name: str) -> bool:
    """Tell whether a reply that can be decoded has a field, null or not."""
    return name in _decode_fields(body)


def error_message(body: bytes) -> str | None:
    """Find the message in a body; None where it is no JSON, or has none."""
    try:
        found = msgspec.json.decode(body)
    except UNREADABLE:
        return None
    message = _message(found, 0)
    if message is None and isinstance(found, dict) and isinstance(found.get("error"), dict):
        return ""  # an error, though it does not say which
    return message


def _message(found: Any, depth: int) -> str | None:
    """`error.message`, `error` as text, `message`, `detail` as text or list, lists of errors.

    Also those of a `response` that failed.
    """
    if depth > 4:
        return None
    if isinstance(found, str):
        return found
    if isinstance(found, list):
        return next((said for one in found if (said := _message(one, depth + 1))), None)
    if isinstance(found, dict):
        for name in ("error", *_NAMES, "response"):
            if found.get(name) and (said := _message(found[name], depth + 1)):
                return said
    return None
