"""The tier in memory: bounded, newest used first, and gone when its time has come."""

import asyncio
import os

import msgspec
import psutil
import pytest

from gateway.core.messages import STOP, Reply, Text
from gateway.core.record import FREE
from gateway.core.usage import Usage
from gateway.pipeline.replay import Entry
from gateway.store import scripts
from gateway.store.answers import Answer, place, seal, split, unseal
from gateway.store.connection import pack
from gateway.store.memory import MemoryTier
from gateway.store.packed import Packing

MEBIBYTE = 1024 * 1024


class Clock:
    """Seconds that a test sets."""

    now = 1000.0

    def __call__(self) -> float:
        return self.now


class Value:
    """Something of a size."""

    def __init__(self, size: int, until: float = float("inf")) -> None:
        self.size, self.until = size, until


def answer(text: str = "hello", **changes: object) -> Answer:
    fields: dict[str, object] = {
        "form": "chat",
        "body": text.encode(),
        "content_type": "application/json",
        "reply": split(Reply(id="r", model="gpt", parts=(Text(text),), finish=STOP))[0],
        "logprobs": (),
        "provider": "p",
        "model": "gpt",
        "usage": Usage(7, 0, 0, 5),
        "cost": FREE,
        "cost_microusd": 9,
        "price": "v",
        "dropped": (),
        "created": 1,
        "ttl_ms": 60_000,
        "kept_ms": 90_000,
    }
    return Answer(**{**fields, **changes})  # type: ignore[arg-type]


def test_the_least_used_makes_room() -> None:
    tier = MemoryTier(1000, 100, Clock())
    for name in "abcd":
        assert tier.put(name, Value(250))
    assert tier.peek("a") is not None
    tier.put("e", Value(100))
    assert [name for name in "abcde" if tier.peek(name)] == ["a", "c", "d", "e"]
    assert tier.bytes == 850
    assert not tier.put("f", Value(251)), "it would take too much of the room alone"
    a = tier.peek("a")
    tier.grown("a", a, 200)
    assert tier.bytes <= 1000
    tier.grown("gone", a, 10_000)
    assert tier.bytes <= 1000
    for name in "xyz":
        tier.put(name, Value(0))
    few = MemoryTier(10**9, 3, Clock())
    for number in range(10):
        few.put(str(number), Value(1))
    assert (len(few), few.bytes) == (3, 3)


def test_time_passes_by_the_clock_it_was_given() -> None:
    clock = Clock()
    tier = MemoryTier(10_000_000, 100, clock)
    entry = Entry("a", answer(), 30.0, clock.now)
    tier.put("a", entry)
    assert (entry.age(clock.now), entry.is_fresh(clock.now, None)) == (30, True)
    assert entry.is_fresh(clock.now, 30)
    assert not entry.is_fresh(clock.now, 29)
    clock.now += 30
    assert not entry.is_fresh(clock.now, None), "its time is over, though it is still kept"
    assert tier.peek("a") is entry
    clock.now += 30
    assert tier.peek("a") is None
    assert (len(tier), tier.bytes) == (0, 0)


async def test_it_is_a_cache_of_aiocaches_kind() -> None:
    tier = MemoryTier(1000, 100, asyncio.get_running_loop().time)
    value = Value(10)
    assert await tier.set("a", value, ttl=60)
    assert await tier.get("a") is value
    assert await tier.exists("a")
    assert await tier.multi_get(["a", "b"]) == [value, None]
    assert await tier.delete("a") == 1
    assert await tier.get("a") is None
    await tier.set("b", Value(1), ttl=0)
    assert await tier.get("b") is None
    await tier.set("c", Value(1))
    await tier.clear()
    assert len(tier) == 0


def test_a_million_answers_stay_inside_the_bound() -> None:
    clock = Clock()
    tier = MemoryTier(16 * MEBIBYTE, 1_000_000, clock)
    process = psutil.Process(os.getpid())
    kept = answer("x" * 500)
    for number in range(20_000):
        tier.put(f"{number:040x}", Entry(f"{number:040x}", kept, 0.0, clock.now))
    full = process.memory_info().rss
    size = Entry("a", kept, 0.0, clock.now).size
    for number in range(20_000, 1_000_000):
        value = Value(size)
        tier.put(f"{number:040x}", value)
    assert tier.bytes <= 16 * MEBIBYTE
    assert len(tier) <= 16 * MEBIBYTE // size
    assert process.memory_info().rss - full < 16 * MEBIBYTE


WHERE = place(b"form", "acme", "", "m", "k")


def test_a_sealed_answer_opens_at_its_place_alone() -> None:
    packing = Packing(100)
    for text in ("short", "long " * 1000):
        kept = answer(text)
        sealed = seal(packing.dumps(kept), WHERE)
        assert text.encode()[:5] not in sealed
        assert packing.loads(unseal(sealed, WHERE)) == kept
        assert len(sealed) < 2000
        assert seal(packing.dumps(kept), WHERE) != sealed, "no nonce serves twice"
        elsewhere = place(b"form2", "acme", "", "m", "k")
        renamed = msgspec.structs.replace(WHERE, name=elsewhere.name)
        for wrong in (elsewhere, renamed):
            with pytest.raises(ValueError, match="damaged"):
                unseal(sealed, wrong)


def test_no_damage_is_believed() -> None:
    packing = Packing(100)
    sealed = seal(packing.dumps(answer("long " * 100)), WHERE)
    for place_of_damage in range(len(sealed)):
        damaged = bytearray(sealed)
        damaged[place_of_damage] ^= 1
        with pytest.raises(ValueError, match=r"damaged|version"):
            unseal(bytes(damaged), WHERE)
        with pytest.raises(ValueError, match=r"damaged|version"):
            unseal(sealed[:place_of_damage], WHERE)
    for nonsense in (b"", b"\x00", b"\x01junk", b"\x00\xc1", b"\x01", b"\x07abc"):
        with pytest.raises(ValueError, match=r"."):
            packing.loads(nonsense)


def test_names_tell_nothing_and_differ_by_tenant() -> None:
    assert WHERE.name == place(b"form", "globex", "", "m", "k").name
    assert WHERE.keys[0] == f"sluice:cache:{{acme}}:{WHERE.name}"
    assert "form" not in WHERE.name
    assert WHERE.entry == f"{WHERE.name} - m k"
    spaced = place(b"form", "acme", "team", "a b/c:d", "key 1")
    assert spaced.entry == f"{WHERE.name} team a%20b/c:d key%201"


def test_a_look_into_redis_is_the_command_that_any_client_would_send() -> None:
    script, args = scripts.CACHE_FIND, (b"", b"3000", b"0")
    told = script.beginning(keys=2, args=3) + WHERE.packed + b"".join(map(scripts.bulk, args))
    assert told == pack(("EVALSHA", script.sha, 2, *WHERE.keys, *args))


def test_all_of_an_answer_counts() -> None:
    plain = Entry("a", answer(), 0.0, 0.0).size
    assert Entry("a", answer(logprobs=("x" * 1000, "y" * 500)), 0.0, 0.0).size == plain + 1500
