"""`sluice chat`: talk to a model through the gateway, once or for a whole conversation."""

import argparse
import asyncio
import getpass
import os
import re
import ssl
import sys
import threading
from http import HTTPStatus
from typing import Any

import aiohttp
import msgspec

from gateway.cli.gateway_url import trusting, url_of
from gateway.config.schema import Config
from gateway.core.sse import SseReader, TooLarge

KEY_VARIABLE = "SLUICE_API_KEY"  # in the environment, as everybody sees a command line
CONNECT_SECONDS, SILENT_SECONDS = 5.0, 300.0
READ_BYTES = 65_536
# Names of models that do not chat, among those that a provider lists.
_OTHER_USES = re.compile(
    "audio|babbage|dall-e|davinci|embed|guard|image|moderation|ocr|realtime|rerank|sora|transcri|tts"
    "|whisper"
)

Message = dict[str, str]


class ChatError(Exception):
    """The gateway, or what is behind it, did not answer; says why."""


def run(config: Config, arguments: argparse.Namespace) -> int:
    """Talk; return the exit code."""
    said = " ".join(arguments.prompt)
    asks = sys.stdin is not None and sys.stdin.isatty()
    if not said and not asks:
        said = sys.stdin.buffer.read().decode(errors="replace") if sys.stdin is not None else ""
        if not said.strip():
            print("sluice: there is nothing to say", file=sys.stderr)
            return 2
    key = os.environ.get(KEY_VARIABLE, "").strip()
    if not key and config.auth.enabled and asks:
        key = getpass.getpass(f"Key ({KEY_VARIABLE} is not set): ").strip()
    if not (key.isascii() and key.isprintable()):
        print(f"sluice: {KEY_VARIABLE} is no key: it has other characters", file=sys.stderr)
        return 2
    ours = arguments.url is None
    url = (url_of(config) if ours else arguments.url).rstrip("/").removesuffix("/v1")
    if not url.startswith(("http://", "https://")):
        print(f"sluice: --url {url}: it begins with neither http:// nor https://", file=sys.stderr)
        return 2
    try:
        return asyncio.run(_talk(url, key, arguments, said, trusting() if ours else None))
    except ChatError as error:
        print(f"sluice: {_plain(str(error))}", file=sys.stderr)
        return 1


async def _talk(
    url: str, key: str, arguments: argparse.Namespace, said: str, context: ssl.SSLContext | None
) -> int:
    timeout = aiohttp.ClientTimeout(
        total=None, sock_connect=CONNECT_SECONDS, sock_read=SILENT_SECONDS
    )
    headers = {"Authorization": f"Bearer {key}"} if key else {}
    connector = aiohttp.TCPConnector(ssl=context if context is not None else True)
    try:
        async with aiohttp.ClientSession(
            timeout=timeout, headers=headers, connector=connector
        ) as session:
            model = arguments.model or await _first_model(session, url)
            begun = [{"role": "system", "content": arguments.system}] if arguments.system else []
            if said:
                await _say(session, url, model, [*begun, {"role": "user", "content": said}])
            else:
                await _converse(session, url, model, begun)
    except aiohttp.InvalidURL:
        raise ChatError(f"{url!r} is no address") from None
    except BrokenPipeError:  # of standard output
        raise
    except (aiohttp.ClientError, TimeoutError, OSError) as error:
        raise ChatError(_unreached(url, error)) from None
    return 0


def _unreached(url: str, error: Exception) -> str:
    return f"{url}: {str(error) or type(error).__name__}. Is the gateway running?"


async def _converse(
    session: aiohttp.ClientSession, url: str, model: str, messages: list[Message]
) -> None:
    """Say one line after the other, with all that was said before, until the input ends."""
    print(f"{model}; an empty line or Ctrl-D ends it", file=sys.stderr)
    while True:
        try:
            said = (await _line()).strip()
        except EOFError:
            print(file=sys.stderr)
            return
        if not said:
            return
        messages.append({"role": "user", "content": said})
        try:
            answer = await _say(session, url, model, messages)
        except BrokenPipeError:
            raise
        except (ChatError, aiohttp.ClientError, TimeoutError, OSError) as error:
            why = str(error) if isinstance(error, ChatError) else _unreached(url, error)
            print(f"sluice: {_plain(why)}", file=sys.stderr)
            messages.pop()
        else:
            messages.append({"role": "assistant", "content": answer})


async def _line() -> str:
    """Return the next line. Raises EOFError.

    Its thread is nobody's to wait for: Ctrl-C ends all at once.
    """
    loop = asyncio.get_running_loop()
    found: asyncio.Future[str | None] = loop.create_future()

    def told(said: str | None) -> None:
        if not found.done():
            found.set_result(said)

    def read() -> None:
        try:
            said: str | None = input("> ")
        except (EOFError, OSError, UnicodeDecodeError):
            said = None
        loop.call_soon_threadsafe(told, said)

    threading.Thread(target=read, daemon=True).start()
    said = await found
    if said is None:
        raise EOFError
    return said


async def _first_model(session: aiohttp.ClientSession, url: str) -> str:
    async with session.get(f"{url}/v1/models") as reply:
        body = await reply.read()
        if reply.status != HTTPStatus.OK:
            raise ChatError(_message_of(body, reply.status))
    found = _decoded(body)
    models = [str(one.get("id")) for one in found.get("data") or () if isinstance(one, dict)]
    if not models:
        raise ChatError("there is no model; name one with --model")
    return next((one for one in models if not _OTHER_USES.search(one)), models[0])


async def _say(
    session: aiohttp.ClientSession, url: str, model: str, messages: list[Message]
) -> str:
    """Print the answer as it comes; return it."""
    asked = {"model": model, "messages": messages, "stream": True}
    events, parts, whole = SseReader(), [], False
    async with session.post(f"{url}/v1/chat/completions", json=asked) as reply:
        if reply.status != HTTPStatus.OK:
            raise ChatError(f"{model}: {_message_of(await reply.read(), reply.status)}")
        try:
            async for data in reply.content.iter_chunked(READ_BYTES):
                for event in events.feed(data):
                    whole = whole or event.data == b"[DONE]"
                    if not whole and (text := _text_of(event.data)):
                        parts.append(text)
                        print(_plain(text), end="", flush=True)
        except TooLarge:
            raise ChatError("an event is too large") from None
        finally:
            print(flush=True)
    if not whole:
        raise ChatError("the answer broke off")
    return "".join(parts)


def _text_of(data: bytes) -> str:
    """Return the text of a chunk. Raises ChatError where it is an error."""
    chunk = _decoded(data)
    if "error" in chunk:
        raise ChatError(_message_of(data, HTTPStatus.OK))
    found = ""
    for choice in chunk.get("choices") or ():
        delta = choice.get("delta") if isinstance(choice, dict) else None
        if isinstance(delta, dict):
            found += str(delta.get("content") or delta.get("refusal") or "")
    return found


def _message_of(body: bytes, status: int) -> str:
    found = _decoded(body).get("error")
    message = found.get("message") if isinstance(found, dict) else None
    return str(message) if message else f"it answered {status}"


def _decoded(data: bytes) -> dict[str, Any]:
    try:
        found = msgspec.json.decode(data)
    except (msgspec.DecodeError, UnicodeDecodeError):
        return {}
    return found if isinstance(found, dict) else {}


def _plain(text: str) -> str:
    """Leave out what would steer the terminal: a model may say anything."""
    return "".join(c if c.isprintable() or c in "\n\t" else "\ufffd" for c in text)
