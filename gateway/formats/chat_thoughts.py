"""What models thought, in messages of chat completions from the client, and who signed it."""

import re
from typing import Any

import msgspec

from gateway.core.messages import ANTHROPIC, MARK, Thinking, mark, marked

# OpenRouter's names of who made a secret bear a version, ours do not.
_FORMATTED = re.compile(rf"{MARK}([\w-]+-v\d+):(.*)", re.DOTALL)


class ReasoningDetail(msgspec.Struct):
    """A block of thought as OpenRouter writes it. `format` tells whose it is: Anthropic's if none.

    https://openrouter.ai/docs/use-cases/reasoning-tokens
    """

    type: str
    format: str | None = None
    text: str | None = None
    signature: str | None = None
    data: str | None = None
    summary: str | None = None


def thoughts(details: list[ReasoningDetail] | None, text: str | None) -> list[Thinking]:
    """Return a message's thoughts; `text` is them without their signatures."""
    found: list[Thinking] = []
    for detail in details or ():
        if detail.data:
            found.append(Thinking(redacted=_secret(detail, detail.data)))
        else:
            signature = _secret(detail, detail.signature or "")
            found.append(Thinking(detail.text or detail.summary or "", signature))
    if text and not any(one.text for one in found):
        found.append(Thinking(text))
    return found


def detail(part: Thinking, index: int) -> dict[str, Any]:
    """Write a block of thought as it is read."""
    found: dict[str, Any] = {"type": "reasoning.text", "text": part.text, "index": index}
    secret, name = part.signature, "signature"
    if part.redacted:
        found = {"type": "reasoning.encrypted", "data": "", "index": index}
        secret, name = part.redacted, "data"
    if made := _FORMATTED.fullmatch(secret):
        found["format"], secret = made.groups()
    if secret:
        found[name] = secret
    return found


def _secret(detail: ReasoningDetail, secret: str) -> str:
    """Return a secret as the hub has it: with its maker's mark where it is not Anthropic's."""
    maker = detail.format or ANTHROPIC
    return secret if marked(secret) or maker.startswith(ANTHROPIC) else mark(maker, secret)


def google_extra(signature: str) -> dict[str, Any]:
    """Write a call's signature where Google has it."""
    return {"google": {"thought_signature": signature}}


def google_signature(extra: Any) -> str:
    """Return the signature of a call, where this gateway or Google itself has put it."""
    google = extra.get("google") if isinstance(extra, dict) else None
    signature = google.get("thought_signature") if isinstance(google, dict) else None
    return signature if isinstance(signature, str) else ""
