"""The demo model: deterministic answers, so a newcomer sees the gateway work without any key.

Pure; `gateway.http.demo` serves it. A token here is a word with the space before it.
"""

import base64
import hashlib
import math
import re
import struct
from typing import Any

import msgspec

CHAT_MODEL, EMBEDDING_MODEL = "demo", "demo-embedding"
DIMENSIONS = 64
MAX_ECHO_CHARS = 400


class Turn(msgspec.Struct):
    """One message of a conversation."""

    role: str
    content: Any = None


class Ask(msgspec.Struct):
    """What the demo reads of a chat, completion or embeddings request."""

    model: str
    messages: list[Turn] = []
    prompt: Any = ""
    input: Any = ""
    stream: bool | None = None
    stream_options: dict[str, Any] | None = None
    max_tokens: int | None = None
    max_completion_tokens: int | None = None
    encoding_format: str | None = None
    dimensions: int | None = None


def tokens(text: str) -> list[str]:
    """Split a text so that joining the parts gives it back."""
    return re.findall(r"\s*\S+(?:\s+$)?|^\s+$", text)


def answer(ask: Ask) -> tuple[list[str], int, str]:
    """Return the answer's tokens, the prompt's token count, and the finish reason."""
    prompt = [_text(turn.content) for turn in ask.messages] or [_text(ask.prompt)]
    said = next((_text(t.content) for t in reversed(ask.messages) if t.role == "user"), prompt[-1])
    words = tokens(
        f"Hello! I am Sluice's built-in demo model. You said: {said[:MAX_ECHO_CHARS]!r}. "
        "Give the gateway a provider's key, such as OPENAI_API_KEY, and ask for a real model."
    )
    most = ask.max_completion_tokens or ask.max_tokens or len(words)
    count = sum(len(tokens(text)) for text in prompt)
    return words[:most], count, "length" if most < len(words) else "stop"


def usage(prompt: int, completion: int) -> dict[str, int]:
    """Return a usage object."""
    return {
        "prompt_tokens": prompt,
        "completion_tokens": completion,
        "total_tokens": prompt + completion,
    }


def reply_id(ask: Ask) -> str:
    """Return an id that is the same for the same question."""
    return "demo-" + hashlib.sha256(msgspec.json.encode(ask)).hexdigest()[:24]


def embed(ask: Ask) -> dict[str, Any]:
    """Return a whole embeddings reply; equal texts get equal vectors of length 1."""
    texts = ask.input if isinstance(ask.input, list) else [ask.input]
    if texts and isinstance(texts[0], int):
        texts = [texts]
    size = min(ask.dimensions or DIMENSIONS, 4096)
    data = []
    for index, text in enumerate(texts):
        vector = _vector(str(text), size)
        shown: Any = vector
        if ask.encoding_format == "base64":
            shown = base64.b64encode(struct.pack(f"<{size}f", *vector)).decode()
        data.append({"object": "embedding", "index": index, "embedding": shown})
    count = sum(len(tokens(str(text))) for text in texts)
    return {
        "object": "list",
        "data": data,
        "model": ask.model,
        "usage": {"prompt_tokens": count, "total_tokens": count},
    }


def _vector(text: str, size: int) -> list[float]:
    seed = hashlib.shake_256(text.encode()).digest(size)
    raw = [byte / 127.5 - 1 for byte in seed]
    length = math.sqrt(sum(x * x for x in raw)) or 1.0
    return [x / length for x in raw]


def _text(content: Any) -> str:
    if isinstance(content, str):
        return content
    if isinstance(content, list):
        parts = [p.get("text", "") if isinstance(p, dict) else str(p) for p in content]
        return " ".join(part for part in parts if isinstance(part, str))
    return ""
