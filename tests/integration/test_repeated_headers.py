"""Header lines that a client repeats are one list (RFC 9110 section 5.3), whichever comes first."""

from collections.abc import Iterator

import pytest

from tests.support.config import config
from tests.support.gateway import Gateway, untroubled
from tests.support.threaded import UpstreamThread
from tests.support.upstream import Exchange
from tests.support.wire import Reply, ask, post

BODY = {
    "model": "p0/claude-haiku-4-5",
    "max_tokens": 9,
    "temperature": 0,
    "messages": [{"role": "user", "content": "hello"}],
}


async def answers(exchange: Exchange) -> None:
    figures = {"input_tokens": 1, "output_tokens": 1}
    message = {"id": "msg_1", "type": "message", "role": "assistant", "model": "claude"}
    content = [{"type": "text", "text": "hi"}]
    await exchange.reply(
        {**message, "content": content, "stop_reason": "end_turn", "usage": figures}
    )


@pytest.fixture(scope="module")
def served(provider: UpstreamThread) -> Iterator[Gateway]:
    """A gateway that keeps answers."""
    row = {"kind": "anthropic", "api_key": "sk-upstream", "base_url": provider.url}
    with untroubled(config(providers={"p0": row}, models={}, cache={"enabled": True})) as gateway:
        yield gateway


async def told(gateway: Gateway, *lines: str) -> Reply:
    reply = await ask(gateway.port, post(BODY, *lines, path="/v1/messages"))
    assert reply.status == 200
    return reply


@pytest.mark.parametrize("values", [("max-age=60", "no-store"), ("no-store", "max-age=60")])
async def test_every_line_of_cache_control_counts(
    served: Gateway, provider: UpstreamThread, values: tuple[str, str]
) -> None:
    provider.reset(answers)
    lines = [f"Cache-Control: {value}" for value in values]
    states = [(await told(served, *lines)).headers["x-sluice-cache"] for _ in range(2)]
    assert states == ["bypass", "bypass"]
    assert len(provider.received) == 2


async def test_every_line_of_what_goes_along_does(
    served: Gateway, provider: UpstreamThread
) -> None:
    provider.reset(answers)
    lines = ("anthropic-beta: a-1", "anthropic-beta: b-2,c-3", "Cache-Control: no-store")
    await told(served, *lines)
    (asked,) = provider.received
    assert asked.headers["anthropic-beta"] == "a-1, b-2,c-3"
