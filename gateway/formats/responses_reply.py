"""OpenAI's Responses, to the client: replies and streams of the hub as it writes them."""

from typing import Any

import msgspec
from msgspec import Raw

from gateway.core import events
from gateway.core.errors import ApiError
from gateway.core.events import Event
from gateway.core.messages import (
    FILTERED,
    LENGTH,
    UNSIGNED,
    Part,
    Refusal,
    Reply,
    Text,
    Thinking,
    ToolCall,
    in_responses,
)
from gateway.core.sse import frame
from gateway.core.usage import Usage
from gateway.formats.chat_reply import listed
from gateway.formats.reply import Meta, is_whole
from gateway.providers import responses_wire

_encode = msgspec.json.Encoder().encode

Json = dict[str, Any]

# Fields of the request that stand in the response again, with what they are where nobody set them.
_ECHOED: Json = {
    "instructions": None,
    "max_output_tokens": None,
    "metadata": {},
    "parallel_tool_calls": True,
    "reasoning": {"effort": None, "summary": None},
    "temperature": 1.0,
    "text": {"format": {"type": "text"}},
    "tool_choice": "auto",
    "tools": [],
    "top_p": 1.0,
    "truncation": "disabled",
    "user": None,
}
_INCOMPLETE = {LENGTH: "max_output_tokens", FILTERED: "content_filter"}


def encode(reply: Reply, meta: Meta) -> bytes:
    """Write a whole reply."""
    output: list[Json] = []
    for part in reply.parts:
        _add(output, part, meta.id)
    return _encode(
        _response(meta, reply.id, reply.model, output, _status(reply.finish), reply.usage)
    )


def usage(used: Usage) -> Json:
    """Write a usage object."""
    given = {"cached_tokens": used.cached_tokens, "cache_write_tokens": used.cache_write_tokens}
    made = {"reasoning_tokens": used.reasoning_tokens}
    if used.image_prompt_tokens:
        given["image_tokens"] = used.image_prompt_tokens
    if used.image_completion_tokens:
        made["image_tokens"] = used.image_completion_tokens
    return {
        "input_tokens": used.prompt_tokens,
        "input_tokens_details": given,
        "output_tokens": used.completion_tokens,
        "output_tokens_details": made,
        "total_tokens": used.prompt_tokens + used.completion_tokens,
    }


def error_event(error: ApiError, number: int = 0) -> bytes:
    """Encode an error inside a stream."""
    return responses_wire.error_event(error, number)


def _status(finish: str) -> Json:
    reason = _INCOMPLETE.get(finish)
    if reason is None:
        return {"status": "completed", "incomplete_details": None}
    return {"status": "incomplete", "incomplete_details": {"reason": reason}}


def _in_one_line(echo: dict[str, Raw]) -> dict[str, Raw]:
    """Return what is said again of a request as an event can have it, which is made of lines.

    Ends of lines stand between the tokens of JSON alone; inside of texts they are escaped.
    """
    names = [name for name in _ECHOED if name in echo]
    return {name: Raw(bytes(echo[name]).translate(None, b"\r\n")) for name in names}


def _response(
    meta: Meta, id: str, model: str, output: list[Json], status: Json, used: Usage | None
) -> Json:
    echoed = {name: meta.echo.get(name, default) for name, default in _ECHOED.items()}
    return {
        "id": id if id.startswith("resp_") else f"resp_{meta.id.removeprefix('req_')}",
        "object": "response",
        "created_at": meta.created,
        "error": None,
        "model": model or meta.model,
        "output": output,
        "previous_response_id": None,
        "store": False,
        **echoed,
        **status,
        "usage": usage(used) if used is not None else None,
    }


def _add(output: list[Json], part: Part, id: str) -> None:
    """Add a part of a reply to the items: text that follows text is the same message."""
    number = len(output)
    match part:
        case Text(text=text, logprobs=logprobs):
            _message(output, id)["content"].append(_text(text, logprobs))
        case Refusal(text=text):
            _message(output, id)["content"].append({"type": "refusal", "refusal": text})
        case Thinking():
            output.append(_reasoning(_item_id("rs", id, number), part))
        case ToolCall():
            if part.signature:  # a call has no place for it
                secret = Thinking(redacted=part.signature)
                output.append(_reasoning(_item_id("rs", id, number), secret))
                number += 1
            output.append(_call(_item_id("fc", id, number), part))


def _message(output: list[Json], id: str) -> Json:
    if not output or output[-1]["type"] != "message":
        output.append(_empty_message(_item_id("msg", id, len(output)), "completed"))
    return output[-1]


def _empty_message(id: str, status: str) -> Json:
    return {"id": id, "type": "message", "role": "assistant", "status": status, "content": []}


def _text(text: str, logprobs: Raw | None = None) -> Json:
    return {
        "type": "output_text",
        "text": text,
        "annotations": [],
        "logprobs": [] if logprobs is None else logprobs,
    }


def _reasoning(id: str, part: Thinking) -> Json:
    found: Json = {
        "id": id,
        "type": "reasoning",
        "summary": [{"type": "summary_text", "text": part.text}] if part.text else [],
    }
    signature = part.signature or (UNSIGNED if part.text else "")
    if secret := in_responses(signature, part.redacted, shown=bool(part.text)):
        found["encrypted_content"] = secret
    return found


def _call(id: str, call: ToolCall, status: str = "completed") -> Json:
    return {
        "id": id,
        "type": "function_call",
        "status": status,
        "call_id": call.id,
        "name": call.name,
        "arguments": call.arguments,
    }


def _item_id(kind: str, id: str, number: int) -> str:
    return f"{kind}_{id.removeprefix('req_')}{number:02d}"


class _OpenCall(msgspec.Struct, gc=False):
    """A call that is not done: its place in the output, and what came of its arguments."""

    place: int
    pieces: list[str] = []


class ResponsesStream:
    """Writes one stream's events: items one after the other, each added and done.

    Some providers go on with a call after the next has begun: it stays open beside the others.
    """

    def __init__(self, meta: Meta) -> None:
        self._meta = msgspec.structs.replace(meta, echo=_in_one_line(meta.echo))
        self._id = self._model = ""
        self._number = 0
        self._begun = False
        self._output: list[Json] = []
        self._open = ""  # which item is open
        self._pieces: list[str] = []
        self._logprobs: list[Any] = []
        self._calls: dict[int, _OpenCall] = {}
        self._newest: int | None = None  # which of them came last
        self._usage: Usage | None = None
        self._finish = ""

    def write(self, found: list[Event]) -> bytes:
        """Return what the client may have of these events."""
        return b"".join([self._one(event) for event in found])

    def finish(self) -> bytes:
        """Return the stream's end: the whole response."""
        before = self._begin() + self._close()
        before += b"".join([self._end_call(call) for call in self._calls.values()])
        status = _status(self._finish)
        response = self._response(status)
        kind = f"response.{status['status']}"
        return before + self._frame(kind, {"response": response})

    def error(self, error: ApiError) -> bytes:
        """Return the events that end a stream which failed."""
        status = {
            "status": "failed",
            "incomplete_details": None,
            "error": {"code": "server_error", "message": error.message},
        }
        before, number = self._begin(), self._number
        said = error_event(error, number)
        self._number += 1
        failed = self._frame("response.failed", {"response": self._response(status)})
        self._number = number  # who shares the stream and is told as well has not seen these
        return before + said + failed

    def _one(self, event: Event) -> bytes:
        match event:
            case events.TextDelta(text=text, logprobs=logprobs):
                return self._text_delta(text, logprobs)
            case events.RefusalDelta(text=text):
                before = self._item("refusal")
                self._pieces.append(text)
                return before + self._part("response.refusal.delta", {"delta": text})
            case events.ThinkingDelta(text=text, block=block):
                before = self._item(f"thinking {block}")
                self._pieces.append(text)
                delta = {"summary_index": 0, "delta": text}
                return before + self._item_frame("response.reasoning_summary_text.delta", delta)
            case events.ThinkingSigned(signature=signature, redacted=redacted, block=block):
                before = self._item(f"thinking {block}")
                secret = in_responses(signature, redacted, shown=any(self._pieces))
                self._output[-1]["encrypted_content"] = secret
                return before
            case events.CallBegun():
                return self._begin_call(event)
            case events.CallDelta(index=index, arguments=arguments) if index in self._calls:
                call, delta = self._calls[index], {"delta": arguments}
                call.pieces.append(arguments)
                return self._item_frame("response.function_call_arguments.delta", delta, call.place)
            case events.Finished(reason=reason):
                self._finish = reason
            case events.Begun(id=id, model=model) if not self._begun:
                self._id, self._model = id or self._id, model or self._model
            case events.Used(usage=used):
                self._usage = used
        return b""

    def _text_delta(self, text: str, logprobs: Raw | None) -> bytes:
        before = self._item("text")
        self._pieces.append(text)
        found = listed(logprobs) if logprobs is not None else []
        self._logprobs += found
        delta = {"delta": text, "logprobs": found}
        return before + self._part("response.output_text.delta", delta)

    def _item(self, kind: str) -> bytes:
        """Open an item unless it is open, ending the one before it."""
        if self._open == kind:
            return b""
        before = self._begin() + self._close()
        self._open = kind
        number, sort = len(self._output), kind.partition(" ")[0]
        if sort in ("text", "refusal"):
            item = _empty_message(_item_id("msg", self._meta.id, number), "in_progress")
        else:
            item = _reasoning(_item_id("rs", self._meta.id, number), Thinking())
        added = self._add(item)
        if sort == "text":
            added += self._part("response.content_part.added", {"part": _text("")})
        elif sort == "refusal":
            part = {"type": "refusal", "refusal": ""}
            added += self._part("response.content_part.added", {"part": part})
        elif sort == "thinking":
            summary = {"summary_index": 0, "part": {"type": "summary_text", "text": ""}}
            added += self._item_frame("response.reasoning_summary_part.added", summary)
        return before + added

    def _add(self, item: Json) -> bytes:
        number = len(self._output)
        self._output.append(item)
        return self._frame("response.output_item.added", {"output_index": number, "item": item})

    def _begin_call(self, event: events.CallBegun) -> bytes:
        before = b""
        if event.signature:  # a call has no place for it
            before = self._item(f"signature {event.index}")
            secret = in_responses("", event.signature, shown=False)
            self._output[-1]["encrypted_content"] = secret
        before += self._begin() + self._close()
        number, call = len(self._output), ToolCall(event.id, event.name, "")
        self._calls[event.index], self._newest = _OpenCall(number), event.index
        return before + self._add(_call(_item_id("fc", self._meta.id, number), call, "in_progress"))

    def _end_call(self, call: _OpenCall) -> bytes:
        item, arguments = self._output[call.place], "".join(call.pieces) or "{}"
        said = {"arguments": arguments, "name": item["name"]}
        item |= {"arguments": arguments, "status": "completed"}
        return self._item_frame(
            "response.function_call_arguments.done", said, call.place
        ) + self._done(call.place)

    def _close(self) -> bytes:
        """End the open item: its text, its part, itself. A call that is not whole stays open."""
        index, self._newest = self._newest, None
        if index is not None:
            whole = is_whole(self._calls[index].pieces)
            return self._end_call(self._calls.pop(index)) if whole else b""
        if not self._open:
            return b""
        sort, self._open = self._open.partition(" ")[0], ""
        item, text = self._output[-1], "".join(self._pieces)
        self._pieces.clear()
        done = b""
        if sort == "text":
            done = self._part(
                "response.output_text.done", {"text": text, "logprobs": self._logprobs}
            )
            part = _text(text)
            part["logprobs"], self._logprobs = self._logprobs, []
            done += self._part("response.content_part.done", {"part": part})
            item |= {"content": [part], "status": "completed"}
        elif sort == "refusal":
            part = {"type": "refusal", "refusal": text}
            done = self._part("response.refusal.done", {"refusal": text})
            done += self._part("response.content_part.done", {"part": part})
            item |= {"content": [part], "status": "completed"}
        elif sort == "thinking":
            done = self._summary_done(item, text)
        return done + self._done(len(self._output) - 1)

    def _done(self, place: int) -> bytes:
        found = {"output_index": place, "item": self._output[place]}
        return self._frame("response.output_item.done", found)

    def _summary_done(self, item: Json, text: str) -> bytes:
        part = {"type": "summary_text", "text": text}
        if text:
            item["summary"] = [part]
            item.setdefault("encrypted_content", UNSIGNED)
        said = {"summary_index": 0, "text": text}
        return self._item_frame("response.reasoning_summary_text.done", said) + self._item_frame(
            "response.reasoning_summary_part.done", {"summary_index": 0, "part": part}
        )

    def _part(self, kind: str, content: Json) -> bytes:
        return self._item_frame(kind, {"content_index": 0, **content})

    def _item_frame(self, kind: str, content: Json, place: int = -1) -> bytes:
        place %= len(self._output)
        where = {"item_id": self._output[place]["id"], "output_index": place}
        return self._frame(kind, {**where, **content})

    def _frame(self, kind: str, content: Json) -> bytes:
        found = {"type": kind, "sequence_number": self._number, **content}
        self._number += 1
        return frame(kind, _encode(found))

    def _begin(self) -> bytes:
        if self._begun:
            return b""
        self._begun = True
        status = {"status": "in_progress", "incomplete_details": None}
        response = {"response": self._response(status)}
        return self._frame("response.created", response) + self._frame(
            "response.in_progress", response
        )

    def _response(self, status: Json) -> Json:
        ended = status["status"] != "in_progress"
        used = self._usage if ended else None
        return _response(self._meta, self._id, self._model, self._output, status, used)
