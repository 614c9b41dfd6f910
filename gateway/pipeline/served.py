"""What serves a model: its routes, and the rules by which they are asked."""

import random
from collections.abc import Iterable
from datetime import UTC, datetime

import msgspec

from gateway.core.operations import Operation
from gateway.core.target import Target
from gateway.pipeline.targets import Way
from gateway.policy.access import Principal
from gateway.policy.breaker import Breaker, Rules
from gateway.policy.caching import ASIS, Overrides
from gateway.policy.limits import Limit
from gateway.policy.pricing import Price, Schedule
from gateway.policy.retry import Budget
from gateway.policy.rotation import Rotation
from gateway.policy.routing import UNKNOWN_PRICE, TargetState
from gateway.policy.selection import Conditions
from gateway.providers import Adapter
from gateway.upstream.credentials import Signer


def _untroubled() -> Breaker:
    return Breaker(Rules(), random.random)


class Route(msgspec.Struct, frozen=True):
    """A target with all that can be prepared for it: its ways, and what it charges.

    Of a provider with several keys each is a target of its own in `others`; `rotation` says whose
    turn it is. `signer` adds what only the moment of sending knows.
    """

    target: Target
    adapter: Adapter
    ways: dict[Operation, Way]
    price: Price | None
    schedule: Schedule | None
    signer: Signer | None = None
    rotation: Rotation | None = None
    number: int = 0
    others: "tuple[Route, ...]" = ()
    weight: int = 1
    state: TargetState = msgspec.field(default_factory=lambda: TargetState(_untroubled()))
    conditions: Conditions | None = None
    tags: frozenset[str] = frozenset()
    canary: float | None = None
    limits: tuple[Limit, ...] = ()
    headers: str = ""  # of an answer, on who gave it

    @property
    def name(self) -> str:
        """Return what it is called: provider/model."""
        return f"{self.target.provider}/{self.target.model}"

    @property
    def priority(self) -> int:
        """Return the target's rank."""
        return self.target.priority

    @property
    def unit_price(self) -> float:
        """Return what a token costs, to compare targets by."""
        price = self.price_now()
        return UNKNOWN_PRICE if price is None else price.input + price.output

    def price_now(self) -> Price | None:
        """Return the price that holds now; None where nobody knows it."""
        if self.price is not None or self.schedule is None:
            return self.price
        return self.schedule.at(datetime.now(UTC))


def answered_by(provider: str, model: str) -> str:
    """Return the headers of an answer that say who gave it."""
    return f"x-sluice-provider: {provider}\r\nx-sluice-model: {model}\r\n"


class Lister(msgspec.Struct, frozen=True):
    """A provider that is to be asked which models it has, with the whole request for it.

    `number` is that of the key among the provider's, from 1 on.
    """

    target: Target
    adapter: Adapter
    request: bytes
    number: int = 1


class Served(msgspec.Struct, frozen=True):
    """A model name and its routes. `configured`: the operator named it (safe as a label).

    `selective`: not every request may go to every route, or not to any of them alike. `fallbacks`:
    models by the kind of refusal (`policy.refusal`) for which they are asked. `full_names`: what
    else limits may call it.
    """

    name: str
    routes: tuple[Route, ...]
    max_output: int | None
    configured: bool
    owner: str
    strategy: str = "priority"
    budget: Budget = msgspec.field(default_factory=lambda: Budget(0))
    selective: bool = False
    affinity: str = "none"
    fallbacks: dict[str, tuple[str, ...]] = {}
    hedge_after: float | None = None  # seconds; 0: the target's p95
    shadow: "Shadow | None" = None
    total: float | None = None  # seconds for a request; None: as for all
    goes_on: bool = False  # with a stream that is cut, at another target
    cache: Overrides = ASIS
    full_names: tuple[str, ...] = ()

    def does(self, operation: Operation) -> bool:
        """Tell whether any of its routes can be asked for this."""
        for route in self.routes:  # noqa: SIM110  a generator costs more than the loop
            if operation in route.ways:
                return True
        return False


def full_names_of(name: str, routes: Iterable[Route]) -> tuple[str, ...]:
    """Return a model's name as `provider/name`, where one provider alone has it under that name.

    Where the operator's name leads to a model of another name, it is a name of its own; where it
    leads to several providers, which of them will answer is not known when limits are asked.
    """
    own = {route.name if route.target.model == name else "" for route in routes}
    return tuple(own) if len(own) == 1 and "" not in own else ()


class Shadow(msgspec.Struct, frozen=True):
    """Where copies of a model's requests go, as a model of its own, and for whom they are counted.

    `concurrency` is of a worker.
    """

    served: Served
    percent: float
    concurrency: int
    principal: Principal
