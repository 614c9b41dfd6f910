"""What a worker does time and again besides serving. A part that fails takes no other along."""

import asyncio
import contextlib
import logging
from collections.abc import Awaitable, Callable, Iterator
from time import monotonic

from gateway.core.errors import StoreError
from gateway.pipeline.reap import reap
from gateway.pipeline.services import Services
from gateway.store.journal import Journal
from gateway.store.replay import Replay

logger = logging.getLogger("sluice.upkeep")

LOGGED_SECONDS = 60.0  # between two lines about a part that goes on failing
AGAIN_SECONDS = 1.0
CATCH_UP_SECONDS = 2.0
SOON_SECONDS = 0.02
YOUNG_TURNS = 20


class Mishaps:
    """Lets work go on after what went wrong in a part of it, and logs that now and then."""

    def __init__(self) -> None:
        self._quiet_until: dict[str, float] = {}

    def log(self, part: str) -> None:
        """Log the exception at hand, unless this part's last is not long ago."""
        now = monotonic()
        if now >= self._quiet_until.get(part, now):
            self._quiet_until[part] = now + LOGGED_SECONDS
            logger.exception("%s failed, and is tried again", part)

    @contextlib.contextmanager
    def survived(self, part: str) -> Iterator[None]:
        """Go on after any failure of a block. That Redis is away is nothing to log."""
        try:
            yield
        except StoreError:
            pass
        except Exception:
            self.log(part)

    async def outlived(self, part: str, watch: Callable[[], Awaitable[None]]) -> None:
        """Run a watch until it returns; one that fails begins again."""
        while True:
            try:
                return await watch()
            except Exception:
                self.log(part)
            await asyncio.sleep(AGAIN_SECONDS)


class Upkeep:
    """A worker's leases, and those of workers that are gone; `name` is this one's among all.

    Three tasks: neither a slow disk nor a late Redis keeps leases from being extended.
    """

    def __init__(
        self,
        services: Services,
        mishaps: Mishaps,
        journal: Journal | None,
        name: str,
        seconds: float,
    ) -> None:
        self._services, self._mishaps = services, mishaps
        self._replay = Replay(services.admission.orphans, journal) if journal is not None else None
        self._name, self._seconds = name, seconds

    async def catch_up(self, *, has_share: bool) -> None:
        """See that this worker, about to serve, asks Redis nothing that it has yet to be told.

        `has_share`: others have served before it, so there is a share to decide by meanwhile. Else
        what was left is told first, as far as that goes in a short time.
        """
        replay, survived = self._replay, self._mishaps.survived
        if has_share:
            left = False
            with survived("looking for journals"):
                left = replay is not None and await replay.has_any()
            self._services.admission.begin(left=left)
        elif replay is not None:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(CATCH_UP_SECONDS):
                    with survived("replaying journals"):
                        told = await replay.turn()
                        while not told:  # another worker is at it
                            await asyncio.sleep(SOON_SECONDS)
                            told = await replay.turn()

    async def keep_leases(self) -> None:
        """Extend leases, and settle again what Redis refused; waits for nobody."""
        admission, survived = self._services.admission, self._mishaps.survived
        while True:
            await asyncio.sleep(self._seconds)
            with survived("extending leases"):
                admission.extend_open()
            with survived("settling again"):
                admission.retry_unsettled()

    async def be_counted(self) -> None:
        """Be counted among the live workers, and count them."""
        roster, turns = self._services.admission.roster, 0
        while True:
            # At first often: whoever had this one's place before is about to be gone.
            young = turns < YOUNG_TURNS
            with self._mishaps.survived("counting workers"):
                await roster.count(self._name, self._seconds, young=young)
            turns += 1
            await asyncio.sleep(min(self._seconds, AGAIN_SECONDS) if young else self._seconds)

    async def settle_orphans(self) -> None:
        """Settle what workers that are gone have left, however long it takes."""
        returning, reaps_at = self._services.admission.returning, 0.0
        soon = SOON_SECONDS
        while True:
            returning.awaits_orphans.clear()
            with self._mishaps.survived("replaying journals"):
                if self._replay is None or await self._replay.turn():
                    returning.orphans_told()
            if monotonic() >= reaps_at:
                with self._mishaps.survived("reaping leases"):
                    await reap(self._services)
                reaps_at = monotonic() + self._seconds
            if returning.behind:  # another worker is about to have told them
                await asyncio.sleep(soon)
                soon = min(2 * soon, AGAIN_SECONDS)
                continue
            soon = SOON_SECONDS
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(self._seconds):
                    await returning.awaits_orphans.wait()
