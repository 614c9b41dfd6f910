"""What decides an answer, as bytes: the same for all requests that mean the same.

Order of fields and white space do not matter, nor what changes no answer: who asks, metadata,
whether it is streamed. Where the hub understands a conversation in full, its dialect does not
matter either; where it does not, the client's own fields stand for it, so that nothing is mistaken
for something else.
"""

from collections.abc import Callable
from types import UnionType
from typing import Any, Union, get_args, get_origin, get_type_hints

import msgspec
from msgspec import Raw

from gateway.core.errors import ApiError
from gateway.core.messages import (
    USER,
    Media,
    Message,
    Part,
    Prompt,
    Refusal,
    Text,
    Thinking,
    ToolCall,
    ToolResult,
)
from gateway.core.operations import Operation
from gateway.core.request import Request
from gateway.formats import DIALECTS
from gateway.formats.canonical_keeps import KEEPS
from gateway.formats.chat_prompt import ChatFields
from gateway.formats.messages_prompt import MessagesFields
from gateway.formats.responses_prompt import ResponsesFields
from gateway.providers.chat_thoughts import google_extra, google_signature

_pack = msgspec.msgpack.Encoder().encode
_sorted = msgspec.json.Encoder(order="sorted").encode
_encode = msgspec.json.Encoder().encode
_decode = msgspec.json.Decoder().decode
_UNREADABLE = (msgspec.DecodeError, UnicodeDecodeError, RecursionError)

# Fields of all dialects that change no answer.
IDLE = frozenset(
    (
        *("model", "stream", "stream_options", "user", "safety_identifier", "metadata", "store"),
        *("prompt_cache_key", "prompt_cache_retention", "service_tier"),
    )
)
# Of these the hub takes a part, or none, and still they decide what an answer holds.
_HALF_READ = frozenset(("include",))

Inside = Callable[[Any], bool]  # whether the hub takes all of a value
Names = dict[str, "Names | Inside | None"]


class Canonical(msgspec.Struct, frozen=True):
    """`form` is what decides the answer; `prompt` the hub's view of it, where it has one.

    `plain`: that is the whole of the request.
    """

    form: bytes
    prompt: Prompt | None
    plain: bool = False


def canonical(request: Request) -> Canonical | None:
    """Return a request's canonical form.

    None where there is none: several choices at once, or JSON that only its provider may read, such
    as numbers out of range.
    """
    if request.choices > 1:
        return None
    try:
        return _canonical(request)
    except (*_UNREADABLE, OverflowError):
        return None


def _canonical(request: Request) -> Canonical:
    operation = request.operation
    if operation not in _NAMES:
        return Canonical(_own(request), None)
    try:
        prompt = DIALECTS[operation].prompt(request)
        neutral = _is_plain(request, prompt)
        form = _pack(_neutral(prompt)) if neutral else _own(request)
    except ApiError:  # what the hub does not take, its provider may
        return Canonical(_own(request), None)
    return Canonical(form, prompt, neutral)


def question(prompt: Prompt) -> tuple[str, bytes] | None:
    """Return what is asked last, and the form of all the rest; None where it is no text alone."""
    *before, last = prompt.messages or (None,)
    if last is None or last.role != USER:
        return None
    texts = [part.text for part in last.parts if isinstance(part, Text)]
    if len(texts) != len(last.parts) or not texts:
        return None
    rest = msgspec.structs.replace(prompt, messages=tuple([one for one in before if one]))
    return "\n\n".join(texts), _pack(_neutral(rest))


def _own(request: Request) -> bytes:
    """Return the client's own fields, in order."""
    fields = {
        name: _decode(raw)
        for name, raw in request.fields.items()
        if name not in IDLE and bytes(raw) != b"null"
    }
    return request.operation.value.encode() + b"\0" + _sorted(fields)


def _is_plain(request: Request, prompt: Prompt) -> bool:
    """Tell whether the hub has read all of a request."""
    if prompt.unknown or not IDLE.issuperset(prompt.hints) or prompt.choices != 1:
        return False
    if not _HALF_READ.isdisjoint(request.fields) or not KEEPS[request.operation](request.fields):
        return False
    names = _NAMES[request.operation]
    return all(
        _knows(names.get(name), _decode(raw))
        for name, raw in request.fields.items()
        if name not in IDLE and names.get(name) is not None
    )


def _knows(names: Names | Inside | None, value: Any) -> bool:
    """Tell whether every name inside of a value is known at its place, or anything goes there."""
    if names is None:
        return True
    if callable(names):
        return names(value)
    if isinstance(value, list):
        return all(_knows(names, one) for one in value)
    if isinstance(value, dict):
        return all(
            found is None or (name in names and _knows(names[name], found))
            for name, found in value.items()
        )
    return True


def _neutral(prompt: Prompt) -> list[object]:
    """Return a prompt without what changes no answer, its JSON in order."""
    wanted, thought = prompt.format, prompt.reasoning
    choice = prompt.tool_choice
    return [
        [part.text for part in prompt.system],
        [_message(one) for one in prompt.messages],
        [[t.name, t.description, _ordered(bytes(t.schema)), t.strict] for t in prompt.tools],
        None if choice is None else [choice.mode, choice.name],
        prompt.parallel,
        prompt.max_output,
        prompt.temperature,
        prompt.top_p,
        prompt.top_k,
        prompt.presence_penalty,
        prompt.frequency_penalty,
        prompt.stop,
        prompt.seed,
        prompt.logprobs,
        None
        if wanted is None
        else [
            # Answers follow the order of a schema: only white space is no matter.
            None if wanted.schema is None else _plain_json(bytes(wanted.schema)),
            *(wanted.name, wanted.description, wanted.strict),
        ],
        None
        if thought is None
        else [thought.enabled, thought.effort, thought.budget, thought.shown],
        prompt.verbosity,
    ]


def _message(message: Message) -> list[object]:
    return [message.role, [_part(part) for part in message.parts]]


def _part(part: Part) -> list[object]:
    match part:
        case Text(text=text):
            return ["text", text]
        case Media():
            return [part.kind, part.media_type, part.data, part.url, part.name, part.detail]
        case Thinking():
            return ["thinking", part.text, part.signature, part.redacted]
        case ToolCall():
            arguments = _ordered(part.arguments.encode())
            return ["call", part.id, part.name, arguments, part.signature]
        case ToolResult():
            return ["result", part.call_id, [_part(one) for one in part.parts], part.is_error]
        case Refusal(text=text):
            return ["refusal", text]


def _ordered(json: bytes) -> bytes:
    """Return JSON with its names in order and no white space; what is no JSON as it is."""
    try:
        return _sorted(_decode(json))
    except _UNREADABLE:
        return json


def _plain_json(json: bytes) -> bytes:
    try:
        return _encode(_decode(json))
    except _UNREADABLE:
        return json


def _takes_nothing(value: Any) -> bool:
    return False


# Of what may have any shape the hub takes nothing for granted, but for these.
_OPEN: dict[str, Inside] = {
    "cache_control": lambda value: True,  # which changes no answer
    "extra_content": lambda value: value == google_extra(google_signature(value)),
}


def _names_of(kind: type, seen: dict[type, Names]) -> Names:
    """Return the names of a struct's fields, each with the names inside of it."""
    if kind in seen:
        return seen[kind]
    found = seen[kind] = Names()
    for name, hint in get_type_hints(kind).items():
        if hint is Any:
            found[name] = _OPEN.get(name, _takes_nothing)
            continue
        structs = dict.fromkeys([one for one in _inner(hint) if issubclass(one, msgspec.Struct)])
        merged: Names | None = None
        for struct in structs:
            inside = _names_of(struct, seen)
            merged = inside if merged is None else {**merged, **inside}
        found[name] = merged
    return found


def _inner(hint: Any) -> list[type]:
    """Return the classes in an annotation."""
    if get_origin(hint) in (Union, UnionType, list, tuple):
        return [one for part in get_args(hint) for one in _inner(part)]
    return [hint] if isinstance(hint, type) and hint is not Raw else []


# Of the conversations that mean the same in each other's dialect. A legacy completion goes on with
# a text where its model can, which is no turn of a conversation.
_NAMES: dict[Operation, Names] = {
    Operation.CHAT: _names_of(ChatFields, {}),
    Operation.RESPONSES: _names_of(ResponsesFields, {}),
    Operation.MESSAGES: _names_of(MessagesFields, {}),
}
