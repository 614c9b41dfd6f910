"""Gemini's streams, read into the hub's events; arguments of calls may come piece by piece."""

import re
from itertools import islice, pairwise
from typing import Any

import msgspec

from gateway.core import events
from gateway.core.call_ids import named
from gateway.core.events import Event
from gateway.core.messages import (
    FILTERED,
    mark,
)
from gateway.core.raw import given
from gateway.core.sse import SseEvent
from gateway.providers.decoding import SseDecoder
from gateway.providers.gemini_wire import (
    MAKER,
    Answer,
    Candidate,
    FunctionCall,
    PartialArg,
    blocked,
    decode,
    figures_of,
    finish_of,
)

_WRITTEN = (events.TextDelta, events.ThinkingDelta, events.CallBegun)


class GeminiDecoder(SseDecoder):
    """Reads a stream of partial answers."""

    def __init__(self) -> None:
        super().__init__()
        self._begun = False
        self._calls = 0
        self._arguments: Any = None  # of a call that comes in pieces
        self._thoughts = 0
        self._thinking = False
        self._said = self._thought = False  # anything at all

    def read(self, event: SseEvent) -> list[Event]:
        """Return what an event says."""
        answer = decode(event.data)
        if answer.error is not None:
            return [events.Failed(event.data.decode(errors="replace"))]
        begun: list[Event] = []
        if not self._begun:
            self._begun = True
            begun.append(events.Begun(answer.response_id or "", answer.model_version or ""))
        found: list[Event] = []
        if answer.candidates:
            found = self._candidate(answer.candidates[0], answer)
        elif answer.prompt_feedback is not None and answer.prompt_feedback.block_reason:
            found = [events.RefusalDelta(blocked(answer)), events.Finished(FILTERED)]
        return begun + self._counted(answer, found)

    def _counted(self, answer: Answer, found: list[Event]) -> list[Event]:
        """Return events with the figures: half of them stand before the text that is to count."""
        told = figures_of(answer)
        used = told.counted() if told is not None else None
        if told is None or used is None:
            return found
        if told.whole(said=self._said or self._calls > 0, thought=self._thought):
            return [*found, events.Used(used)]
        written = any(isinstance(event, _WRITTEN) for event in found)
        if told.prompt_token_count is not None and written:
            return [events.Used(used), *found]
        return found

    def _candidate(self, candidate: Candidate, answer: Answer) -> list[Event]:
        found: list[Event] = []
        logprobs = candidate.logprobs()
        for part in (candidate.content and candidate.content.parts) or ():
            signature = mark(MAKER, part.thought_signature or "")
            if part.function_call is not None:
                found += self._call(part.function_call, answer, signature)
            elif part.text is not None and part.thought:
                self._thinking = self._thought = True
                found.append(events.ThinkingDelta(part.text, self._thoughts))
                if signature:
                    found.append(self._signed(signature))
            elif part.text is not None:
                if signature:
                    found.append(self._signed(signature))
                if part.text:
                    self._thinking, self._said = False, True
                    found.append(events.TextDelta(part.text, logprobs))
                    logprobs = None
        if candidate.finish_reason:
            found += self._end_call()
            reason, odd = finish_of(candidate.finish_reason, self._calls > 0)
            found.append(events.Finished(reason, odd=odd))
        return found

    def _signed(self, signature: str) -> Event:
        """Sign the thoughts so far, or what has none."""
        block, self._thoughts = self._thoughts, self._thoughts + 1
        thinking, self._thinking = self._thinking, False
        if thinking:
            return events.ThinkingSigned(signature, block=block)
        return events.ThinkingSigned(redacted=signature, block=block)

    def _call(self, call: FunctionCall, answer: Answer, signature: str) -> list[Event]:
        """Take a call, or a piece of one: it ends with one that has nothing to say, or goes on."""
        found: list[Event] = []
        if call.name:
            found += self._end_call()
            number, self._calls = self._calls, self._calls + 1
            own_id = call.id or named(answer.response_id, number)
            found.append(events.CallBegun(number, own_id, call.name, signature))
            self._arguments = given(call.args) or {}
        for piece in call.partial_args or ():
            _put(self._arguments, piece)
        if not call.will_continue:
            found += self._end_call()
        return found

    def _end_call(self) -> list[Event]:
        if self._arguments is None:
            return []
        arguments, self._arguments = self._arguments, None
        return [events.CallDelta(self._calls - 1, _encode(arguments).decode())]

    def end(self) -> list[Event]:
        """End the call whose end never came."""
        return [*super().end(), *self._end_call()]


class _Growing:
    """Text that comes in pieces. Joined once: adding to a text copies all of it each time."""

    def __init__(self, piece: str) -> None:
        self.pieces = [piece]


def _joined(text: Any) -> str:
    return "".join(text.pieces)


_encode = msgspec.json.Encoder(enc_hook=_joined).encode


_STEP = re.compile(
    r"\.([^.\[\]]+)|\[(\d{1,9})\]|\['((?:[^'\\]|\\.)*)'\]|\[\"((?:[^\"\\]|\\.)*)\"\]"
)


MAX_STEPS = 100  # what is nested deeper could not be written as JSON either


MAX_GAP = 10  # items of a list come one after the other; who leaves some out means nulls


def _put(arguments: Any, piece: PartialArg) -> None:
    """Put a value where its path says; text is added to the text that is there."""
    found = list(islice(_STEP.finditer(piece.json_path or ""), MAX_STEPS + 1))
    steps = [int(one[2]) if one[2] else one[1] or one[3] or one[4] or "" for one in found]
    if not 0 < len(steps) <= MAX_STEPS:
        return
    place = arguments
    for step, following in pairwise(steps):
        empty: Any = [] if isinstance(following, int) else {}
        place = _enter(place, step, empty)
    last, value = steps[-1], piece.value
    old = _enter(place, last, None)
    if isinstance(value, str) and isinstance(old, _Growing):
        old.pieces.append(value)
    else:
        _set(place, last, _Growing(value) if isinstance(value, str) else value)


def _enter(place: Any, step: str | int, empty: Any) -> Any:
    if isinstance(step, int) and isinstance(place, list) and step <= len(place) + MAX_GAP:
        place += [None] * (step + 1 - len(place))
        if place[step] is None:
            place[step] = empty
        return place[step]
    if isinstance(step, str) and isinstance(place, dict):
        return place.setdefault(step, empty)
    return None


def _set(place: Any, step: str | int, value: Any) -> None:
    named = isinstance(place, dict) and isinstance(step, str)
    if named or (isinstance(place, list) and isinstance(step, int) and step < len(place)):
        place[step] = value
