"""What a record says of its attempts: what was sent at all, how long it took, who went on."""

import asyncio
import json
import socket
from collections.abc import Iterator
from contextlib import AsyncExitStack, contextmanager
from typing import Any

import pytest

from tests.support.config import KEY, chat, config
from tests.support.gateway import Gateway, running
from tests.support.load import Ask, Client, once
from tests.support.upstream import Exchange, Upstream, completion, delta, like_openai, usage
from tests.support.wire import connected, head_of, post

LONG = chat(messages=[{"role": "user", "content": "hello world " * 2000}])


@contextmanager
def unheard() -> Iterator[str]:
    """The URL of a server that takes no connection: its queue is full."""
    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        server.listen(0)
        held = []
        for _ in range(4):
            client = socket.socket()
            client.setblocking(False)
            client.connect_ex(server.getsockname())
            held.append(client)
        yield f"http://127.0.0.1:{server.getsockname()[1]}/v1"
        for client in held:
            client.close()


async def answers_once(server: socket.socket, held: list[socket.socket]) -> None:
    """Answer one request, fill the queue of connections, and hang up on the next request."""
    loop = asyncio.get_running_loop()
    client, _ = await loop.sock_accept(server)
    with client:
        client.setblocking(False)
        seen = b""
        while not seen.endswith(b"}"):
            seen += await loop.sock_recv(client, 65536)
        body = json.dumps(completion("yes", usage(7, 1))).encode()
        head = b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n"
        await loop.sock_sendall(client, head % len(body) + body)
        for _ in range(4):
            held.append(socket.socket())
            held[-1].setblocking(False)
            held[-1].connect_ex(server.getsockname())
        await loop.sock_recv(client, 10)


async def test_who_leaves_while_a_dead_connection_is_replaced_pays_nothing() -> None:
    held: list[socket.socket] = []
    with socket.socket() as server:
        server.setblocking(False)
        server.bind(("127.0.0.1", 0))
        server.listen(0)
        serving = asyncio.create_task(answers_once(server, held))
        with running(config(f"http://127.0.0.1:{server.getsockname()[1]}/v1")) as gateway:
            assert (await once(gateway.port, Ask(chat()))).status == 200
            await leave(gateway.port, post(LONG), 0.6)
            _, record = await asyncio.to_thread(gateway.records, 2)
        await serving
        for client in held:
            client.close()
    assert (record["outcome"], record["usage"]["prompt_tokens"]) == ("disconnected", 0)
    (tried,) = record["tries"]
    assert tried["connect_us"] == tried["duration_us"] > 0


async def leave(port: int, data: bytes, seconds: float = 0.4) -> None:
    """Ask, and leave so much later."""
    async with connected(port) as wire:
        await wire.send(data)
        await asyncio.sleep(seconds)


@pytest.mark.parametrize("passed_on", [False, True])
async def test_who_leaves_while_the_gateway_connects_pays_nothing(*, passed_on: bool) -> None:
    body = json.dumps(LONG).encode()
    data = post(LONG)
    if passed_on:
        lines = ("Content-Type: application/json", f"Content-Length: {len(body)}")
        data = head_of(*lines, path="/providers/p0/chat/completions", key=KEY) + body
    with unheard() as url, running(config(url)) as gateway:
        await leave(gateway.port, data)
        (record,) = await asyncio.to_thread(gateway.records, 1)
        assert (record["outcome"], record["cost_microusd"]) == ("disconnected", 0)
        assert record["usage"]["prompt_tokens"] == 0
        (tried,) = record["tries"]
        assert tried["failure"] == "cancelled"
        gateway.settled()
        assert gateway.usage("acme").get("prompt_tokens", 0) == 0


@pytest.mark.parametrize("cache", [False, True])
@pytest.mark.parametrize("policy", ["cancel", "drain"])
async def test_who_leaves_while_waiting_for_a_connection_pays_nothing(
    upstream: Upstream, policy: str, *, cache: bool
) -> None:
    async def slow(exchange: Exchange) -> None:
        await asyncio.sleep(1.5)
        await like_openai(exchange)

    upstream.behaviour = slow
    text = json.loads(config(upstream.url, cache={"enabled": cache}))
    text["providers"]["p0"] |= {"max_connections": 1, "on_disconnect": policy}
    with running(json.dumps(text)) as gateway:
        first = asyncio.create_task(once(gateway.port, Ask(chat())))
        while not upstream.received:
            await asyncio.sleep(0.01)
        await leave(gateway.port, post({**LONG, "temperature": 0}))
        assert (await first).status == 200
        records = await asyncio.to_thread(gateway.records, 2)
        (left,) = [one for one in records if one["outcome"] == "disconnected"]
        assert (left["usage"]["prompt_tokens"], left["cost_microusd"]) == (0, 0)
        assert len(upstream.received) == 1


async def test_who_leaves_in_the_middle_of_a_refusal_pays_nothing(upstream: Upstream) -> None:
    async def refuses_slowly(exchange: Exchange) -> None:
        head = b"HTTP/1.1 400 No\r\nContent-Type: application/json\r\nContent-Length: 100\r\n\r\n{"
        await exchange.send(head)
        await exchange.gone()

    upstream.behaviour = refuses_slowly
    with running(config(upstream.url)) as gateway:
        data = post(LONG, "Content-Type: application/json", path="/providers/p0/chat/completions")
        await leave(gateway.port, data)
        (record,) = await asyncio.to_thread(gateway.records, 1)
        assert (record["outcome"], record["cost_microusd"]) == ("disconnected", 0)
        assert record["usage"]["prompt_tokens"] == 0
        (tried,) = record["tries"]
        assert tried["connect_us"] < tried["duration_us"]


async def test_who_leaves_what_was_sent_pays_for_its_prompt(upstream: Upstream) -> None:
    async def hangs(exchange: Exchange) -> None:
        await exchange.gone()

    upstream.behaviour = hangs
    with running(config(upstream.url)) as gateway:
        await leave(gateway.port, post(LONG))
        (record,) = await asyncio.to_thread(gateway.records, 1)
        assert record["usage"]["prompt_tokens"] > 3000
        assert record["usage_source"] == "partial"


async def test_connecting_is_told_where_nothing_was_sent(upstream: Upstream) -> None:
    server = {"timeouts": {"connect": 0.3}}
    with unheard() as url, running(config(url, upstream.url, server=server)) as gateway:
        assert (await once(gateway.port, Ask(chat()))).status == 200
        (record,) = await asyncio.to_thread(gateway.records, 1)
        failed, served = record["tries"]
        assert failed["failure"] == "connect_timeout"
        assert failed["connect_us"] == failed["duration_us"] > 250_000
        assert served["connect_us"] < served["duration_us"]
        assert record["upstream_us"] > 250_000, "it was waited for as well"


async def test_a_clients_own_haste_is_not_its_targets_fault(upstream: Upstream) -> None:
    text = json.loads(config("http://127.0.0.1:1/v1", upstream.url, breaker={"failures": 2}))
    hasty = {"x-sluice-timeout": "0.2"}
    with unheard() as url:
        text["providers"]["p0"]["base_url"] = url
        text["server"] = {"timeouts": {"connect": 1}}
        with running(json.dumps(text)) as gateway:
            for _ in range(4):
                outcome = await once(gateway.port, Ask(chat(), headers=hasty))
                assert outcome.status == 504
            assert (await once(gateway.port, Ask(chat()))).status == 200
            *hurried, record = await asyncio.to_thread(gateway.records, 5)
            assert {one["tries"][0]["failure"] for one in hurried} == {"total_timeout"}
            assert [one["provider"] for one in record["tries"]] == ["p0", "p1"], "it was asked"


async def test_what_is_passed_on_is_waited_for_to_its_end(upstream: Upstream) -> None:
    async def streams(exchange: Exchange) -> None:
        await exchange.start_stream()
        for _ in range(4):
            await exchange.event(delta("word "))
            await asyncio.sleep(0.2)
        await exchange.event("[DONE]")
        await exchange.end_stream()

    upstream.behaviour = streams
    with running(config(upstream.url)) as gateway:
        path = "/providers/p0/chat/completions"
        assert (await once(gateway.port, Ask(chat(stream=True), path))).status == 200
        (record,) = await asyncio.to_thread(gateway.records, 1)
        assert record["first_byte_us"] < record["upstream_us"] <= record["duration_us"]
        assert record["upstream_us"] > 700_000


async def test_a_slower_attempt_took_until_it_was_given_up() -> None:
    async def hangs(exchange: Exchange) -> None:
        await exchange.gone()

    async def streams(exchange: Exchange) -> None:
        await exchange.start_stream()
        for _ in range(8):
            await exchange.event(delta("word "))
            await asyncio.sleep(0.25)
        await exchange.event({**delta(None, "stop"), "usage": usage(10, 8)})
        await exchange.end_stream()

    async with Upstream(behaviour=hangs) as slow, Upstream(behaviour=streams) as fast:
        text = json.loads(config(slow.url, fast.url))
        text["models"]["m"]["hedge"] = {"after": 0.1}
        text["retries"]["budget"] = 1
        with running(json.dumps(text)) as gateway:
            assert (await once(gateway.port, Ask(chat(stream=True)))).status == 200
            (record,) = await asyncio.to_thread(gateway.records, 1)
            ends = {one["provider"]: one for one in record["tries"]}
            assert ends["p0"]["failure"] == "hedged"
            assert ends["p0"]["duration_us"] < ends["p1"]["duration_us"]
            assert ends["p1"]["duration_us"] > 1_800_000
            assert record["upstream_us"] > ends["p1"]["duration_us"], "the first was waited for too"


async def cut(exchange: Exchange) -> None:
    await exchange.start_stream()
    await exchange.event(delta("one two three "))
    exchange.abort()


async def cut_once(exchange: Exchange) -> None:
    """Refuse to go on: then the conversation has the assistant's words."""
    turns = {turn["role"] for turn in exchange.request.json["messages"]}
    await (refuses if "assistant" in turns else cut)(exchange)


async def refuses(exchange: Exchange) -> None:
    await exchange.reply({"error": {"message": "no"}}, 500)


async def goes_on(exchange: Exchange) -> None:
    await exchange.start_stream()
    await exchange.event(delta("four five"))
    await exchange.event({**delta(None, "stop"), "usage": usage(20, 2)})
    await exchange.end_stream()


async def continued(*behaviours: Any, priced: int = 9) -> dict[str, Any]:
    """The record of a stream whose first target is cut; so many of its targets have a price."""
    async with AsyncExitStack() as stack:
        upstreams = [await stack.enter_async_context(Upstream(behaviour=b)) for b in behaviours]
        text = json.loads(config(*[one.url for one in upstreams]))
        text["models"]["m"]["on_stream_failure"] = "continue"
        for number, target in enumerate(text["models"]["m"]["targets"]):
            text["providers"][f"p{number}"]["kind"] = "openai-compatible"
            if number < priced:
                target["price"] = {"input": 10, "output": 10}
        with running(json.dumps(text)) as gateway:
            await once(gateway.port, Ask(chat(stream=True)))
            (record,) = await asyncio.to_thread(gateway.records, 1)
            found: dict[str, Any] = record
            return found


@pytest.mark.parametrize(
    ("behaviours", "times"),
    [
        ((cut, goes_on), 1),
        ((cut, refuses, refuses, goes_on), 1),
        ((cut, cut, goes_on), 2),
        ((cut_once, refuses), 0),
    ],
)
async def test_who_went_on_is_counted_and_not_who_was_asked_to(
    behaviours: tuple[Any, ...], times: int
) -> None:
    assert (await continued(*behaviours))["continued"] == times


async def test_who_leaves_what_was_asked_to_go_on_pays_for_its_prompt() -> None:
    async def hangs(exchange: Exchange) -> None:
        await exchange.gone()

    async with Upstream(behaviour=cut) as first, Upstream(behaviour=hangs) as second:
        text = json.loads(config(first.url, second.url))
        text["models"]["m"]["on_stream_failure"] = "continue"
        with running(json.dumps(text)) as gateway:
            async with connected(gateway.port) as wire:
                await wire.send(post({**LONG, "stream": True}))
                while not second.received:
                    await asyncio.sleep(0.01)
                await asyncio.sleep(0.1)  # for the gateway to know that it has left
            (record,) = await asyncio.to_thread(gateway.records, 1)
            assert (record["outcome"], record["continued"]) == ("disconnected", 0)
            assert record["usage"]["prompt_tokens"] > 2 * 3000
            assert record["usage"]["completion_tokens"] < 10
            assert sum(record["cost"].values()) == record["cost_microusd"]


async def test_a_cost_has_a_price_where_the_rest_has_none() -> None:
    record = await continued(cut, goes_on, priced=1)
    assert record["cost_microusd"] > 0
    assert record["price"] == "config"


def overhead(gateway: Gateway) -> float:
    """How many seconds the metrics tell to be the gateway's own, in sum."""
    lines = gateway.get("/metrics")[1].decode().splitlines()
    sums = [one for one in lines if one.startswith("sluice_gateway_overhead_seconds_sum")]
    return sum(float(one.split()[-1]) for one in sums)


@pytest.mark.parametrize("workers", [1, 2])
@pytest.mark.parametrize("status", [200, 500])
async def test_who_waits_for_anothers_call_waits_for_its_provider(
    upstream: Upstream, workers: int, status: int
) -> None:
    async def slow(exchange: Exchange) -> None:
        await asyncio.sleep(0.5)
        if status == 200:
            await like_openai(exchange)
        else:
            await exchange.reply({"error": {"message": "no"}}, status)

    upstream.behaviour = slow
    with running(config(upstream.url, cache={"enabled": True}), workers=workers) as gateway:
        asks = [once(gateway.port, Ask(chat(temperature=0))) for _ in range(8)]
        await asyncio.gather(leave(gateway.port, post(chat(temperature=0)), 0.3), *asks)
        records = await asyncio.to_thread(gateway.records, 9)
        assert all(one["upstream_us"] > one["duration_us"] * 0.5 for one in records)


async def test_a_body_that_does_not_come_is_not_the_gateways_time(upstream: Upstream) -> None:
    server = {"request_timeout": 1}
    with running(config(upstream.url, server=server)) as gateway:
        async with connected(gateway.port) as wire:
            await wire.send(post(LONG)[:2000])
            assert (await wire.reply()).status == 408
        (record,) = await asyncio.to_thread(gateway.records, 1)
        assert record["duration_us"] > 900_000
        await asyncio.to_thread(gateway.settled)
        assert overhead(gateway) < 1


async def test_a_whole_answer_is_waited_for_until_it_came(upstream: Upstream) -> None:
    async def slow(exchange: Exchange) -> None:
        await asyncio.sleep(0.3)
        await exchange.reply(completion("yes", usage(10, 5)))

    upstream.behaviour = slow
    with running(config(upstream.url)) as gateway:
        await once(gateway.port, Ask(chat()))
        (record,) = await asyncio.to_thread(gateway.records, 1)
        assert 300_000 <= record["upstream_us"] <= record["duration_us"]


async def test_who_waits_for_a_connection_blames_nobody() -> None:
    """Though the target's own total is up meanwhile, and counts for its answer alone."""

    async def slow(exchange: Exchange) -> None:
        await asyncio.sleep(0.7)
        await like_openai(exchange)

    async with Upstream(behaviour=slow) as first, Upstream() as second:
        text = json.loads(config(first.url, second.url, breaker={"failures": 1, "ejection": 60}))
        text["providers"]["p0"] |= {"max_connections": 1, "timeouts": {"total": 1.0}}
        with running(json.dumps(text)) as gateway:
            outcomes = await asyncio.gather(*[once(gateway.port, Ask(chat())) for _ in range(3)])
            assert {one.status for one in outcomes} == {200}
            records = await asyncio.to_thread(gateway.records, 3)
            failures = [t["failure"] for record in records for t in record["tries"]]
            assert sorted(failures) == ["", "", "", "busy", "busy"]
            first.behaviour = like_openai
            again = await once(gateway.port, Ask(chat()))
            assert again.headers["x-sluice-provider"] == "p0"


def passed_through(path: str) -> bytes:
    """A long request under `/providers/`."""
    body = json.dumps({**LONG, "model": "gpt-4o-mini"}).encode()
    lines = "Content-Type: application/json", f"Content-Length: {len(body)}"
    return head_of(*lines, path=f"/providers/p0/{path}", key=KEY) + body


@pytest.mark.parametrize("stops", [False, True])
async def test_counting_costs_nothing_however_it_ends(stops: bool) -> None:
    async def hangs(exchange: Exchange) -> None:
        await exchange.gone()

    async with Upstream(behaviour=hangs) as upstream:
        text = config(upstream.url, server={"drain": {"lame_duck": 0, "grace": 0.3}})
        with running(text) as gateway:
            async with connected(gateway.port) as wire:
                await wire.send(passed_through("messages/count_tokens"))
                while not upstream.received:
                    await asyncio.sleep(0.01)
                if stops:
                    gateway.process.terminate()
                    assert (await wire.reply()).status == 503
            (record,) = await asyncio.to_thread(gateway.records, 1)
            assert record["status"] == (503 if stops else 499)
            assert (record["usage"]["prompt_tokens"], record["cost_microusd"]) == (0, 0)


async def test_a_stop_while_a_body_is_on_its_way_is_not_its_client_leaving(
    upstream: Upstream,
) -> None:
    text = config(upstream.url, server={"drain": {"lame_duck": 0, "grace": 0.3}})
    with running(text) as gateway:
        async with connected(gateway.port) as wire:
            await wire.send(passed_through("chat/completions")[:-10])
            await asyncio.sleep(0.4)
            gateway.process.terminate()
            reply = await wire.reply()
        assert (reply.status, reply.json["error"]["code"]) == (503, "overloaded")
        (record,) = await asyncio.to_thread(gateway.records, 1)
        told = record["outcome"], record["status"], record["error"]
        assert told == ("refused", 503, "overloaded")


@pytest.mark.parametrize("hedge", [None, {"after": 5}])
async def test_who_leaves_what_goes_on_elsewhere_leaves_that_provider(hedge: Any) -> None:
    async def cut(exchange: Exchange) -> None:
        await exchange.start_stream()
        await exchange.event(delta("one "))
        await asyncio.sleep(0.1)  # or a reset overtakes it
        exchange.abort()

    async def goes_on(exchange: Exchange) -> None:
        await exchange.start_stream()
        for _ in range(30):
            await exchange.event(delta("w "))
            await asyncio.sleep(0.03)
        await exchange.event({**delta(None, "stop"), "usage": usage(100, 50)})
        await exchange.event("[DONE]")
        await exchange.end_stream()

    async with Upstream(behaviour=cut) as first, Upstream(behaviour=goes_on) as second:
        text = json.loads(config(first.url, second.url))
        text["models"]["m"] |= {"on_stream_failure": "continue", "hedge": hedge}
        text["providers"]["p1"]["on_disconnect"] = "drain"
        with running(json.dumps(text)) as gateway:
            async with Client(gateway.port) as client:
                await client.send(Ask(chat(stream=True)))
                while not second.received:
                    await asyncio.sleep(0.01)
                await asyncio.sleep(0.2)
                client.cut()
            (record,) = await asyncio.to_thread(gateway.records, 1)
            assert [t["failure"] for t in record["tries"]] == ["reset", ""]
            assert record["usage"]["completion_tokens"] > 50


@pytest.mark.parametrize("leaves", [False, True])
async def test_who_stays_is_told_what_happened_whoever_left(leaves: bool) -> None:
    async def cut(exchange: Exchange) -> None:
        await exchange.start_stream()
        for number in range(20):
            await exchange.event(delta(f"w{number} "))
            await asyncio.sleep(0.05)
        exchange.abort()

    async with Upstream(behaviour=cut) as upstream:
        with running(config(upstream.url, cache={"enabled": True})) as gateway:
            asked = Ask(chat(temperature=0, stream=True))
            async with Client(gateway.port) as client:
                await client.send(asked)
                while not upstream.received:
                    await asyncio.sleep(0.01)
                second = asyncio.create_task(once(gateway.port, asked))
                await asyncio.sleep(0.3)
                if leaves:
                    client.cut()
                outcome = await second
            assert b"stream_interrupted" in outcome.body
            records = await asyncio.to_thread(gateway.records, 2)
            (shared,) = [one for one in records if one["cache"] == "coalesced"]
            assert (shared["outcome"], shared["status"]) == ("error", 502)
