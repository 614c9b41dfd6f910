"""The one request every proxy gets, and what a complete answer to it looks like. No I/O."""

import hashlib
import json

CHAT_PATH = "/v1/chat/completions"
MESSAGES_PATH = "/v1/messages"
MODEL = "bench-model"
KEY = "sk-bench-5f0c9a7e41d84b3f"
KEY_SHA256 = hashlib.sha256(KEY.encode()).hexdigest()
HEADERS = {"authorization": f"Bearer {KEY}", "content-type": "application/json"}

DONE_EVENT = b"data: [DONE]\n\n"
_CHUNK_START = b"data: {"

_MESSAGES = [
    {"role": "system", "content": "You answer in one short sentence and never make things up."},
    {"role": "user", "content": "Why does a river bend more the flatter the land it runs through?"},
]


def chat_body(*, stream: bool) -> bytes:
    """The JSON body, about 300 bytes, as an SDK would send it (no spaces)."""
    body: dict[str, object] = {
        "model": MODEL,
        "messages": _MESSAGES,
        "temperature": 0.2,
        "max_tokens": 128,
        "user": "bench-user-0001",
    }
    if stream:
        body["stream"] = True
    return json.dumps(body, separators=(",", ":")).encode()


def chat_request(authority: str, *, stream: bool) -> bytes:
    """The same request as HTTP/1.1 bytes; authority is `host:port`."""
    body = chat_body(stream=stream)
    fields = {"host": authority, "accept": "*/*", **HEADERS, "content-length": str(len(body))}
    head = "".join(f"{name}: {value}\r\n" for name, value in fields.items())
    return f"POST {CHAT_PATH} HTTP/1.1\r\n{head}\r\n".encode() + body


def messages_request(authority: str) -> bytes:
    """A stream of the same in Anthropic's dialect, which the upstream does not speak."""
    system, user = _MESSAGES
    content = {
        "model": MODEL,
        "system": system["content"],
        "messages": [user],
        "temperature": 0.2,
        "max_tokens": 128,
        "stream": True,
    }
    body = json.dumps(content, separators=(",", ":")).encode()
    fields = {"host": authority, "accept": "*/*", **HEADERS, "content-length": str(len(body))}
    head = "".join(f"{name}: {value}\r\n" for name, value in fields.items())
    return f"POST {MESSAGES_PATH} HTTP/1.1\r\n{head}\r\n".encode() + body


def messages_fault(body: bytes) -> str | None:
    """What is wrong with a stream in Anthropic's dialect."""
    if not body.endswith(b'data: {"type":"message_stop"}\n\n'):
        return f"stream without message_stop: ends in {body[-100:]!r}"
    return None if b"text_delta" in body else f"a stream without text: {body[:200]!r}"


def unary_fault(body: bytes) -> str | None:
    """What is wrong with a unary answer, None when it is whole."""
    if b'"usage"' in body and b'"chat.completion"' in body:
        return None
    return f"not a chat completion with usage: {body[:200]!r}"


def stream_fault(body: bytes, chunks: int) -> str | None:
    """What is wrong with a streamed answer, None when every chunk and the [DONE] event arrived."""
    if not body.endswith(DONE_EVENT):
        return f"stream without [DONE]: ends in {body[-100:]!r}"
    if (seen := body.count(_CHUNK_START)) != chunks:
        return f"stream of {seen} chunks instead of {chunks}"
    return None
