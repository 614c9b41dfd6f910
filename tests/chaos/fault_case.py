"""What a row of the table of faults is: how a provider fails, and what must become of it."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from tests.support.faults import TEXT, Door, Step

WHOLE_TEXT = "".join(TEXT)

# Who asks whom: the client's dialect and the provider's. Where both are one the answer is passed
# on as it comes, else it is translated: different ways through the gateway.
RELAYED, TRANSLATED = "relayed", "translated"
PATHS = {
    "chat-openai": RELAYED,
    "messages-anthropic": RELAYED,
    "messages-openai": TRANSLATED,
    "chat-anthropic": TRANSLATED,
}
OPENAI = ("chat-openai", "messages-openai")
ANTHROPIC = ("messages-anthropic", "chat-anthropic")

PATIENT = {"connect": 10, "first_byte": 15, "first_token": 15, "idle": 15, "total": 60}
HANG_SECONDS = 30.0


@dataclass(frozen=True)
class Answered:
    """No fault after all: the client has the provider's own answer, whole."""

    text: str = WHOLE_TEXT
    source: str = "provider"
    anthropic_source: str = ""  # where it is another with that provider
    content_type: str = "application/json"  # of a whole reply
    unreadable: int = 0  # events of a stream that are passed on though nobody can read them


@dataclass(frozen=True)
class HandedOver:
    """The client has had nothing: the next target answers; without one it is told an error."""

    failure: str
    status: int = 0
    told: int = 502
    code: str = "upstream_failed"


@dataclass(frozen=True)
class GivenUp(HandedOver):
    """The same, but there is no time left for another target."""


@dataclass(frozen=True)
class BrokenOff:
    """The client has had content: the stream ends with an error event."""

    failure: str
    code: str = "stream_interrupted"
    text: str = WHOLE_TEXT


@dataclass(frozen=True)
class PassedOn:
    """The client's own fault: it is told what the provider said, and nobody else is asked."""

    status: int


Expected = Answered | HandedOver | BrokenOff | PassedOn


def late(failure: str) -> HandedOver:
    """A deadline that passes before the client has had anything."""
    return HandedOver(failure, told=504, code="deadline_exceeded")


def late_in(failure: str) -> BrokenOff:
    """A deadline that passes behind content."""
    return BrokenOff(failure, code="deadline_exceeded")


UNARY, STREAM = "unary", "stream"
ALONE, FOLLOWED = "alone", "followed"


@dataclass(frozen=True)
class Fault:
    """One row. A way (`unary`, `stream`) without steps is left out.

    `expected` is told by words of the case, the entry with most of them counts: a mode, a path,
    relayed or translated, alone or followed; "" is every case.
    """

    name: str
    expected: Mapping[str, Expected] | Expected
    unary: tuple[Step, ...] = ()
    stream: tuple[Step, ...] = ()
    door: Door = Door.OPEN
    paths: tuple[str, ...] = tuple(PATHS)
    timeouts: Mapping[str, float] = field(default_factory=dict)
    headers: dict[str, str] = field(default_factory=dict)  # of the client's request


@dataclass(frozen=True)
class Case:
    """One request of a row."""

    fault: Fault
    mode: str
    path: str
    company: str

    @property
    def id(self) -> str:
        """A stable name."""
        return f"{self.fault.name}-{self.mode}-{self.path}-{self.company}"

    @property
    def words(self) -> frozenset[str]:
        """All that is said of it."""
        return frozenset((self.mode, self.path, PATHS[self.path], self.company))

    @property
    def dialect(self) -> str:
        """The client's."""
        return self.path.partition("-")[0]

    @property
    def kind(self) -> str:
        """The provider's."""
        return self.path.partition("-")[2]

    @property
    def model(self) -> str:
        """The model's name at the gateway."""
        return f"{self.fault.name}.{self.kind}.{self.company}"

    @property
    def expected(self) -> Expected:
        """What must become of it."""
        if not isinstance(self.fault.expected, Mapping):
            return self.fault.expected
        found: Expected | None = _pick(self.fault.expected, self.words)
        assert found is not None, f"nothing is expected of {self.id}"
        return found


def _pick(table: Mapping[str, Any], words: frozenset[str]) -> Any:
    fitting = [key for key in table if words.issuperset(key.split())]
    return table[max(fitting, key=lambda key: len(key.split()))] if fitting else None


def cases_of(fault: Fault) -> list[Case]:
    """All requests of a row."""
    modes = [mode for mode, steps in ((UNARY, fault.unary), (STREAM, fault.stream)) if steps]
    return [
        Case(fault, mode, path, company)
        for mode in modes
        for path in fault.paths
        for company in (ALONE, FOLLOWED)
    ]
