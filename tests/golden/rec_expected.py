"""What an independent reading of a recorded reply finds, whatever API it came over."""

import json
from dataclasses import dataclass, field
from typing import Any

from gateway.core.usage import Usage


@dataclass(frozen=True)
class Expected:
    """A reply's content: of several choices or candidates the first one's.

    `reasoning` is thinking that the provider shows; `signatures` are the opaque proofs of it.
    `tool_calls` are functions that the client is to call: (name, arguments). `server_blocks` are
    the types of all other blocks or items: tools that the provider runs and their results, tools
    with input that is not JSON, compactions. `finish` is the provider's own word. `usage` is in the
    gateway's terms, None where the recording has none; `own_usage` is what a client of the same API
    reads there, where that leaves out some of what is billed. `error` says why a reply failed.
    """

    text: str = ""
    reasoning: str = ""
    signatures: list[str] = field(default_factory=list)
    tool_calls: list[tuple[str, dict[str, Any]]] = field(default_factory=list)
    server_blocks: list[str] = field(default_factory=list)
    finish: str | None = None
    usage: Usage | None = None
    own_usage: Usage | None = None
    error: str | None = None
    vectors: list[list[float]] = field(default_factory=list)

    @property
    def failed(self) -> bool:
        """Whether the provider gave up, before or within the reply."""
        return self.error is not None


def arguments(text: str) -> dict[str, Any]:
    """A call's arguments; for a tool without any, models write nothing, `null` or `{}`."""
    content = json.loads(text or "null") or {}
    assert isinstance(content, dict), text
    return content


def joined(found: list[str | None]) -> str:
    """Texts one after another; what is absent or null says nothing."""
    return "".join(text or "" for text in found)
