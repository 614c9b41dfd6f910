"""Records on their way to whoever writes them: one that cannot be written takes no others along."""

import asyncio
import json
import logging

import pytest

from gateway.core.record import AttemptRecord, RequestRecord
from gateway.core.usage import Usage
from gateway.observe.log import MAX_QUEUED_BYTES, JsonHandler
from gateway.observe.recorder import MAX_UNSURE, MAX_WRITES, Recorder
from gateway.observe.scoreboard import Scoreboard

SURROGATE = "half a \ud800"


class Lines:
    """What a writer was given."""

    def __init__(self) -> None:
        self.data = b""

    def write(self, data: bytes, /) -> None:
        """Take lines."""
        self.data += data


def record(number: int, trace: str = "", attempts: int = 1, tried: str = "") -> RequestRecord:
    tries = [AttemptRecord(f"p{one}", "m", 200, "", 0, 1, 1) for one in tried]
    return RequestRecord(
        *(f"req_{number}", 0.0, "acme", "k", "chat", "m", "p0", "m", 200, "ok", "", False),
        *(Usage(), "none", 0, "", attempts, 1, 1, 1, trace),
        tries=tuple(tries),
    )


async def test_a_record_that_cannot_be_written_goes_alone(
    caplog: pytest.LogCaptureFixture,
) -> None:
    ledger, log = Lines(), Lines()
    loop = asyncio.get_running_loop()
    recorder = Recorder(loop, Scoreboard(2), 1, (ledger, log), dict)
    for number, trace in enumerate(("", SURROGATE, "")):
        recorder.emit(record(number, trace))
    recorder.fold()
    assert [json.loads(line)["id"] for line in ledger.data.splitlines()] == ["req_0", "req_2"]
    assert log.data == ledger.data
    assert "req_1 cannot be written" in caplog.text


async def test_what_has_waited_is_written_a_part_at_a_time() -> None:
    """All of it at once would be more than any writer queues, and lost."""
    count, writes = MAX_UNSURE + 5000, list[int]()

    class Sizes(Lines):
        def write(self, data: bytes, /) -> None:
            super().write(data)
            writes.append(len(data))

    ledger = Sizes()
    unsure = {f"req_{number}" for number in range(count)}
    loop = asyncio.get_running_loop()
    recorder = Recorder(loop, Scoreboard(2), 1, (ledger,), dict, lambda: unsure)
    for number in range(count):
        recorder.emit(record(number))
    unsure.clear()
    for _ in range(3):
        before = len(writes)
        recorder.fold()
        assert len(writes) - before <= MAX_WRITES
    recorder.close()
    ids = [json.loads(line)["id"] for line in ledger.data.splitlines()]
    assert sorted(ids) == sorted(f"req_{number}" for number in range(count))
    assert max(writes) < MAX_QUEUED_BYTES / MAX_WRITES


async def test_a_record_waits_while_another_might_record_its_request() -> None:
    ledger, unsure = Lines(), {"req_1", "req_2"}
    loop = asyncio.get_running_loop()
    recorder = Recorder(loop, Scoreboard(2), 1, (ledger,), dict, lambda: unsure)
    for number in range(4):
        recorder.emit(record(number))

    def written() -> list[str]:
        recorder.fold()
        return [json.loads(line)["id"] for line in ledger.data.splitlines()]

    assert written() == ["req_0", "req_3"]
    unsure.discard("req_1")
    assert written() == ["req_0", "req_3", "req_1"]
    assert written() == ["req_0", "req_3", "req_1"]
    recorder.close()
    assert written() == ["req_0", "req_3", "req_1", "req_2"]
    assert recorder.sum().counters["sluice_attempts"] == {"p0": 4}


@pytest.mark.parametrize(
    ("attempts", "tried", "counted"),
    [
        (1, "0", {"p0": 1}),
        (3, "120", {"p0": 1, "p1": 1, "p2": 1}),
        (3, "110", {"p0": 1, "p1": 2}),
        (2, "1", {"p0": 1, "p1": 1}),  # nothing says how the last one ended
        (2, "", {"p0": 2}),
        (1, "12", {"p1": 1}),
        (0, "", {}),
    ],
)
async def test_an_attempt_counts_for_the_provider_that_was_asked(
    attempts: int, tried: str, counted: dict[str, int]
) -> None:
    recorder = Recorder(asyncio.get_running_loop(), Scoreboard(2), 1, (), dict)
    for number in range(2):
        recorder.emit(record(number, attempts=attempts, tried=tried))
    found = recorder.sum().counters.get("sluice_attempts", {})
    assert found == {provider: 2 * count for provider, count in counted.items()}
    recorder.close()


def test_a_log_line_quotes_whatever_bytes_there_are() -> None:
    lines = Lines()
    handler = JsonHandler(lines)  # type: ignore[arg-type]  # writes, and that is all it does
    handler.emit(logging.makeLogRecord({"msg": f"GET /{SURROGATE} failed"}))
    assert json.loads(lines.data)["message"] == "GET /half a \\ud800 failed"
