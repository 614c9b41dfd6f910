"""What other providers have signed, taken out of conversations that pass as they were written.

A client gives back what it was given: after a handover that holds secrets which this gateway has
marked (`core.messages.mark`), and which nobody but their maker takes.
"""

from collections.abc import Callable

import msgspec
from msgspec import Raw

from gateway.core.messages import ASSISTANT, MARK, marked, unmark
from gateway.providers.errors import UNREADABLE

_encode = msgspec.json.Encoder().encode
_decode_objects = msgspec.json.Decoder(list[dict[str, Raw]]).decode
_decode_text = msgspec.json.Decoder(str).decode

Object = dict[str, Raw]
_MARK = MARK.encode()


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
        if _text(turn.get("role")) == ASSISTANT:
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
        secret = _text(item.get("encrypted_content"))
        if marked(secret):
            own = unmark(maker, secret)
            if not own:
                continue
            item["encrypted_content"] = Raw(_encode(own))
        kept.append(item)
    fields["input"] = Raw(_encode(kept))


def own_messages(fields: Object, thoughts_back: str) -> None:
    """Take foreign secrets out of chat messages, and give thoughts the name they have here.

    `thoughts_back`: that name; where it is empty, thoughts stay as they are.
    """
    raw = bytes(fields.get("messages", b""))
    named = bool(thoughts_back) and raw.find(b'"reasoning') >= 0
    if not named and raw.find(_MARK) < 0:  # `in` raises, and catches, before it looks
        return
    messages = _objects(raw)
    if messages is None:
        return
    for message in messages:
        if named:
            _rename_thoughts(message, thoughts_back)
        _without(message, "reasoning_details", _is_foreign_detail)
        calls = _marked_objects(message.get("tool_calls"))
        if calls is not None:
            for call in calls:
                if _MARK in bytes(call.get("extra_content", b"")):
                    del call["extra_content"]
            message["tool_calls"] = Raw(_encode(calls))
    fields["messages"] = Raw(_encode(messages))


def _rename_thoughts(message: Object, name: str) -> None:
    """Give thoughts the one name that a server knows; their signatures have none there."""
    details = _objects(bytes(message.pop("reasoning_details", b"[]"))) or []
    told = "".join([_text(one.get("text")) or _text(one.get("summary")) for one in details])
    for other in ("reasoning_content", "reasoning"):
        if other != name and other in message:
            said = message.pop(other)
            if _text(message.get(name)) == "":
                message[name] = said
    if told and _text(message.get(name)) == "":
        message[name] = Raw(_encode(told))


def _without(message: Object, name: str, foreign: Callable[[Object], bool]) -> None:
    """Take what is foreign out of a list; an empty one goes."""
    found = _marked_objects(message.get(name))
    if found is None:
        return
    own = [one for one in found if not foreign(one)]
    if own:
        message[name] = Raw(_encode(own))
    else:
        del message[name]


def _is_foreign_block(block: Object) -> bool:
    kind = _text(block.get("type"))
    if kind == "thinking":
        return marked(_text(block.get("signature")))
    return kind == "redacted_thinking" and marked(_text(block.get("data")))


def _is_foreign_detail(detail: Object) -> bool:
    return marked(_text(detail.get("signature"))) or marked(_text(detail.get("data")))


def _calls_unthought(blocks: list[Object]) -> bool:
    kinds = {_text(block.get("type")) for block in blocks}
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


def _text(raw: Raw | None) -> str:
    if raw is None:
        return ""
    try:
        return _decode_text(raw)
    except UNREADABLE:
        return ""
