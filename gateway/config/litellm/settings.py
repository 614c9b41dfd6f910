"""What LiteLLM's settings are here: deadlines, the store, keys, budgets; and why others are not."""

import hashlib
import re
from typing import Any
from urllib.parse import quote, urlsplit

from gateway.config.caching import Cache
from gateway.config.keys import is_well_known
from gateway.config.litellm.deadlines import Waits
from gateway.config.litellm.reasons import CACHE, NOTHING
from gateway.config.litellm.source import CLEAR, REFERENCE, Fields, float_or_whole
from gateway.config.placeholders import is_placeholder
from gateway.config.schema import MEBIBYTE, Breaker

# What spreads requests there -> here.
STRATEGIES = {
    "simple-shuffle": "weighted",
    "least-busy": "least-busy",
    "latency-based-routing": "latency",
    "cost-based-routing": "cost",
    "usage-based-routing": "least-busy",
    "usage-based-routing-v2": "least-busy",
}
DEFAULT_STRATEGY = "simple-shuffle"
# How many fallbacks follow each other: LiteLLM's default, and what nobody needs more of.
DEFAULT_FALLBACKS, MAX_FALLBACKS = 5, 100
DEFAULT_RETRIES = 2  # openai.DEFAULT_MAX_RETRIES, which LiteLLM takes
MAX_COUNT, MAX_RETRIES, MAX_FAILURES = 10**12, 5, 1000  # schema
MIN_ADMIN_KEY_CHARS, MIN_ADMIN_KEY_VARIETY = 16, 8  # config.keys
MAX_BUDGET_USD, MIN_BUDGET_USD = 10**9, 0.000_001
_AGAIN = (
    "as retries.attempts: all targets are asked again as often, but not after timeouts alone, and "
    "for a share of the requests only (retries.budget)"
)
_ALWAYS = "default_on"
# How long LiteLLM keeps an answer of which nobody says it, by the type of the cache, and the field
# that is above ttl.
_CACHE_SECONDS = {"redis": 60, "local": 600}
_CACHE_TTLS = {
    "local": "default_in_memory_ttl",
    **dict.fromkeys(("redis", "redis-semantic", "valkey-semantic"), "default_in_redis_ttl"),
}
_REDIS_PARTS = ("host", "port", "username", "password", "db")
_SCHEMES = frozenset(("redis", "rediss"))
_DURATION = re.compile(r"([1-9][0-9]{0,3})([mhd])")


def server(general: Fields, usual: Waits, total: int | None) -> dict[str, Any]:
    """Return the server section: LiteLLM's deadline is of one call, `total` of all attempts."""
    timeouts = usual.timeouts() | ({} if total is None else {"total": total})
    found: dict[str, Any] = {"timeouts": timeouts} if timeouts else {}
    megabytes = general.number("max_request_size_mb")
    if megabytes is not None and 1 <= megabytes * MEBIBYTE <= MAX_COUNT:
        found["max_request_size"] = int(megabytes * MEBIBYTE)
    elif megabytes is not None:
        general.lost("max_request_size_mb", "it is no size of a request")
    return found


def strategy(router: Fields) -> str:
    """Return how requests are spread over deployments of equal rank."""
    wanted = router.text("routing_strategy") or DEFAULT_STRATEGY
    if wanted not in STRATEGIES:
        router.lost("routing_strategy", "Sluice knows none of that name: requests go by weight")
        return STRATEGIES[DEFAULT_STRATEGY]
    if wanted.startswith("usage"):
        router.note("routing_strategy", "carried over as least-busy: by requests, not by tokens")
    return STRATEGIES[wanted]


def checks_sizes(router: Fields) -> bool:
    """Tell whether a deployment gets no prompts that are longer than it takes."""
    wanted = bool(router.flag("enable_pre_call_checks"))
    if wanted:
        router.note(
            "enable_pre_call_checks",
            "carried over where model_info.max_input_tokens says the size, as a target's "
            "when.max_tokens; what a provider refuses as too long goes to fallbacks.context_window",
        )
    return wanted


def tags(router: Fields) -> None:
    """Say how requests are routed by tags here; the tags themselves are the deployments'."""
    if router.flag("enable_tag_filtering"):
        router.note(
            "enable_tag_filtering",
            "carried over as targets[].tags, which clients ask for with the header x-sluice-tags; "
            "a request without it may go to any target, the tag `default` means nothing",
        )


def retries(router: Fields, litellm: Fields, *, served: bool) -> dict[str, Any]:
    """Return the retries section; `served`: there are models, which LiteLLM retries unasked."""
    fields = _above(router, litellm, "num_retries")
    wanted = fields.whole("num_retries")
    if wanted is None:
        if not served:
            return {}
        router.note("num_retries", f"there is none: {DEFAULT_RETRIES}, LiteLLM's own, {_AGAIN}")
        return {"attempts": DEFAULT_RETRIES}
    if wanted:
        fields.note("num_retries", f"carried over {_AGAIN}")
    if wanted > MAX_RETRIES:
        fields.note("num_retries", f"{MAX_RETRIES} at most")
    return {"attempts": min(wanted, MAX_RETRIES)}


def max_fallbacks(router: Fields, litellm: Fields) -> int:
    """Return how deep the fallbacks of fallbacks are followed."""
    found = _above(router, litellm, "max_fallbacks").whole("max_fallbacks")
    return DEFAULT_FALLBACKS if found is None else min(found, MAX_FALLBACKS)


def breaker(router: Fields, litellm: Fields) -> dict[str, Any]:
    """Return the breaker section: which failures LiteLLM cools a deployment down for."""
    found: dict[str, Any] = {}
    fields = _above(router, litellm, "allowed_fails")
    allowed = fields.whole("allowed_fails")
    if allowed is not None:
        found["failures"] = min(allowed + 1, MAX_FAILURES)
        fields.note("allowed_fails", "carried over as failures in a row; there they are a minute's")
    fields = _above(router, litellm, "cooldown_time")
    if (seconds := fields.seconds("cooldown_time")) is not None:
        found["ejection"] = seconds
        if seconds > Breaker().longest:
            found["longest"] = seconds
        fields.note("cooldown_time", "carried over; it is longer each time the target fails again")
    if router.flag("disable_cooldowns"):
        found["panic"] = 0
    return found


def _above(router: Fields, litellm: Fields, name: str) -> Fields:
    """Return the section whose word on a setting holds."""
    if name not in router:
        return litellm
    if litellm.take(name) is not None:
        litellm.lost(name, f"router_settings.{name} is above it")
    return router


def redis(router: Fields) -> dict[str, Any]:
    """Return the redis section: LiteLLM's shared state of the router, by a URL or in parts."""
    name, url = "redis_url", router.secret("redis_url")
    if url is None and router.peek("redis_host"):
        name, url = "redis_host", _composed(router)
        if url is None:
            router.lost(
                name,
                "a URL is made of what stands in the file: set REDIS_URL to "
                "redis://:PASSWORD@HOST:PORT",
            )
    whole = "router_settings.redis_url is above it" if name == "redis_url" and url else ""
    for part in (f"redis_{part}" for part in (*_REDIS_PARTS, "ssl")):
        if router.take(part) not in (None, "", False):
            router.lost(part, whole or "there is no redis_host")
    if url is None:
        return {}
    if not url.startswith(REFERENCE) and not _is_redis(url):
        router.lost(name, "expected redis://[user:password@]host[:port][/db] or rediss://")
        return {}
    router.note(name, "Sluice wants Redis 7 or later with maxmemory-policy noeviction")
    return {"url": url}


def cache(router: Fields, litellm: Fields) -> dict[str, Any]:
    """Return the cache section."""
    everywhere, routed = litellm.flag("cache"), router.flag("cache_responses")
    if not (everywhere or routed):
        litellm.take("cache_params")
        return {}
    params = litellm.fields("cache_params")
    if (params.text("mode") or _ALWAYS) != _ALWAYS:
        params.lost("mode", "a client opts out (cache-control: no-store), it cannot opt in")
        return {}
    fields, name = (litellm, "cache") if everywhere else (router, "cache_responses")
    fields.note(name, "carried over; each tenant has its own answers here (see cache.share)")
    found: dict[str, Any] = {"enabled": True, "requests": "all"}
    kind = params.text("type") or "redis"
    if (seconds := _ttl(litellm, params, kind)) is not None:
        found["ttl"] = seconds
    if kind == "local":
        found["redis"] = False
    elif kind != "redis":
        params.lost("type", "answers are kept in memory and in Redis; see cache.semantic")
    params.rest(CACHE, NOTHING)
    return found


def _ttl(litellm: Fields, params: Fields, kind: str) -> int | float | None:
    """Return how long LiteLLM keeps an answer; None: for good."""
    named = [params.seconds("ttl")]
    if kind in _CACHE_TTLS:
        above = params.seconds(_CACHE_TTLS[kind])
        if None not in (above, named[0]):
            params.lost("ttl", f"{_CACHE_TTLS[kind]} is above it")
        named.insert(0, above)
    if kind == "redis":
        named.append(litellm.seconds("default_redis_ttl"))
    found = next((seconds for seconds in named if seconds is not None), _CACHE_SECONDS.get(kind))
    if found is None:
        params.note(
            "ttl", f"there is none, where LiteLLM keeps answers for good; here {Cache().ttl:g} s"
        )
    return found


def _composed(router: Fields) -> str | None:
    """Return a URL of literal parts; None where a part comes from the environment."""
    tls = router.flag("redis_ssl")
    readers = {"password": router.secret}
    parts = {part: readers.get(part, router.text)(f"redis_{part}") for part in _REDIS_PARTS}
    if not parts["host"] or any(part and part.startswith(REFERENCE) for part in parts.values()):
        return None
    user, password = (quote(parts[name] or "", safe="") for name in ("username", "password"))
    login = f"{user}:{password}@" if user or password else ""
    database = f"/{parts['db']}" if parts["db"] else ""
    scheme = "rediss" if tls else "redis"
    return f"{scheme}://{login}{parts['host']}:{parts['port'] or 6379}{database}"


def _is_redis(url: str) -> bool:
    try:
        found = urlsplit(url)
        usable = found.port != 0 and re.fullmatch(r"/?[0-9]{0,9}", found.path) is not None
    except ValueError:
        return False
    return usable and found.scheme in _SCHEMES and bool(found.hostname) and url.isprintable()


def auth(general: Fields) -> dict[str, Any]:
    """Return the auth section: the master key goes on opening everything."""
    if "master_key" not in general:
        general.note(
            "master_key", "there is none: with LITELLM_MASTER_KEY set, add it to auth.keys"
        )
        return {}
    key = general.text("master_key")
    if key is None:
        return {}
    if key.startswith(REFERENCE):
        general.note(
            "master_key",
            f"{key.removeprefix(REFERENCE)} needs {MIN_ADMIN_KEY_CHARS} characters that nobody "
            "would guess; with a shorter one take auth.admin_key out, and with one below 8 give "
            "its sha256 in auth.keys",
        )
        return {"admin_key": key, "keys": [{"name": "master", "key": key}]}
    digest = hashlib.sha256(key.encode("utf-8", "surrogatepass")).hexdigest()
    if is_well_known(digest):
        general.lost("master_key", "anybody would try that first: give others in auth.keys")
        return {}
    found: dict[str, Any] = {"keys": [{"name": "master", "sha256": digest}]}
    various = len(key) >= MIN_ADMIN_KEY_CHARS and len(set(key)) >= MIN_ADMIN_KEY_VARIETY
    if various and not is_placeholder(key):
        general.note("master_key", CLEAR)
        return {"admin_key": key, **found}
    general.note("master_key", "too easy to guess for auth.admin_key; clients may go on using it")
    return found


def budget(litellm: Fields) -> dict[str, Any]:
    """Return the limits and pricing sections: LiteLLM's budget is of everybody together."""
    usd, per = litellm.number("max_budget"), litellm.text("budget_duration")
    if usd is None:
        if per is not None:
            litellm.lost("budget_duration", "there is no max_budget beside it")
        return {}
    if not MIN_BUDGET_USD <= usd <= MAX_BUDGET_USD:
        litellm.lost("max_budget", "a budget is more than 0 and at most 1e9 dollars")
        return {}
    period = "total" if per is None else "month" if per == "1mo" else per
    if period not in ("total", "month") and not _DURATION.fullmatch(period):
        litellm.lost("max_budget", "its duration is none of minutes, hours, days or 1mo")
        return {}
    litellm.note(
        "max_budget",
        "the budget of everybody, the master key's requests too; a model whose price nobody knows "
        "costs nothing, as before (pricing.default)",
    )
    amount = float_or_whole(round(usd, 6))
    return {
        "limits": {"global": {"budget": {"usd": amount, "per": period}}},
        "pricing": {"default": {"input": 0, "output": 0}},
    }
