"""Hot path: the state of one request on its way. Owned by `serve`; nothing keeps it afterwards."""

from collections.abc import Callable
from copy import copy
from time import monotonic
from typing import TYPE_CHECKING, Protocol

import msgspec

from gateway.core import record
from gateway.core.errors import ApiError
from gateway.core.hints import NO_HINTS, Hints
from gateway.core.operations import Operation
from gateway.core.record import AttemptRecord
from gateway.core.request import Request
from gateway.core.usage import Usage
from gateway.pipeline.served import Route, Served
from gateway.policy.access import Principal
from gateway.policy.limits import Grant
from gateway.store.lease import Holding, Verdict
from gateway.upstream import relay
from gateway.upstream.exchange import Flow
from gateway.upstream.relay import Relay

if TYPE_CHECKING:
    from gateway.pipeline.flight import Flight
    from gateway.pipeline.hedge import Race
    from gateway.store.answers import Answer

Deliver = Callable[[], None]
Headers = tuple[tuple[str, str], ...]

NO_USAGE = Usage()
NO_VERDICT = Verdict()


class Allowance(relay.Allowance, Protocol):
    """A relay's allowance that can say why it refused."""

    spent: ApiError | None

    async def more(self) -> ApiError | None:
        """Reserve the next slice; return what refuses it."""
        ...

    async def begin_again(self, prompt: int) -> ApiError | None:
        """Reserve so much prompt in all, as one more target is to be asked; return what refuses."""
        ...


class Client(Protocol):
    """The client's side of a request, as `http` implements it. Header blocks end in CRLF."""

    @property
    def begun(self) -> bool:
        """Tell whether the head of an event stream has been sent."""
        ...

    @property
    def connected(self) -> bool:
        """Tell whether there is anybody to answer."""
        ...

    def reply(self, status: int, content_type: str, headers: bytes, body: bytes) -> None:
        """Send a whole reply."""
        ...

    def start(self, headers: bytes) -> None:
        """Send the head of an event stream, once; it may wait for what is written next."""
        ...

    @property
    def chunked(self) -> bool:
        """Tell whether content is framed in chunks, and `write_frame` may be used."""
        ...

    def write(self, data: bytes) -> None:
        """Send content of the stream."""
        ...

    def write_frame(self, frame: bytes) -> None:
        """Send content of the stream that is a chunk already."""
        ...

    def finish(self, data: bytes) -> None:
        """Send the last content and end the stream."""
        ...

    def follow(self, flow: Flow | None) -> None:
        """Pause this source while the client cannot keep up."""
        ...

    def expect(self) -> None:
        """Know that a reply is on its way, though not yet written."""
        ...


class Spent(msgspec.Struct, frozen=True):
    """What attempts before the present one have used, of which the client has had the text."""

    usage: Usage
    microusd: int
    cost: record.Cost
    price_version: str


# What an attempt finds out.
_OUTCOME = (
    *("route", "relay", "dropped", "sent_at", "reply_at", "connect_s", "written", "asked_s"),
    *("status", "finished", "outcome", "error", "usage", "usage_source", "cost"),
    *("cost_microusd", "price_version", "before", "continued", "went_on", "odd"),
)


class Call(msgspec.Struct, eq=False):
    """One request: what came in, what was decided, what it came to. Times are loop seconds."""

    id: str
    operation: Operation
    body: bytes
    secret: str | None
    client: Client
    started_at: float
    trace: str = ""
    passed_on: Headers = ()  # headers of the client's that its provider may want
    hints: Hints = NO_HINTS
    # What was decided.
    principal: Principal | None = None
    request: Request | None = None
    model: Served | None = None
    holding: Holding | None = None
    grants: tuple[Grant, ...] = ()
    allowance: Allowance | None = None
    verdict: Verdict = NO_VERDICT
    gated: bool = False
    leased: bool = False
    unsure: bool = False
    left: bool = False
    # What it came to.
    route: Route | None = None
    relay: Relay | None = None
    race: "Race | None" = None  # under way: its attempts are calls of their own
    dropped: tuple[str, ...] = ()
    attempts: int = 0
    tries: list[AttemptRecord] = []
    before: Spent | None = None
    continued: int = 0  # how often another target was asked to go on
    went_on: int = 0  # of these, how many before the last had gone on
    queued_s: float = 0.0
    asked_s: float = 0.0  # waited for targets, beside the present attempt until its reply
    sent_at: float = 0.0  # when the present attempt began; 0 where none is under way
    connect_s: float = 0.0
    pool_s: float = 0.0  # waited for a place in a pool of ours that was full
    written: bool = False  # the present attempt's request has left this process
    reply_at: float = 0.0
    finished: bool = False
    status: int = 0
    outcome: str = record.OK
    error: str = ""
    refused: ApiError | None = None
    usage: Usage = NO_USAGE
    usage_source: str = "none"
    cost: record.Cost = record.FREE
    cost_microusd: int = 0
    price_version: str = ""
    # What the cache has to do with it.
    cache: str = ""
    saved: int = 0
    delegated: bool = False  # another call asks, and accounts, for it
    likeness: float = 0.0  # of the question that was answered, where it is another
    flight: "Flight | None" = None
    kept: "Answer | None" = None
    stale: "Answer | None" = None  # may stand in where no other can be had
    odd: bool = False  # the answer ended for a reason that nobody here knows

    @property
    def spent(self) -> ApiError | None:
        """Return the error with which a budget has ended it."""
        return self.allowance.spent if self.allowance is not None else None

    @property
    def drains(self) -> bool:
        """Tell whether a request has left that its provider is to answer to its end in any case."""
        if self.race is not None:
            return self.race.drains
        return drains(self)

    def queued(self, seconds: float) -> None:
        """Know for how long (seconds) the present attempt waited for a place in a full pool."""
        self.pool_s = seconds

    def sent(self, waited: float) -> None:
        """Know that the present attempt's request leaves; `waited` (seconds) for a connection."""
        self.connect_s, self.written = waited, True

    def unsent(self) -> None:
        """Know that nobody has it, and another connection is made for it."""
        self.written = False

    def attempt_ended(self) -> None:
        """Know that nobody is at work on the request any more, or not yet again."""
        self.asked_s += monotonic() - self.sent_at
        self.sent_at, self.pool_s, self.written = 0.0, 0.0, False

    def fork(self, client: Client, attempts: int) -> "Call":
        """Return a call for one attempt at the same request, with a client of its own."""
        other = copy(self)
        other.client, other.tries, other.attempts = client, [], attempts
        return other

    def join(self, other: "Call") -> None:
        """Take over what became of a fork."""
        for name in _OUTCOME:
            setattr(self, name, getattr(other, name))


def drains(call: Call) -> bool:
    """Tell whether a request has left to where its provider is to answer to its end."""
    return call.written and call.route is not None and call.route.target.drains
