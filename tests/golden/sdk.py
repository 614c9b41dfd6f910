"""Reads replies as users do: with the official SDKs, in each of the dialects that clients speak."""

import json
from dataclasses import dataclass, field
from typing import Any

import anthropic
import openai

from gateway.core.usage import Usage

ASK: list[Any] = [{"role": "user", "content": "Say something."}]
PATIENCE_SECONDS = 30.0


@dataclass
class Seen:
    """What a client saw. `finish` is the dialect's own word; `error` what its SDK raised."""

    text: str = ""
    reasoning: str = ""
    signatures: list[str] = field(default_factory=list)
    tool_calls: list[tuple[str, Any]] = field(default_factory=list)
    finish: str | None = None
    usage: Usage | None = None
    error: str | None = None


class Reader:
    """Clients of one gateway. `most`: all say how much may be generated, as Messages must."""

    def __init__(self, url: str, key: str = "sk-test", *, most: int | None = None) -> None:
        self._chat: dict[str, Any] = {} if most is None else {"max_completion_tokens": most}
        self._responses: dict[str, Any] = {} if most is None else {"max_output_tokens": most}
        self._messages = 1024 if most is None else most
        self.openai = openai.OpenAI(
            base_url=f"{url}/v1", api_key=key, max_retries=0, timeout=PATIENCE_SECONDS
        )
        self.anthropic = anthropic.Anthropic(
            base_url=url, api_key=key, max_retries=0, timeout=PATIENCE_SECONDS
        )

    def close(self) -> None:
        """Close the clients."""
        self.openai.close()
        self.anthropic.close()

    def read(self, dialect: str, model: str, *, stream: bool) -> Seen:
        """Ask in a dialect: chat, completions, responses or messages."""
        read = getattr(self, f"{dialect}_{'stream' if stream else 'whole'}")
        seen: Seen
        try:
            seen = read(model)
        except (openai.APIError, anthropic.APIError) as error:
            return Seen(error=str(error.message))
        return seen

    def chat_whole(self, model: str) -> Seen:
        """A chat completion."""
        reply = self.openai.chat.completions.create(model=model, messages=ASK, **self._chat)
        choice = reply.choices[0]
        return _chat(choice.message, choice.finish_reason, reply.usage)

    def chat_stream(self, model: str) -> Seen:
        """A chat completion's chunks."""
        seen = Seen()
        names: dict[int, str] = {}
        arguments: dict[int, str] = {}
        for chunk in self.openai.chat.completions.create(
            model=model,
            messages=ASK,
            stream=True,
            stream_options={"include_usage": True},
            **self._chat,
        ):
            if chunk.usage is not None:
                seen.usage = _chat_usage(chunk.usage)
            for choice in chunk.choices:
                if choice.index:
                    continue
                part = _chat(choice.delta, choice.finish_reason, None)
                seen.text += part.text
                seen.reasoning += part.reasoning
                seen.signatures += part.signatures
                seen.finish = part.finish or seen.finish
                for place, call in enumerate(choice.delta.tool_calls or ()):
                    at = place if call.index is None else call.index
                    names[at] = names.get(at, "") + ((call.function and call.function.name) or "")
                    said = (call.function and call.function.arguments) or ""
                    arguments[at] = arguments.get(at, "") + said
        seen.tool_calls = [(names[at], _object(arguments[at])) for at in sorted(names)]
        return seen

    def completions_whole(self, model: str) -> Seen:
        """A legacy completion."""
        reply = self.openai.completions.create(model=model, prompt="Say something.")
        choice = reply.choices[0]
        used = _chat_usage(reply.usage) if reply.usage is not None else None
        return Seen(text=choice.text, finish=choice.finish_reason, usage=used)

    def completions_stream(self, model: str) -> Seen:
        """A legacy completion's chunks."""
        seen = Seen()
        for chunk in self.openai.completions.create(
            model=model, prompt="Say", stream=True, stream_options={"include_usage": True}
        ):
            if chunk.usage is not None:
                seen.usage = _chat_usage(chunk.usage)
            for choice in chunk.choices:
                seen.text += choice.text
                reason: str | None = choice.finish_reason
                seen.finish = reason or seen.finish
        return seen

    def responses_whole(self, model: str) -> Seen:
        """A response."""
        return _response(
            self.openai.responses.create(model=model, input="Say something.", **self._responses)
        )

    def responses_stream(self, model: str) -> Seen:
        """A response's events: text from the deltas, the rest from the last one."""
        deltas: dict[tuple[int, str], str] = {}
        thoughts: dict[int, dict[int, str]] = {}
        items: dict[int, Any] = {}
        last: Any = None
        numbers = []
        for event in self.openai.responses.create(
            model=model, input="Say something.", stream=True, **self._responses
        ):
            found: Any = event
            numbers.append(getattr(found, "sequence_number", None))
            match found.type:
                case "response.reasoning_summary_text.delta":
                    parts = thoughts.setdefault(found.output_index, {})
                    parts[found.summary_index] = parts.get(found.summary_index, "") + found.delta
                case "response.output_text.delta" | "response.function_call_arguments.delta":
                    at = (found.output_index, found.type)
                    deltas[at] = deltas.get(at, "") + found.delta
                case "response.output_item.done":
                    items[found.output_index] = found.item
                case "response.completed" | "response.incomplete" | "response.failed":
                    last = found.response
        assert last is not None, "the stream ended without its end"
        seen = _response(last)
        kinds = {at: item.type for at, item in items.items()}
        seen.text = "".join(
            [said for (_, kind), said in sorted(deltas.items()) if kind.endswith("text.delta")]
        )
        seen.reasoning = "".join(["\n\n".join(parts.values()) for parts in thoughts.values()])
        seen.tool_calls = [
            (items[at].name, _object(deltas.get((at, "response.function_call_arguments.delta"))))
            for at in sorted(items)
            if kinds[at] == "function_call"
        ]
        return seen

    def messages_whole(self, model: str) -> Seen:
        """A message."""
        return _message(
            self.anthropic.messages.create(model=model, messages=ASK, max_tokens=self._messages)
        )

    def messages_stream(self, model: str) -> Seen:
        """A message as the SDK puts it together of its events."""
        with self.anthropic.messages.stream(
            model=model, messages=ASK, max_tokens=self._messages
        ) as stream:
            return _message(stream.get_final_message())


def _chat(message: Any, finish: str | None, usage: Any) -> Seen:
    content = message.content
    parts = content if isinstance(content, list) else [{"type": "text", "text": content}]
    thoughts = [one["text"] for p in parts if p["type"] == "thinking" for one in p["thinking"]]
    reasoning = getattr(message, "reasoning_content", None) or getattr(message, "reasoning", None)
    details = getattr(message, "reasoning_details", None) or ()
    calls = [call for call in message.tool_calls or () if call.function is not None]
    return Seen(
        text="".join([part["text"] or "" for part in parts if part["type"] == "text"])
        + (getattr(message, "refusal", None) or ""),
        reasoning=(reasoning or "") + "".join(thoughts),
        signatures=[one.get("signature") or one.get("data") or "" for one in details],
        tool_calls=[(call.function.name, call.function.arguments) for call in calls]
        if any(call.function.name is None for call in calls)
        else [
            (call.function.name, _object(call.function.arguments, whole=False)) for call in calls
        ],
        finish=finish,
        usage=_chat_usage(usage) if usage is not None else None,
    )


def _chat_usage(usage: Any) -> Usage:
    cached = usage.prompt_tokens_details.cached_tokens if usage.prompt_tokens_details else 0
    written = getattr(usage.prompt_tokens_details, "cache_write_tokens", 0) or 0
    cached = cached or getattr(usage, "prompt_cache_hit_tokens", 0)
    cached = cached or getattr(usage, "cached_tokens", 0) or 0
    details = usage.completion_tokens_details
    reasoning = (details.reasoning_tokens if details else 0) or 0
    output = usage.completion_tokens
    if usage.total_tokens == usage.prompt_tokens + output + reasoning:
        output += reasoning  # xAI's way, passed on as it is
    return Usage(usage.prompt_tokens, cached, written, output, reasoning)


def _response(response: Any) -> Seen:
    seen = Seen(finish=response.status)
    if response.incomplete_details is not None and response.incomplete_details.reason:
        seen.finish = response.incomplete_details.reason
    for item in response.output:
        match item.type:
            case "message":
                for part in item.content:
                    seen.text += str(getattr(part, "text", "") or getattr(part, "refusal", ""))
            case "reasoning":
                seen.reasoning += "\n\n".join([part.text for part in item.summary])
                if item.encrypted_content:
                    seen.signatures.append(item.encrypted_content)
            case "function_call":
                seen.tool_calls.append((item.name, _object(item.arguments)))
    if response.usage is not None:
        given, made = response.usage.input_tokens_details, response.usage.output_tokens_details
        seen.usage = Usage(
            response.usage.input_tokens,
            given.cached_tokens,
            getattr(given, "cache_write_tokens", 0) or 0,
            response.usage.output_tokens,
            made.reasoning_tokens,
        )
    return seen


def _message(message: Any) -> Seen:
    seen = Seen(finish=message.stop_reason)
    for block in message.content:
        match block.type:
            case "text":
                seen.text += block.text
            case "thinking":
                seen.reasoning += block.thinking
                if block.signature:
                    seen.signatures.append(block.signature)
            case "redacted_thinking":
                seen.signatures.append(block.data)
            case "tool_use":
                seen.tool_calls.append((block.name, block.input))
    used = message.usage
    cached, written = used.cache_read_input_tokens or 0, used.cache_creation_input_tokens or 0
    details = used.output_tokens_details
    thought = details.thinking_tokens if details is not None else 0
    prompt = (used.input_tokens or 0) + cached + written
    seen.usage = Usage(prompt, cached, written, used.output_tokens, thought)
    return seen


def _object(text: str | None, *, whole: bool = True) -> Any:
    try:
        return json.loads(text or "null") or {}
    except ValueError:
        if whole:
            raise
        return text
