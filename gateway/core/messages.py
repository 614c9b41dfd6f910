"""The hub of all translations: a prompt and a reply as no provider and no client writes them.

N client dialects and M providers each translate to and from these values, never to each other.
Frozen, no I/O. JSON that nobody here looks into stays as text (`schema`, `arguments`).
"""

from collections.abc import Callable
from itertools import chain, groupby
from typing import Literal

import msgspec
from msgspec import Raw

from gateway.core.usage import Usage

SYSTEM, USER, ASSISTANT = "system", "user", "assistant"

# Why a reply ended.
STOP, LENGTH, TOOL_CALLS, FILTERED = "stop", "length", "tool_calls", "content_filter"

# What only its maker can read goes through clients with the maker's mark: another provider would
# refuse it. Anthropic's own has none, so that its clients may also ask Anthropic directly; but in
# OpenAI's Responses, where what has none is that API's own provider's.
MARK = "sluice:"
ANTHROPIC, RESPONSES = "anthropic", "responses"
# In Responses: of Anthropic's, too, but the signature of a thought that is not shown. What bears
# the other mark without a text beside it is thought that only Anthropic can read.
SIGNED = "anthropic-signature"


class Text(msgspec.Struct, frozen=True, tag=True):
    """Plain text. `cache`: the prompt up to here may be cached, for so long (5m, 1h)."""

    text: str
    cache: str = ""
    logprobs: Raw | None = None  # as chat completions writes them, `content` alone


class Media(msgspec.Struct, frozen=True, tag=True):
    """An image, a document or a sound: `data` is base64, or else it is at `url`.

    `media_type` may be empty where there is only a URL; `name` is a document's, or its title;
    `where` is its place in the client's request.
    """

    kind: Literal["image", "document", "audio"]
    media_type: str = ""
    data: str = ""
    url: str = ""
    name: str = ""
    detail: str = ""
    cache: str = ""
    where: str = "messages"


class Thinking(msgspec.Struct, frozen=True, tag=True):
    """What a model thought. `redacted` is thought that only its provider can read."""

    text: str = ""
    signature: str = ""
    redacted: str = ""


class ToolCall(msgspec.Struct, frozen=True, tag=True):
    """A call that the client is to carry out. `arguments` is a JSON object's text."""

    id: str
    name: str
    arguments: str
    signature: str = ""
    cache: str = ""


class ToolResult(msgspec.Struct, frozen=True, tag=True):
    """What a call came to."""

    call_id: str
    parts: "tuple[Text | Media, ...]"
    is_error: bool = False
    cache: str = ""


class Refusal(msgspec.Struct, frozen=True, tag=True):
    """The model's own words of refusal."""

    text: str


Part = Text | Media | Thinking | ToolCall | ToolResult | Refusal


class Message(msgspec.Struct, frozen=True):
    """One turn."""

    role: str
    parts: tuple[Part, ...]


NO_ARGUMENTS = Raw(b'{"type":"object","properties":{}}')


class Tool(msgspec.Struct, frozen=True):
    """A function that the client offers. `schema` is the JSON Schema of its arguments."""

    name: str
    description: str = ""
    schema: Raw = NO_ARGUMENTS
    strict: bool | None = None
    cache: str = ""


class ToolChoice(msgspec.Struct, frozen=True):
    """auto, none, required (any of them), or the one that is named."""

    mode: Literal["auto", "none", "required", "tool"] = "auto"
    name: str = ""


class OutputFormat(msgspec.Struct, frozen=True):
    """What the answer must look like: any JSON object, or one of a schema."""

    schema: Raw | None = None
    name: str = "answer"
    description: str = ""
    strict: bool | None = None


class Reasoning(msgspec.Struct, frozen=True):
    """How much a model may think: an effort, or a budget in tokens; `enabled` False: not at all.

    `shown`: the client wants to see it.
    """

    enabled: bool = True
    effort: str = ""
    budget: int | None = None
    shown: bool = True


class Prompt(msgspec.Struct, frozen=True, kw_only=True):
    """A request. What is None was not said.

    `hints` name what the client said that changes no answer (metadata, cache keys): a target that
    has no place for one leaves it out. `unknown` names what the gateway has no idea of.
    """

    model: str
    system: tuple[Text, ...] = ()
    messages: tuple[Message, ...] = ()
    tools: tuple[Tool, ...] = ()
    tool_choice: ToolChoice | None = None
    parallel: bool | None = None
    max_output: int | None = None
    temperature: float | None = None
    top_p: float | None = None
    top_k: int | None = None
    presence_penalty: float | None = None
    frequency_penalty: float | None = None
    stop: tuple[str, ...] = ()
    seed: int | None = None
    choices: int = 1
    logprobs: int | None = None  # how many alternatives a token
    format: OutputFormat | None = None
    reasoning: Reasoning | None = None
    verbosity: str = ""
    user: str = ""
    metadata: Raw | None = None
    service_tier: str = ""
    stream: bool = False
    hints: tuple[str, ...] = ()
    unknown: tuple[str, ...] = ()


class Reply(msgspec.Struct, frozen=True, kw_only=True):
    """A whole answer. `stop_sequence` is the one that ended it; `usage` None: not reported.

    `half` is what was reported, where that is of the prompt alone though there is text.
    `odd`: it ended for a reason that nobody here knows, or for none, so `finish` is a guess.
    """

    id: str
    model: str
    parts: tuple[Part, ...]
    finish: str
    stop_sequence: str = ""
    usage: Usage | None = None
    half: Usage | None = None
    odd: bool = False


def written(parts: tuple[Part, ...]) -> str:
    """Return all that a model wrote, for a count where no usage is reported."""
    found = []
    for part in parts:
        match part:
            case Text(text=text) | Thinking(text=text) | Refusal(text=text):
                found.append(text)
            case ToolCall(name=name, arguments=arguments):
                found += [name, arguments]
    return "".join(found)


class Fit:
    """What of a prompt a target cannot do. Names are the hub's; formats say them their way."""

    def __init__(self) -> None:
        self.refused: dict[str, str] = {}
        self.left_out: dict[str, None] = {}

    def refuse(self, field: str, why: str = "") -> None:
        """Note what changes the answer, and cannot be done."""
        self.refused.setdefault(field, why)

    def leave_out(self, field: str) -> None:
        """Note what is only a hint."""
        self.left_out[field] = None


def telling(turns: tuple[Message, ...], tells: Callable[[Part], bool]) -> tuple[Message, ...]:
    """Return what is left of turns without the parts that tell a provider nothing."""
    kept = [Message(turn.role, tuple(filter(tells, turn.parts))) for turn in turns]
    return tuple([turn for turn in kept if turn.parts])


def is_blank(part: Part) -> bool:
    """Tell whether a part is text of nothing but blanks, which some providers refuse."""
    return isinstance(part, Text | Refusal) and not part.text.strip()


def alternating(turns: tuple[Message, ...]) -> tuple[Message, ...]:
    """Return turns that alternate, for providers that want it so.

    What the system says amid a conversation keeps its place, as something the user says.
    """
    sides = groupby(turns, lambda turn: USER if turn.role == SYSTEM else turn.role)
    return tuple(
        [
            Message(role, tuple(chain.from_iterable([turn.parts for turn in joined])))
            for role, joined in sides
        ]
    )


def user_first(turns: tuple[Message, ...]) -> tuple[Message, ...]:
    """Return turns that the user begins, with next to nothing: some providers take no others."""
    if turns and turns[0].role != ASSISTANT:
        return turns
    return (Message(USER, (Text("."),)), *turns)


# A thought that its provider did not sign has this signature: some clients send no other back.
UNSIGNED = f"{MARK}unsigned"


def mark(maker: str, secret: str) -> str:
    """Mark a signature, or encrypted thought, with who made it."""
    return f"{MARK}{maker}:{secret}" if secret else ""


def unmark(maker: str, secret: str) -> str:
    """Return a signature as its maker knows it; empty where another made it."""
    own = f"{MARK}{maker}:"
    return secret.removeprefix(own) if secret.startswith(own) else ""


def unmarked(secret: str) -> str:
    """Return a signature that nobody has marked; empty for any other."""
    return "" if secret.startswith(MARK) else secret


def in_responses(signature: str, redacted: str, *, shown: bool) -> str:
    """Return a thought's secret as a client of Responses has it: Anthropic's with its mark.

    `shown`: the thought has a text.
    """
    secret = redacted or signature
    if marked(secret):
        return secret
    return mark(ANTHROPIC if redacted or shown else SIGNED, secret)


def of_responses(secret: str, *, shown: bool) -> tuple[str, str]:
    """Return the signature and the redacted thought that a client of Responses has as one."""
    if signature := unmark(SIGNED, secret):
        return signature, ""
    own = unmark(ANTHROPIC, secret) or secret if marked(secret) else mark(RESPONSES, secret)
    return (own, "") if shown else ("", own)


def marked(secret: str) -> bool:
    """Tell whether a secret is for its maker alone."""
    return secret.startswith(MARK)
