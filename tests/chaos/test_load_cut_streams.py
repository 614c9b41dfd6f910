"""Streams cut anywhere: whole from the next target, or an exact prefix and then an error."""

import asyncio
import json
import random
import re
from collections import Counter
from dataclasses import dataclass
from typing import Any

import pytest

from tests.support.config import PRICED_MODEL, config
from tests.support.gateway import Gateway, running
from tests.support.load import Ask, Outcome, flood
from tests.support.soak import sized
from tests.support.upstream import Exchange, Upstream, delta, usage

STREAMS = sized(100, 1000)  # of each of the six cases
CONNECTIONS = 32
SERVED = "claude-sonnet-4-5"
SYLLABLES = [
    "a",
    "lo",
    "né",
    "ß",
    "日本",
    "🙂",
    "\\n",
    '"',
    " ",
    "data: ",
    "[DONE]",
    "\u2028",
    "\t",
]
ENDS = ("reset", "close", "inside a chunk", "a proper end of half a body")
PREFIX, TOO_EARLY = "a prefix and an error", "an error before any text"
FROM_SECOND = "whole, from the second target"
NUMBER = re.compile(r"number (\d+)\.")


@dataclass(frozen=True)
class Plan:
    """What the first target does with request `number`: it sends `sent` of the events, and ends."""

    number: int
    dialect: str
    events: tuple[bytes, ...]
    texts: tuple[str, ...]  # of each event
    cut: int  # bytes
    end: str
    framed: bool

    @property
    def complete(self) -> str:
        """The text of the events that were sent whole."""
        size, text = 0, ""
        for event, said in zip(self.events, self.texts, strict=True):
            size += len(event)
            text += said if size <= self.cut else ""
        return text


def texts_of(number: int, target: int) -> list[str]:
    """What a target writes for a request: no two write the same."""
    rng = random.Random(f"{number} of {target}")
    many = rng.randrange(3, 30)
    some = ["".join(rng.choices(SYLLABLES, k=rng.randrange(1, 5))) for _ in range(many)]
    return [f"{target}:{number}:", *some]


def chat_events(texts: list[str]) -> list[tuple[Any, str]]:
    role = delta(None)
    role["choices"][0]["delta"] = {"role": "assistant", "content": ""}
    ends: list[Any] = [delta(None, "stop"), {**delta(None), "choices": [], "usage": usage(7, 9)}]
    said = [(delta(text), text) for text in texts]
    return [(role, ""), *said, *((one, "") for one in ends), ("[DONE]", "")]


def messages_events(texts: list[str]) -> list[tuple[Any, str]]:
    message: dict[str, Any] = {
        "id": "msg_1",
        "type": "message",
        "role": "assistant",
        "model": SERVED,
        "content": [],
        "stop_reason": None,
        "stop_sequence": None,
        "usage": {"input_tokens": 7, "output_tokens": 1},
    }
    block = {"type": "text", "text": ""}
    begins = [
        {"type": "message_start", "message": message},
        {"type": "content_block_start", "index": 0, "content_block": block},
        {"type": "ping"},
    ]
    ends = [
        {"type": "content_block_stop", "index": 0},
        {
            "type": "message_delta",
            "delta": {"stop_reason": "end_turn", "stop_sequence": None},
            "usage": {"output_tokens": 9},
        },
        {"type": "message_stop"},
    ]
    said = [
        (
            {
                "type": "content_block_delta",
                "index": 0,
                "delta": {"type": "text_delta", "text": text},
            },
            text,
        )
        for text in texts
    ]
    return [*((one, "") for one in begins), *said, *((one, "") for one in ends)]


def encoded(event: Any, ascii_only: bool) -> bytes:
    if isinstance(event, str):
        return f"data: {event}\n\n".encode()
    name = f"event: {event['type']}\n" if "type" in event else ""
    return f"{name}data: {json.dumps(event, ensure_ascii=ascii_only)}\n\n".encode()


def planned(number: int, target: int, path: str) -> Plan:
    rng = random.Random(f"cut {number}")
    dialect = "messages" if path.endswith("/messages") else "chat"
    pairs = (messages_events if dialect == "messages" else chat_events)(texts_of(number, target))
    ascii_only = rng.random() < 0.5
    events = tuple(encoded(event, ascii_only) for event, _ in pairs)
    size = sum(map(len, events))
    begin = sum(map(len, events[: next(i for i, (_, text) in enumerate(pairs) if text)]))
    cut = rng.randrange(size)
    if rng.random() < 0.2:  # more of those before the first content than chance would have
        cut = rng.randrange(begin + 20)
    end = rng.choice(ENDS)
    framed = end in ENDS[2:] or rng.random() < 0.7
    texts = tuple(text for _, text in pairs)
    return Plan(number, dialect, events, texts, cut, end, framed)


async def send(exchange: Exchange, plan: Plan, upto: int) -> None:
    """Send the head and so many bytes of the body, in pieces that respect no event."""
    rng = random.Random(plan.number)
    body = b"".join(plan.events)[:upto]
    if plan.framed:
        await exchange.start_stream()
    else:
        await exchange.send(b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\n\r\n")
    while body:
        size = rng.choice((1, 7, 60, 400, 4000))
        await (exchange.chunk if plan.framed else exchange.send)(body[:size])
        body = body[size:]
        if rng.random() < 0.3:
            await asyncio.sleep(0.001)


async def first(exchange: Exchange) -> None:
    """The first target: cut as planned."""
    plan = planned(number_of(exchange), 0, exchange.request.path)
    await send(exchange, plan, plan.cut)
    if plan.end == "reset":
        exchange.abort()
    elif plan.end == "inside a chunk":
        await exchange.send(b"100\r\n")
    elif plan.end == ENDS[3]:
        await exchange.end_stream()
    exchange.keep_alive = False


async def second(exchange: Exchange) -> None:
    """The second target: whole."""
    plan = planned(number_of(exchange), 1, exchange.request.path)
    await send(exchange, plan, sum(map(len, plan.events)))
    if plan.framed:
        await exchange.end_stream()
    exchange.keep_alive = plan.framed


def number_of(exchange: Exchange) -> int:
    found = NUMBER.search(exchange.request.body.decode())
    assert found
    return int(found[1])


def asking(number: int, dialect: str, model: str) -> Ask:
    body = {
        "model": model,
        "stream": True,
        "messages": [{"role": "user", "content": f"number {number}."}],
    }
    if dialect == "messages":
        return Ask({**body, "max_tokens": 500}, path="/v1/messages")
    return Ask(body)


@dataclass(frozen=True)
class Seen:
    """A stream as its client reads it."""

    text: str
    ended: bool
    error: bool


def seen(outcome: Outcome) -> Seen:
    text, ended, error = "", False, False
    for block in outcome.body.decode().split("\n\n"):
        data = [line[6:] for line in block.split("\n") if line.startswith("data: ")]
        if not data:
            continue
        if data == ["[DONE]"]:
            ended = True
            continue
        event = json.loads(data[0])
        assert not ended, "something follows the end"
        assert not error, "something follows the error"
        error = error or "error" in event
        ended = ended or event.get("type") == "message_stop"
        if event.get("type") == "content_block_delta":
            text += event["delta"]["text"]
        for choice in event.get("choices", []):
            text += choice["delta"].get("content") or ""
    return Seen(text, ended, error)


def judge(number: int, outcome: Outcome, asked_second: bool) -> str:
    """What became of a stream; what should never be begins with WRONG."""
    if outcome.failure or outcome.status != 200:
        return f"WRONG: {outcome.status} {outcome.failure}"
    stream, provider = seen(outcome), outcome.headers["x-sluice-provider"]
    target = int(provider[-1])
    path = "/messages" if "anthropic" in provider else "/chat/completions"
    plan = planned(number, target, path)
    whole = "".join(plan.texts)
    if stream.ended and stream.error:
        return "WRONG: ended and failed"
    if stream.ended:
        if stream.text != whole:
            return "WRONG: a clean-looking truncation"
        return FROM_SECOND if target else "whole, from the first target"
    if not stream.error:
        return "WRONG: neither an end nor an error"
    if target or asked_second:
        return "WRONG: an error though the second target was asked"
    if not whole.startswith(stream.text):
        return "WRONG: not a prefix"
    # A reset may overtake what was sent before it. Of an event that lacks only its blank line all
    # is there, and it may be delivered.
    if plan.end != "reset" and not stream.text.startswith(plan.complete):
        return "WRONG: less than the provider sent"
    return PREFIX if stream.text else TOO_EARLY


@pytest.mark.parametrize("model", ["openai", "anthropic", "mixed"])
@pytest.mark.parametrize("dialect", ["chat", "messages"])
async def test_streams_cut_anywhere_are_whole_or_an_exact_prefix_with_an_error(
    dialect: str, model: str
) -> None:
    async with Upstream(behaviour=first) as one, Upstream(behaviour=second) as other:
        with running(configured(one, other)) as gateway:
            asks = [asking(number, dialect, model) for number in range(STREAMS)]
            numbers = {id(ask): number for number, ask in enumerate(asks)}
            outcomes = await flood(gateway.port, asks, CONNECTIONS)
            asked = {int(NUMBER.findall(r.body.decode())[0]) for r in other.received}
            verdicts = Counter[str]()
            for outcome in outcomes:
                number = numbers[id(outcome.ask)]
                verdict = judge(number, outcome, number in asked)
                verdicts[verdict] += 1
                if verdict.startswith("WRONG"):
                    print(verdict, planned(number, 0, outcome.ask.path), outcome.body)
            print(f"{dialect} of {model}: {dict(verdicts)}")
            assert [one for one in verdicts if one.startswith("WRONG")] == []
            assert verdicts.total() == STREAMS
            assert {PREFIX, FROM_SECOND} <= set(verdicts)
            check_accounts(gateway, verdicts)


@pytest.mark.parametrize("dialect", ["chat", "messages"])
async def test_a_stream_cut_before_its_text_goes_to_the_next_target(dialect: str) -> None:
    model = {"chat": "openai", "messages": "anthropic"}[dialect]

    async def begins(exchange: Exchange) -> None:
        plan = planned(number_of(exchange), 0, exchange.request.path)
        size = sum(map(len, plan.events[: plan.texts.index(next(filter(None, plan.texts)))]))
        await send(exchange, plan, size)
        exchange.keep_alive = False

    async with Upstream(behaviour=begins) as one, Upstream(behaviour=second) as other:
        with running(configured(one, other)) as gateway:
            asks = [asking(number, dialect, model) for number in range(20)]
            outcomes = await flood(gateway.port, asks, 4)
            verdicts = Counter(seen(outcome) for outcome in outcomes)
            assert {stream.error for stream in verdicts} == {False}
            assert len(other.received) == 20


def configured(one: Upstream, other: Upstream) -> str:
    providers = {
        f"{kind}{place}": {"kind": kind, "api_key": "sk-upstream", "base_url": upstream.url}
        for kind in ("openai", "anthropic")
        for place, upstream in enumerate((one, other))
    }
    named = {"openai": PRICED_MODEL, "anthropic": SERVED}
    pairs = {
        "openai": ("openai", "openai"),
        "anthropic": ("anthropic", "anthropic"),
        "mixed": ("anthropic", "openai"),
    }
    models = {
        name: {
            "targets": [
                {"provider": f"{kind}{place}", "model": named[kind], "priority": place + 1}
                for place, kind in enumerate(kinds)
            ]
        }
        for name, kinds in pairs.items()
    }
    return config(providers=providers, models=models)


def check_accounts(gateway: Gateway, verdicts: Counter[str]) -> None:
    """Every stream is counted once, and as what it was."""
    gateway.settled()
    assert gateway.usage("acme")["requests"] == STREAMS
    records = gateway.records(STREAMS)
    outcomes = Counter(record["outcome"] for record in records)
    assert outcomes["error"] == verdicts[PREFIX] + verdicts[TOO_EARLY]
    assert outcomes["ok"] == STREAMS - outcomes["error"]
