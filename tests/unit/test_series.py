"""Totals: added, merged, published to other processes, and shown to Prometheus."""

import os
from collections.abc import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st
from prometheus_client.parser import text_string_to_metric_families

from gateway.observe.exposition import COUNTERS, GAUGES, HISTOGRAMS, exposition
from gateway.observe.folding import MAX_NAMES
from gateway.observe.scoreboard import RETIRED, SEGMENT_BYTES, Scoreboard
from gateway.observe.series import BOUNDS, MAX_SERIES, SECONDS, SEPARATOR, Totals, decode, encode

DURATION = "gen_ai_server_request_duration_seconds"
REQUESTS = "sluice_requests"
SEGMENTS = 128


def totals(requests: float = 0, *seconds: float, labels: str = "a", **gauges: float) -> Totals:
    made = Totals(gauges=gauges)
    if requests:
        made.add(REQUESTS, labels, requests)
    for value in seconds:
        made.observe(DURATION, labels, [value])
    return made


def in_child(work: Callable[[], None]) -> None:
    """Run in a forked process; fail if it fails."""
    pid = os.fork()
    if pid == 0:
        code = 1
        try:
            work()
            code = 0
        finally:
            os._exit(code)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0


# --- Adding --------------------------------------------------------------------------------------


def test_counters_and_histograms_add_up_by_label() -> None:
    made = Totals()
    for labels, amount in (("a", 1), ("b", 2), ("a", 3)):
        made.add(REQUESTS, labels, amount)
    assert made.counters == {REQUESTS: {"a": 4, "b": 2}}
    made = totals(0, 0.01, 0.0100001, 1000.0)
    cells = made.histograms[DURATION]["a"]
    assert (cells[0], cells[1], cells[len(SECONDS)]) == (1, 1, 1)  # a bound belongs to its bucket
    assert sum(cells[:-1]) == 3
    assert cells[-1] == pytest.approx(1000.0200001)


@given(st.lists(st.tuples(st.sampled_from("abc"), st.integers(0, 200)), max_size=40))
def test_parts_merged_are_the_same_as_the_whole(observed: list[tuple[str, int]]) -> None:
    whole, merged = Totals(), Totals()
    parts = [Totals(), Totals(), Totals()]
    for number, (labels, value) in enumerate(observed):
        for each in (whole, parts[number % 3]):
            each.add(REQUESTS, labels, value)
            each.observe(DURATION, labels, [value])
            each.gauges["sluice_workers"] = each.gauges.get("sluice_workers", 0) + 1
    for part in parts:
        before = encode(part)
        merged.merge(decode(before))
        merged_again = Totals()
        merged_again.merge(part)
        merged_again.merge(part)
        assert encode(part) == before, "merging changed the part"
    assert merged.counters.get(REQUESTS, {}) == whole.counters.get(REQUESTS, {})
    assert merged.histograms.get(DURATION, {}) == whole.histograms.get(DURATION, {})
    assert merged.gauges == whole.gauges


def test_series_are_bounded_but_those_that_exist_go_on() -> None:
    made = Totals()
    for number in range(MAX_SERIES + 10):
        made.add(REQUESTS, f"{number}", 1)
    made.observe(DURATION, "new", [1])
    made.add(REQUESTS, "0", 1)
    assert len(made.counters[REQUESTS]) == MAX_SERIES
    assert made.histograms.get(DURATION, {}) == {}
    assert made.counters[REQUESTS]["0"] == 2


def test_a_merge_loses_nothing_of_what_it_is_made_of() -> None:
    merged = Totals()
    for worker in range(3):
        part = Totals()
        for number in range(MAX_SERIES // 2):
            part.observe(DURATION, f"{worker}-{number}", [1])
            part.add(REQUESTS, f"{worker}-{number}", 1)
        merged.merge(part)
    assert len(merged.histograms[DURATION]) + len(merged.counters[REQUESTS]) == 3 * MAX_SERIES
    assert merged.size == 3 * MAX_SERIES


# --- The scoreboard ------------------------------------------------------------------------------


def test_what_one_process_publishes_another_reads() -> None:
    board = Scoreboard(SEGMENTS)
    assert [board.read(segment) for segment in range(SEGMENTS)] == [None] * SEGMENTS
    for number in (1, 2, SEGMENTS - 1):
        in_child(lambda number=number: _publish(board, number))  # type: ignore[misc]
    assert board.read(1) == totals(1, 0.5, sluice_workers=1)
    everything = board.sum(2, totals(100, sluice_workers=1))  # the caller's own, newer figures
    assert everything.counters == {REQUESTS: {"a": 1 + 100 + SEGMENTS - 1}}
    assert everything.gauges == {"sluice_workers": 3}


def _publish(board: Scoreboard, number: int) -> None:
    for step in (5, number):
        assert board.publish(number, totals(step, 0.5, sluice_workers=1))


def test_a_dead_workers_counts_stay_and_its_gauges_go() -> None:
    board = Scoreboard(SEGMENTS)
    for life in (1, 2):
        in_child(lambda: _publish(board, 3))
        board.retire(3)
        assert board.read(3) is None
        kept = board.read(RETIRED)
        assert kept is not None
        assert (kept.counters, kept.gauges) == ({REQUESTS: {"a": 3 * life}}, {})
        assert kept.histograms[DURATION]["a"][-1] == 0.5 * life
    board.retire(3)
    assert board.sum(1, Totals()).counters == {REQUESTS: {"a": 6}}


def test_names_that_clients_made_up_are_bounded_in_the_sum_of_dead_workers() -> None:
    board, lives = Scoreboard(SEGMENTS), 2 * MAX_SERIES // MAX_NAMES
    last: dict[str, float] = {}
    kept: Totals | None = None
    for life in range(lives):
        made = Totals()
        for name in ("house", *(f"made-up-{life}-{n}" for n in range(MAX_NAMES))):
            served = SEPARATOR.join(("chat", "openai", name))
            made.add(REQUESTS, SEPARATOR.join((served, "200", "ok")), 1)
            made.observe(DURATION, served, [1.0])
        made.add("sluice_errors", "overloaded", 1)
        board.publish(1, made)
        board.retire(1, {"house"})
        kept = board.read(RETIRED)
        assert kept is not None
        counted = kept.counters[REQUESTS]
        assert all(counted[labels] >= amount for labels, amount in last.items())
        last = counted
        assert sum(counted.values()) == (life + 1) * (MAX_NAMES + 1)
        assert sum(cells[-1] for cells in kept.histograms[DURATION].values()) == sum(
            counted.values()
        )
    assert kept is not None
    assert len(last) == len(kept.histograms[DURATION]) == MAX_NAMES + 2
    amounts = {labels.split(SEPARATOR)[2]: amount for labels, amount in last.items()}
    assert (amounts["house"], amounts["made-up-0-0"]) == (lives, 1)
    assert amounts["other"] == (lives - 1) * MAX_NAMES
    assert kept.counters["sluice_errors"] == {"overloaded": lives}


def test_a_reader_never_sees_half_of_what_a_writer_writes() -> None:
    board = Scoreboard(SEGMENTS)
    sizes = (1, 400)
    board.publish(1, _many(1))
    pid = os.fork()
    if pid == 0:
        for number in range(3000):
            board.publish(1, _many(sizes[number % 2]))
        os._exit(0)
    seen = set()
    try:
        while os.waitpid(pid, os.WNOHANG) == (0, 0):
            read = board.read(1)
            if read is not None:
                seen.add((len(read.counters[REQUESTS]), sum(read.counters[REQUESTS].values())))
    except ChildProcessError:
        pass
    assert seen <= {(size, size * size) for size in sizes}


def _many(size: int) -> Totals:
    made = Totals()
    for number in range(size):
        made.add(REQUESTS, f"{number}", size)
    return made


def test_what_does_not_fit_leaves_the_segment_as_it_was() -> None:
    board = Scoreboard(SEGMENTS)
    board.publish(1, totals(1))
    assert not board.publish(1, totals(2, labels="x" * SEGMENT_BYTES))
    assert board.read(1) == totals(1)
    board.clear(1)
    assert board.read(1) is None


def test_a_sum_never_goes_backwards_while_workers_are_retired() -> None:
    board = Scoreboard(SEGMENTS)
    for segment in range(1, SEGMENTS):
        board.publish(segment, totals(1))
    pid = os.fork()
    if pid == 0:
        for segment in range(2, SEGMENTS):
            board.retire(segment)
        os._exit(0)
    sums = set()
    while os.waitpid(pid, os.WNOHANG) == (0, 0):
        sums.add(board.sum(1, totals(1)).counters[REQUESTS]["a"])
    assert sums <= {SEGMENTS - 1}
    assert board.sum(1, totals(1)).counters[REQUESTS]["a"] == SEGMENTS - 1


def test_thousands_of_models_fit() -> None:
    assert Scoreboard(SEGMENTS).publish(1, _many(20_000))


# --- The exposition ------------------------------------------------------------------------------


def test_prometheus_reads_back_what_was_counted() -> None:
    made = Totals(gauges={"sluice_workers": 4})
    odd = 'a "b"\\\nc\u00e9'
    made.add(REQUESTS, SEPARATOR.join(("chat", "openai", odd, "200", "ok")), 7)
    made.add("sluice_log_lines_dropped", "", 3)
    served = SEPARATOR.join(("chat", "openai", odd))
    for value in (0.005, 0.3, 100.0):
        made.observe(DURATION, served, [value])
    families = {f.name: f for f in text_string_to_metric_families(exposition(made).decode())}
    assert set(families) == {*COUNTERS, *HISTOGRAMS, *GAUGES}
    samples = {
        (sample.name, tuple(sorted(sample.labels.items()))): sample.value
        for family in families.values()
        for sample in family.samples
    }
    labels = {"operation": "chat", "provider": "openai", "model": odd}
    requests = tuple(sorted({**labels, "status": "200", "outcome": "ok"}.items()))
    assert samples["sluice_requests_total", requests] == 7
    assert samples["sluice_log_lines_dropped_total", ()] == 3
    assert samples["sluice_workers", ()] == 4
    assert samples["sluice_open_leases", ()] == 0
    names = dict(zip(HISTOGRAMS[DURATION][1], ("chat", "openai", odd), strict=True))
    at = tuple(sorted(names.items()))
    assert samples[f"{DURATION}_count", at] == 3
    assert samples[f"{DURATION}_sum", at] == pytest.approx(100.305)
    below = {
        float(sample.labels["le"]): sample.value
        for sample in families[DURATION].samples
        if sample.name.endswith("_bucket")
    }
    assert list(below) == [*map(float, SECONDS), float("inf")]
    assert [below[0.01], below[0.16], below[0.32], below[81.92]] == [1, 1, 2, 2]
    assert below[float("inf")] == 3


def test_every_histogram_has_its_bounds() -> None:
    assert set(BOUNDS) == set(HISTOGRAMS)
    assert all(list(bounds) == sorted(set(bounds)) for bounds in BOUNDS.values())
