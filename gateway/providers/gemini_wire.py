"""Gemini's replies and streams, read into the hub's values and events."""

from typing import Any

import msgspec
from msgspec import Raw

from gateway.core.call_ids import named
from gateway.core.errors import Failure, UpstreamError
from gateway.core.messages import (
    FILTERED,
    LENGTH,
    STOP,
    TOOL_CALLS,
    Part,
    Refusal,
    Reply,
    Text,
    Thinking,
    ToolCall,
    mark,
)
from gateway.core.raw import NOTHING
from gateway.core.usage import Usage
from gateway.providers.decoding import raw_text
from gateway.providers.errors import UNREADABLE
from gateway.providers.figures import figures

MAKER = "gemini"
LEAST_LOGPROB = -9999.0  # OpenAI's word for what is impossible


FINISH = {"MAX_TOKENS": LENGTH} | dict.fromkeys(
    (
        "SAFETY",
        "RECITATION",
        "LANGUAGE",
        "BLOCKLIST",
        "PROHIBITED_CONTENT",
        "SPII",
        "IMAGE_SAFETY",
        "IMAGE_PROHIBITED_CONTENT",
        "MODEL_ARMOR",
    ),
    FILTERED,
)


class ModalityCount(msgspec.Struct, gc=False, rename="camel"):
    """How many of the tokens are text, pictures, sound; `tokens` is the Interactions API's name."""

    modality: str | None = None
    token_count: int | None = None
    tokens: int | None = None


class WireUsage(msgspec.Struct, gc=False, rename="camel"):
    """`usageMetadata`."""

    prompt_token_count: int | None = None
    tool_use_prompt_token_count: int | None = None
    cached_content_token_count: int | None = None
    candidates_token_count: int | None = None
    thoughts_token_count: int | None = None
    prompt_tokens_details: list[ModalityCount] | None = None
    candidates_tokens_details: list[ModalityCount] | None = None
    cache_tokens_details: list[ModalityCount] | None = None

    def whole(self, *, said: bool, thought: bool) -> bool:
        """Tell whether it says what went in and what came out; what is 0 may be left out."""
        if self.prompt_token_count is None or self.candidates_token_count is not None:
            return self.prompt_token_count is not None
        return not said and not (thought and self.thoughts_token_count is None)

    def counted(self) -> Usage | None:
        """Convert to the gateway's counts; None where there are none."""
        if self.prompt_token_count is None and self.candidates_token_count is None:
            return None
        thoughts = self.thoughts_token_count or 0
        heard, seen = _fresh(self.prompt_tokens_details, self.cache_tokens_details)
        spoken, drawn = _sound_and_pictures(self.candidates_tokens_details)
        return Usage(
            (self.prompt_token_count or 0) + (self.tool_use_prompt_token_count or 0),
            self.cached_content_token_count or 0,
            0,
            (self.candidates_token_count or 0) + thoughts,
            thoughts,
            heard,
            spoken,
            image_prompt_tokens=seen,
            image_completion_tokens=drawn,
        )


class InteractionUsage(msgspec.Struct, gc=False):
    """`usage` of the Interactions API."""

    total_input_tokens: int | None = None
    total_cached_tokens: int | None = None
    total_output_tokens: int | None = None
    total_tool_use_tokens: int | None = None
    total_thought_tokens: int | None = None
    input_tokens_by_modality: list[ModalityCount] | None = None
    output_tokens_by_modality: list[ModalityCount] | None = None
    cached_tokens_by_modality: list[ModalityCount] | None = None

    @property
    def whole(self) -> bool:
        """Tell whether it says what went in and what came out."""
        return self.total_input_tokens is not None and self.total_output_tokens is not None

    def counted(self) -> Usage:
        """Convert to the gateway's counts: thoughts stand beside the output."""
        thoughts = self.total_thought_tokens or 0
        heard, seen = _fresh(self.input_tokens_by_modality, self.cached_tokens_by_modality)
        spoken, drawn = _sound_and_pictures(self.output_tokens_by_modality)
        return Usage(
            (self.total_input_tokens or 0) + (self.total_tool_use_tokens or 0),
            self.total_cached_tokens or 0,
            0,
            (self.total_output_tokens or 0) + thoughts,
            thoughts,
            heard,
            spoken,
            image_prompt_tokens=seen,
            image_completion_tokens=drawn,
        )


def _sound_and_pictures(details: list[ModalityCount] | None) -> tuple[int, int]:
    heard = seen = 0
    for one in details or ():
        if one.modality in ("AUDIO", "audio"):
            heard += one.token_count or one.tokens or 0
        elif one.modality in ("IMAGE", "image"):
            seen += one.token_count or one.tokens or 0
    return heard, seen


def _fresh(given: list[ModalityCount] | None, kept: list[ModalityCount] | None) -> tuple[int, int]:
    """Return how much sound and pictures were given that no cache had."""
    heard, seen = _sound_and_pictures(given)
    if (heard or seen) and kept:
        old_heard, old_seen = _sound_and_pictures(kept)
        return max(0, heard - old_heard), max(0, seen - old_seen)
    return heard, seen


class PartialArg(msgspec.Struct, gc=False, rename="camel"):
    """A piece of a call's arguments."""

    json_path: str | None = None
    string_value: str | None = None
    number_value: int | float | None = None
    bool_value: bool | None = None

    @property
    def value(self) -> Any:
        """Return the piece's value, None for null."""
        if self.string_value is not None:
            return self.string_value
        return self.bool_value if self.number_value is None else self.number_value


class FunctionCall(msgspec.Struct, gc=False, rename="camel"):
    """A call, whole or a piece of one that goes on."""

    id: str | None = None
    name: str | None = None
    args: Raw = NOTHING
    partial_args: list[PartialArg] | None = None
    will_continue: bool | None = None


class WirePart(msgspec.Struct, gc=False, rename="camel"):
    """A part of the content."""

    text: str | None = None
    thought: bool | None = None
    thought_signature: str | None = None
    function_call: FunctionCall | None = None


class Content(msgspec.Struct, gc=False):
    """What a candidate says."""

    parts: list[WirePart] | None = None


class TokenLogprob(msgspec.Struct, gc=False, rename="camel"):
    """A token and how likely it was."""

    token: str | None = None
    log_probability: float | None = None


class TopCandidates(msgspec.Struct, gc=False):
    """The likeliest tokens at a place."""

    candidates: list[TokenLogprob] | None = None


class LogprobsResult(msgspec.Struct, gc=False, rename="camel"):
    """`logprobsResult`."""

    chosen_candidates: list[TokenLogprob] | None = None
    top_candidates: list[TopCandidates] | None = None

    def as_chat(self) -> Raw:
        """Write them as chat completions does."""
        found, tops = [], self.top_candidates or []
        for i, chosen in enumerate(self.chosen_candidates or ()):
            top = (tops[i].candidates if i < len(tops) else None) or ()
            found.append({**_logprob(chosen), "top_logprobs": [_logprob(one) for one in top]})
        return Raw(msgspec.json.encode(found))


def _logprob(one: TokenLogprob) -> dict[str, Any]:
    token = one.token or ""
    return {
        "token": token,
        "logprob": max(one.log_probability or 0.0, LEAST_LOGPROB),
        "bytes": list(token.encode()),
    }


class Candidate(msgspec.Struct, gc=False, rename="camel"):
    """One of the answers."""

    content: Content | None = None
    finish_reason: str | None = None
    finish_message: str | None = None
    logprobs_result: Any = None

    def logprobs(self) -> Raw | None:
        """Return how likely its tokens were, as chat completions writes it."""
        if self.logprobs_result is None:
            return None
        told = figures(self.logprobs_result, LogprobsResult)
        return told.as_chat() if told is not None else None


class Feedback(msgspec.Struct, gc=False, rename="camel"):
    """Why a prompt was not answered."""

    block_reason: str | None = None
    block_reason_message: str | None = None


class Answer(msgspec.Struct, gc=False, rename="camel"):
    """A whole reply, or an event of a stream."""

    candidates: list[Candidate] | None = None
    prompt_feedback: Feedback | None = None
    usage_metadata: Any = None
    model_version: str | None = None
    response_id: str | None = None
    error: Any = None


decode = msgspec.json.Decoder(Answer).decode


def figures_of(answer: Answer) -> WireUsage | None:
    """Return an answer's figures, whole or not; None where they cannot be understood."""
    if answer.usage_metadata is None:
        return None
    return figures(answer.usage_metadata, WireUsage)


def parse(body: bytes) -> Reply:
    """Read a whole reply. Raises UpstreamError."""
    try:
        answer = decode(body)
    except UNREADABLE as error:
        raise UpstreamError(Failure.PROTOCOL, f"the reply cannot be read: {error}") from None
    if answer.error is not None:
        raise UpstreamError(Failure.STREAM_ERROR, body.decode(errors="replace"))
    parts, (finish, odd) = _parts(answer)
    said = any(isinstance(part, Text | ToolCall) for part in parts)
    thought = any(isinstance(part, Thinking) and part.text for part in parts)
    told = figures_of(answer)
    used = told.counted() if told is not None and told.prompt_token_count is not None else None
    whole = told is not None and told.whole(said=said, thought=thought)
    usage = used if whole else None
    if answer.candidates is None and answer.prompt_feedback is None and usage is None:
        raise UpstreamError(Failure.PROTOCOL, "the reply has no candidates")
    return Reply(
        id=answer.response_id or "",
        model=answer.model_version or "",
        parts=parts,
        finish=finish,
        usage=usage,
        half=None if whole else used,
        odd=odd,
    )


def _parts(answer: Answer) -> tuple[tuple[Part, ...], tuple[str, bool]]:
    if not answer.candidates:
        return (Refusal(blocked(answer)),), (FILTERED, False)
    candidate = answer.candidates[0]
    found: list[Part] = []
    for part in (candidate.content and candidate.content.parts) or ():
        signature = mark(MAKER, part.thought_signature or "")
        if part.function_call is not None:
            found.append(call_of(part.function_call, len(found), answer, signature))
        elif part.text is not None and part.thought:
            found.append(Thinking(part.text, signature))
        elif part.text is not None:
            if signature:  # a text has no place for it
                found.append(Thinking(redacted=signature))
            if part.text:
                found.append(Text(part.text))
    texts = [i for i, part in enumerate(found) if isinstance(part, Text)]
    if texts and (logprobs := candidate.logprobs()) is not None:
        found[texts[0]] = msgspec.structs.replace(found[texts[0]], logprobs=logprobs)
    called = any(isinstance(part, ToolCall) for part in found)
    return tuple(found), finish_of(candidate.finish_reason or "", called)


def call_of(call: FunctionCall, number: int, answer: Answer, signature: str) -> ToolCall:
    arguments = raw_text(call.args) or "{}"
    return ToolCall(
        call.id or named(answer.response_id, number), call.name or "", arguments, signature
    )


def finish_of(reason: str, called: bool) -> tuple[str, bool]:
    """Return why an answer ended, and whether that is only a guess."""
    odd = reason != "STOP" and reason not in FINISH
    return FINISH.get(reason, TOOL_CALLS if called else STOP), odd


def blocked(answer: Answer) -> str:
    feedback = answer.prompt_feedback or Feedback()
    reason = feedback.block_reason_message or feedback.block_reason or "no reason given"
    return f"The prompt was blocked: {reason}"
