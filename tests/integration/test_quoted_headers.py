"""A provider that quotes the headers it was asked with: no client learns the operator's secrets."""

import json
from collections.abc import Iterator

import pytest

from tests.support.config import PRICED_MODEL, chat, config
from tests.support.gateway import Gateway, untroubled
from tests.support.threaded import UpstreamThread
from tests.support.upstream import Exchange, like_openai
from tests.support.wire import CHAT_PATH, ask, post

TEAM, GATEWAY, LONE = "team-SECRET-1", "gateway-SECRET", "lone-SECRET"


@pytest.fixture(scope="module")
def served(provider: UpstreamThread) -> Iterator[Gateway]:
    """A gateway whose provider is behind another one, with its own credentials."""
    headers = {
        "X-Team": TEAM,
        "X-Gateway-Authorization": f"Bearer {GATEWAY}",
        "X-Auth": f"{LONE}-longer",
        "Authorization": f"Bearer {LONE}",
        "X-Place": "upstairs",
    }
    row = {"kind": "openai-compatible", "base_url": provider.url, "headers": headers}
    local = {**row, "api_key": "ollama", "headers": {}}
    with untroubled(config(providers={"p0": row, "local": local}, models={})) as gateway:
        yield gateway


@pytest.mark.parametrize("path", [CHAT_PATH, "/providers/p0/v1/chat/completions"])
@pytest.mark.parametrize("status", [400, 401, 404, 500])
async def test_a_provider_that_quotes_headers_tells_nobody(
    served: Gateway, provider: UpstreamThread, path: str, status: int
) -> None:
    async def quotes(exchange: Exchange) -> None:
        told = json.dumps(exchange.request.headers)
        error = {"message": f"{LONE} {told}", "type": "x", "code": told, "param": None}
        await exchange.reply({"error": error}, status=status, headers={"X-Seen": told})

    provider.reset(quotes)
    model = f"p0/{PRICED_MODEL}" if path == CHAT_PATH else PRICED_MODEL
    data = post(chat(model), "Content-Type: application/json", path=path)
    reply = await ask(served.port, data)
    (asked,) = provider.received
    assert GATEWAY in str(asked.headers)
    shown = str(reply)
    assert [one for one in (TEAM, GATEWAY, LONE, "-longer") if one in shown] == []
    assert path == CHAT_PATH or "upstairs" in shown
    provider.reset(like_openai)


@pytest.mark.parametrize("path", [CHAT_PATH, "/providers/p0/v1/chat/completions"])
@pytest.mark.parametrize("spelling", ["\\/", "\\u002f", "\\u002F"])
async def test_nor_does_one_that_escapes_what_it_quotes(
    provider: UpstreamThread, path: str, spelling: str
) -> None:
    async def quotes(exchange: Exchange) -> None:
        error = {"message": f"no {exchange.request.headers['authorization']}", "type": "x"}
        told = json.dumps({"error": error}).replace("/", spelling).encode()
        await exchange.reply(told, status=400, headers={"X-Seen": told.decode()})

    provider.reset(quotes)
    row = {"kind": "openai-compatible", "base_url": provider.url, "api_key": "team/SECRET/1"}
    with untroubled(config(providers={"p0": row}, models={})) as gateway:
        data = post(chat(f"p0/{PRICED_MODEL}"), "Content-Type: application/json", path=path)
        reply = await ask(gateway.port, data)
        logged = gateway.log_file.read_text()
    assert reply.status == 400
    assert reply.json["error"]["message"].startswith("no Bearer ")
    assert "SECRET" not in str(reply) + logged
    provider.reset(like_openai)


@pytest.mark.parametrize("path", [CHAT_PATH, "/providers/local/v1/chat/completions"])
async def test_a_word_that_stands_for_a_key_is_none(
    served: Gateway, provider: UpstreamThread, path: str
) -> None:
    async def refuses(exchange: Exchange) -> None:
        await exchange.reply({"error": {"message": "not in ollama's context"}}, status=400)

    provider.reset(refuses)
    data = post(chat("local/llama"), "Content-Type: application/json", path=path)
    reply = await ask(served.port, data)
    assert reply.json["error"]["message"] == "not in ollama's context"
    provider.reset(like_openai)
