"""Processes that share memory know which of them have something to tell, and from when on none."""

import mmap
import os

from gateway.store.debts import Debts, size_of

PROCESSES = 3


def memory() -> mmap.mmap:
    return mmap.mmap(-1, 16 + size_of(PROCESSES))


def test_others_see_who_owes_and_since_when() -> None:
    shared = memory()
    first, second = (Debts(shared, 16, PROCESSES, own) for own in (0, 2))
    assert first.others() == second.others() == frozenset()
    first.owe(10.0)
    first.owe(11.0)  # it has owed before
    assert second.others() == {(0, 10.0)}
    assert first.others() == frozenset()
    first.pay()
    first.owe(12.0)
    assert second.others() == {(0, 12.0)}


def test_the_dead_owe_nothing() -> None:
    shared = memory()
    pid = os.fork()
    if not pid:
        Debts(shared, 16, PROCESSES, 1).owe(10.0)
        os._exit(0)
    survivor = Debts(shared, 16, PROCESSES, 0)
    os.waitpid(pid, 0)
    assert survivor.others() == frozenset()
    Debts(shared, 16, PROCESSES, 1)  # who has its number next owes nothing as yet
    assert survivor.others() == frozenset()


def test_all_know_what_one_has_found() -> None:
    shared = memory()
    first, second = (Debts(shared, 16, PROCESSES, own) for own in (0, 1))
    assert second.agreed == 0.0
    first.agree(12.5)
    assert second.agreed == 12.5
