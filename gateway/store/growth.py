"""Leases that reserve more money: through Redis, or without it and told to it afterwards."""

import asyncio
from collections.abc import Callable

from gateway.core.errors import StoreError
from gateway.policy.limits import Grant, Spec
from gateway.store import scripts
from gateway.store.client import Client, ran
from gateway.store.connection import Reply
from gateway.store.lease import Holding, Verdict
from gateway.store.packing import pack_growth
from gateway.store.part import Heard, Parts
from gateway.store.patience import PATIENCE_SECONDS


class Growth:
    """A worker's leases that hold more than Redis knows of.

    `heard` is called with the tenant of one that Redis has been told of.
    """

    def __init__(self, client: Client, parts: Parts, heard: Heard) -> None:
        self._client, self._parts, self._heard = client, parts, heard
        self._untold: dict[str, tuple[str, Holding, tuple[Grant, ...]]] = {}
        self._due: list[str] = []

    async def ask(
        self,
        tenant: str,
        lease: str,
        holding: Holding,
        budgets: tuple[Grant, ...],
        amount: int,
        *,
        impatient: bool = False,
    ) -> Verdict:
        """Reserve so many more micro-dollars, of all budgets or of none. Raises StoreError.

        What comes late takes nothing twice: Redis is told what the lease is to hold in all.
        """
        keys, data = pack_growth(tenant, lease, holding, _named(budgets), forced=False)
        try:
            async with asyncio.timeout(PATIENCE_SECONDS if impatient else None):
                refusing, *short = await ran(self._client, scripts.GROW, keys, data)
        except TimeoutError:
            raise StoreError("Redis is late") from None
        if refusing < 0:
            raise StoreError("the lease is gone")
        if refusing:
            return Verdict(refused_by=budgets[refusing - 1].limit)
        for grant in budgets:
            self._parts.of(tenant).share.came_back(grant.key, -amount, grant.spec[1])
        self.forget(lease)  # it has all of it now
        return Verdict(overdrawn=tuple([budgets[number - 1].limit for number in short]))

    def note(self, tenant: str, lease: str, holding: Holding, budgets: tuple[Grant, ...]) -> None:
        """Know that a lease holds more than Redis has heard of."""
        self._untold[lease] = tenant, holding, budgets
        self._parts.of(tenant).untold = True

    def forget(self, lease: str) -> None:
        """Know that Redis has nothing to hear of a lease any more."""
        if self._untold:
            self._untold.pop(lease, None)

    def owes(self, tenant: str | None) -> bool:
        """Tell whether Redis has yet to hear of a lease of a tenant, or of any."""
        return any(tenant in (None, whose) for whose, _, _ in self._untold.values())

    def resend(self, wanted: Callable[[str], bool]) -> None:
        """Have Redis told with what is sent next, of some tenants."""
        self._due += [lease for lease, found in self._untold.items() if wanted(found[0])]

    def flush(self) -> None:
        """Tell Redis, which has had the leases themselves before."""
        due, self._due = self._due, []
        for lease in due:
            self._tell(lease)

    def _tell(self, lease: str) -> None:
        if (found := self._untold.get(lease)) is None:
            return
        tenant, holding, budgets = found

        def done(reply: Reply | Exception) -> None:
            part = self._parts.of(tenant)
            if isinstance(reply, Exception):
                part.untold = True
                if part.refuses(reply):
                    self._parts.closed(part)
                return
            if self._untold.get(lease) is found:
                del self._untold[lease]
            self._heard(tenant, part, took=True)

        keys, data = pack_growth(tenant, lease, holding, _named(budgets), forced=True)
        self._client.run(scripts.GROW, keys, (data,), done)


def _named(budgets: tuple[Grant, ...]) -> tuple[tuple[str, Spec, bool], ...]:
    return tuple([(grant.key, grant.spec, grant.limit.shadow) for grant in budgets])
