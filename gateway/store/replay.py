"""Tells Redis what workers that are gone had left to tell it."""

import contextlib
import logging

from gateway.store.journal import Entry, Journal, Opened, Settled, entries
from gateway.store.lease import Ask, Settlement
from gateway.store.orphans import Orphans

logger = logging.getLogger("sluice.store")


async def replay(orphans: Orphans, journal: Journal) -> None:
    """Settle what the files of dead workers hold. Raises StoreError.

    Safe to be interrupted and to be done again: a lease that was settled is not opened again, and
    settles once.
    """
    for name in await journal.left():
        file = await journal.take(name)
        if file is None:
            continue
        with contextlib.closing(file):
            while lines := await journal.read(file):
                await _tell(orphans, entries(lines))
            file.remove()
            logger.info("Redis has been told what %s held", name)


async def _tell(orphans: Orphans, told: list[Entry]) -> None:
    """Open leases first: a settlement needs its own."""
    asks: dict[str, list[Ask]] = {}
    settlements: dict[str, list[Settlement]] = {}
    for entry in told:
        match entry:
            case Opened(tenant=tenant, lease=lease, holding=holding):
                asks.setdefault(tenant, []).append(Ask(lease, bytes(holding), (), forced=True))
            case Settled(settlement=settlement):
                settlements.setdefault(settlement.tenant, []).append(settlement)
    for tenant, wanted in asks.items():
        await orphans.reopen(tenant, wanted)
    for tenant, ended in settlements.items():
        await orphans.deliver(tenant, ended)
