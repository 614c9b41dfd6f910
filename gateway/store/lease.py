"""Hot path: what a lease holds, what an admission answers and a settlement says. Frozen values."""

import asyncio
from collections.abc import Callable
from math import inf
from typing import TypeVar

import msgspec

from gateway.policy.limits import RATE, Grant, Limit, Spec
from gateway.store import requests

MAX_BATCH = 256  # Lua's unpack and Redis's attention are both finite

T = TypeVar("T")


class Holding(msgspec.Struct, frozen=True, gc=False, omit_defaults=True):
    """What a lease holds, enough to account for it if its worker dies. Amounts are estimates.

    `holds` are the slots and the money to be given back: limit keys, their sorts, amounts. `priced`
    names the model whose price counts, where that is not the one that was asked for.
    """

    key: str
    model: str
    provider: str
    served: str
    operation: str
    prompt: int
    output: int
    started: int
    holds: tuple[tuple[str, Spec, int], ...] = ()
    labels: tuple[str, ...] = ()
    priced: str = ""
    stream: bool = False


class Verdict(msgspec.Struct, frozen=True, gc=False):
    """The answer to an admission; `wait_seconds` is None where waiting cannot help.

    `levels` says how much is left of each limit of `grants`; below 0 it is a debt.
    """

    grants: tuple[Grant, ...] = ()
    levels: list[int] = []
    refused_by: Limit | None = None
    wait_seconds: float | None = 0
    unsure: bool = False  # refused here, though Redis may have taken the lease
    overdrawn: tuple[Limit, ...] = ()  # limits in shadow that would have refused


class Ask(msgspec.Struct, frozen=True, gc=False):
    """A lease that is asked for; without a future nobody waits for the answer.

    `holding` is JSON. `forced`: its request has been admitted already, so no limit refuses it. A
    lease is taken once, however often it is asked for.
    """

    lease: str
    holding: bytes
    grants: tuple[Grant, ...]
    future: asyncio.Future[Verdict] | None = None
    forced: bool = False


class Return(msgspec.Struct, frozen=True, gc=False):
    """What a lease reserved of a limit, and what was used of it.

    Of slots and money the lease itself knows what it reserved.
    """

    key: str
    spec: Spec
    reserved: int
    used: int


class Settlement(msgspec.Struct, frozen=True, gc=False):
    """What became of a lease. `counts` are the counters of `settle.lua`, in its order.

    `entry` holds the values of `requests.FIELDS`; `at` says when it ended (Unix seconds, 0: now),
    which decides about the day and month it counts in. `marked`: Redis is to remember for some days
    that the lease was settled, as somebody may ask to open it again. `reaped`: its worker is taken
    for dead, which Redis is to remember too.
    """

    lease: str
    tenant: str
    returns: tuple[Return, ...]
    parts: tuple[str, ...]
    counts: tuple[int, ...]
    entry: requests.Values
    marked: bool = False
    at: int = 0
    reaped: bool = False


# Which settlement of a lease has counted: of a worker that took its own for dead, this one, or an
# earlier one of its own worker; a Redis that was emptied in between knows of none.
REAPED, COUNTED, ELSE = 0, 1, 2
Applied = Callable[[int], None]
Due = tuple[Settlement, Applied | None]


def holds(granted: tuple[Grant, ...]) -> tuple[tuple[str, Spec, int], ...]:
    """Return what of the grants must be given back even if nobody is left to settle them."""
    return tuple([(g.key, g.spec, g.amount) for g in granted if g.spec[0] != RATE])


def is_felt(spec: Spec, age: float) -> bool:
    """Tell whether what was taken of a rate so many seconds ago may not have been refilled."""
    sort, capacity, per_minute = spec
    return sort == RATE and age < 60 * capacity / per_minute


def ended(settlement: Settlement, age: float = inf) -> Settlement:
    """Let a request that ended while Redis was away count as usage, in budgets, and little else.

    Its slot is free again, and what it took of a rate has been refilled, unless it is too recent:
    `age` is the seconds since it was admitted.
    """
    spent = tuple([r for r in settlement.returns if r.spec[0] != RATE or is_felt(r.spec, age)])
    return msgspec.structs.replace(settlement, returns=spent)


def batches(items: list[T]) -> list[list[T]]:
    """Cut a list into parts that one call, or one turn, may carry."""
    if len(items) <= MAX_BATCH:
        return [items]
    return [items[i : i + MAX_BATCH] for i in range(0, len(items), MAX_BATCH)]
