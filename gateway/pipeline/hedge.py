"""Hedged requests: a second target is asked where the first one is slow to begin.

Whichever begins first has the client; the other is cancelled at once. Each runs with a state of its
own, of which the request keeps the winner's.
"""

import asyncio
from collections.abc import Callable, Coroutine
from time import monotonic

from gateway.core import record
from gateway.core.errors import ApiError, Failure, UpstreamError
from gateway.core.record import MICROSECONDS, AttemptRecord
from gateway.core.usage import Usage
from gateway.pipeline.call import Call, Deliver, drains
from gateway.pipeline.served import Route
from gateway.policy.pricing import cost_microusd
from gateway.policy.retry import Budget
from gateway.upstream.exchange import Flow

LOST = "hedged"  # how the slower attempt ends, in the record

Try = Callable[[Call, Route], Coroutine[None, None, Deliver]]


class Contender:
    """The client of one attempt: nothing reaches the real one before this attempt has begun."""

    def __init__(self, race: "Race", call: Call, route: Route, before: int) -> None:
        self._race, self._client = race, call.client
        self.call, self.route, self._before = call.fork(self, before), route, before
        self._flow: Flow | None = None
        self.task: asyncio.Task[Deliver] | None = None
        self.began = monotonic()
        self.lost_at = 0.0

    @property
    def attempts(self) -> int:
        """Return how often its target was asked: not at all, or once."""
        return self.call.attempts - self._before

    @property
    def error(self) -> BaseException | None:
        """Return how its attempt has failed, if it has, and was not cancelled."""
        task = self.task
        return (
            task.exception() if task is not None and task.done() and not task.cancelled() else None
        )

    @property
    def has_failed(self) -> bool:
        """Tell whether its attempt has failed, and was not cancelled."""
        return self.error is not None

    @property
    def misfits(self) -> bool:
        """Tell whether its target cannot do what is asked: nothing was sent to it."""
        error = self.error
        return isinstance(error, ApiError) and error.code == "unsupported_parameter"

    @property
    def begun(self) -> bool:
        """Tell whether the client has the head of a stream, of whomever."""
        return self._client.begun

    @property
    def connected(self) -> bool:
        """Tell whether there is anybody to answer."""
        return self._client.connected

    @property
    def chunked(self) -> bool:
        """Tell whether `write_frame` may be used."""
        return self._client.chunked

    def reply(self, status: int, content_type: str, headers: bytes, body: bytes) -> None:
        """Send a whole reply."""
        self._client.reply(status, content_type, headers, body)

    def start(self, headers: bytes) -> None:
        """Send the head of a stream; its first content decides the race."""
        relay = self.call.relay  # none where a whole reply is told as a stream
        if relay is None or relay.started:
            if self._race.claim(self):
                self._client.follow(self._flow)
        elif not self._client.begun:
            self._race.begin_with(self)
        self._client.start(headers)

    def write(self, data: bytes) -> None:
        """Send content: the race's, or a comment before it is decided."""
        self._client.write(data)

    def write_frame(self, frame: bytes) -> None:
        """Send content that is a chunk already."""
        self._client.write_frame(frame)

    def finish(self, data: bytes) -> None:
        """Send the last content and end the stream."""
        self._client.finish(data)

    def follow(self, flow: Flow | None) -> None:
        """Let the client pause this source, once it is the one."""
        self._flow = flow
        if self._race.winner is self:
            self._client.follow(flow)

    def expect(self) -> None:
        """Do nothing: the request itself does."""


class Race:
    """Two attempts at the most, and who has won. Cancelling it cancels both.

    `routes`: the first, the second by the key whose turn it is, and that one as it was planned.
    """

    def __init__(
        self,
        call: Call,
        budget: Budget,
        try_one: Try,
        routes: tuple[Route, Route, Route],
        seconds: float,
    ) -> None:
        self._call, self._budget, self._try = call, budget, try_one
        self._routes, self._seconds = routes, seconds
        self._contenders: list[Contender] = []
        self.winner: Contender | None = None
        self._told: Contender | None = None  # whose failure is the race's

    @property
    def failed(self) -> Route | None:
        """Return the target whose failure ended the race."""
        return self._told.route if self._told is not None else None

    @property
    def hedged(self) -> list[Route]:
        """Return the planned target that was asked beside the first, if it was."""
        return [self._routes[2]] if len(self._contenders) > 1 else []

    def claim(self, contender: Contender) -> bool:
        """Be the first to have begun, or raise UpstreamError; tell whether this decided it."""
        if self.winner is contender:
            return False
        if self.winner is not None:
            raise UpstreamError(Failure.BUSY, "another target was faster")
        self.winner = contender
        # What is asked of the request itself while it runs: where it goes, and since when.
        ours, its = self._call, contender.call
        ours.route, ours.relay = its.route, its.relay
        ours.sent_at, ours.written = its.sent_at, its.written
        for other in self._contenders:
            if other is not contender and other.task is not None:
                other.lost_at = monotonic()
                other.task.cancel()
        return True

    def begin_with(self, contender: Contender) -> None:
        """Let the request go where a contender goes whose comment opens the stream, for now."""
        self._call.route = contender.route

    @property
    def drains(self) -> bool:
        """Tell whether an attempt has left that its provider is to answer to its end."""
        rivals = self._contenders if self.winner is None else [self.winner]
        return any(drains(one.call) for one in rivals)

    async def run(self) -> Deliver:
        """Ask the first; ask the second where it has not begun in time, or has failed before that.

        Raises what the last one to fail has raised, or the first that a budget has ended.
        """
        self._call.race = self
        try:
            return await self._run()
        finally:
            self._call.race = None
            for one in self._contenders:
                if one.task is not None:
                    one.task.cancel()
            tasks = [one.task for one in self._contenders if one.task is not None]
            try:
                await asyncio.gather(*tasks, return_exceptions=True)
            finally:  # it waits for all of them also where it is cancelled
                self._merge()

    async def _run(self) -> Deliver:
        running = {self._start(self._routes[0])}
        done, _ = await asyncio.wait(running, timeout=self._seconds)
        hedged = False
        while True:
            if not done and not hedged and self.winner is None:
                hedged = True
                if self._call.client.connected and self._budget.spend():
                    running.add(self._start(self._routes[1]))
            for task in done:
                running.discard(task)
                if task.cancelled():  # the other one has begun meanwhile
                    continue
                if self.winner is not None and self.winner.task is not task:
                    continue
                contender = next(one for one in self._contenders if one.task is task)
                error = task.exception()
                if error is None:
                    self.claim(contender)
                    return task.result()
                # Without money whoever else is asked has none either.
                spent = self._call.spent is not None and isinstance(error, ApiError)
                if spent or not running or self.winner is contender:
                    self._told = told = self._telling(contender)
                    raise told.error or error
            done, _ = await asyncio.wait(running, return_when=asyncio.FIRST_COMPLETED)

    def _telling(self, last: Contender) -> Contender:
        """Return whose failure is told: of the last to fail, unless nothing was sent there."""
        asked = [one for one in self._contenders if one.has_failed and not one.misfits]
        return asked[-1] if last.misfits and asked else last

    def _start(self, route: Route) -> asyncio.Task[Deliver]:
        contender = Contender(self, self._call, route, self._call.attempts + len(self._contenders))
        self._contenders.append(contender)
        contender.task = asyncio.get_running_loop().create_task(self._try(contender.call, route))
        return contender.task

    def _merge(self) -> None:
        """Let the request have the winner's state, and every attempt in its record.

        Where nobody has won: that of whose failure counts, or of one that was at work to the end.
        """
        if not self._contenders:
            return
        at_work = [one for one in self._contenders if not one.has_failed]
        at_work = [one for one in at_work if one.call.written] or at_work
        winner = self.winner or self._told or (at_work or self._contenders)[-1]
        for one in self._contenders:
            tries = one.call.tries
            lost = self.winner is not None and one is not self.winner and not one.misfits
            if lost and one.attempts and (not tries or tries[-1].failure in ("", record.CANCELLED)):
                tries = [_lost(one)]
            self._call.tries += tries
        if any(one.misfits for one in self._contenders[1:]):
            self._budget.give_back()
        # Of one whose failure is the race's whoever tries the targets takes it back.
        asked = [one for one in self._contenders if one is self._told or not one.misfits]
        winner.call.asked_s += winner.began - self._contenders[0].began
        self._call.attempts += sum([one.attempts for one in asked])
        self._call.join(winner.call)


def _lost(contender: Contender) -> AttemptRecord:
    """Return the record of an attempt that came too late, with what it has cost all the same.

    That it took at least so long is known of its target, too: what is slow must not look fast.
    """
    call, target, price = contender.call, contender.route.target, contender.route.price_now()
    until = contender.lost_at or monotonic()
    contender.route.state.took(until - call.sent_at, until)
    prompt = call.request.prompt_estimate if call.request is not None and call.written else 0
    cost = cost_microusd(price, Usage(prompt_tokens=prompt)) if price is not None else 0
    return AttemptRecord(
        provider=target.provider,
        model=target.model,
        status=0,
        failure=LOST,
        connect_us=int((call.connect_s if call.written else until - call.sent_at) * MICROSECONDS),
        first_byte_us=0,
        duration_us=int((until - call.sent_at) * MICROSECONDS),
        cost_microusd=cost,
    )


def delay(after: float, route: Route) -> float | None:
    """Return how long a target is waited for; None where nobody knows yet how long it takes."""
    return after or route.state.p95()
