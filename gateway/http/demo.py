"""The demo provider's upstream: a small OpenAI server on a Unix socket inside the worker.

A real server on the real transport, so that the demo takes the same way as any provider.
"""

import asyncio
import contextlib
import os
import time
from typing import Any

import msgspec
from aiohttp import web

from gateway.providers import demo

PACE_SECONDS = 0.03  # about the speed at which hosted models write
MAX_BODY_BYTES = 64 * 1024 * 1024


class DemoUpstream:
    """Serves until closed."""

    def __init__(self, path: str) -> None:
        self._path = path
        app = web.Application(client_max_size=MAX_BODY_BYTES)
        app.router.add_post("/v1/chat/completions", _chat)
        app.router.add_post("/v1/completions", _completion)
        app.router.add_post("/v1/embeddings", _embeddings)
        self._runner = web.AppRunner(app, access_log=None, handler_cancellation=True)

    async def start(self) -> None:
        """Listen; the socket is for this user alone."""
        await self._runner.setup()
        with contextlib.suppress(FileNotFoundError):
            os.unlink(self._path)
        await web.UnixSite(self._runner, self._path).start()
        os.chmod(self._path, 0o600)

    async def aclose(self) -> None:
        """Stop and remove the socket. Idempotent."""
        await self._runner.cleanup()
        with contextlib.suppress(FileNotFoundError):
            os.unlink(self._path)


async def _read(request: web.Request) -> demo.Ask:
    try:
        return msgspec.json.decode(await request.read(), type=demo.Ask)
    except msgspec.DecodeError as error:
        body = msgspec.json.encode(
            {"error": {"message": str(error), "type": "invalid_request_error"}}
        )
        raise web.HTTPBadRequest(body=body, content_type="application/json") from None


def _json(content: Any) -> web.Response:
    return web.Response(body=msgspec.json.encode(content), content_type="application/json")


async def _chat(request: web.Request) -> web.StreamResponse:
    ask = await _read(request)
    head = _head(ask, "chat.completion.chunk" if ask.stream else "chat.completion")

    def choice(text: str | None, finish: str | None) -> dict[str, Any]:
        if ask.stream:
            delta = {} if text is None else {"role": "assistant", "content": text}
            return {"index": 0, "delta": delta, "finish_reason": finish}
        message = {"role": "assistant", "content": text}
        return {"index": 0, "message": message, "finish_reason": finish}

    return await _generate(request, ask, head, choice)


async def _completion(request: web.Request) -> web.StreamResponse:
    ask = await _read(request)

    def choice(text: str | None, finish: str | None) -> dict[str, Any]:
        return {"index": 0, "text": text or "", "finish_reason": finish, "logprobs": None}

    return await _generate(request, ask, _head(ask, "text_completion"), choice)


async def _embeddings(request: web.Request) -> web.Response:
    return _json(demo.embed(await _read(request)))


async def _generate(
    request: web.Request, ask: demo.Ask, head: dict[str, Any], choice: Any
) -> web.StreamResponse:
    words, prompt, finish = demo.answer(ask)
    usage = demo.usage(prompt, len(words))
    if not ask.stream:
        return _json({**head, "choices": [choice("".join(words), finish)], "usage": usage})
    response = web.StreamResponse(headers={"Content-Type": "text/event-stream"})
    response.enable_chunked_encoding()
    await response.prepare(request)
    for word in words:
        await response.write(_event({**head, "choices": [choice(word, None)]}))
        await asyncio.sleep(PACE_SECONDS)
    await response.write(_event({**head, "choices": [choice(None, finish)]}))
    if (ask.stream_options or {}).get("include_usage"):
        await response.write(_event({**head, "choices": [], "usage": usage}))
    await response.write(b"data: [DONE]\n\n")
    await response.write_eof()
    return response


def _head(ask: demo.Ask, kind: str) -> dict[str, Any]:
    return {
        "id": demo.reply_id(ask),
        "object": kind,
        "created": int(time.time()),
        "model": ask.model,
    }


def _event(content: Any) -> bytes:
    return b"data: " + msgspec.json.encode(content) + b"\n\n"
