"""A call that several requests share: one asks, all who ask the same meanwhile have the answer.

It belongs to nobody's connection: a client that leaves, the first one too, harms nobody else. When
the last one has left, it ends.
"""

import asyncio
from collections.abc import Callable
from time import monotonic

from gateway.core import record
from gateway.core.errors import ApiError
from gateway.pipeline.call import NO_USAGE, NO_VERDICT, Call
from gateway.pipeline.elsewhere import Elsewhere
from gateway.pipeline.replay import Entry
from gateway.pipeline.served import Served
from gateway.policy.limits import MONEY
from gateway.upstream.exchange import Flow

# Of a stream that readers have not had yet; above it the provider is held until they have.
MOST_AHEAD = 4 * 1024 * 1024


NOBODY = Elsewhere()


class Reader:
    """One request that waits for the answer; a flow that its client's connection may pause.

    `until` is when its client must have had all of it, by the monotonic clock, `since` when it
    began to wait for news.
    """

    def __init__(self, flight: "Flight | None", call: Call, until: float) -> None:
        self._flight, self.call, self.until = flight, call, until
        self.since = monotonic()
        self.paused = False
        self.place = 0  # of the pieces of the stream, how many it has had
        self.takes = False  # pieces, as they come
        self.lost = False  # too far behind for the others to wait
        self.entering = False  # being admitted, to pay its part
        self.refusal: tuple[int, str, bytes, bytes] | None = None  # for its own sake
        self.going = asyncio.Event()
        self.going.set()

    def pause(self) -> None:
        """Take nothing for now."""
        self.paused = True
        self.going.clear()
        if self._flight is not None:
            self._flight.mind()

    def resume(self) -> None:
        """Go on."""
        self.paused = False
        self.going.set()
        if self._flight is not None:
            self._flight.mind()

    async def news(self) -> None:
        """Wait until something has come; that is its provider's time."""
        assert self._flight is not None
        self.since = monotonic()
        try:
            await self._flight.news()
        finally:
            if not self.call.delegated:  # else it is in the record of the call that asks
                self.call.asked_s += monotonic() - self.since

    async def caught_up(self) -> None:
        """Wait until its client takes more. Raises ApiError where that does not come in time."""
        try:
            async with asyncio.timeout(self.until - monotonic()):
                await self.going.wait()
        except TimeoutError:
            message = "The client did not take the stream in time."
            raise ApiError("deadline_exceeded", message) from None

    def hold(self) -> None:
        """Do nothing: nobody asks this of a reader."""

    def release(self) -> None:
        """Do nothing."""

    def fail(self, error: Exception) -> None:
        """Do nothing."""


class Flight:
    """One answer on its way, and who waits for it.

    It ends in one of: an `entry` (`how` says of what kind: hit, stale, coalesced), an answer that
    was passed on as it came (`whole`, or the pieces of a stream), an `error` for all, or `void`:
    everybody is to ask anew, as what went wrong was the first one's own.
    """

    def __init__(
        self, bill: str, ended: Callable[["Flight"], None], drains: Callable[[], bool]
    ) -> None:
        self.bill = bill  # who pays: leader, split, each
        self._ended, self._drains = ended, drains
        self.readers: dict[Reader, None] = {}  # in the order in which they came
        self.begun = self.over = self.void = False
        self.entry: Entry | None = None
        self.stale: Entry | None = None
        self.stands_in = False  # all targets have failed: it is for whom it suits
        self.purges = 0  # how often answers had been purged when that was taken
        self.kept_s = 0.0  # for how long the answer is kept
        self.how, self.age, self.verdict = "", 0.0, NO_VERDICT
        self.error: ApiError | None = None
        self.call: Call | None = None  # whose settlement pays for the provider's answer
        self.leader: Call | None = None  # the request that it was made for
        self.asked: Served | None = None  # whose targets are asked, where not its own model's
        self.headers = b""
        self.whole: tuple[int, str, bytes, bytes] | None = None
        self.pieces: list[bytes] = []
        self.size = 0  # bytes of all pieces
        self.ending = b""
        self.usage, self.usage_source = NO_USAGE, "none"
        self.cost, self.microusd, self.price = record.FREE, 0, ""
        self.sharers: dict[Call, None] = {}  # who was let in beside the one that asks
        self.takers = 0  # how many share the call, once it is paid for
        self.task: asyncio.Task[None] | None = None
        self._flow: Flow | None = None
        self._held = False
        self._dropped = 0  # pieces that everybody has had, and nobody needs any more
        self._news = asyncio.Event()
        self.delivered = asyncio.Event()

    def join(self, call: Call, until: float) -> Reader:
        """Wait with the others, until a moment of the monotonic clock."""
        reader = Reader(self, call, until)
        self.readers[reader] = None
        return reader

    def leave(self, reader: Reader) -> None:
        """Wait no more. Idempotent."""
        if reader not in self.readers:
            return
        del self.readers[reader]
        if not self.takers:
            self.sharers.pop(reader.call, None)
        if self.over:
            self._let_go()
            return
        call = self.call
        if call is not None and reader.call is self.leader:
            call.left = True  # the one that pays has nobody to answer
        if not self.readers:
            self._ended(self)
            drains = call is not None and call.drains and self._drains()
            if self.task is not None and not drains:
                self.task.cancel()
        self.mind()

    def next_leader(self) -> Call | None:
        """Return the first of those who wait that may ask: not refused, nor being admitted."""
        waiting = [one for one in self.readers if one.refusal is None and not one.entering]
        return waiting[0].call if waiting else None

    def lead(self, leader: Call) -> Call:
        """Return the call that asks for one who waits; what that one holds is the call's now."""
        leader.delegated = True
        since = [reader.since for reader in self.readers if reader.call is leader]
        leader.asked_s += monotonic() - since[0]  # it has waited for others' calls until now
        self.leader, self.asked = leader, None
        self.call = call = leader.fork(self, 0)
        call.gated = call.delegated = False
        call.flight = self
        leader.leased = False
        self.sharers.pop(leader, None)
        self.tell()  # those who share it can be let in
        return call

    def asks(self, served: Served) -> None:
        """Know that another model is asked instead, and let those who share that pay for it."""
        assert self.call is not None
        self.asked = served if served is not self.call.model else None
        self.tell()

    def is_covered(self, call: Call) -> bool:
        """Tell whether what a request has reserved is for the model that is asked."""
        if self.asked is None or call.holding is None or call.holding.priced == self.asked.name:
            return True
        return all(grant.limit.unit != MONEY for grant in call.grants)

    def may_enter(self, reader: Reader) -> bool:
        """Tell whether who waits for a whole reply is to be let in now, to pay its part of it.

        Once more, where that has become dearer. A stream lets its readers in as it begins.
        """
        call = reader.call
        return (
            self.bill == "split"
            and self.leader not in (None, call)
            and not self.takers
            and (call not in self.sharers or not self.is_covered(call))
            and call.request is not None
            and not call.request.stream
        )

    def refuse(self, leader: Call) -> None:
        """Tell who asked that it is refused for its own sake, and let another ask."""
        for reader in self.readers:
            if reader.call is leader:
                reader.refusal = self.whole
        self._part()
        self.whole, self.call, self.leader = None, None, None
        waiting = {reader.call for reader in self.readers}
        self.sharers = {call: None for call in self.sharers if call in waiting}
        self.takers = 0  # nothing was paid
        self.delivered = asyncio.Event()
        self.tell()

    @property
    def fresh_s(self) -> float:
        """Return for how long the answer that was kept was fresh."""
        return self.entry.answer.ttl_ms / 1000 if self.entry is not None else 0.0

    async def news(self) -> None:
        """Wait until something has come."""
        await self._news.wait()

    def tell(self) -> None:
        """Wake everybody who waits."""
        news, self._news = self._news, asyncio.Event()
        news.set()

    def answer(self, entry: Entry, how: str) -> None:
        """End with an answer that was kept."""
        self.entry, self.how = entry, how
        self.end()

    def fail(self, error: ApiError | None) -> None:
        """End with an error for all; None: each is to ask anew."""
        self.error, self.void = error, error is None
        self.end()

    @property
    def joinable(self) -> bool:
        """Tell whether one who comes now misses nothing."""
        return not self.over and not self._dropped

    def piece(self, reader: Reader) -> bytes:
        """Return what a reader has not had yet."""
        start = reader.place - self._dropped
        reader.place = self._dropped + len(self.pieces)
        found = self.pieces[start:]
        if self._held or self.size > MOST_AHEAD:
            self.mind()
        return found[0] if len(found) == 1 else b"".join(found)

    def has_lost(self, reader: Reader) -> bool:
        """Tell whether what a reader should have next is there no more."""
        return reader.place < self._dropped

    def has_more(self, reader: Reader) -> bool:
        """Tell whether there is anything that a reader has not had."""
        return reader.place < self._dropped + len(self.pieces)

    def mind(self) -> None:
        """Hold the provider back, or let it go on, as the readers can take it."""
        if self.size > MOST_AHEAD:
            self._forget()
        flow = self._flow
        if flow is None:
            return
        taking = [reader for reader in self.readers if reader.takes]
        slow = bool(taking) and all(reader.paused for reader in taking)
        if self.size > MOST_AHEAD and not slow:
            for reader in taking:
                if reader.paused:  # the others do not wait for it
                    reader.lost, reader.takes = True, False
                    reader.going.set()
            self._forget()
            slow = bool(taking) and self.size > MOST_AHEAD
        if slow and not self._held:
            self._held = True
            flow.pause()
        elif self._held and not slow:
            self._held = False
            flow.resume()

    def _forget(self) -> None:
        """Let go of what everybody has had: the stream is too large to be kept."""
        taking = [reader.place for reader in self.readers if reader.takes]
        least = min(taking, default=self._dropped + len(self.pieces))
        gone = least - self._dropped
        if gone > 0:
            self.size -= sum([len(piece) for piece in self.pieces[:gone]])
            del self.pieces[:gone]
            self._dropped = least

    @property
    def stream(self) -> bytes | None:
        """Return the whole stream; None where it is no longer there."""
        return None if self._dropped else b"".join((*self.pieces, self.ending))

    def end(self) -> None:
        """Let everybody know that all is here."""
        self.over = True
        self._flow = None
        self._ended(self)
        self.tell()
        self._let_go()

    def _let_go(self) -> None:
        """Part from the call once nobody waits."""
        if not self.readers:
            self._part()

    def _part(self) -> None:
        """Part the call from what refers to it: a circle is freed late, with all it holds."""
        call = self.call
        if call is not None:
            call.client, call.flight, call.relay, call.allowance = NOBODY, None, None, None

    # What follows is `pipeline.call.Client`, for the call itself.

    @property
    def connected(self) -> bool:
        """Tell whether there is anybody to answer."""
        return bool(self.readers)

    @property
    def chunked(self) -> bool:
        """Tell whether `write_frame` may be used."""
        return True

    def reply(self, status: int, content_type: str, headers: bytes, body: bytes) -> None:
        """Take a whole reply."""
        self.whole = (status, content_type, headers, body)
        self.delivered.set()

    def start(self, headers: bytes) -> None:
        """Take the head of a stream."""
        if not self.begun:
            self.begun, self.headers = True, headers

    def write(self, data: bytes) -> None:
        """Take content of the stream."""
        self.pieces.append(data)
        self.size += len(data)
        if self.size > MOST_AHEAD:
            self.mind()
        self.tell()

    def write_frame(self, frame: bytes) -> None:
        """Take content of the stream that is one chunk, framing and all."""
        self.write(frame[frame.index(b"\r\n") + 2 : -2])

    def finish(self, data: bytes) -> None:
        """Take the stream's end."""
        self.ending = data
        self.delivered.set()

    def follow(self, flow: Flow | None) -> None:
        """Hold this source back while nobody can take more."""
        self._flow, self._held = flow, False
        self.mind()

    def expect(self) -> None:
        """Do nothing: readers know that an answer is to come."""

    def paid(self, call: Call) -> None:
        """Know what the call has used, and count who shares it."""
        self.usage, self.usage_source = call.usage, call.usage_source
        self.cost, self.microusd, self.price = call.cost, call.cost_microusd, call.price_version
        self.sharers.pop(call, None)
        self.takers = 1 + len(self.sharers)
