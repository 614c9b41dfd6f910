"""Hot path: which answers are kept, for whom, and what a client's headers say about it. Pure."""

import re
from typing import Any

import msgspec

from gateway.core.errors import ApiError
from gateway.core.hints import CACHE_CONTROL, CACHE_NAMESPACE, CACHE_TTL, Hints

# What a reply says the cache had to do with it.
HIT, MISS, BYPASS, STALE, COALESCED = "hit", "miss", "bypass", "stale", "coalesced"

ALL, DETERMINISTIC, OFF = "all", "deterministic_only", "off"
MAX_DELTA = 2**31  # seconds, RFC 9111 section 1.2.2
_NAMESPACE = re.compile(r"[A-Za-z0-9._-]{1,64}")
_SECONDS = re.compile(r"[0-9]{1,18}")


class Overrides(msgspec.Struct, frozen=True):
    """What a model or a key has otherwise, by the names of `Rules`."""

    changes: tuple[tuple[str, Any], ...] = ()

    @classmethod
    def of(cls, section: msgspec.Struct) -> "Overrides":
        """Return what a section of the configuration sets."""
        found = msgspec.structs.asdict(section).items()
        changes = tuple([(name, value) for name, value in found if value is not None])
        return cls(changes) if changes else ASIS


ASIS = Overrides()


class Rules(msgspec.Struct, frozen=True, kw_only=True):
    """What holds for a model and a key; see `gateway.config.caching.Cache`. Seconds and bytes.

    `semantic` is the least likeness of prompts that are taken for the same; 0: none are.
    """

    enabled: bool
    ttl: float
    max_ttl: float
    requests: str
    tools: bool
    images: bool
    max_request: int
    share: str
    stale: float
    pace: float
    coalesce: str
    bill: str
    semantic: float = 0.0

    def but(self, *overrides: Overrides) -> "Rules":
        """Return these rules with changes; the last one counts."""
        rules = self
        for one in overrides:
            if one.changes:
                rules = msgspec.structs.replace(rules, **dict(one.changes))
        if rules.ttl > rules.max_ttl:
            return msgspec.structs.replace(rules, ttl=rules.max_ttl)
        return rules


class Directives(msgspec.Struct, frozen=True):
    """What a client asks of the cache. `reads`: it takes what is there; `keeps`: so may others.

    `max_age` is the oldest answer that it takes (seconds), `stale` the age past that where nothing
    else can be had; `ttl` how long others may have what it gets.
    """

    reads: bool = True
    keeps: bool = True
    only_cached: bool = False
    max_age: float | None = None
    stale: float | None = None
    ttl: float | None = None
    namespace: str = ""

    @property
    def renews(self) -> bool:
        """Tell whether what it gets may stand in the place of what is there, and still good."""
        return not self.reads or self.max_age is not None


PLAIN = Directives()


def directives(hints: Hints) -> Directives:
    """Read a client's headers. Raises ApiError naming the one that is wrong."""
    if not (hints.cache_control or hints.cache_ttl or hints.cache_namespace):
        return PLAIN
    found = _control(hints.cache_control)
    namespace = hints.cache_namespace
    if namespace and not _NAMESPACE.fullmatch(namespace):
        expected = "1 to 64 letters, digits, '.', '_' or '-'"
        raise _invalid(CACHE_NAMESPACE, expected)
    ttl = None
    if hints.cache_ttl:
        ttl = _seconds(hints.cache_ttl, CACHE_TTL)
    return Directives(
        reads="no-cache" not in found and "no-store" not in found,
        keeps="no-store" not in found and ttl != 0,
        only_cached="only-if-cached" in found,
        max_age=_delta(found, "max-age"),
        stale=_delta(found, "stale-if-error"),
        ttl=ttl,
        namespace=namespace,
    )


def _control(text: str) -> dict[str, str]:
    """Return the directives of a Cache-Control, RFC 9111 section 5.2; unknown ones mean nothing."""
    found = {}
    for one in text.split(","):
        name, _, value = one.partition("=")
        found[name.strip().lower()] = value.strip().strip('"')
    return found


def _delta(found: dict[str, str], name: str) -> float | None:
    return _seconds(found[name], f"{CACHE_CONTROL}: {name}") if name in found else None


def _seconds(text: str, name: str) -> float:
    if not _SECONDS.fullmatch(text):
        raise _invalid(name, "whole seconds")
    return min(int(text), MAX_DELTA)


def _invalid(name: str, expected: str) -> ApiError:
    message = f"Invalid value for '{name}': expected {expected}."
    return ApiError("invalid_value", message, param=name)


def is_deterministic(temperature: Any, seed: Any) -> bool:
    """Tell whether a request asks for the same answer each time."""
    return seed is not None or (type(temperature) in (int, float) and temperature == 0)


def may_join(rules: Rules, *, deterministic: bool) -> bool:
    """Tell whether a request shares a call with those like it."""
    return rules.coalesce == ALL or (rules.coalesce == DETERMINISTIC and deterministic)


def shares(bill: str, amount: int, takers: int, place: int) -> int:
    """Return which part of an amount the taker at a place pays; the first is who asked first."""
    if bill == "each":
        return amount
    if bill == "split":
        whole, rest = divmod(amount, takers)
        return whole + rest if place == 0 else whole
    return amount if place == 0 else 0
