"""Tells Redis what workers that are gone had left to tell it."""

import contextlib
import logging
from collections import defaultdict

import msgspec

from gateway.core.errors import StoreError
from gateway.policy.limits import RATE, REQUESTS, Grant, Limit, Spec
from gateway.spool import Left, is_left
from gateway.store.journal import Entry, Grown, Journal, Opened, Settled, entries
from gateway.store.lease import Ask, Settlement, ended, is_felt
from gateway.store.orphans import Orphans

logger = logging.getLogger("sluice.store")


class _Told(msgspec.Struct):
    """What is to be told of a tenant; of a lease that has grown several times, how far."""

    asks: list[Ask] = []
    grown: dict[str, Grown] = {}
    settlements: list[Settlement] = []


class Replay:
    """Settles what the files of dead workers hold. A file goes when Redis has been told all of it.

    Safe to be interrupted and to be done again: a lease settles once, and is not opened again for
    two days. What of a file has been told is not told again while the rest of it waits.
    """

    def __init__(self, orphans: Orphans, journal: Journal) -> None:
        self._orphans, self._journal = orphans, journal
        self._owed: dict[str, set[str]] = {}  # file -> the tenants of it that have yet to be told
        self._unlisted: set[str] = set()  # tenants whose leases everybody is to look after
        self._away: dict[str, Exception] = {}  # tenants that could not be told in this turn
        self._others = False  # have files of such workers

    async def has_any(self) -> bool:
        """Tell whether workers that are gone, or are about to go, have left any. Raises OSError."""
        journal = self._journal
        return any(is_left(name) or journal.has_name_of(name) for name in await journal.left())

    async def turn(self) -> bool:
        """Tell what can be told now; in the end raise what went wrong, StoreError or another.

        Returns whether all is told, by whomever, that workers had to say who are gone, or are about
        to go, as this one has their place.
        """
        self._away.clear()
        self._others = False
        troubles: list[Exception] = []
        for tenant in tuple(self._unlisted):
            await self._enlist(tenant)
        names = await self._journal.left()
        self._owed = {name: owed for name, owed in self._owed.items() if name in names}
        for name in names:
            try:
                await self._tell_file(name)
            except Exception as error:  # a disk's: other files may be well
                troubles.append(error)
        for trouble in (*troubles, *self._away.values()):
            raise trouble
        return not (self._others or any(self._owed.values()))

    async def _tell_file(self, name: str) -> None:
        owed = self._owed.get(name)
        if owed and not any(map(self._orphans.reaches, owed)):
            return
        file = await self._journal.take(name)
        if file is None:  # another worker has it: who writes it, or who tells it
            waits = is_left(name) or self._journal.has_name_of(name)
            self._others = self._others or (waits and name not in self._journal.unreadable)
            return
        with contextlib.closing(file):
            if owed is None or owed:
                owed = self._owed[name] = await self._tell_all(file, owed)
            if not owed:  # or it was told before, and only its disk did not let it go
                file.remove()
                del self._owed[name]
                logger.info("Redis has been told what %s held", name)

    async def _tell_all(self, file: Left, wanted: set[str] | None) -> set[str]:
        """Tell of a file's tenants, or of some; return those that could not be told."""
        left = set()
        while lines := await self._journal.read(file):
            for tenant, told in self._by_tenant(entries(lines)).items():
                if wanted is None or tenant in wanted:
                    await self._tell(tenant, told)
                    if tenant in self._away:
                        left.add(tenant)
        return left

    async def _tell(self, tenant: str, told: _Told) -> None:
        """Open leases first: a settlement needs its own."""
        if tenant in self._away:
            return
        try:
            if told.asks:
                await self._orphans.reopen(tenant, told.asks)
                await self._enlist(tenant)
            await self._orphans.grow(tenant, told.grown.values())
            if told.settlements:
                await self._orphans.deliver(tenant, told.settlements)
        except Exception as error:  # its part of Redis is away, or takes none of this
            self._away[tenant] = error

    async def _enlist(self, tenant: str) -> None:
        """Let everybody look after a tenant's leases, or try it again in the next turn."""
        try:
            await self._orphans.enlist(tenant)
        except StoreError:  # the list may be in another part of Redis than the tenant
            self._unlisted.add(tenant)
        else:
            self._unlisted.discard(tenant)

    def _by_tenant(self, lines: list[Entry]) -> dict[str, _Told]:
        """Return what is to be told of each tenant; of rates no more than is still felt."""
        found = defaultdict[str, _Told](_Told)
        now = self._orphans.now()
        for entry in lines:
            match entry:
                case Opened(tenant=tenant, lease=lease, holding=holding):
                    age = now - entry.at
                    took = [one for one in entry.took if one[1][0] != RATE or is_felt(one[1], age)]
                    grants = tuple([_grant(*one) for one in took])
                    ask = Ask(lease, bytes(holding), grants, forced=True)
                    found[tenant].asks.append(ask)
                case Grown(tenant=tenant, lease=lease):
                    found[tenant].grown[lease] = entry
                case Settled(settlement=settlement):
                    began = entry.began or settlement.at
                    settlement = ended(settlement, now - began if began else 0.0)
                    found[settlement.tenant].settlements.append(settlement)
        return found


def _grant(key: str, spec: Spec, amount: int) -> Grant:
    return Grant(Limit(key, REQUESTS, spec[1], 0, "", fixed=spec), key, spec, amount)
