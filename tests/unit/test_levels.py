"""What workers share in memory: entries are found, newer ones stay, the oldest make room."""

import os
from itertools import pairwise

import pytest

from gateway.store.levels import COMMON_ENTRIES, Levels, shared_memory
from gateway.store.part import MAX_TOLD, Parts


def test_what_is_told_is_heard_by_all_and_the_newest_stays() -> None:
    memory = shared_memory(2)
    one, other = Levels(memory, 0, 2), Levels(memory, 1, 2)
    assert other.heard("k") is None
    one.tell("k", 500, 10.0, 1000)
    assert other.heard("k") == (500, 10.0, 1000)
    other.tell("k", 400, 11.0, 2000)
    one.tell("k", 900, 10.5, 1000)
    assert one.heard("k") == (400, 11.0, 2000)
    one.tell("k", 450, 11.0, 2000)  # what came back since
    assert other.heard("k") == (450, 11.0, 2000)


def test_more_than_there_is_room_for_leaves_what_is_newest() -> None:
    levels = Levels(shared_memory(1), 0, 1)
    count = 2 * COMMON_ENTRIES
    for number in range(count):
        levels.tell(f"k{number}", number, float(number + 1), 9)
    recent = [levels.heard(f"k{number}") for number in range(count - 1000, count)]
    assert recent == [(float(n), float(n + 1), 9) for n in range(count - 1000, count)]


def test_a_slot_has_room_for_ten_thousand_limits() -> None:
    memory = shared_memory(3)
    slots = [Levels(memory, slot, 3) for slot in range(3)]
    for number in range(10_000):
        for slot, levels in enumerate(slots):
            levels.keep(f"k{number}", slot, 1.0 + number, number)
    for number in range(10_000):
        found = [levels.left(f"k{number}", "") for levels in slots]
        assert found == [(float(slot), 1.0 + number, number) for slot in range(3)]


def test_what_is_left_is_its_slots_whoever_serves_in_it() -> None:
    memory = shared_memory(2)
    one, other = Levels(memory, 0, 2), Levels(memory, 1, 2)
    one.keep("k", 5.5, 10.0, 9)
    assert other.left("k", "") is None
    successor = Levels(memory, 0, 2)
    one.keep("k", 4.0, 12.0, 9)
    assert successor.left("k", "") == (4.0, 12.0, 9)
    successor.keep("k", 3.0, 13.0, 9)
    assert one.left("k", "") == (3.0, 13.0, 9)


@pytest.mark.parametrize("whose", ["", "acme"])
def test_what_redis_has_heard_is_left_of_no_share(whose: str) -> None:
    memory = shared_memory(2)
    one, other = Levels(memory, 0, 2), Levels(memory, 1, 2)
    for levels in (one, other):
        levels.keep("k", 5.5, 10.0, 9)
    one.counted(3, 7)
    one.told(whose, 11.0)
    assert one.left("k", whose) is None
    assert other.left("k", whose) == (5.5, 10.0, 9)
    assert one.left("k", "another") == (5.5, 10.0, 9)
    one.keep("k", 4.0, 12.0, 9)
    assert Levels(memory, 0, 2).left("k", whose) == (4.0, 12.0, 9)
    assert (one.place, one.live) == (3, 7)


def test_who_takes_a_slot_has_its_place_among_all_workers() -> None:
    memory = shared_memory(2)
    one, other = Levels(memory, 0, 2), Levels(memory, 1, 2)
    assert [(one.place, one.live), (other.place, other.live)] == [(0, 2), (1, 2)]
    other.counted(5, 8)
    one.counted(2, 8)
    successor = Levels(memory, 1, 2)
    assert (successor.place, successor.live) == (5, 8)


def test_a_forked_process_knows_the_same_names() -> None:
    memory = shared_memory(2)
    pid = os.fork()
    if pid == 0:
        Levels(memory, 1, 2).tell("sluice:limit:{t}:tenant:rpm", 7, 1.0, 9)
        os._exit(0)
    os.waitpid(pid, 0)
    assert Levels(memory, 0, 2).heard("sluice:limit:{t}:tenant:rpm") == (7, 1.0, 9)


def test_what_is_known_is_told_a_part_at_a_time_and_in_the_end_all() -> None:
    memory = shared_memory(2)
    parts, other = Parts(Levels(memory, 0, 2), clustered=False), Levels(memory, 1, 2)
    count = 5 * MAX_TOLD
    known = parts.of("t").share.known
    for at in (1.0, 2.0):
        known.update({f"k{number}": (at, at, 9) for number in range(count)})
        heard = []
        for _ in range(12):
            parts.tell()
            found = [other.heard(f"k{number}") for number in range(count)]
            heard.append(sum(one == (at, at, 9) for one in found))
        steps = [after - before for before, after in pairwise([0, *heard])]
        assert max(steps) <= MAX_TOLD
        assert heard[-1] == count
