"""Files of lines on disk: how much there may be of them, and who may read which."""

import asyncio
import contextlib
import os
import threading
from pathlib import Path

import pytest

from gateway.spool import Left, Spool


async def written(spool: Spool, lines: bytes) -> None:
    """Write, and wait until it is done; a large file is left."""
    spool.write(lines)
    spool.leave_large()
    await spool.left()


async def taken(spool: Spool) -> list[Left]:
    """Take every file that is nobody's."""
    files = [await spool.take(name) for name in await spool.left()]
    return [file for file in files if file is not None]


async def remaining(spool: Spool) -> list[bytes]:
    """Read and remove every file."""
    lines = []
    for file in await taken(spool):
        with contextlib.closing(file):
            while part := await spool.read(file):
                lines += part
            file.remove()
    return lines


async def test_a_spool_is_bounded_and_counts_what_it_loses(tmp_path: Path) -> None:
    spool = Spool(tmp_path, "w", most_bytes=1000)
    for _ in range(30):
        spool.write(b"x" * 99 + b"\n")
        spool.leave()
    left = await taken(spool)
    lines = [line for file in left for line in file.read()]
    assert (len(lines), spool.lost) == (10, 20)
    assert await taken(Spool(tmp_path, "other", 1000)) == []  # locked: they are being read
    for file in left:
        file.remove()
    spool.write(b"again\n")
    await spool.aclose()
    await spool.aclose()
    assert [path.read_bytes() for path in tmp_path.iterdir()] == [b"again\n"]


async def test_workers_share_the_bound(tmp_path: Path) -> None:
    spools = [Spool(tmp_path, name, most_bytes=20_000) for name in "abc"]
    for _ in range(300):
        for spool in spools:
            await written(spool, b"x" * 99 + b"\n")
    kept = sum(path.stat().st_size for path in tmp_path.iterdir())
    assert 19_000 <= kept <= 21_000
    assert sum(spool.lost for spool in spools) == 900 - kept // 100
    for spool in spools:
        await spool.aclose()


async def test_what_is_there_is_measured_now_and_then(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    spool, looks = Spool(tmp_path, "w", 10**9), list[int]()
    size = spool._size

    def look() -> int:
        looks.append(size())
        return looks[-1]

    monkeypatch.setattr(spool, "_size", look)
    for _ in range(100):
        await written(spool, b"x" * 99 + b"\n")
    await spool.aclose()
    assert looks == [0]


async def test_too_many_files_cost_the_oldest(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("gateway.spool.MAX_FILES", 3)
    spool = Spool(tmp_path, "w", 10_000)
    for n in range(5):
        spool.write(b"%d\n%d\n" % (n, n))
        spool.leave()
        await spool.left()
    assert spool.lost == 4
    assert await remaining(spool) == [b"%d\n" % n for n in (2, 2, 3, 3, 4, 4)]
    await spool.aclose()


async def test_a_small_file_grows_on_until_it_is_large(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("gateway.spool.LEAST_LARGE_BYTES", 40)
    spool = Spool(tmp_path, "w", 10_000)
    for n in range(10):
        await written(spool, b"%09d\n" % n)
    assert sorted(path.stat().st_size for path in tmp_path.iterdir()) == [20, 40, 40]
    spool.leave()
    assert await remaining(spool) == [b"%09d\n" % n for n in range(10)]
    await spool.aclose()


async def test_a_sync_under_way_keeps_nobody_from_what_is_left(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    syncing, synced, fsync = threading.Event(), threading.Event(), os.fsync

    def slow(fd: int) -> None:
        syncing.set()
        synced.wait(30)
        fsync(fd)

    monkeypatch.setattr("gateway.spool.os.fsync", slow)
    spool = Spool(tmp_path, "w", 10_000)
    spool.write(b"1\n")
    await asyncio.to_thread(syncing.wait, 30)
    spool.leave()
    try:
        assert await remaining(spool) == [b"1\n"]
    finally:
        synced.set()
        await spool.aclose()
