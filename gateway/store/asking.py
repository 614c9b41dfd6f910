"""Hot path: leases that are asked for, a call a tenant and turn of the event loop."""

import contextlib
from collections.abc import Callable
from functools import partial
from time import monotonic

import msgspec

from gateway.core.errors import NotSent, StoreError
from gateway.policy.limits import Grant, Limit, overdrawn_in_shadow
from gateway.store import scripts
from gateway.store.alone import Alone
from gateway.store.backlog import Backlog
from gateway.store.client import Client
from gateway.store.connection import Reply
from gateway.store.lease import MAX_BATCH, Ask, Verdict
from gateway.store.packing import pack_asks, unpack_verdicts
from gateway.store.part import Heard, Part, Parts
from gateway.store.patience import Patience
from gateway.store.roster import Roster

NO_LEASE = ""  # asks how the limits stand


class Asking:
    """Asks Redis, and decides over what it does not answer in time.

    `open_leases` are the worker's, of which what is refused goes. `heard` is called with the tenant
    of what was answered, `opened` with a lease that Redis has and nobody waited for, `late` with a
    part that is waited for no more.
    """

    def __init__(
        self,
        client: Client,
        parts: Parts,
        backlog: Backlog,
        alone: Alone,
        roster: Roster,
        lease_ms: int,
        open_leases: dict[str, tuple[str, float]],
        *,
        heard: Heard,
        opened: Callable[[str, str], None],
        late: Callable[[Part], None],
    ) -> None:
        self._client, self._parts, self._backlog = client, parts, backlog
        self._alone, self._roster, self._lease_ms = alone, roster, lease_ms
        self._open, self._heard, self._opened = open_leases, heard, opened
        self._late = late
        self.unheard: set[str] = set()  # leases that Redis may have given, and has not said so
        self._patience = Patience()

    def close(self) -> None:
        """Lose patience with nothing any more. Idempotent."""
        self._patience.close()

    def send(self, tenant: str, asks: list[Ask]) -> None:
        """Ask for these in one call."""
        keys, data, limits = pack_asks(tenant, asks, self._lease_ms)
        number = 0
        late = self._parts.of(tenant).late
        if late:
            self._alone.note(tenant, asks)
        if self._alone.degrade and not (late and all(ask.future is None for ask in asks)):
            number = self._patience.begin(partial(self._lose_patience, tenant, asks))

        error = StoreError if self._client.reaches(tenant) else NotSent

        def done(reply: Reply | Exception) -> None:
            self._patience.end(number)
            if isinstance(reply, bytes):
                self._answer(tenant, asks, limits, reply)
                self._parts.tell_money(tenant, keys[2:-1], limits)
            else:
                self._unanswered(tenant, asks, error(f"Redis: {reply}"), reply)

        self._client.run(scripts.ADMIT, keys, (data,), done)

    def knows(self, part: Part, granted: tuple[Grant, ...]) -> bool:
        """Tell whether this worker has heard of all limits that a request takes of."""
        return all(map(part.share.knows, granted))

    def _unanswered(
        self, tenant: str, asks: list[Ask], error: StoreError, answer: object = None
    ) -> None:
        """Decide over what Redis has not taken, as far as is known, or say so to who asked."""
        part = self._parts.of(tenant)
        if part.refuses(answer):
            self._parts.closed(part)
            if self._look(tenant, part, asks, error):
                return
        self._decide(tenant, asks, error)

    def _look(self, tenant: str, part: Part, asks: list[Ask], error: StoreError) -> bool:
        """Decide once Redis, which takes nothing, has said what is left of limits; if need be."""
        waiting = [ask for ask in asks if ask.future is not None and not ask.future.done()]
        unknown = {
            grant.key: msgspec.structs.replace(grant, amount=0)
            for ask in waiting
            for grant in ask.grants
            if ask.lease != NO_LEASE and not part.share.knows(grant)
        }
        if not unknown:
            return False
        nothing = tuple(unknown.values())[:MAX_BATCH]
        keys, data, _ = pack_asks(tenant, [Ask(NO_LEASE, b"", nothing)], self._lease_ms)
        number = self._patience.begin(partial(self._decide, tenant, asks, error))

        def done(reply: Reply | Exception) -> None:
            waits = self._patience.end(number)
            if not isinstance(reply, StoreError):
                part.hung = False
            with contextlib.suppress(msgspec.DecodeError):
                if isinstance(reply, bytes):
                    (_, _, *levels) = unpack_verdicts(reply)[1][0]
                    for grant, level in zip(nothing, levels, strict=True):
                        part.share.known[grant.key] = level, monotonic(), grant.spec[1]
            if waits:
                self._decide(tenant, asks, error)

        self._client.run(scripts.ADMIT, keys, (data,), done)
        return True

    def _decide(self, tenant: str, asks: list[Ask], error: StoreError) -> None:
        for ask in asks:
            self.unheard.discard(ask.lease)
            if ask.future is None:
                self._alone.postpone(tenant, ask)
            elif ask.future.done():
                if ask.lease != NO_LEASE:  # it may be read after its settlement
                    self._backlog.doubt(ask.lease)
                self._release(tenant, ask)
            elif ask.lease != NO_LEASE and self._alone.goes_on(ask.grants):
                self._decide_alone(tenant, ask)
            else:
                if isinstance(error, NotSent):
                    self._open.pop(ask.lease, None)
                elif ask.lease != NO_LEASE:
                    self._backlog.doubt(ask.lease)
                ask.future.set_exception(error)

    def _answer(self, tenant: str, asks: list[Ask], limits: list[Limit], reply: bytes) -> None:
        part = self._parts.of(tenant)
        try:
            now_us, verdicts = unpack_verdicts(reply)
        except msgspec.DecodeError as error:
            nonsense = StoreError(f"Redis answered nonsense: {error}")
            self._unanswered(tenant, asks, nonsense)
            return
        for ask in asks:
            self.unheard.discard(ask.lease)
        known, heard_at = part.share.known, monotonic()
        if self._roster.heard(now_us, tenant if self._client.clustered else ""):
            part.refuses()  # deadlines of leases that are being served may have passed
        shadows = any(limit.shadow for limit in limits)
        for ask, (refusing, wait_us, *levels) in zip(asks, verdicts, strict=True):
            granted = ask.grants
            for grant, level in zip(granted, levels, strict=True):
                known[grant.key] = level, heard_at, grant.spec[1]
            if ask.future is None:
                self._opened(tenant, ask.lease)
                continue
            if ask.future.done():
                self._release(tenant, ask)
                continue
            if part.alone and not refusing:
                part.share.took(granted)
            if refusing:
                self._open.pop(ask.lease, None)
                wait = None if wait_us < 0 else wait_us / 1e6
                ask.future.set_result(Verdict(granted, levels, limits[refusing - 1], wait))
            elif shadows and ask.lease != NO_LEASE:
                overdrawn = overdrawn_in_shadow(granted, levels)
                ask.future.set_result(Verdict(granted, levels, overdrawn=overdrawn))
            else:
                ask.future.set_result(Verdict(granted, levels))
        if part.alone or part.late:
            kept = any(not one[0] and ask.lease for ask, one in zip(asks, verdicts, strict=True))
            self._heard(tenant, part, took=kept)

    def _decide_alone(self, tenant: str, ask: Ask) -> None:
        """Decide over an ask that somebody waits for, and Redis has not answered."""
        if not self._alone.answer(tenant, ask):
            self._open.pop(ask.lease, None)

    def _lose_patience(self, tenant: str, asks: list[Ask]) -> None:
        """Redis is late: decide over what waits, and wait no more until it answers."""
        part = self._parts.of(tenant)
        part.hung = True
        self._late(part)
        self._alone.note(tenant, asks)
        for ask in asks:
            if ask.future is None:
                continue
            if ask.future.done():
                if ask.lease != NO_LEASE:
                    self._backlog.abandon(ask.lease)
            elif ask.lease == NO_LEASE:
                ask.future.set_exception(StoreError("Redis is late"))
            else:
                self._decide_alone(tenant, ask)

    def _release(self, tenant: str, ask: Ask) -> None:
        """Nobody waits any more for what Redis was asked; its settlement may have waited too."""
        if not self._backlog.postponed(ask.lease):
            self._opened(tenant, ask.lease)
