"""What LiteLLM's settings are here: deadlines, the store, keys, budgets; and why others are not."""

import hashlib
import re
from typing import Any
from urllib.parse import quote, urlsplit

from gateway.config.litellm.providers import deadlines
from gateway.config.litellm.reasons import CACHE, NOTHING
from gateway.config.litellm.source import CLEAR, REFERENCE, Fields, float_or_whole
from gateway.config.schema import MEBIBYTE, Breaker, Timeouts

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
MAX_COUNT, MAX_RETRIES, MAX_FAILURES = 10**12, 5, 1000  # schema
MIN_ADMIN_KEY_CHARS, MIN_ADMIN_KEY_VARIETY = 16, 8  # load._check_admin_key
MAX_BUDGET_USD, MIN_BUDGET_USD = 10**9, 0.000_001
_ALWAYS = "default_on"
_SCHEMES = frozenset(("redis", "rediss"))
_DURATION = re.compile(r"([1-9][0-9]{0,3})([mhd])")


def usual_deadlines(router: Fields, litellm: Fields) -> dict[str, float]:
    """Return the timeouts of a call where a deployment has none of its own; the router's win."""
    found = deadlines(router, "timeout")
    if found and litellm.take("request_timeout") is not None:
        litellm.lost("request_timeout", "router_settings.timeout is above it")
    return found or deadlines(litellm, "request_timeout")


def server(general: Fields, usual: dict[str, float], longest: float) -> dict[str, Any]:
    """Return the server section: LiteLLM's deadline is of one call, `total` of all attempts."""
    timeouts = dict(usual)
    if longest > Timeouts().total:
        timeouts["total"] = longest
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


def retries(router: Fields, litellm: Fields) -> dict[str, Any]:
    """Return the retries section."""
    fields = _above(router, litellm, "num_retries")
    wanted = fields.whole("num_retries")
    if wanted is None:
        return {}
    if wanted > MAX_RETRIES:
        fields.note("num_retries", f"{MAX_RETRIES} at most")
    return {"attempts": min(wanted, MAX_RETRIES)}


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
    """Return the redis section: LiteLLM's shared state of the router."""
    url = router.secret("redis_url")
    names = ("redis_host", "redis_port", "redis_username", "redis_password", "redis_db")
    parts = {name.removeprefix("redis_"): _part(router, name) for name in names}
    tls = router.flag("redis_ssl")
    if url is None and parts["host"]:
        url = _composed(parts, tls=bool(tls))
        if url is None:
            router.lost(
                "redis_host",
                "a URL is made of what stands in the file: set REDIS_URL to "
                "redis://:PASSWORD@HOST:PORT",
            )
    if url is None:
        return {}
    name = "redis_host" if parts["host"] else "redis_url"
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
    if (seconds := params.seconds("ttl")) is not None:
        found["ttl"] = seconds
    kind = params.text("type") or "redis"
    if kind == "local":
        found["redis"] = False
    elif kind != "redis":
        params.lost("type", "answers are kept in memory and in Redis; see cache.semantic")
    params.rest(CACHE, NOTHING)
    return found


def _part(router: Fields, name: str) -> str | None:
    return router.secret(name) if name == "redis_password" else router.text(name)


def _composed(parts: dict[str, str | None], *, tls: bool) -> str | None:
    """Return a URL of literal parts; None where a part comes from the environment."""
    if any(value and value.startswith(REFERENCE) for value in parts.values()):
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
    found: dict[str, Any] = {"keys": [{"name": "master", "sha256": digest}]}
    if len(key) >= MIN_ADMIN_KEY_CHARS and len(set(key)) >= MIN_ADMIN_KEY_VARIETY:
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
