"""A table of faults that providers show, each asked for in two dialects, whole and streamed.

Every row is asked twice a way: with a healthy target behind the faulty one, and alone. The cases of
a few rows are asked at once, when the first of them is looked at.
"""

import asyncio
import itertools
import time
from collections.abc import Iterator, Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
import pytest

from tests.chaos.fault_case import (
    FOLLOWED,
    HANG_SECONDS,
    PATIENT,
    STREAM,
    Answered,
    BrokenOff,
    Case,
    Fault,
    GivenUp,
    HandedOver,
    PassedOn,
    cases_of,
)
from tests.chaos.fault_readings import Heard, read_reply, read_stream
from tests.chaos.faults_of_replies import BODIES, STATUSES, TYPES
from tests.chaos.faults_of_streams import CUTS, ENDS, ERRORS, GARBAGE
from tests.chaos.faults_of_transport import CONNECTIONS, FRAMING, HEADS, SILENCE
from tests.support.config import config
from tests.support.faults import (
    Door,
    Faults,
    Scene,
    prompt,
)
from tests.support.gateway import Gateway, untroubled
from tests.support.load import Ask, Client
from tests.support.speech import speech

FAULTS = (
    *(*CONNECTIONS, *SILENCE, *HEADS, *FRAMING),
    *(*STATUSES, *TYPES, *BODIES),
    *(*ENDS, *ERRORS, *CUTS, *GARBAGE),
)
assert len({fault.name for fault in FAULTS}) == len(FAULTS)
HEALTHY_TEXT = "all is well"
MODELS = {"openai": "gpt-4o-mini", "anthropic": "claude-haiku-4-5"}
PATHS = {"chat": "/v1/chat/completions", "messages": "/v1/messages"}
SECRET = "sk-secret"
MOST_TOKENS = 10**9  # that one answer is believed to have
AT_ONCE = 8  # rows
SPARE_FILES = 16
FATAL = frozenset(
    (
        *("reset", "first_byte_timeout", "first_token_timeout", "idle_timeout"),
        *("attempt_timeout", "total_timeout"),
    )
)


async def healthy(scene: Scene) -> None:
    """Answer as one should."""
    said = speech(
        "anthropic" if scene.request.path.endswith("/messages") else "openai", HEALTHY_TEXT
    )
    if scene.request.json.get("stream"):
        await scene.start_stream()
        await scene.chunk(said.stream)
        await scene.end_stream()
    else:
        await scene.reply(said.whole)


def faulty(fault: Fault) -> Any:
    """Answer as the row says."""

    async def behave(scene: Scene) -> None:
        for step in fault.stream if scene.request.json.get("stream") else fault.unary:
            await step(scene)

    return behave


def configured(faults: Faults, ca_file: str) -> str:
    """Two providers a row, and for each a model with it alone and one with a healthy one behind."""
    providers: dict[str, Any] = {}
    models: dict[str, Any] = {}

    def provide(name: str, kind: str, timeouts: Mapping[str, float], **more: str) -> None:
        providers[f"{name}.{kind}"] = {
            "kind": kind,
            "api_key": f"{SECRET}-{name}-{kind}",
            "base_url": faults.urls[name],
            "timeouts": timeouts,
            **more,
        }

    for kind in MODELS:
        provide("healthy", kind, PATIENT)
    for fault in FAULTS:
        trusts = {"ca_file": ca_file} if fault.door in (Door.TLS, Door.MISNAMED) else {}
        for kind, model in MODELS.items():
            provide(fault.name, kind, {**PATIENT, **fault.timeouts}, **trusts)
            first = {"provider": f"{fault.name}.{kind}", "model": model, "priority": 1}
            second = {"provider": f"healthy.{kind}", "model": model, "priority": 2}
            models[f"{fault.name}.{kind}.alone"] = {"targets": [first]}
            models[f"{fault.name}.{kind}.followed"] = {"targets": [first, second]}
    return config(providers=providers, models=models)


@dataclass
class Found:
    """What became of a case."""

    heard: Heard
    record: dict[str, Any]
    asked: tuple[int, int]  # how often the faulty provider was, and the healthy one


class Table:
    """Asks for rows, once each, and keeps what was found."""

    def __init__(self, gateway: Gateway, faults: Faults) -> None:
        self.gateway, self._faults = gateway, faults
        self._numbers = itertools.count(1)
        self._found: dict[str, Found] = {}

    def found(self, case: Case) -> Found:
        """What became of a case."""
        if case.id not in self._found:
            first = FAULTS.index(case.fault) // AT_ONCE * AT_ONCE
            rows = FAULTS[first : first + AT_ONCE]
            asyncio.run(self._ask_all([one for row in rows for one in cases_of(row)]))
        return self._found[case.id]

    async def _ask_all(self, cases: list[Case]) -> None:
        numbered = [(case, next(self._numbers)) for case in cases]
        heard = await asyncio.gather(*(self._ask(*one) for one in numbered))
        records = {record["id"]: record for record in await self._records(heard)}
        for (case, number), one in zip(numbered, heard, strict=True):
            asked = self._faults.asked
            times = asked[case.fault.name, number], asked["healthy", number]
            self._found[case.id] = Found(one, records[one.id], times)

    async def _records(self, heard: list[Heard]) -> list[dict[str, Any]]:
        wanted = {one.id for one in heard}
        async with asyncio.timeout(HANG_SECONDS):
            while True:
                records = [r for r in self.gateway.records() if r["id"] in wanted]
                if len(records) >= len(wanted):
                    return records
                await asyncio.sleep(0.05)

    async def _ask(self, case: Case, number: int) -> Heard:
        body = {
            "model": case.model,
            "max_tokens": 50,
            "stream": case.mode == STREAM,
            "messages": [{"role": "user", "content": prompt(number)}],
        }
        async with Client(self.gateway.port, limit=2**24) as client, asyncio.timeout(HANG_SECONDS):
            ask = Ask(body, path=PATHS[case.dialect], headers=case.fault.headers)
            await client.send(ask)
            await client.read_head()
            if client.headers.get("transfer-encoding") == "chunked":
                while await client.read_chunk():
                    if b"two" in client.arrived:
                        self._faults.shown.add(number)
            else:
                await client.read_body()
        return Heard(client.status, client.headers, client.arrived)


@pytest.fixture(scope="module")
def table(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Table]:
    """The gateway in front of all the providers; at the end it is as it was."""
    faults = Faults()
    faults.add("healthy", healthy)
    for fault in FAULTS:
        faults.add(fault.name, faulty(fault), fault.door)
    ca_file: Path = tmp_path_factory.mktemp("ca") / "ca.pem"
    faults.ca.cert_pem.write_to_path(ca_file)
    with ExitStack() as stack:
        stack.enter_context(faults)
        gateway = stack.enter_context(untroubled(configured(faults, str(ca_file))))
        (worker,) = map(psutil.Process, gateway.worker_pids)
        files = worker.num_fds()
        yield Table(gateway, faults)
        kept = nothing_left_open(faults)
        assert worker.num_fds() <= files + kept + SPARE_FILES
        for status in (gateway.get("/health/live")[0], gateway.get("/health/ready")[0]):
            assert status == 200
        log = gateway.log_file.read_text()
        assert "Traceback" not in log + gateway.errors
        assert SECRET not in log + gateway.errors


def nothing_left_open(faults: Faults) -> int:
    """See that every connection is closed that can serve no more; return how many are kept."""
    deadline = time.monotonic() + HANG_SECONDS
    while left := [fault.name for fault in FAULTS if closes(fault) and faults.open(fault.name)]:
        assert time.monotonic() < deadline, f"never closed: {left}"
        time.sleep(0.05)
    kept = [faults.open(fault.name) for fault in FAULTS]
    assert max(kept) <= len(PATHS) * 8
    return sum(kept) + faults.open("healthy")


def closes(fault: Fault) -> bool:
    """Tell whether a connection on which this happened can serve no more."""
    failures = [case.expected for case in cases_of(fault)]
    return all(getattr(one, "failure", "") in FATAL for one in failures)


def parameters() -> list[Any]:
    """Every case."""
    cases = itertools.chain.from_iterable(map(cases_of, FAULTS))
    return [pytest.param(case, id=case.id) for case in cases]


@pytest.mark.parametrize("case", parameters())
def test_a_fault_becomes_what_it_should(table: Table, case: Case) -> None:
    found = table.found(case)
    heard, record = found.heard, found.record
    assert SECRET.encode() not in heard.everything
    assert max(found.asked) <= 1, "asked twice: that may be charged twice"
    assert record["attempts"] == len(record["tries"])
    CHECKS[type(case.expected)](case, found)


def _tries(record: dict[str, Any]) -> list[tuple[str, str, int]]:
    return [(t["provider"], t["failure"], t["status"]) for t in record["tries"]]


def check_answered(case: Case, found: Found) -> None:
    """The faulty provider's own answer, and no trace of a failure."""
    expected = case.expected
    assert isinstance(expected, Answered)
    name = f"{case.fault.name}.{case.kind}"
    _check_text(case, found, name, expected)
    assert _tries(found.record) == [(name, "", 200)]
    own = expected.anthropic_source if case.kind == "anthropic" else ""
    assert found.record["usage_source"] == (own or expected.source)
    assert found.asked == (1, 0)


def check_handed_over(case: Case, found: Found) -> None:
    """Nothing of the faulty provider's but an error, or nothing at all."""
    expected, record = case.expected, found.record
    assert isinstance(expected, HandedOver)
    name = f"{case.fault.name}.{case.kind}"
    tried = (name, expected.failure, expected.status)
    if case.company == FOLLOWED and not isinstance(expected, GivenUp):
        healthy = f"healthy.{case.kind}"
        _check_text(case, found, healthy, Answered(HEALTHY_TEXT))
        assert _tries(record) == [tried, (healthy, "", 200)]
        assert record["usage_source"] == "provider"
        assert found.asked[1] == 1
        return
    assert found.heard.status == expected.told, found.heard
    error = read_reply(case.dialect, found.heard).error
    assert error is not None
    assert error["code"] == expected.code
    assert found.heard.headers["x-sluice-attempts"] == "1"
    assert _tries(record) == [tried]
    assert (record["status"], record["outcome"]) == (expected.told, "error")
    assert (record["error"], record["cost_microusd"]) == (expected.code, 0)
    assert found.asked[1] == 0


def check_broken_off(case: Case, found: Found) -> None:
    """The text, and then an error event: nobody takes that for an end."""
    expected, record = case.expected, found.record
    assert isinstance(expected, BrokenOff)
    name = f"{case.fault.name}.{case.kind}"
    read = read_stream(case.dialect, found.heard)
    assert (read.text, read.finished) == (expected.text, False)
    assert read.unreadable == 0
    assert read.error is not None
    assert read.error["code"] == expected.code
    assert _tries(record) == [(name, expected.failure, 0)]
    assert (record["outcome"], record["error"]) == ("error", expected.code)
    assert record["usage"]["completion_tokens"] > 0
    assert found.asked == (1, 0)


def check_passed_on(case: Case, found: Found) -> None:
    """The provider's refusal, in the client's dialect."""
    expected, record = case.expected, found.record
    assert isinstance(expected, PassedOn)
    error = read_reply(case.dialect, found.heard).error
    assert error is not None
    assert found.heard.status == expected.status
    assert "on fire" in error["message"]
    name = f"{case.fault.name}.{case.kind}"
    assert _tries(record) == [(name, "status", expected.status)]
    assert (record["status"], record["outcome"]) == (expected.status, "error")
    assert record["error"] == f"upstream_{expected.status}"
    assert found.asked == (1, 0)


CHECKS = {
    Answered: check_answered,
    HandedOver: check_handed_over,
    GivenUp: check_handed_over,
    BrokenOff: check_broken_off,
    PassedOn: check_passed_on,
}


def _check_text(case: Case, found: Found, provider: str, answer: Answered) -> None:
    """A whole answer: its text, its end, who gave it, and what is written of it."""
    heard, record = found.heard, found.record
    assert heard.status == 200, heard
    assert heard.headers["x-sluice-provider"] == provider
    as_stream = heard.headers["content-type"].startswith("text/event-stream")
    read = (read_stream if as_stream else read_reply)(case.dialect, heard)
    assert as_stream or heard.headers["content-type"] == answer.content_type
    assert (read.error, read.text, read.finished) == (None, answer.text, True)
    assert read.unreadable == answer.unreadable
    assert (record["status"], record["outcome"], record["error"]) == (200, "ok", "")
    assert record["provider"] == provider
    assert record["usage"]["prompt_tokens"] > 0
    assert 0 <= record["usage"]["completion_tokens"] <= MOST_TOKENS
