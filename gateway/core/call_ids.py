"""Ids of tool calls: who gets one that another has made may refuse its characters, or its length.

An id becomes the same other id wherever it stands, so calls and their results stay together.
"""

import hashlib
import re

from gateway.core.ids import request_id

MOST_CHARS = 64
NAMED_CHARS = 24  # of a reply's id, in those of its calls
SHORT_CHARS = 9
_PLAIN = re.compile(rf"[A-Za-z0-9_-]{{1,{MOST_CHARS}}}")
_NOT_PLAIN = re.compile(r"[^A-Za-z0-9_-]")
_NOT_NAMED = re.compile(r"[^A-Za-z0-9]")
_SHORT = re.compile(rf"[A-Za-z0-9]{{{SHORT_CHARS}}}")


def named(reply_id: str | None, number: int) -> str:
    """Name a call that has no id: unlike those of other replies in the conversation."""
    return f"call_{_NOT_NAMED.sub('', reply_id or request_id())[:NAMED_CHARS]}_{number}"


def plain(call_id: str) -> str:
    """Return an id of letters, digits, underscores and hyphens, as Anthropic and Bedrock want."""
    if _PLAIN.fullmatch(call_id):
        return call_id
    return f"{_NOT_PLAIN.sub('_', call_id)[: MOST_CHARS - SHORT_CHARS - 1]}_{_digest(call_id)}"


def short(call_id: str) -> str:
    """Return an id of nine letters and digits, as Mistral wants."""
    return call_id if _SHORT.fullmatch(call_id) else _digest(call_id)


def _digest(call_id: str) -> str:
    return hashlib.sha256(call_id.encode(errors="surrogatepass")).hexdigest()[:SHORT_CHARS]
