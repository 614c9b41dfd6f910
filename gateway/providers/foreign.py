"""What other providers have signed, taken out of conversations that pass as they were written.

A client gives back what it was given: after a handover that holds secrets which this gateway has
marked (`core.messages.mark`), and which nobody but their maker takes.
"""

import msgspec
from msgspec import Raw

from gateway.core.messages import ASSISTANT, MARK, marked, unmark
from gateway.providers.chat_thoughts import extra_of, google_signature, own_details, text_of
from gateway.providers.errors import UNREADABLE
from gateway.providers.quirks import ALL, STRICT_HOSTS, Quirks

_encode = msgspec.json.Encoder().encode
_decode_objects = msgspec.json.Decoder(list[dict[str, Raw]]).decode

Object = dict[str, Raw]
_MARK = MARK.encode()
_BESIDE = b'"extra_content"'  # calls


def own_turns(fields: Object) -> bool:
    """Take foreign thoughts out of Messages; tell whether a call has lost its own by that.

    A model that is to think refuses calls without the thoughts that led to them.
    """
    turns = _marked_objects(fields.get("messages"))
    if turns is None:
        return False
    kept, bare = [], False
    for turn in turns:
        blocks = _marked_objects(turn.get("content")) or []
        own = [block for block in blocks if not _is_foreign_block(block)]
        lost = len(own) < len(blocks)
        if lost and not own:
            continue
        if lost:
            turn["content"] = Raw(_encode(own))
        if text_of(turn.get("role")) == ASSISTANT:
            bare = lost and _calls_unthought(own)
        kept.append(turn)
    fields["messages"] = Raw(_encode(kept))
    return bare


def own_items(fields: Object, maker: str) -> None:
    """Take foreign reasoning out of the input of Responses; what `maker` has encrypted stays."""
    items = _marked_objects(fields.get("input"))
    if items is None:
        return
    kept = []
    for item in items:
        secret = text_of(item.get("encrypted_content"))
        if marked(secret):
            own = unmark(maker, secret)
            if not own:
                continue
            item["encrypted_content"] = Raw(_encode(own))
        kept.append(item)
    fields["input"] = Raw(_encode(kept))


def own_messages(fields: Object, quirks: Quirks, host: str) -> None:
    """Take foreign secrets out of chat messages, and give thoughts the name they have here.

    What stands beside calls and is not marked may be of whatever serves at the host.
    """
    raw = bytes(fields.get("messages", b""))
    named = bool(quirks.thoughts_back) and raw.find(b'"reasoning') >= 0
    called = quirks.thoughts_needed and raw.find(b'"tool_calls"') >= 0
    detailed = quirks.details != ALL and raw.find(b'"reasoning_details"') >= 0
    strict = host.endswith(STRICT_HOSTS)
    signed = strict and raw.find(_BESIDE) >= 0
    # `in` raises, and catches, before it looks
    if not (named or called or detailed or signed) and raw.find(_MARK) < 0:
        return
    messages = _objects(raw)
    if messages is None:
        return
    for message in messages:
        if named:
            _rename_thoughts(message, quirks.thoughts_back)
        if called and message.get("tool_calls"):
            _need_thoughts(message, quirks.thoughts_back)
        _own_details(message, quirks.details)
        _own_calls(message, quirks.details, strict=strict)
    fields["messages"] = Raw(_encode(messages))


def _need_thoughts(message: Object, name: str) -> None:
    """Put something where a thought must stand before calls, but nobody has one."""
    if text_of(message.get("role")) == ASSISTANT and not text_of(message.get(name)):
        message[name] = Raw(b'" "')


def _rename_thoughts(message: Object, name: str) -> None:
    """Give thoughts the one name that a server knows; their signatures have none there."""
    details = _objects(bytes(message.pop("reasoning_details", b"[]"))) or []
    told = "".join([text_of(one.get("text")) or text_of(one.get("summary")) for one in details])
    for other in ("reasoning_content", "reasoning"):
        if other != name and other in message:
            said = message.pop(other)
            if text_of(message.get(name)) == "":
                message[name] = said
    if told and text_of(message.get(name)) == "":
        message[name] = Raw(_encode(told))


def _own_calls(message: Object, known: str, *, strict: bool) -> None:
    """Give calls back what their server wrote beside them; what another wrote goes.

    All of it goes where it is refused, be it marked or not.
    """
    raw = bytes(message.get("tool_calls", b""))
    calls = _objects(raw) if raw.find(_BESIDE) >= 0 else None
    if calls is None:
        return
    for call in calls:
        extra = bytes(call.get("extra_content", b""))
        if not extra or not (strict or _MARK in extra):
            continue
        own = extra_of(_google_signature(extra), known)
        if own is None:
            del call["extra_content"]
        else:
            call["extra_content"] = Raw(_encode(own))
    message["tool_calls"] = Raw(_encode(calls))


def _google_signature(extra: bytes) -> str:
    try:
        return google_signature(msgspec.json.decode(extra))
    except UNREADABLE:
        return ""


def _own_details(message: Object, known: str) -> None:
    """Take foreign thoughts out; an empty list goes, as all do where nobody knows them."""
    details = _objects(bytes(message.get("reasoning_details", b""))) if known else []
    if details is None:
        return
    if own := own_details(details, known):
        message["reasoning_details"] = Raw(_encode(own))
    else:
        message.pop("reasoning_details", None)


def _is_foreign_block(block: Object) -> bool:
    kind = text_of(block.get("type"))
    if kind == "thinking":
        return marked(text_of(block.get("signature")))
    return kind == "redacted_thinking" and marked(text_of(block.get("data")))


def _calls_unthought(blocks: list[Object]) -> bool:
    kinds = {text_of(block.get("type")) for block in blocks}
    return "tool_use" in kinds and kinds.isdisjoint(("thinking", "redacted_thinking"))


def _marked_objects(raw: Raw | None) -> list[Object] | None:
    """Read a list of objects that has a mark somewhere; None for anything else."""
    if raw is None:
        return None
    data = bytes(raw)
    return _objects(data) if data.find(_MARK) >= 0 else None


def _objects(data: bytes) -> list[Object] | None:
    try:
        return _decode_objects(data)
    except UNREADABLE:
        return None
