"""Hot path: which limits apply to a request, and how an answer says where they stand. Pure."""

import re
from datetime import UTC, datetime, timedelta
from math import ceil

import msgspec

REQUESTS, TOKENS, CONCURRENCY, MONEY = "requests", "tokens", "concurrency", "usd"

# How `limits.lua` keeps each sort of limit.
RATE, SLOTS, PERIOD, WINDOW = 0, 1, 2, 3
KINDS = ("rpm", "tpm", "concurrency")

SHORT_SECONDS = 0.9  # what is shorter is shown in milliseconds
WINDOW_SLOTS = 30  # a rolling window forgets what was spent in steps of a thirtieth of it
CALENDAR = ("day", "week", "month", "total")
_UNIT_SECONDS = {"m": 60, "h": 3600, "d": 86_400}
_WINDOW = re.compile(r"([1-9][0-9]{0,3})([mhd])")
_SHORTEST_WINDOW_SECONDS = 60

Spec = tuple[int, int, int]


class Limit(msgspec.Struct, frozen=True, gc=False):
    """One limit and where its state is in Redis; `scope` says whose it is.

    `capacity` is requests, tokens, slots or micro-dollars; `per_minute` refills a rate; `per` is a
    budget's period: day, week, month, total, or a rolling window such as 30d. `fixed` is `spec`
    where neither it nor the key changes with time.
    """

    name: str
    unit: str
    capacity: int
    per_minute: int
    scope: str
    per: str = ""
    shadow: bool = False
    fixed: Spec | None = None

    @property
    def label(self) -> str:
        """Return how records and metrics call it: `tenant:requests`, `tenant:usd:30d`."""
        return f"{self.scope}:{self.unit}:{self.per}" if self.per else f"{self.scope}:{self.unit}"

    def key(self, now: float) -> str:
        """Return the Redis key at a moment (Unix seconds): a calendar period has its own."""
        if self.per in CALENDAR:
            return f"{self.name}:{period(self.per, now)[0]}"
        return self.name

    def spec(self, now: float) -> Spec:
        """Return the sort of limit, its capacity, and what else `limits.lua` must know of it."""
        if self.unit == MONEY:
            if self.per in CALENDAR:
                return PERIOD, self.capacity, period(self.per, now)[1]
            return WINDOW, self.capacity, window_seconds(self.per) * 1_000_000 // WINDOW_SLOTS
        if self.unit == CONCURRENCY:
            return SLOTS, self.capacity, 0
        return RATE, self.capacity, self.per_minute


class Grant(msgspec.Struct, frozen=True, gc=False):
    """What a request takes of one limit: the key and the sort that hold at its admission."""

    limit: Limit
    key: str
    spec: Spec
    amount: int


class Budget(msgspec.Struct, frozen=True):
    """Micro-dollars a period."""

    microusd: int
    per: str
    shadow: bool = False


class Rates(msgspec.Struct, frozen=True):
    """What an operator sets for a key, tenant or model; None means no limit of that kind.

    `shadow` names the kinds (rpm, tpm, concurrency) that are watched and never refuse.
    """

    rpm: int | None = None
    burst: int | None = None
    tpm: int | None = None
    concurrency: int | None = None
    budgets: tuple[Budget, ...] = ()
    shadow: tuple[str, ...] = ()

    def or_default(self, default: "Rates") -> "Rates":
        """Fill each kind that is not set from the defaults."""
        return Rates(
            rpm=self.rpm or default.rpm,
            burst=self.burst if self.rpm else default.burst,
            tpm=self.tpm or default.tpm,
            concurrency=self.concurrency or default.concurrency,
            budgets=self.budgets or default.budgets,
            shadow=tuple([kind for kind in KINDS if self._watches(kind, default)]),
        )

    @property
    def kinds(self) -> frozenset[str]:
        """Return the kinds that are set."""
        found = {kind for kind in KINDS if getattr(self, kind) is not None}
        return frozenset(found | {MONEY} if self.budgets else found)

    def only(self, kinds: frozenset[str]) -> "Rates":
        """Return what is set of some kinds."""
        rates = {kind: getattr(self, kind) for kind in KINDS if kind in kinds}
        return Rates(
            **rates,
            burst=self.burst if "rpm" in kinds else None,
            budgets=self.budgets if MONEY in kinds else (),
            shadow=self.shadow,
        )

    def _watches(self, kind: str, default: "Rates") -> bool:
        """Tell whether a kind is in shadow; the default's shadow is for the default's limits."""
        return kind in self.shadow or (kind in default.shadow and not getattr(self, kind))


def limits(scope: str, prefix: str, rates: Rates) -> tuple[Limit, ...]:
    """Return a scope's limits; `prefix` is the Redis key without its last part."""
    found = []

    def add(last: str, unit: str, capacity: int, per_minute: int = 0) -> None:
        shadow = last in rates.shadow
        found.append(Limit(f"{prefix}:{last}", unit, capacity, per_minute, scope, "", shadow))

    if rates.rpm:
        add("rpm", REQUESTS, rates.burst or rates.rpm, rates.rpm)
    if rates.tpm:
        add("tpm", TOKENS, rates.tpm, rates.tpm)
    if rates.concurrency:
        add("concurrency", CONCURRENCY, rates.concurrency)
    for budget in rates.budgets:
        name = f"{prefix}:budget:{budget.per}"
        found.append(Limit(name, MONEY, budget.microusd, 0, scope, budget.per, budget.shadow))
    return tuple([_fixed(one) for one in found])


def _fixed(limit: Limit) -> Limit:
    if limit.per in CALENDAR:
        return limit
    return msgspec.structs.replace(limit, fixed=limit.spec(0))


def has_budget(applied: tuple[Limit, ...]) -> bool:
    """Tell whether money is counted."""
    for limit in applied:  # noqa: SIM110  a generator costs more than the loop
        if limit.unit == MONEY:
            return True
    return False


def may_refuse_money(applied: tuple[Limit, ...]) -> bool:
    """Tell whether money is limited: a budget in shadow only counts it."""
    for limit in applied:  # noqa: SIM110  a generator costs more than the loop
        if limit.unit == MONEY and not limit.shadow:
            return True
    return False


def grants(applied: tuple[Limit, ...], tokens: int, microusd: int, now: float) -> tuple[Grant, ...]:
    """Return what a request takes from each limit; `now` is Unix seconds."""
    found = []
    for one in applied:
        unit = one.unit
        amount = tokens if unit == TOKENS else microusd if unit == MONEY else 1
        if one.fixed is not None:
            found.append(Grant(one, one.name, one.fixed, amount))
        else:
            found.append(Grant(one, one.key(now), one.spec(now), amount))
    return tuple(found)


def period(per: str, now: float) -> tuple[str, int]:
    """Return the name of a calendar period (UTC) and its end in Unix microseconds, 0 for never."""
    day = datetime.fromtimestamp(now, UTC).replace(hour=0, minute=0, second=0, microsecond=0)
    if per == "day":
        return f"{day:%Y-%m-%d}", _microseconds(day + timedelta(days=1))
    if per == "week":  # ISO 8601: from Monday
        return f"{day:%G-W%V}", _microseconds(day + timedelta(days=7 - day.weekday()))
    if per == "month":
        after = (day.replace(day=1) + timedelta(days=32)).replace(day=1)
        return f"{day:%Y-%m}", _microseconds(after)
    return "total", 0


def window_seconds(per: str) -> int:
    """Return the length of a rolling window such as 30d, 12h or 90m. Raises ValueError."""
    match = _WINDOW.fullmatch(per)
    seconds = int(match[1]) * _UNIT_SECONDS[match[2]] if match else 0
    if seconds < _SHORTEST_WINDOW_SECONDS:
        raise ValueError(f"expected day, week, month, total, or a window like 30d, got {per!r}")
    return seconds


def check_period(per: str) -> None:
    """Raise ValueError unless this is a budget's period."""
    if per not in CALENDAR:
        window_seconds(per)


def _microseconds(moment: datetime) -> int:
    return int(moment.timestamp()) * 1_000_000


def tightest(granted: tuple[Grant, ...], levels: list[int]) -> dict[str, tuple[int, Limit]]:
    """Return by unit which limit has the least left, the one a client meets first, and how much.

    One in shadow is met by nobody.
    """
    found: dict[str, tuple[int, Limit]] = {}
    for grant, level in zip(granted, levels, strict=True):
        limit = grant.limit
        if limit.shadow:
            continue
        known = found.get(limit.unit)
        if known is None or level < known[0]:
            found[limit.unit] = (level, limit)
    return found


def overdrawn_in_shadow(granted: tuple[Grant, ...], levels: list[int]) -> tuple[Limit, ...]:
    """Return the limits that would have refused if they were not in shadow."""
    found = zip(granted, levels, strict=True)
    return tuple([grant.limit for grant, level in found if grant.limit.shadow and level < 0])


def taken_of(granted: tuple[Grant, ...], overdrawn: tuple[Limit, ...]) -> tuple[Grant, ...]:
    """Leave out the rates in shadow that had too little: nothing was taken of them."""
    return tuple([g for g in granted if g.spec[0] != RATE or g.limit not in overdrawn])


def until_full(limit: Limit, level: int) -> str:
    """Write the time until a rate's bucket is full again."""
    missing = limit.capacity - level
    if missing <= 0:
        return "0ms"
    seconds = missing * 60 / limit.per_minute
    return show_duration(seconds) if seconds > SHORT_SECONDS else f"{ceil(seconds * 1000)}ms"


def show_duration(seconds: float) -> str:
    """Write a duration as OpenAI's headers do: 12ms, 1.5s, 6m0s."""
    milliseconds = ceil(seconds * 1000)
    if milliseconds < 1000:
        return f"{milliseconds}ms"
    if milliseconds <= 59_900:
        return f"{ceil(milliseconds / 100) / 10:g}s"
    minutes, rest = divmod(ceil(milliseconds / 1000), 60)
    if minutes < 60:
        return f"{minutes}m{rest}s"
    return f"{minutes // 60}h{minutes % 60}m{rest}s"
