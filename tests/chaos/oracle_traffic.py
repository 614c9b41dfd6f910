"""Random traffic of a seed: a configuration with limits and prices, requests, and what meets them.

Every figure a provider tells stays within what is reserved for its request, so that a budget may
not be exceeded by a micro-dollar.
"""

import asyncio
import json
import random
import time
from dataclasses import dataclass, field
from fractions import Fraction
from typing import Any

from tests.chaos.oracle_answers import Figures
from tests.chaos.oracle_upstream import Providers, Step
from tests.support.config import digest
from tests.support.load import Ask, Client

LEASE_SECONDS = 3
HANG_SECONDS = 60.0
# What is reserved for an answer that names no maximum, and at the most for a stream's first slice.
SLICE_TOKENS = 1024
WORD_TOKENS = 14  # at least what a word of an answer has, by our own count
SHARED = "shared"
LEFT = "left"
# USD a million tokens of input, cached, cache writes, output; USD a request.
PRICES = {
    ("openai", "gpt"): ("1.1", "0.3", "1.7", "4.3", "0"),
    ("other", "llama"): ("0.7", "0.7", "0.7", "2.9", "0.0001"),
    ("anthropic", "claude"): ("3", "0.3", "3.75", "15", "0"),
    ("google", "gemini"): ("0.33", "0.07", "0.33", "1.77", "0"),
    ("aws", "nova"): ("2.2", "0.2", "2.9", "9.1", "0"),
    ("own", "o9"): ("5.5", "1.25", "5.5", "21", "0.00001"),
}
DEFAULT = ("2.5", "0.5", "3.5", "7.5", "0.00002")  # of what has no price: passed on as it is
UNLIMITED = "free"


@dataclass
class Asked:
    """One request, and what its client had. Monotonic seconds."""

    trace: str
    name: str
    tenant: str
    key: str
    model: str
    ask: Ask
    starts: float  # after the traffic's beginning
    leaves: float | int | None = None  # after so many seconds, or words of a stream
    follows: bool = False  # another request asks the same
    status: int = 0
    headers: dict[str, str] = field(default_factory=dict)
    body: bytes = b""
    failure: str = ""
    sent: bool = False

    @property
    def stream(self) -> bool:
        """Tell whether a stream was asked for."""
        return "stream" in self.ask.path or bool(self.ask.body.get("stream"))

    def __str__(self) -> str:
        what = f"{self.ask.path} {self.model} of {self.key} stream={self.stream}"
        return f"{what} leaves={self.leaves} status={self.status} failure={self.failure!r}"


def cost_of(price: tuple[str, ...], usage: dict[str, int]) -> int:
    """What tokens cost in micro-dollars, rounded once."""
    inp, cached, written, out, request = map(Fraction, price)
    plain = usage["prompt_tokens"] - usage["cached_tokens"] - usage["cache_write_tokens"]
    exact = plain * inp + usage["cached_tokens"] * cached + usage["cache_write_tokens"] * written
    exact += usage["completion_tokens"] * out + request * 1_000_000
    return int(exact + Fraction(1, 2))


class Traffic:
    """What a seed makes."""

    def __init__(self, seed: int, count: int, seconds: float) -> None:
        self.seed, self.dice = seed, random.Random(seed)
        self.count, self.seconds = count, seconds
        self.providers = Providers()
        self.bill = self.dice.choice(["leader", "split", "each"])
        self.tenants: dict[str, dict[str, Any]] = {UNLIMITED: {}, "t1": self._limits()}
        self.tenants["t2"] = {**self._limits(), "per_model": {"c*": self._limits()}}
        self.keys = {f"{name}-{n}": name for name in self.tenants for n in range(2)}
        self._shared: list[Asked] = []
        self.asked: list[Asked] = []
        self.took = 0.0

    # -- the configuration -------------------------------------------------------------------

    def _limits(self) -> dict[str, Any]:
        dice, found = self.dice, dict[str, Any]()
        if dice.random() < 0.3:
            found |= {"rpm": dice.choice([60, 300]), "burst": dice.choice([20, 60])}
        if dice.random() < 0.3:
            found["tpm"] = dice.choice([20_000, 200_000])
        if dice.random() < 0.4:
            found["concurrency"] = dice.choice([2, 4, 8])
        if dice.random() < 0.6:
            usd = dice.choice(["0.02", "0.2", "5"])
            periods = dice.sample(["day", "month", "total", "90m"], dice.choice([1, 2]))
            found["budget"] = [{"usd": usd, "per": per} for per in periods]
        return found

    def config(self, url: str, directory: str) -> str:
        """The configuration, for providers at a URL."""
        base = url.removesuffix("/v1")
        drains = {"on_disconnect": "drain"} if self.dice.random() < 0.3 else {}

        def provider(kind: str, name: str, path: str = "/v1", **more: Any) -> dict[str, Any]:
            place = {"kind": kind, "base_url": f"{base}/{name}{path}", "api_key": f"sk-of-{name}"}
            return {**place, **more, **drains}

        keys = [
            {"name": name, "tenant": tenant, "sha256": digest(f"sk-{name}")}
            for name, tenant in self.keys.items()
        ]
        return json.dumps(
            {
                "auth": {"keys": keys},
                "tenants": self.tenants,
                "limits": {"lease": LEASE_SECONDS},
                "pricing": {"default": _price(DEFAULT)},
                "providers": {
                    "openai": provider("openai", "openai"),
                    "other": provider("openai-compatible", "other"),
                    "anthropic": provider("anthropic", "anthropic"),
                    "google": provider("gemini", "google", "/v1beta"),
                    "aws": provider("bedrock", "aws", "", region="us-east-1"),
                    "own": provider("openai", "own", api="responses"),
                },
                "models": self._models(),
                "unsupported": "drop",
                "retries": {"attempts": self.dice.choice([0, 1]), "backoff": 0.02},
                "breaker": {"failures": 1000, "minimum": 10_000, "longest": 0.01},
                "ledger": {"directory": directory},
                "server": {"drain": {"lame_duck": 0, "grace": 20}},
            }
        )

    def _models(self) -> dict[str, Any]:
        places = {name: (model, _price(price)) for (name, model), price in PRICES.items()}
        caching = {"enabled": True, "requests": "all", "coalesce": "all", "bill": self.bill}

        def through(*names: str, **more: Any) -> dict[str, Any]:
            targets = []
            for priority, name in enumerate(names, 1):
                model, price = places[name]
                target = {"provider": name, "model": model, "price": price, "priority": priority}
                targets.append(target)
            return {"targets": targets, **more}

        return {
            "chat": through("openai", "other"),
            "claude": through("anthropic", "other"),
            "gemini": through("google", "openai"),
            "nova": through("aws", "other"),
            "own": through("own", "openai"),
            "continued": through("openai", "other", "anthropic", on_stream_failure="continue"),
            "hedged": through("openai", "other", hedge={"after": 0.08}),
            SHARED: through("openai", "anthropic", cache=caching),
        }

    # -- requests ----------------------------------------------------------------------------

    def make(self) -> None:
        """Make all requests, and the script of what becomes of each."""
        self.asked = [self._request(number) for number in range(self.count)]

    def _request(self, number: int) -> Asked:
        dice = self.dice
        model = dice.choice(["chat", "claude", "gemini", "nova", "own", "continued", "hedged"])
        if (kind := dice.random()) < 0.15:
            model = SHARED
        elif kind < 0.3:
            model = "passed on"
        key = dice.choice(list(self.keys))
        trace = f"{self.seed & 0xFFFF:04x}{number:06x}{'a' * 22}"
        name = f"Q{(self.seed * 100_003 + number) & 0xFFFFFFFF:08x}Z"
        most = dice.choice([None, 60, 300, 3000])
        stream = dice.random() < 0.6
        first = dice.choice(self._shared) if model == SHARED and self._shared else None
        if first is not None and dice.random() < 0.6:
            name, stream = first.name, first.stream
        else:
            first = None
        dialect = dice.choice(["chat", "messages"])
        if model not in (SHARED, "passed on"):
            dialect = dice.choice(["chat", "messages", "responses"])
        path, body = self._body(dialect, model, name, 300 if model == SHARED else most)
        if stream:
            body["stream"] = True
        headers = {"traceparent": f"00-{trace}-{'b' * 16}-01"}
        ask = Ask(body, path, f"sk-{key}", headers=headers)
        starts = dice.uniform(0, self.seconds)
        one = Asked(trace, name, self.keys[key], key, model, ask, starts, follows=first is not None)
        if first is None:
            limit = SLICE_TOKENS if stream else most or SLICE_TOKENS
            fitting = min(most or SLICE_TOKENS, limit)
            self.providers.scripts[name] = self._script(300 if model == SHARED else fitting)
        leaving = dice.random()
        if leaving < 0.1:
            one.leaves = dice.choice([0.002, 0.01, 0.05, 0.15])
        elif leaving < 0.2 and stream:
            one.leaves = dice.choice([1, 2, 3, 6])
        if model == SHARED and first is None:
            self._shared.append(one)
        return one

    def _body(
        self, dialect: str, model: str, name: str, most: int | None
    ) -> tuple[str, dict[str, Any]]:
        passed_on = model == "passed on"
        text = f"{name} says " + "this " * (4 if model == SHARED else self.dice.choice([4, 60]))
        body: dict[str, Any] = {"model": "unpriced" if passed_on else model, "temperature": 0}
        limit = {} if most is None else {"max_tokens": most}
        if dialect == "responses":
            limit = {} if most is None else {"max_output_tokens": most}
            return "/v1/responses", {**body, "input": text, "store": False, **limit}
        body["messages"] = [{"role": "user", "content": text}]
        if dialect == "messages":
            path = "/providers/anthropic/v1/messages" if passed_on else "/v1/messages"
            return path, {**body, "max_tokens": SLICE_TOKENS, **limit}
        path = "/providers/openai/v1/chat/completions" if passed_on else "/v1/chat/completions"
        return path, {**body, **limit}

    def _script(self, most: int) -> list[Step]:
        """What becomes of a request's attempts; the last one goes well, as do all that follow."""
        dice = self.dice
        failures = [self._failure(most) for _ in range(dice.choices([0, 1, 2, 4], [6, 2, 1, 1])[0])]
        return [*failures, self._answer(most)]

    def _failure(self, most: int) -> Step:
        dice, step = self.dice, self._answer(most)
        kind = dice.choice(["refuse", "refuse", "hang up", "cut", "cut"])
        status = dice.choice([429, 500, 503, 408])
        cut_at = dice.randrange(step.words)
        return Step(kind, step.words, step.figures, status, cut_at, step.delay, step.gap)

    def _answer(self, most: int) -> Step:
        dice = self.dice
        words = max(1, min(dice.choice([1, 2, 5, 12, 20]), most // WORD_TOKENS))
        prompt = dice.randint(1, 8)
        cached = dice.choice([0, dice.randint(0, prompt)])
        written = dice.choice([0, dice.randint(0, prompt - cached)])
        completion = dice.randint(1, most)
        reasoning = dice.choice([0, dice.randint(0, completion)])
        figures = Figures(prompt, completion, cached, written, reasoning)
        delay, gap = dice.choice([0, 0, 0.02, 0.15]), dice.choice([0, 0, 0.003, 0.02])
        told = None if dice.random() < 0.15 else figures
        return Step(words=words, figures=told, delay=delay, gap=gap)

    # -- clients -----------------------------------------------------------------------------

    async def run(self, port: int) -> None:
        """Send every request at its time; each on a connection of its own."""
        begun = time.monotonic()
        async with asyncio.TaskGroup() as group:
            for one in self.asked:
                group.create_task(_send(one, port))
        self.took = time.monotonic() - begun


async def _send(one: Asked, port: int) -> None:
    await asyncio.sleep(one.starts)
    client = Client(port)
    try:
        async with asyncio.timeout(HANG_SECONDS):
            await client.send(one.ask)
            one.sent = True
            if isinstance(one.leaves, float):
                await asyncio.sleep(one.leaves)
                one.failure = LEFT
            else:
                await client.read_head()
                one.status, one.headers = client.status, client.headers
                await _read(one, client)
    except (OSError, EOFError, TimeoutError) as error:
        one.failure = f"{type(error).__name__}: {error}"
    one.body = client.arrived
    client.cut()


async def _read(one: Asked, client: Client) -> None:
    chunked = one.headers.get("transfer-encoding") == "chunked"
    if one.leaves is None or one.status != 200 or not chunked:
        await client.read_body()
        return
    while client.arrived.count(b"Zw") < one.leaves:
        if not await client.read_chunk():
            return
    one.failure = LEFT


def _price(price: tuple[str, ...]) -> dict[str, str]:
    return dict(
        zip(("input", "cached", "cache_write", "output", "per_request"), price, strict=True)
    )
