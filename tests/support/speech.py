"""What a provider says in a chat, in OpenAI's and in Anthropic's own words: pieces for scripts."""

import json
from dataclasses import dataclass
from typing import Any

from tests.support.upstream import MODEL, completion, delta, usage

PROMPT_TOKENS, COMPLETION_TOKENS = 7, 2


@dataclass(frozen=True)
class Speech:
    """One answer. `words` is `opening` and the text, an event for each word; `end` is `finish`,
    the usage and the `terminator`."""

    whole: bytes
    opening: bytes
    words: bytes
    more: bytes
    finish: bytes
    usage: bytes
    terminator: bytes
    error: bytes

    @property
    def end(self) -> bytes:
        """All that follows the text."""
        return self.finish + self.usage + self.terminator

    @property
    def stream(self) -> bytes:
        """The whole stream."""
        return self.words + self.end


def event(content: Any, kind: str = "") -> bytes:
    """One event of a stream."""
    text = content if isinstance(content, str) else json.dumps(content)
    return (f"event: {kind}\n" if kind else "").encode() + f"data: {text}\n\n".encode()


def error_body(kind: str, message: str) -> dict[str, Any]:
    """An error, as the API of this kind tells it."""
    if kind == "anthropic":
        return {"type": "error", "error": {"type": "api_error", "message": message}}
    error = {"message": message, "type": "server_error", "param": None, "code": None}
    return {"error": error}


def speech(kind: str, *words: str) -> Speech:
    """An answer of these words, as the API of this kind has it."""
    return _anthropic(words) if kind == "anthropic" else _openai(words)


def _openai(words: tuple[str, ...]) -> Speech:
    used = usage(PROMPT_TOKENS, COMPLETION_TOKENS)
    role = delta(None)
    role["choices"][0]["delta"] = {"role": "assistant", "content": ""}
    opening = event(role)
    return Speech(
        whole=json.dumps(completion("".join(words), used)).encode(),
        opening=opening,
        words=opening + b"".join(event(delta(word)) for word in words),
        more=event(delta(" more")),
        finish=event(delta(None, "stop")),
        usage=event({**delta(None), "choices": [], "usage": used}),
        terminator=event("[DONE]"),
        error=event(error_body("openai", "engine overheated")),
    )


def _anthropic(words: tuple[str, ...]) -> Speech:
    def typed(kind: str, **fields: Any) -> bytes:
        return event({"type": kind, **fields}, kind)

    def text(word: str) -> bytes:
        return typed("content_block_delta", index=0, delta={"type": "text_delta", "text": word})

    message = {"id": "msg_1", "type": "message", "role": "assistant", "model": MODEL}
    used = {"input_tokens": PROMPT_TOKENS, "output_tokens": COMPLETION_TOKENS}
    begun: dict[str, Any] = {**message, "content": [], "stop_reason": None, "stop_sequence": None}
    begun["usage"] = {"input_tokens": PROMPT_TOKENS, "output_tokens": 1}
    opening = typed("message_start", message=begun)
    opening += typed("content_block_start", index=0, content_block={"type": "text", "text": ""})
    opening += typed("ping")
    stopped = {"stop_reason": "end_turn", "stop_sequence": None}
    finish = typed("content_block_stop", index=0)
    finish += typed("message_delta", delta=stopped, usage={"output_tokens": COMPLETION_TOKENS})
    whole = {**message, "content": [{"type": "text", "text": "".join(words)}], **stopped}
    return Speech(
        whole=json.dumps({**whole, "usage": used}).encode(),
        opening=opening,
        words=opening + b"".join(text(word) for word in words),
        more=text(" more"),
        finish=finish,
        usage=b"",
        terminator=typed("message_stop"),
        error=event(error_body("anthropic", "engine overheated"), "error"),
    )
