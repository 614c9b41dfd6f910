"""Who decides about a part of Redis: this worker by its share, or Redis once it has heard of all.

A worker that has done without asks Redis again when all that was decided here meanwhile is on its
way there, when what workers that are gone had left has been told, and when no other process of this
machine does without. So nothing is given twice. Others are waited for so long at the most.
"""

import asyncio
from collections.abc import Callable
from math import inf
from time import monotonic

from gateway.store import names
from gateway.store.backlog import Backlog
from gateway.store.client import Client
from gateway.store.connection import Reply
from gateway.store.debts import Debt
from gateway.store.growth import Growth
from gateway.store.part import Part, Parts
from gateway.store.roster import Roster

BEHIND_SECONDS = 15.0  # at the most, however much others have to tell
LOOK_SECONDS = 0.02
LOOK_SECONDS_CLUSTERED = 0.25  # there are many parts
AGREED_SECONDS = 0.05  # from an agreement on until it holds: every worker looks meanwhile
LASTING_SECONDS = 0.5  # who owes for longer has lost Redis


class Returning:
    """`resend` puts tenants' backlogs on their way to Redis, or everybody's; or a probe of them."""

    def __init__(
        self,
        client: Client,
        parts: Parts,
        backlog: Backlog,
        roster: Roster,
        resend: Callable[[frozenset[str] | None, bool], None],
        *,
        degrade: bool,
    ) -> None:
        self._client, self._parts, self._backlog = client, parts, backlog
        self._roster, self._resend, self._degrade = roster, resend, degrade
        parts.closed = self.without
        self.growth: Growth | None = None
        self.awaits_orphans = asyncio.Event()  # Redis is back, and is to hear of them first
        self._loop = asyncio.get_running_loop()
        self._look: asyncio.TimerHandle | None = None
        self._behind_until: asyncio.TimerHandle | None = None
        self._given_up: frozenset[Debt] = frozenset()
        self._every = LOOK_SECONDS_CLUSTERED if client.clustered else LOOK_SECONDS

    def close(self) -> None:
        """Look no more. Idempotent."""
        for timer in (self._look, self._behind_until):
            if timer is not None:
                timer.cancel()

    @property
    def behind(self) -> bool:
        """Tell whether Redis is back, and has yet to hear of workers that are gone."""
        return any(part.behind for _, part in self._parts.all())

    def watch(self) -> None:
        """Look now and then who decides, until it is Redis alone."""
        if self._look is None:
            self._look = self._loop.call_later(self._every, self._look_again)

    def without(self, part: Part) -> None:
        """Do without a part: it is hung, or takes nothing."""
        part.goes_without()
        if (debts := self._parts.debts) is not None:
            part.since = max(part.since, debts.agreed)  # what was agreed on before is no more
        self.watch()

    def heard(self, tenant: str, part: Part, *, took: bool = False) -> None:
        """Know that a part answers; whether it took what was to be kept."""
        if part.hung or (took and part.closed):
            self._opens(part)
        part.answers()
        if part.untold and took and not part.stuck:
            part.refused_at = -inf  # there is no reason to wait
        if part.takes and not self._client.clustered:  # where the next look sees to all at once
            self._resend(None, part.closed or part.stuck)
        self._weigh(tenant, part)

    def begin(self, *, left: bool) -> None:
        """See whether Redis, which is there, has heard of all before this worker began."""
        debts = self._parts.debts
        if left or (debts is not None and debts.others()):
            self.reconnected(self._client.reaches)

    def reconnected(self, serves: Callable[[str], bool]) -> None:
        """Redis is back, or a part of it."""
        for tenant, part in self._parts.all():
            if serves(tenant):
                part.answers()
                # In a cluster who decided nothing may never have been without.
                idle = not self._client.clustered
                if self._degrade and (part.alone or idle):
                    part.behind = True
                    self.without(part)
        self._await_orphans()

    def left_a_file(self) -> None:
        """Know that some of what Redis has yet to hear is on disk only."""
        for _, part in self._parts.all():
            if part.alone:
                part.behind = True
                self.without(part)
        self._await_orphans()

    def orphans_told(self) -> None:
        """Know that what workers that are gone had left to say has been told."""
        self._parts.told(self._client.reaches, whole=self._client.connected)
        for tenant, part in self._parts.all():
            self._weigh(tenant, part)

    def notice(self) -> None:
        """See whether others here have lost Redis: what they decide it does not know."""
        part, debts = self._parts.whole, self._parts.debts
        if part is None or debts is None or part.late:
            return
        now = monotonic()
        if not self._client.connected:
            debts.owe(now)  # it would decide by itself
            return
        if any(now - since > LASTING_SECONDS for _, since in debts.others() - self._given_up):
            self.without(part)

    def weigh(self, tenant: str, part: Part) -> None:
        """See whether the moment has come that all have agreed on."""
        if part.returning and part.ready_at is not None:
            self._weigh(tenant, part)

    def _await_orphans(self) -> None:
        self.awaits_orphans.set()
        if self._behind_until is not None:
            self._behind_until.cancel()
        self._behind_until = self._loop.call_later(BEHIND_SECONDS, self._wait_no_more)

    def _opens(self, part: Part) -> None:
        """A part answers or takes again: it may lack what others had to say meanwhile."""
        part.hung = part.closed = False
        if part.returning:
            part.behind = True
            self._await_orphans()

    def _wait_no_more(self) -> None:
        """Wait no longer for what is on disk, however much of it has yet to be told."""
        self._behind_until = None
        for tenant, part in self._parts.all():
            part.behind = False
            self._weigh(tenant, part)

    def _look_again(self) -> None:
        self._look = None
        owes, due = False, set[str]()
        probes = False
        for tenant, part in self._parts.all():
            if not (part.alone or part.late):
                continue
            self.watch()
            if reached := self._client.reaches(tenant):
                if part.hung and part.rested:
                    self._ask(tenant, part)
                elif part.takes and not part.hung:
                    due.add(tenant)
                    probes = probes or part.closed or part.stuck
                elif part.closed and part.rested:
                    self._opens(part)  # there is nothing to try it with
                self._weigh(tenant, part)
            owes = owes or not (reached and part.ready)
        if due:
            self._resend(None if self._parts.whole is not None else frozenset(due), probes)
        if (debts := self._parts.debts) is not None and self._parts.whole is not None:
            if owes:
                debts.owe(monotonic())
            else:
                debts.pay()

    def _weigh(self, tenant: str, part: Part) -> None:
        """Decide who decides."""
        if not (part.alone or part.late):
            return
        if not part.ready:
            part.ready_at = None
            part.late = part.late or self._degrade
            return
        if part.returning:
            part.returning = not self._agreed(part)
        part.late = part.returning
        one = None if part is self._parts.whole else tenant
        owes = self._backlog.owes(one) or (self.growth is not None and self.growth.owes(one))
        if part.alone and part.told and not (part.late or owes):
            part.is_back(self._roster.live)

    def _agreed(self, part: Part) -> bool:
        """Tell whether nobody here has anything to tell, and all know of it."""
        debts, now = self._parts.debts, monotonic()
        if debts is None or part is not self._parts.whole:
            return True
        if part.ready_at is None:
            part.ready_at = now
        if debts.agreed > part.since:
            if now < debts.agreed:
                return False
            # Who owed by then was given up by whoever found that moment.
            found_at, owing = debts.agreed - AGREED_SECONDS, debts.others()
            old = {debt for debt in owing if debt[1] < found_at}
            self._given_up = (self._given_up & owing) | old
            return True
        owing = debts.others()
        if owing - self._given_up:
            if now - part.ready_at < BEHIND_SECONDS:
                return False
            self._given_up = owing
        debts.agree(now + AGREED_SECONDS)
        return False

    def _ask(self, tenant: str, part: Part) -> None:
        """Ask a part that is hung for anything: nothing else may be on its way."""
        part.refused_at = monotonic()

        def done(future: asyncio.Future[Reply]) -> None:
            if not future.cancelled() and future.exception() is None:
                self.heard(tenant, part)

        self._client.call("EXISTS", names.leases(tenant)[0]).add_done_callback(done)
