"""Leases that reserve more money: through Redis, or without it and told to it afterwards."""

import asyncio
from collections.abc import Callable

import msgspec

from gateway.core.errors import LeaseGone, StoreError
from gateway.policy.limits import RATE, SLOTS, Grant, Limit, Spec
from gateway.store import scripts
from gateway.store.client import Client, ran
from gateway.store.connection import Reply
from gateway.store.lease import Ask, Holding, Verdict
from gateway.store.packing import pack_asks, pack_growth, unpack_verdicts
from gateway.store.part import Heard, Parts
from gateway.store.patience import PATIENCE_SECONDS


class Growth:
    """A worker's leases that hold more than Redis knows of.

    A lease that Redis has lost, as when it was emptied, is opened again; not one that another
    worker has settled, which took this one for dead. `heard` is called with the tenant of one that
    Redis has been told of, `doubts` with a lease that is opened again, `lost` with one that is not.
    """

    def __init__(
        self,
        client: Client,
        parts: Parts,
        lease_ms: int,
        *,
        heard: Heard,
        doubts: Callable[[str], None],
        lost: Callable[[str], None],
    ) -> None:
        self._client, self._parts, self._lease_ms = client, parts, lease_ms
        self._heard, self._doubts, self._lost = heard, doubts, lost
        self._untold: dict[str, tuple[str, Holding, tuple[Grant, ...]]] = {}
        self._gone: set[str] = set()
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
        """Reserve so many more micro-dollars, of all budgets or of none.

        What comes late takes nothing twice: Redis is told what the lease is to hold in all. Raises
        StoreError, LeaseGone.
        """
        self.check(lease)
        keys, data = pack_growth(tenant, lease, holding, _named(budgets), forced=False)
        try:
            async with asyncio.timeout(PATIENCE_SECONDS if impatient else None):
                refusing, *short = await ran(self._client, scripts.GROW, keys, data)
                if refusing < 0:
                    refused = await self._opened_again(tenant, lease, holding, budgets)
                    if refused is not None:
                        return Verdict(refused_by=refused)
                    refusing, *short = await ran(self._client, scripts.GROW, keys, data)
        except TimeoutError:
            raise StoreError("Redis is late") from None
        if refusing < 0:
            self._lose(lease)
            self.check(lease)
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

    def check(self, lease: str) -> None:
        """Raise LeaseGone where Redis has settled a lease, which is to have no more then."""
        if lease in self._gone:
            raise LeaseGone("the lease has been settled by another worker")

    def forget(self, lease: str) -> None:
        """Know that Redis has nothing to hear of a lease any more."""
        if self._untold:
            self._untold.pop(lease, None)

    def ended(self, lease: str) -> None:
        """Know that a lease is settled."""
        self.forget(lease)
        if self._gone:
            self._gone.discard(lease)

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

    async def _opened_again(
        self, tenant: str, lease: str, holding: Holding, budgets: tuple[Grant, ...]
    ) -> Limit | None:
        """Open a lease anew that Redis does not know; return what refuses. Raises StoreError."""
        keys, data, limits = self._opening(tenant, lease, holding, budgets, forced=False)
        reply = await ran(self._client, scripts.ADMIT, keys, data)
        try:
            _, ((refusing, *_),) = unpack_verdicts(reply)
        except (msgspec.DecodeError, ValueError, TypeError) as error:
            raise StoreError(f"Redis answered nonsense: {error}") from None
        return limits[refusing - 1] if refusing else None

    def _opening(
        self, tenant: str, lease: str, holding: Holding, budgets: tuple[Grant, ...], *, forced: bool
    ) -> tuple[list[str], bytes, list[Limit]]:
        """Return the call that opens a lease with all the money that it is to hold, and no slot."""
        self._doubts(lease)  # its settlement is to be remembered: this may arrive behind it
        held = tuple([one for one in holding.holds if one[1][0] not in (RATE, SLOTS)])
        money = {key: amount for key, _, amount in held}
        grants = tuple(
            [msgspec.structs.replace(one, amount=money.get(one.key, 0)) for one in budgets]
        )
        bare = msgspec.json.encode(msgspec.structs.replace(holding, holds=held))
        ask = Ask(lease, bare, grants, forced=forced)
        return pack_asks(tenant, [ask], self._lease_ms)

    def _lose(self, lease: str) -> None:
        self._gone.add(lease)
        self._lost(lease)

    def _refused(self, tenant: str, error: Exception) -> None:
        """Redis has not taken what it was told: it is told so again with what is sent next."""
        part = self._parts.of(tenant)
        part.untold = True
        if part.refuses(error):
            self._parts.closed(part)

    def _tell_again(self, lease: str) -> None:
        """Open a lease that Redis does not know, then tell it what it holds."""
        if (found := self._untold.get(lease)) is None:
            return
        tenant, holding, budgets = found

        def done(reply: Reply | Exception) -> None:
            if isinstance(reply, Exception):
                self._refused(tenant, reply)
            else:
                self._tell(lease, again=True)

        keys, data, _ = self._opening(tenant, lease, holding, budgets, forced=True)
        self._client.run(scripts.ADMIT, keys, (data,), done)

    def _tell(self, lease: str, *, again: bool = False) -> None:
        if (found := self._untold.get(lease)) is None:
            return
        tenant, holding, budgets = found

        def done(reply: Reply | Exception) -> None:
            if isinstance(reply, Exception):
                self._refused(tenant, reply)
                return
            if reply[0] < 0 and not again:
                self._tell_again(lease)
                return
            if self._untold.get(lease) is found:
                del self._untold[lease]
                if reply[0] < 0:
                    self._lose(lease)
            self._heard(tenant, self._parts.of(tenant), took=True)

        keys, data = pack_growth(tenant, lease, holding, _named(budgets), forced=True)
        self._client.run(scripts.GROW, keys, (data,), done)


def _named(budgets: tuple[Grant, ...]) -> tuple[tuple[str, Spec, bool], ...]:
    return tuple([(grant.key, grant.spec, grant.limit.shadow) for grant in budgets])
