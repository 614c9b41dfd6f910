"""The spool: what is written, removed and left, in the order in which it was asked for."""

import asyncio
import random
import threading
from pathlib import Path

from gateway.spool import Spool

MEBIBYTE = 2**20


def lines(directory: Path) -> set[bytes]:
    return {line for path in directory.iterdir() for line in path.read_bytes().splitlines()}


async def test_what_is_written_after_a_removal_stays(tmp_path: Path) -> None:
    for number in range(20):
        directory = tmp_path / str(number)
        spool = Spool(directory, "w", MEBIBYTE)
        spool.write(b"first\n")
        await asyncio.sleep(0.01 * (number % 2))  # on its way to the disk, or there
        spool.clear()
        spool.write(b"second\n")
        await spool.aclose()
        assert lines(directory) == {b"second"}


async def test_no_order_of_calls_loses_or_keeps_a_line_too_many(tmp_path: Path) -> None:
    dice = random.Random(7)
    for run in range(30):
        directory = tmp_path / str(run)
        spool = Spool(directory, "w", MEBIBYTE)
        needed: set[bytes] = set()
        left: set[bytes] = set()
        for number in range(40):
            match dice.choice(("write", "write", "write", "clear", "leave", "turn")):
                case "write":
                    needed.add(b"%d" % number)
                    spool.write(b"%d\n" % number)
                case "clear":
                    needed.clear()
                    spool.clear()
                case "leave":
                    left |= needed
                    needed.clear()
                    spool.leave()
                case "turn":
                    await asyncio.sleep(dice.choice((0, 0, 0.002)))
        await spool.aclose()
        assert lines(directory) == needed | left


async def test_lines_that_wait_for_a_slow_disk_are_written_together(tmp_path: Path) -> None:
    spool = Spool(tmp_path, "w", MEBIBYTE)
    slow, written = threading.Event(), []
    append = spool._append

    def held(data: bytes) -> None:
        slow.wait(10)
        written.append(data)
        append(data)

    spool._append = held  # type: ignore[method-assign]
    for number in range(50):
        spool.write(b"%d\n" % number)
        await asyncio.sleep(0)
    slow.set()
    await spool.aclose()
    assert len(written) <= 2
    assert len(lines(tmp_path)) == 50
