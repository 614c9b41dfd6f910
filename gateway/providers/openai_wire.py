"""Hot path: the parts of OpenAI's replies that the gateway reads, as msgspec structs.

Lenient on purpose: what many compatible servers leave out or send as null must not fail a reply.
"""

from typing import Any

import msgspec
from msgspec import Raw

from gateway.core.raw import NOTHING
from gateway.core.usage import Usage
from gateway.providers.errors import UNREADABLE
from gateway.providers.figures import figures

# What a total has above the rest is thoughts only up to here: no model thinks more at once.
MOST_UNTOLD_TOKENS = 2**17


class PromptDetails(msgspec.Struct, gc=False):
    """`usage.prompt_tokens_details`."""

    cached_tokens: int | None = None
    cache_write_tokens: int | None = None  # OpenRouter's, for Anthropic's models
    audio_tokens: int | None = None
    image_tokens: int | None = None
    video_tokens: int | None = None


class CompletionDetails(msgspec.Struct, gc=False):
    """`usage.completion_tokens_details`."""

    reasoning_tokens: int | None = None
    audio_tokens: int | None = None
    image_tokens: int | None = None


class WireUsage(msgspec.Struct, gc=False):
    """`usage`; DeepSeek and Moonshot put the cached tokens under names of their own."""

    prompt_tokens: int | None = None
    completion_tokens: int | None = None
    prompt_tokens_details: PromptDetails | None = None
    completion_tokens_details: CompletionDetails | None = None
    total_tokens: int | None = None
    prompt_cache_hit_tokens: int | None = None
    cached_tokens: int | None = None
    # Perplexity's searches, and of its deep research what is beside the prompt and the completion.
    num_search_queries: int | None = None
    citation_tokens: int | None = None
    reasoning_tokens: int | None = None
    prompt_audio_seconds: Any = None  # Mistral's: a number, null or an object
    connector_tokens: int | None = None  # Mistral's: what its tools gave the model to read
    # Of others, who may have told them beside the prompt.
    cache_read_input_tokens: int | None = None
    cache_creation_input_tokens: int | None = None
    guardrails_tokens: int | None = None

    @property
    def whole(self) -> bool:
        """Tell whether it says what the prompt and what the completion came to."""
        told = (self.prompt_tokens, self.completion_tokens, self.total_tokens)
        return told.count(None) <= 1

    def counted(self) -> Usage:
        """Convert to the gateway's counts."""
        prompt, completion = self.prompt_tokens or 0, self.completion_tokens or 0
        if self.completion_tokens is None and self.total_tokens is not None:
            if self.prompt_tokens is None:
                prompt = self.total_tokens  # some embeddings say nothing else
            else:
                completion = max(0, self.total_tokens - prompt)
        elif self.prompt_tokens is None and self.total_tokens is not None:
            prompt = max(0, self.total_tokens - completion)
        cached, written = self.prompt_cache_hit_tokens or self.cached_tokens or 0, 0
        heard = reasoning = spoken = seen = drawn = 0
        if self.prompt_tokens_details is not None:
            cached = self.prompt_tokens_details.cached_tokens or cached
            written = self.prompt_tokens_details.cache_write_tokens or 0
            heard = self.prompt_tokens_details.audio_tokens or 0
            seen = self.prompt_tokens_details.image_tokens or 0
        if self.completion_tokens_details is not None:
            reasoning = self.completion_tokens_details.reasoning_tokens or 0
            spoken = self.completion_tokens_details.audio_tokens or 0
            drawn = self.completion_tokens_details.image_tokens or 0
        if self.citation_tokens is not None:
            prompt += max(0, self.citation_tokens)
            reasoning = max(0, self.reasoning_tokens or 0)
            completion += reasoning
        elif (
            self.total_tokens is not None
            and self.total_tokens > prompt + completion
            and min(prompt, completion) >= 0  # what is negative is nobody's thoughts
        ):
            # xAI reports thoughts beside the completion, Google only in the total; both bill them.
            beside = self.total_tokens - prompt - completion
            untold = not reasoning and beside <= MOST_UNTOLD_TOKENS and not self._told(beside)
            if self.connector_tokens == beside:
                prompt += beside
            elif self.prompt_audio_seconds or 0 < heard == beside:
                prompt += beside  # Mistral's sound
                heard = max(heard, beside)
            elif untold or beside == reasoning:
                reasoning = beside
                completion += beside
        searched = self.num_search_queries or 0
        used = Usage(prompt, cached, written, completion, reasoning, heard, spoken, 0, searched)
        if seen or drawn:
            return msgspec.structs.replace(
                used, image_prompt_tokens=seen, image_completion_tokens=drawn
            )
        return used

    def _told(self, beside: int) -> bool:
        """Tell whether another figure, or some together, say what a total has above the rest."""
        details = self.prompt_tokens_details or PromptDetails()
        cached = self.prompt_cache_hit_tokens or self.cached_tokens or details.cached_tokens or 0
        written = details.cache_write_tokens or 0
        read, created = self.cache_read_input_tokens or 0, self.cache_creation_input_tokens or 0
        media = (details.audio_tokens or 0, details.image_tokens or 0, details.video_tokens or 0)
        guards = self.guardrails_tokens or 0
        alone = (cached, written, read, created, guards, *media)
        return beside in (*alone, cached + written, read + created, sum(media), sum(alone))


def usage_of(found: Any) -> Usage | None:
    """Return the counts of a `usage`; None where it is not whole, or cannot be understood."""
    used = figures(found, WireUsage)
    return used.counted() if used is not None and used.whole else None


class Function(msgspec.Struct, gc=False):
    """A tool call's name and (partial) arguments."""

    name: str | None = None
    arguments: str | None = None

    def text(self) -> str:
        """Return what the model wrote in it."""
        return (self.name or "") + (self.arguments or "")


class Custom(msgspec.Struct, gc=False):
    """The name of a call whose input is free text, and (a piece of) that text."""

    name: str | None = None
    input: str | None = None

    def text(self) -> str:
        """Return what the model wrote in it."""
        return (self.name or "") + (self.input or "")


class ToolCall(msgspec.Struct, gc=False):
    """One entry of `tool_calls`."""

    function: Function | None = None
    custom: Custom | None = None


class Message(msgspec.Struct, gc=False):
    """A message or a stream's delta."""

    content: str | list[Any] | None = None  # a list of parts: Mistral's reasoning models
    reasoning_content: str | None = None
    reasoning: str | None = None  # Groq's and OpenRouter's name for it
    refusal: str | None = None
    tool_calls: list[ToolCall] | None = None
    function_call: Function | None = None  # what calls were before there were several

    def generated(self) -> str | None:
        """Return all that the model wrote in it."""
        content = self.content
        if type(content) is list:
            content = _part_text(content)
        assert not isinstance(content, list)
        if (
            self.tool_calls is None
            and self.reasoning_content is None
            and self.refusal is None
            and self.function_call is None
        ):
            return content if self.reasoning is None else (content or "") + self.reasoning
        text = (content or "") + (self.reasoning_content or self.reasoning or "")
        text += self.refusal or ""
        if self.function_call is not None:
            text += self.function_call.text()
        for call in self.tool_calls or ():
            if call.function is not None:
                text += call.function.text()
            if call.custom is not None:
                text += call.custom.text()
        return text


def _part_text(parts: list[Any]) -> str:
    """Return the text in a list of content parts, thinking included."""
    found = []
    for part in parts:
        if isinstance(part, dict):
            inner = part.get("text") or part.get("thinking")
            if isinstance(inner, list):
                inner = _part_text(inner)
            if isinstance(inner, str):
                found.append(inner)
    return "".join(found)


class Choice(msgspec.Struct, gc=False):
    """One choice of a reply or of a stream's chunk."""

    delta: Message | None = None
    message: Message | None = None
    text: str | None = None
    finish_reason: str | None = None

    def generated(self) -> str | None:
        """Return the text of whichever form this choice has."""
        part = self.delta or self.message
        return part.generated() if part is not None else self.text


class Chunk(msgspec.Struct, gc=False):
    """One event of a stream; odd figures do not make it unreadable."""

    choices: list[Choice] | None = None
    usage: Any = None
    error: Any = None


class NumberedChoice(msgspec.Struct, gc=False):
    """Which of several choices it is, and whether it ends."""

    index: int | None = None
    finish_reason: str | None = None


class Numbered(msgspec.Struct, gc=False):
    """One event of a stream of several choices."""

    choices: list[NumberedChoice] | None = None


class Written(msgspec.Struct, gc=False):
    """A whole reply of which only the text matters, where its usage cannot be read."""

    choices: list[Choice] | None = None


class UsageOnly(msgspec.Struct, gc=False):
    """A whole reply of which only the usage matters."""

    usage: WireUsage | None = None


class _OddUsage(msgspec.Struct, gc=False):
    """One whose figures are not what they should be."""

    usage: Any = None
    choices: Raw = NOTHING  # embeddings have none


class ListedModel(msgspec.Struct, gc=False):
    """One entry of a list of models."""

    id: str


class ModelList(msgspec.Struct, gc=False):
    """The reply to `GET /models`."""

    data: list[ListedModel]


decode_chunk = msgspec.json.Decoder(Chunk).decode
decode_numbered = msgspec.json.Decoder(Numbered).decode
decode_written = msgspec.json.Decoder(Written).decode
_decode_usage = msgspec.json.Decoder(UsageOnly).decode
_decode_odd_usage = msgspec.json.Decoder(_OddUsage).decode
_decode_listing = msgspec.json.Decoder(ModelList | list[ListedModel]).decode


def parse_usage(body: bytes) -> Usage | None:
    """Read a whole reply's usage, that of embeddings too. Raises what decoding raises."""
    try:
        used = _decode_usage(body).usage
        if used is None:
            return None
        if (used.prompt_tokens is not None and used.completion_tokens is not None) or used.whole:
            return used.counted()
    except msgspec.ValidationError:
        pass
    try:
        found = _decode_odd_usage(body)
    except msgspec.ValidationError:
        return None
    used = figures(found.usage, WireUsage)
    if used is None or not (used.whole or (used.total_tokens is not None and not found.choices)):
        return None
    return used.counted()


def parse_listing(body: bytes) -> list[str]:
    """Return the names in a list of models, bare or under `data`; none where it is no list."""
    try:
        found = _decode_listing(body)
    except UNREADABLE:
        return []
    return [model.id for model in (found if isinstance(found, list) else found.data)]
