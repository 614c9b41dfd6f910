"""Conversations of many turns are translated beside the event loop, which goes on meanwhile."""

import json
import threading
from pathlib import Path
from typing import Any

import pytest

from gateway.core.request import Request
from gateway.pipeline.ask import THREAD_TOKENS
from gateway.pipeline.lanes import Built, HubLane
from tests.support.config import chat, config
from tests.support.load import Ask, Client
from tests.support.upstream import Upstream, like_openai
from tests.support.worker import working

MESSAGES = "/v1/messages"


def conversation(turns: int, **more: Any) -> dict[str, Any]:
    """An odd number of turns, the first and the last of them a user's."""
    said = [{"role": ("user", "assistant")[n % 2], "content": f"turn {n}"} for n in range(turns)]
    return {"model": "m", "max_tokens": 10, "messages": said, **more}


@pytest.mark.parametrize("stream", [False, True])
async def test_a_long_conversation_is_translated_aside(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, stream: bool
) -> None:
    threads: list[threading.Thread] = []
    build = HubLane.build

    def building(lane: HubLane, request: Request) -> Built:
        threads.append(threading.current_thread())
        return build(lane, request)

    monkeypatch.setattr(HubLane, "build", building)
    long = conversation(4001, stream=stream)
    assert len(json.dumps(long)) > 3 * THREAD_TOKENS
    async with Upstream(like_openai) as upstream, working(tmp_path, config(upstream.url)) as port:
        async with Client(port) as client:
            for body in (conversation(3, stream=stream), long):
                assert (await client.ask(Ask(body, MESSAGES))).status == 200
            # What is passed on as it is takes no time.
            turns = [{**turn, "content": f"{n}"} for n, turn in enumerate(long["messages"])]
            assert (await client.ask(Ask(chat(messages=turns)))).status == 200
        here = threading.current_thread()
        assert [thread is here for thread in threads] == [True, False]
        sent = [received.json["messages"] for received in upstream.received]
        assert sent[:2] == [conversation(3)["messages"], long["messages"]]


async def test_one_that_cannot_be_translated_is_refused_all_the_same(tmp_path: Path) -> None:
    long = conversation(4001, top_k=5)
    async with Upstream(like_openai) as upstream, working(tmp_path, config(upstream.url)) as port:
        async with Client(port) as client:
            refused = await client.ask(Ask(long, MESSAGES))
        assert (refused.status, upstream.received) == (400, [])
        assert "'top_k'" in refused.json["error"]["message"]
