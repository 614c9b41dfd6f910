"""Usage is exact: replies, log records, Redis and metrics tell the same, to the micro-dollar."""

import asyncio
import contextlib
import json
import random
import re
import time
from collections import Counter
from collections.abc import Iterable
from fractions import Fraction
from typing import Any

from prometheus_client.parser import text_string_to_metric_families

from tests.support.config import config, digest
from tests.support.gateway import Gateway, running
from tests.support.load import LEFT, Ask, Outcome, flood, once
from tests.support.upstream import Exchange, Upstream, completion, delta, usage

REQUESTS = 5000
SEED = 20260101
TENANTS = ("acme", "globex", "initech")
KEYS = {f"sk-{tenant}-key-{n}": (tenant, f"{tenant}-{n}") for tenant in TENANTS for n in (1, 2)}
TPM, PRIMED, RESERVED = 1_200_000, 700_000, 500
WORDS = [" of", "lorem", "ipsum", "dolor", "sit", "amet", "consectetur", "elit"]
# Micro-dollars a token: fresh input, cached input, output. `odd` has no known price.
PRICES = {
    "mini": tuple(map(Fraction, ("0.15", "0.075", "0.6"))),
    "own": tuple(map(Fraction, ("3.3", "0.33", "15.7"))),
    "odd": (Fraction(0),) * 3,
}
PARTS = ("model", "key", "provider")
FIELDS = ("prompt_tokens", "cached_tokens", "completion_tokens", "reasoning_tokens")


def settings(url: str) -> str:
    """Three tenants with two keys each, every kind of limit, three models, two providers."""
    provider = {"kind": "openai", "api_key": "sk-up", "base_url": url}
    own_price = {"input": 3.3, "cached": 0.33, "output": 15.7}
    return config(
        auth={
            "keys": [
                {"name": name, "tenant": tenant, "sha256": digest(key), "rpm": 1_000_000}
                for key, (tenant, name) in KEYS.items()
            ]
        },
        tenants={tenant: {"rpm": 1_000_000, "tpm": TPM} for tenant in TENANTS},
        providers={"p0": provider, "p1": {**provider, "kind": "openai-compatible"}},
        models={
            "mini": {"targets": [{"provider": "p0", "model": "gpt-4o-mini"}]},
            "own": {"targets": [{"provider": "p1", "model": "own", "price": own_price}]},
            "odd": {"targets": [{"provider": "p1", "model": "nobody-sells-this"}]},
        },
    )


async def as_told(exchange: Exchange) -> None:
    """Answer as the request's `metadata` says."""
    asked = exchange.request.json
    told = asked["metadata"] if "metadata" in asked else json.loads(asked["user"])
    if told["status"] != 200:
        await exchange.reply({"error": {"message": "no", "type": "x"}}, told["status"])
        return
    used = None if told["usage"] is None else usage(*told["usage"])
    if exchange.request.path.endswith("/embeddings"):
        spent = used and {"prompt_tokens": told["usage"][0], "total_tokens": told["usage"][0]}
        await exchange.reply({"object": "list", "data": [], "usage": spent})
    elif not asked.get("stream"):
        await exchange.reply(completion("".join(told["words"]), used))
    else:
        await exchange.start_stream()
        for word in told["words"]:
            await exchange.event(delta(word))
            if told["slow"]:
                await asyncio.sleep(0.002)
        await exchange.event(delta(None, "stop"))
        if used is not None:
            await exchange.event({**delta(None), "choices": [], "usage": used})
        await exchange.event("[DONE]")
        await exchange.end_stream()


def mixed(dice: random.Random) -> Ask:
    """One request of the mix."""
    kind = dice.choices(
        ["unary", "stream", "embed", "leave", "fail", "refuse"], [40, 25, 12, 10, 8, 5]
    )[0]
    prompt, output = dice.randint(1, 120), dice.randint(1, 60)
    used: list[int] | None = [prompt, output, dice.randint(0, prompt), dice.randint(0, output)]
    if dice.random() < 0.15:
        used = None
    words = dice.choices(WORDS, k=dice.randint(3, 12))
    status = dice.choice([400, 500, 503]) if kind == "fail" else 200
    told = {"status": status, "usage": used, "words": words, "slow": kind == "leave"}
    model, key = dice.choice(list(PRICES)), dice.choice(list(KEYS))
    if kind == "refuse":
        return Ask({"model": "absent", "messages": [{}], "metadata": told}, key=key)
    if kind == "embed":
        told["usage"] = used and [prompt, 0, 0, 0]
        embed = {"model": model, "input": "a b c", "user": json.dumps(told)}
        return Ask(embed, "/v1/embeddings", key)
    body: dict[str, Any] = {"model": model}
    body |= {"messages": [{"role": "user", "content": " ".join(words)}]}
    body |= {"metadata": told, "max_tokens": RESERVED, "stream": kind in ("stream", "leave")}
    return Ask(body, key=key, leave_after=dice.randint(1, len(words)) if kind == "leave" else None)


def told(ask: Ask) -> Any:
    return ask.body["metadata"] if "metadata" in ask.body else json.loads(ask.body["user"])


def cost(model: str, used: dict[str, int]) -> int:
    """Micro-dollars, rounded once, half up."""
    fresh, cached, output = PRICES[model]
    exact = (used["prompt_tokens"] - used["cached_tokens"]) * fresh
    exact += used["cached_tokens"] * cached + used["completion_tokens"] * output
    return int(exact + Fraction(1, 2))


def level(gateway: Gateway, tenant: str) -> tuple[int, int]:
    """A tenant's token bucket: its level, and when that was."""
    with contextlib.closing(gateway.store) as store:
        name = f"sluice:limit:{{{tenant}}}:tenant:tpm"
        found, at = store.hmget(name, "level", "updated")
        return int(found), int(at)


async def level_after_a_refusal(gateway: Gateway, tenant: str, key: str) -> tuple[int, int]:
    """Have the level brought up to date by a request that uses nothing; return it."""
    body = {"model": "mini", "input": "", "user": json.dumps({"status": 500, "usage": None})}
    assert (await once(gateway.port, Ask(body, "/v1/embeddings", key))).status == 502
    gateway.settled()
    return level(gateway, tenant)


def totals(records: Iterable[dict[str, Any]]) -> dict[str, int]:
    """What a usage hash should hold for these records."""
    sums: Counter[str] = Counter()
    for record in records:
        sums["requests"] += 1
        sums["errors"] += record["outcome"] == "error"
        sums["cost_microusd"] += record["cost_microusd"]
        for field in FIELDS:
            sums[field] += record["usage"][field]
    return {name: amount for name, amount in sums.items() if amount}


def stored(gateway: Gateway, tenant: str, part: str, month: bool) -> dict[str, int]:
    """A usage hash, summed over days or months in case the test runs through midnight."""
    period = "[0-9][0-9][0-9][0-9]-[0-9][0-9]" + ("" if month else "-[0-9][0-9]")
    name = f"sluice:usage:{{{tenant}}}:{period}" + (f":{part}" if part else "")
    sums: Counter[str] = Counter()
    with contextlib.closing(gateway.store) as store:
        for found in store.scan_iter(name, count=1000):
            sums.update({field: int(n) for field, n in store.hgetall(found).items()})
    return dict(sums)


def assert_record(outcome: Outcome, record: dict[str, Any]) -> None:
    """What the client saw and what the record says are the same."""
    ask, planned = outcome.ask, told(outcome.ask)
    tenant, name = KEYS[ask.key]
    assert (record["tenant"], record["key"]) == (tenant, name)
    if ask.body["model"] == "absent":
        assert (outcome.status, record["outcome"], record["status"]) == (404, "refused", 404)
        assert record["model"] == "other"
        return
    assert record["model"] == ask.body["model"]
    if planned["status"] != 200:
        assert outcome.status == (400 if planned["status"] == 400 else 502)
        assert (record["outcome"], record["status"]) == ("error", outcome.status)
        assert not any(record["usage"].values())
        return
    used = record["usage"]
    assert record["cost_microusd"] == cost(record["model"], used)
    left = outcome.failure == LEFT and record["outcome"] == "disconnected"
    if left and record["usage_source"] == "partial":
        assert used["prompt_tokens"] > 0
        assert 0 < used["completion_tokens"] <= 4 * len(planned["words"])
        return
    assert left or record["outcome"] == "ok"
    if planned["usage"] is None:
        assert record["usage_source"] == "estimated"
        assert used["prompt_tokens"] > 0
        assert (used["completion_tokens"] > 0) == ("max_tokens" in ask.body)
    else:
        assert record["usage_source"] == "provider"
        assert [used[field] for field in FIELDS] == [planned["usage"][i] for i in (0, 2, 1, 3)]
    if "x-sluice-cost-usd" in outcome.headers:
        shown = Fraction(outcome.headers["x-sluice-cost-usd"]) * 1_000_000
        assert shown == record["cost_microusd"]


def samples(text: str) -> dict[str, float]:
    """Each metric's sum over its labels."""
    sums: Counter[str] = Counter()
    for family in text_string_to_metric_families(text):
        for sample in family.samples:
            if sample.name.startswith("sluice_") or "token_usage_sum" in sample.name:
                sums[sample.name] += sample.value  # type: ignore[assignment]  # Counter is of int
    return dict(sums)


async def test_five_thousand_mixed_requests(upstream: Upstream) -> None:
    upstream.behaviour = as_told
    dice = random.Random(SEED)
    with running(settings(upstream.url), workers=4) as gateway:
        # A large use brings each tenant's bucket down, so that its level can be followed exactly.
        first = []
        for key in {tenant: key for key, (tenant, _) in KEYS.items()}.values():
            body: dict[str, Any] = {"model": "mini", "messages": [{}], "max_tokens": PRIMED}
            body["metadata"] = {"status": 200, "usage": [PRIMED, 0], "words": ["x"]}
            first.append(await once(gateway.port, Ask(body, key=key)))
        gateway.settled()
        levels = {tenant: level(gateway, tenant) for tenant in TENANTS}
        started = time.monotonic()
        outcomes = await flood(gateway.port, [mixed(dice) for _ in range(REQUESTS)], 40)
        seconds = time.monotonic() - started
        gateway.settled()
        last = {tenant: key for key, (tenant, _) in KEYS.items()}
        final = {t: await level_after_a_refusal(gateway, t, key) for t, key in last.items()}

        everything = len(first) + len(outcomes) + len(final)
        records = gateway.records(everything, 15)
        await asyncio.sleep(0.5)
        records = gateway.records()
        by_id = {record["id"]: record for record in records}
        assert len(records) == everything == len(by_id), "exactly one record a request"
        kinds = Counter(r["outcome"] for r in records)
        print(f"{seconds:.1f} s; {dict(kinds)}")
        assert min(kinds[k] for k in ("ok", "error", "refused", "disconnected")) > 20

        bad = [o for o in outcomes if o.failure not in ("", LEFT)]
        assert bad == [], [(o.failure, o.status, o.body, o.headers, o.ask) for o in bad[:3]]
        for outcome in outcomes:
            assert_record(outcome, by_id[outcome.headers["x-request-id"]])

        # Redis: by tenant, and within it by model, key and provider; by day and by month.
        counted = [r for r in records if r["outcome"] != "refused"]
        for tenant in TENANTS:
            own = [r for r in counted if r["tenant"] == tenant]
            groups = {("", ""), *((part, r[part]) for r in own for part in PARTS if r[part])}
            assert len(groups) == 1 + 3 + 2 + 2
            for part, value in groups:
                chosen = [r for r in own if not part or r[part] == value]
                for month in (False, True):
                    found = stored(gateway, tenant, f"{part}:{value}" if part else "", month)
                    assert found == totals(chosen), (tenant, part, value)

        # Reserved tokens are back, to the token: a bucket's level is what was not used since,
        # and the refill. Each of its credits may lose up to a microsecond.
        for tenant in TENANTS:
            (level0, at0), (level1, at1) = levels[tenant], final[tenant]
            used = sum(
                r["usage"]["prompt_tokens"] + r["usage"]["completion_tokens"]
                for r in counted
                if r["tenant"] == tenant and r["usage"]["prompt_tokens"] < PRIMED
            )
            refill = (at1 - at0) * TPM / 60e6
            expected = level0 - used + refill
            print(f"{tenant}: level {level1}, expected {expected:.0f}, refilled {refill:.0f}")
            if level0 + refill < TPM:  # never full meanwhile, however slow the machine
                assert abs(level1 - expected) <= 2 + REQUESTS * TPM / 60e6
        with contextlib.closing(gateway.store) as store:
            for tenant in TENANTS:
                assert not store.exists(f"sluice:leases:{{{tenant}}}", f"sluice:lease:{{{tenant}}}")
            entries = [fields for _, fields in store.xrange("sluice:requests")]
            assert store.smembers("sluice:tenants") == set(TENANTS)
            endless = [k for k in store.scan_iter(count=1000) if store.ttl(k) == -1]
        assert sorted(endless) == ["sluice:requests", "sluice:tenants"]
        same = sorted(e["id"] for e in entries) == sorted(by_id)
        assert same, "sluice:requests has other requests than the log"
        for entry in entries:
            record = by_id[entry["id"]]
            assert all(int(entry[f]) == record["usage"][f] for f in FIELDS)
            assert int(entry["cost_microusd"]) == record["cost_microusd"]
            assert (entry["outcome"], entry["tenant"]) == (record["outcome"], record["tenant"])

        # Every worker's /metrics shows the sum over all of them.
        scrapes = [samples(gateway.get("/metrics")[1].decode()) for _ in range(12)]
        for name, amount in {
            "sluice_requests_total": everything,
            "sluice_cost_microusd_total": sum(r["cost_microusd"] for r in records),
            "sluice_attempts_total": sum(r["attempts"] for r in records),
            "gen_ai_client_token_usage_sum": sum(
                r["usage"]["prompt_tokens"] + r["usage"]["completion_tokens"] for r in records
            ),
            "sluice_open_leases": 0,
            "sluice_workers": 4,
        }.items():
            assert {scrape[name] for scrape in scrapes} == {amount}, name
        assert re.search(r"mini.*ok", gateway.get("/metrics")[1].decode())
