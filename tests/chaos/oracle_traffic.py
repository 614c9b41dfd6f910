"""Random traffic of a seed: a configuration with limits and prices, requests, and what meets them.

Every figure a provider tells stays within what is reserved for its request, so that a budget may
not be exceeded by a micro-dollar.
"""

import asyncio
import json
import random
import signal
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from fractions import Fraction
from typing import Any

from tests.chaos.oracle_answers import Figures
from tests.chaos.oracle_limits import Limits, some, with_models
from tests.chaos.oracle_upstream import COPIES, Providers, Step
from tests.support.admin import ADMIN_KEY, admin, make
from tests.support.config import digest
from tests.support.gateway import Gateway
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
    ("openai", "e5"): ("0.13", "0.13", "0.13", "0", "0"),
    ("own", "o9"): ("5.5", "1.25", "5.5", "21", "0.00001"),
}
DEFAULT = ("2.5", "0.5", "3.5", "7.5", "0.00002")  # of what has no price: passed on as it is
UNLIMITED = "free"
MODELS = (
    *("chat", "claude", "gemini", "nova", "own", "continued", "hedged"),
    *("legacy", "embed"),
)
# What is done to a virtual key while there is traffic: where, and with what.
CHANGES = {
    "revoke": ("revoke", None),
    "rotate": ("rotate", {"grace_seconds": 0}),
    "rotate with grace": ("rotate", {"grace_seconds": 60}),
}


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
    place: float  # which of several gateways is asked, of 1
    leaves: float | int | None = None  # after so many seconds, or words of a stream
    follows: bool = False  # another request asks the same
    status: int = 0
    headers: dict[str, str] = field(default_factory=dict)
    body: bytes = b""
    failure: str = ""
    sent: bool = False
    sent_at: float = 0.0

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

    def __init__(self, seed: int, count: int, seconds: float, *, clustered: bool = False) -> None:
        self.seed, self.dice = seed, random.Random(seed)
        self.count, self.seconds = count, seconds
        self.providers = Providers()
        self.bill = self.dice.choice(["leader", "split", "each"])
        self.tenants = [UNLIMITED, "t1", "t2"]
        self.keys = {f"{name}-{n}": name for name in self.tenants for n in range(2)}
        self.configured = frozenset(self.keys)
        self._copies_usd = self.dice.choice(["0.001", "1"])
        self.limits = self._limits(clustered)
        self._secrets: dict[str, str] = {}  # of virtual keys
        self._to_change: dict[str, str] = {}  # what is to be done to a virtual key -> its id
        self.ended: dict[str, tuple[float, float]] = {}  # since when its secret opens nothing
        self._shared: list[Asked] = []
        self.asked: list[Asked] = []
        self.took = 0.0

    # -- the configuration -------------------------------------------------------------------

    def _limits(self, clustered: bool) -> Limits:
        """What limits everybody, each tenant but one, and some of the keys."""
        dice = self.dice
        everybody = some(dice) if dice.random() < 0.2 and not clustered else {}
        tenants = {name: with_models(dice) for name in self.tenants if name != UNLIMITED}
        keys = {
            name: with_models(dice, 0.5) for name, tenant in self.keys.items() if tenant in tenants
        }
        return Limits(everybody, tenants, keys)

    def config(self, url: str, directory: str, store: str | None = None) -> str:
        """The configuration, for providers at a URL; without a store's a gateway has its own."""
        base = url.removesuffix("/v1")
        several = {"openai"} if self.dice.random() < 0.3 else set()
        drains = {"on_disconnect": "drain"} if self.dice.random() < 0.3 else {}

        def provider(kind: str, name: str, path: str = "/v1", **more: Any) -> dict[str, Any]:
            place: dict[str, Any] = {"kind": kind, "base_url": f"{base}/{name}{path}"}
            if name in several:
                place["api_keys"] = [f"sk-{number}-of-{name}" for number in range(3)]
            else:
                place["api_key"] = f"sk-of-{name}"
            return {**place, **more, **drains}

        keys = [
            {
                "name": name,
                "tenant": tenant,
                "sha256": digest(f"sk-{name}"),
                **self.limits.keys.get(name, {}),
            }
            for name, tenant in self.keys.items()
        ]
        return json.dumps(
            {
                "auth": {"keys": keys, "admin_key": ADMIN_KEY},
                "tenants": self.limits.tenants,
                "limits": {"lease": LEASE_SECONDS, "global": self.limits.everybody},
                "pricing": {"default": _price(DEFAULT)},
                "providers": {
                    "openai": provider("openai", "openai"),
                    "other": provider("openai-compatible", "other"),
                    "anthropic": provider("anthropic", "anthropic"),
                    "google": provider("gemini", "google", "/v1beta"),
                    "aws": provider("bedrock", "aws", "", region="us-east-1"),
                    "own": provider("openai", "own", api="responses"),
                    COPIES: provider("openai-compatible", COPIES),
                },
                "models": self._models(),
                "unsupported": "drop",
                "retries": {"attempts": self.dice.choice([0, 1]), "backoff": 0.02},
                "breaker": {"failures": 1000, "minimum": 10_000, "longest": 0.01},
                "ledger": {"directory": directory},
                "redis": {"url": store},
                "server": {"drain": {"lame_duck": 0, "grace": 20}},
            }
        )

    def _models(self) -> dict[str, Any]:
        dice = self.dice
        places = {name: (model, _price(price)) for (name, model), price in PRICES.items()}
        places["openai"] = "gpt", _price(PRICES["openai", "gpt"])
        embeds = {"provider": "openai", "model": "e5", "price": _price(PRICES["openai", "e5"])}
        copies = {"provider": COPIES, "model": "copy", "percent": dice.choice([50, 100])}
        copies |= {"budget": {"usd": self._copies_usd, "per": "day"}}
        caching = {"enabled": True, "requests": "all", "coalesce": "all", "bill": self.bill}

        def through(*names: str, **more: Any) -> dict[str, Any]:
            targets = []
            for priority, name in enumerate(names, 1):
                model, price = places[name]
                target = {"provider": name, "model": model, "price": price, "priority": priority}
                if name == "other" and dice.random() < 0.3:
                    target[dice.choice(["concurrency", "rpm"])] = dice.choice([3, 30])
                targets.append(target)
            return {"targets": targets, **more}

        return {
            "chat": through("openai", "other"),
            "claude": through("anthropic", "other"),
            "gemini": through("google", "openai", shadow=copies),
            "legacy": through("openai", "other"),
            "embed": {"targets": [embeds]},
            "nova": through("aws", "other"),
            "own": through("own", "openai"),
            "continued": through("openai", "other", "anthropic", on_stream_failure="continue"),
            "hedged": through("openai", "other", hedge={"after": 0.08}),
            SHARED: through("openai", "anthropic", cache=caching),
        }

    # -- requests ----------------------------------------------------------------------------

    async def make(self, gateway: Gateway) -> None:
        """Make virtual keys, all requests, and the script of what becomes of each."""
        for deed, tenant in zip(CHANGES, (UNLIMITED, UNLIMITED, "t1"), strict=True):
            limits = some(self.dice, 0.5) if tenant == UNLIMITED else {}
            key, secret = await make(gateway, name=deed.replace(" ", "-"), tenant=tenant, **limits)
            self.keys[key], self._secrets[key] = tenant, secret
            self.limits.keys[key], self._to_change[deed] = limits, key
        self.asked = [self._request(number) for number in range(self.count)]

    def _request(self, number: int) -> Asked:
        dice = self.dice
        model = dice.choice(MODELS)
        if (kind := dice.random()) < 0.15:
            model = SHARED
        elif kind < 0.3:
            model = "passed on"
        key = dice.choice(list(self.keys))
        trace = f"{self.seed & 0xFFFF:04x}{number:06x}{'a' * 22}"
        name = f"Q{(self.seed * 100_003 + number) & 0xFFFFFFFF:08x}Z"
        most = dice.choice([None, 60, 300, 3000])
        stream = dice.random() < 0.6 and model != "embed"
        first = dice.choice(self._shared) if model == SHARED and self._shared else None
        if first is not None and dice.random() < 0.6:
            name, stream = first.name, first.stream
        else:
            first = None
        dialect = dice.choice(["chat", "messages"])
        if model in ("legacy", "embed"):
            dialect = model
        elif model not in (SHARED, "passed on"):
            dialect = dice.choice(["chat", "messages", "responses"])
        path, body = self._body(dialect, model, name, 300 if model == SHARED else most)
        if stream:
            body["stream"] = True
        headers = {"traceparent": f"00-{trace}-{'b' * 16}-01"}
        ask = Ask(body, path, self._secrets.get(key, f"sk-{key}"), headers=headers)
        starts, place = dice.uniform(0, self.seconds), dice.random()
        follows = first is not None
        one = Asked(trace, name, self.keys[key], key, model, ask, starts, place, follows=follows)
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
        if dialect == "embed":
            return "/v1/embeddings", {"model": model, "input": text}
        if dialect == "legacy":
            return "/v1/completions", {**body, "prompt": text, **limit}
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

    async def change(self, deed: str, moment: float, gateway: Gateway) -> None:
        """Change the virtual key that is there for it, at a moment after the beginning."""
        await asyncio.sleep(moment)
        key, (place, body) = self._to_change[deed], CHANGES[deed]
        began = time.monotonic()
        reply = await admin(gateway, "POST", f"/keys/{key}/{place}", body)
        assert reply.status == 200, reply
        if body is None or not body["grace_seconds"]:
            self.ended[key] = began, time.monotonic()

    async def change_limits(self, moment: float, gateways: Sequence[Gateway]) -> None:
        """Give all limits of the configuration other amounts, at a moment after the beginning."""
        await asyncio.sleep(moment)
        self.limits.change(random.Random(self.seed), self.configured)
        for gateway in gateways:
            document = json.loads(gateway.config_file.read_text())
            document["tenants"] = self.limits.tenants
            document["limits"]["global"] = self.limits.everybody
            for key in document["auth"]["keys"]:
                key |= self.limits.keys.get(key["name"], {})
            gateway.config_file.write_text(json.dumps(document))
            gateway.signal(signal.SIGHUP)

    async def run(self, gateways: Sequence[Gateway]) -> None:
        """Send every request at its time, to any gateway; each on a connection of its own."""
        begun = time.monotonic()
        async with asyncio.TaskGroup() as group:
            for one in self.asked:
                group.create_task(_send(one, gateways[int(one.place * len(gateways))]))
        self.took = time.monotonic() - begun


async def _send(one: Asked, gateway: Gateway) -> None:
    await asyncio.sleep(one.starts)
    client = Client(gateway.port)
    try:
        async with asyncio.timeout(HANG_SECONDS):
            one.sent_at = time.monotonic()
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
