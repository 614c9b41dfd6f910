"""Identifiers of requests: one form, never the same twice, not even across a fork."""

import os
import re

from gateway.core.ids import request_id


def in_child(count: int) -> list[str]:
    """Draw ids in a forked process."""
    reading, writing = os.pipe()
    pid = os.fork()
    if pid == 0:
        os.write(writing, "\n".join(request_id() for _ in range(count)).encode())
        os._exit(0)
    os.close(writing)
    with os.fdopen(reading) as pipe:
        drawn = pipe.read().split("\n")
    assert os.waitpid(pid, 0)[1] == 0
    return drawn


def test_an_id_has_one_form() -> None:
    assert all(re.fullmatch(r"req_[0-9a-f]{24}", request_id()) for _ in range(1000))


def test_ids_are_never_the_same() -> None:
    assert len({request_id() for _ in range(20_000)}) == 20_000


def test_forked_workers_share_no_id() -> None:
    request_id()  # the parent holds a batch that both children would otherwise inherit
    drawn = [*in_child(300), *in_child(300), *(request_id() for _ in range(300))]
    assert len(set(drawn)) == 900
