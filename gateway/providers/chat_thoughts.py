"""What models thought, in messages of chat completions: who signed it, and who is sent it.

A secret bears the mark of this dialect where its server has put it: it holds all that the server
wrote, be it blocks of thought, or what stands beside a call.
"""

import re
from typing import Any

import msgspec
from msgspec import Raw

from gateway.core.messages import ANTHROPIC, MARK, Part, Thinking, ToolCall, mark, marked, unmark
from gateway.providers.errors import UNREADABLE
from gateway.providers.gemini_wire import MAKER as GEMINI
from gateway.providers.quirks import TOLD

# Of blocks of thought, and of what stands beside a call.
MAKER, CALL_MAKER = "openai", "openai-call"
# OpenRouter's names of who made a secret bear a version, ours do not.
_FORMATTED = re.compile(rf"{MARK}([\w-]+-v\d+):(.*)", re.DOTALL)

_encode = msgspec.json.Encoder().encode
_decode_object = msgspec.json.Decoder(dict[str, Raw]).decode
_decode_objects = msgspec.json.Decoder(list[dict[str, Raw]]).decode
_decode_text = msgspec.json.Decoder(str).decode

Object = dict[str, Raw]


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
    if not text:
        return found
    return _all_of(found, text) if any(one.text for one in found) else [*found, Thinking(text)]


def _all_of(parts: list[Thinking], text: str) -> list[Thinking]:
    """Return blocks with what stands between them: in a stream that has no block of its own."""
    found, start = [], 0
    for part in parts:
        at = text.find(part.text, start)
        if at < 0:
            return parts  # they tell it in other words
        if text[start:at].strip():
            found.append(Thinking(text[start:at]))
        found.append(part)
        start = at + len(part.text)
    if text[start:].strip():
        found.append(Thinking(text[start:]))
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


def details_of(thoughts: list[Thinking], known: str) -> list[Object]:
    """Write the thoughts that somebody signed, for a server that knows such blocks."""
    signed = [one for one in thoughts if one.redacted or one.signature]
    written = _encode([detail(one, i) for i, one in enumerate(signed)])
    return own_details(_decode_objects(written), known)


def own_details(details: list[Object], known: str) -> list[Object]:
    """Return blocks of thought without foreign ones, and what this dialect has signed as it came.

    A secret that is marked is another's, one of no format is Anthropic's.
    """
    found: list[Object] = []
    for one in details if known else ():
        secrets = _secrets(one)
        if any(map(marked, secrets)):
            own = [kept for secret in secrets for kept in _kept(MAKER, secret)]
            found += [kept for kept in own if not any(map(marked, _secrets(kept)))]
        elif known != TOLD or not secrets or text_of(one.get("format")):
            found.append(one)
    return found


def _secrets(detail: Object) -> list[str]:
    return [secret for name in ("signature", "data") if (secret := text_of(detail.get(name)))]


def extra_of(signature: str, known: str) -> Object | None:
    """Return what stands beside a call for a server that knows such; None where it is another's.

    A signature that nobody has marked is Google's, by way of a server of this dialect.
    """
    if not known or not signature:
        return None
    if not marked(signature):
        return _decode_object(_encode(google_extra(signature)))
    return next(iter(_kept(CALL_MAKER, signature)), None)


def at_calls(parts: tuple[Part, ...]) -> tuple[Part, ...]:
    """Return parts with calls' signatures on them: where they have no place they stand before."""
    found: list[Part] = []
    for part in parts:
        before = found[-1] if found else None
        if isinstance(part, ToolCall) and not part.signature and _is_of_call(before):
            assert isinstance(before, Thinking)
            found[-1] = msgspec.structs.replace(part, signature=before.redacted)
        else:
            found.append(part)
    return tuple(found)


def _is_of_call(part: Part | None) -> bool:
    return isinstance(part, Thinking) and any(
        unmark(maker, part.redacted) for maker in (CALL_MAKER, GEMINI)
    )


def google_extra(signature: str) -> dict[str, Any]:
    """Write a call's signature where Google has it."""
    return {"google": {"thought_signature": signature}}


def google_signature(extra: Any) -> str:
    """Return the signature of a call, where this gateway or Google itself has put it."""
    google = extra.get("google") if isinstance(extra, dict) else None
    signature = google.get("thought_signature") if isinstance(google, dict) else None
    return signature if isinstance(signature, str) else ""


def text_of(raw: Raw | None) -> str:
    """Return JSON that is a text; empty for any other."""
    if raw is None:
        return ""
    try:
        return _decode_text(raw)
    except UNREADABLE:
        return ""


def _kept(maker: str, secret: str) -> list[Object]:
    """Return the values that were kept as they came. The client holds them: they may be forged."""
    try:
        return _decode_objects(f"[{unmark(maker, secret)}]")
    except UNREADABLE:
        return []
