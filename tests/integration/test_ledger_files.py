"""Finished requests in rotated files."""

import asyncio
import json
import os
import shutil
import signal
import time
from pathlib import Path

import pytest

from gateway.observe.ledger import LedgerFile
from gateway.spool import Spool
from tests.support.config import chat, config
from tests.support.gateway import running
from tests.support.load import Ask, flood
from tests.support.soak import came
from tests.support.upstream import Upstream


def numbers(path: Path) -> list[int]:
    return [json.loads(line)["n"] for line in path.read_text().splitlines()]


def test_files_are_rotated_and_the_oldest_deleted(tmp_path: Path) -> None:
    file = LedgerFile(tmp_path / "deep" / "l.jsonl", most_bytes=100, keep=2)
    for n in range(60):
        file.write(json.dumps({"n": n}).encode() + b"\n")
    file.close()
    file.close()
    folder = tmp_path / "deep"
    found = sorted(path.name for path in folder.iterdir())
    assert found == ["l.jsonl", "l.jsonl.1", "l.jsonl.2"]
    kept = [n for name in reversed(found) for n in numbers(folder / name)]
    assert kept == list(range(kept[0], 60))
    assert all(path.stat().st_size <= 100 for path in folder.iterdir())
    assert all(path.stat().st_mode & 0o777 == 0o600 for path in folder.iterdir())
    assert file.dropped == 0


def test_a_file_goes_on_where_it_ended(tmp_path: Path) -> None:
    for n in range(3):
        file = LedgerFile(tmp_path / "l.jsonl", most_bytes=1000, keep=2)
        file.write(json.dumps({"n": n}).encode() + b"\n")
        file.close()
    assert numbers(tmp_path / "l.jsonl") == [0, 1, 2]


HALF = b'{"n":'


def test_a_line_that_a_crash_has_cut_short_spoils_no_other(tmp_path: Path) -> None:
    path = tmp_path / "l.jsonl"
    path.write_bytes(line(1) + HALF)
    for n in (2, 3):
        file = LedgerFile(path, most_bytes=1000, keep=1)
        file.write(line(n))
        file.close()
    assert path.read_bytes() == line(1) + HALF + b"\n" + line(2) + line(3)


def test_nor_one_in_the_file_after_it(tmp_path: Path) -> None:
    path = tmp_path / "l.jsonl"
    path.write_bytes(line(1) + HALF)
    file = LedgerFile(path, most_bytes=20, keep=1)
    written(file, 2, 3)
    file.close()
    assert path.read_bytes() == line(2) + line(3)
    assert (tmp_path / "l.jsonl.1").read_bytes() == line(1) + HALF


async def test_every_request_has_its_line(upstream: Upstream, tmp_path: Path) -> None:
    text = config(upstream.url, ledger={"directory": str(tmp_path / "ledger")})
    with running(text, workers=2) as gateway:
        outcomes = await flood(gateway.port, [Ask(chat()) for _ in range(200)], connections=16)
        wrong = await flood(gateway.port, [Ask(chat(), key="wrong")], connections=1)
        gateway.stop()
        printed = gateway.records()
    files = list((tmp_path / "ledger").glob("requests-*.jsonl"))
    records = [json.loads(line) for path in files for line in path.read_text().splitlines()]
    assert len(records) == len(outcomes) + len(wrong)
    assert sorted(r["id"] for r in records) == sorted(r["id"] for r in printed)
    served = next(r for r in records if r["outcome"] == "ok")
    (tried,) = served["tries"]
    assert (tried["provider"], tried["status"], tried["failure"]) == ("p0", 200, "")
    assert sum(served["cost"].values()) == served["cost_microusd"]
    assert 0 < tried["duration_us"] <= served["duration_us"]


@pytest.mark.skipif(not Path("/proc/1").exists(), reason="needs a folder nobody can write to")
async def test_a_folder_that_cannot_be_written_is_refused_at_the_start(upstream: Upstream) -> None:
    text = config(upstream.url, ledger={"directory": "/proc/1/ledger"})
    with pytest.raises(AssertionError, match=r"ledger\.directory"), running(text):
        pass


async def test_a_folder_that_goes_away_stops_nobody(upstream: Upstream, tmp_path: Path) -> None:
    """Workers that die meanwhile are replaced; lines are written again once there is a folder."""
    folder = tmp_path / "ledger"
    with running(config(upstream.url, ledger={"directory": str(folder)}), workers=2) as gateway:
        await flood(gateway.port, [Ask(chat())], connections=1)
        shutil.rmtree(folder)
        folder.write_text("in its place")
        await flood(gateway.port, [Ask(chat())] * 8, connections=4)
        for pid in gateway.worker_pids:
            os.kill(pid, signal.SIGKILL)
            await came(lambda gone=pid: gone not in gateway.worker_pids)  # type: ignore[misc]
            await came(lambda: len(gateway.worker_pids) == 2)
        outcomes = await flood(gateway.port, [Ask(chat())] * 8, connections=4)
        assert {outcome.status for outcome in outcomes} == {200}
        await came(lambda: "takes no lines" in gateway.log_file.read_text())
        folder.unlink()
        await flood(gateway.port, [Ask(chat())] * 20, connections=8)
        await came(lambda: "takes lines again" in gateway.log_file.read_text())
        await came(lambda: lines_in(folder) >= 20)


def lines_in(folder: Path) -> int:
    return sum(len(path.read_text().splitlines()) for path in folder.glob("*.jsonl"))


def line(n: int) -> bytes:
    return json.dumps({"n": n}).encode() + b"\n"


def written(file: LedgerFile, *found: int) -> None:
    """Write, and wait until the thread has done so."""
    for n in found:
        file.write(line(n))
    while file._queued:
        time.sleep(0.001)


def test_a_file_that_somebody_moves_costs_none_of_the_others(tmp_path: Path) -> None:
    file = LedgerFile(tmp_path / "l.jsonl", most_bytes=30, keep=4)
    written(file, *range(8))
    before = {p.name: p.read_bytes() for p in tmp_path.iterdir() if p.name != "l.jsonl"}
    (tmp_path / "l.jsonl").rename(tmp_path / "collected")
    written(file, 8, 9, 10, 11)
    file.close()
    assert file.dropped == 0
    kept = [n for name in ("l.jsonl.2", "l.jsonl.1", "l.jsonl") for n in numbers(tmp_path / name)]
    assert kept[-1] == 11
    assert {p.read_bytes() for p in tmp_path.iterdir()} >= set(before.values())


def test_a_rotation_that_fails_moves_nothing_and_loses_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = LedgerFile(tmp_path / "l.jsonl", most_bytes=30, keep=4)
    written(file, *range(6))
    before = sorted(p.name for p in tmp_path.iterdir())

    def no_more(path: Path) -> int:
        raise OSError(24, "Too many open files")

    with monkeypatch.context() as patched:
        patched.setattr(LedgerFile, "_open", staticmethod(no_more))
        written(file, 6, 7, 8)
    assert sorted(p.name for p in tmp_path.iterdir()) == before
    written(file, *range(9, 14))
    file.close()
    assert file.dropped == 0
    assert sorted(n for p in tmp_path.iterdir() for n in numbers(p)) == list(range(14))


@pytest.mark.parametrize("keep", [0, 1, 50])
def test_two_workers_of_one_slot_write_to_the_same_file(tmp_path: Path, keep: int) -> None:
    path = tmp_path / "l.jsonl"
    old, new = (LedgerFile(path, most_bytes=100, keep=keep) for _ in range(2))
    for n in range(0, 60, 3):
        written(old, n)
        assert numbers(path)[-1] == n
        written(new, n + 1, n + 2)
        assert numbers(path)[-1] == n + 2
    written(old, 60, 61)
    old.close()
    new.close()
    names = [f"l.jsonl.{n}" for n in range(keep, 0, -1) if (tmp_path / f"l.jsonl.{n}").exists()]
    kept = [n for name in (*names, "l.jsonl") for n in numbers(tmp_path / name)]
    assert kept == list(range(62 - len(kept), 62))
    assert len(kept) == 62 or keep < 50
    assert all(one.stat().st_size <= 100 for one in tmp_path.iterdir())
    assert sorted(one.name for one in tmp_path.iterdir()) == sorted([*names, "l.jsonl"])


def test_a_file_that_somebody_moves_gets_no_more_lines(tmp_path: Path) -> None:
    file = LedgerFile(tmp_path / "l.jsonl", most_bytes=10_000, keep=1)
    written(file, 1)
    (tmp_path / "l.jsonl").rename(tmp_path / "collected")
    written(file, 2)
    file.close()
    assert numbers(tmp_path / "collected") == [1]
    assert numbers(tmp_path / "l.jsonl") == [2]


def half_written(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let the disk be full in the middle of the next line, once."""
    write, full = os.write, [True]

    def limited(fd: int, data: bytes) -> int:
        if full and b'"n"' in bytes(data):
            if len(data) > 5:
                return write(fd, bytes(data)[:5])
            full.clear()
        elif full and len(data) < 9:
            full.clear()
            raise OSError(28, "No space left on device")
        return write(fd, data)

    monkeypatch.setattr(os, "write", limited)


def test_half_a_line_is_taken_back(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = LedgerFile(tmp_path / "l.jsonl", most_bytes=10_000, keep=1)
    written(file, 1)
    with monkeypatch.context() as patched:
        half_written(patched)
        written(file, 2)
    written(file, 3)
    file.close()
    assert (numbers(tmp_path / "l.jsonl"), file.dropped) == ([1, 3], 1)


async def test_half_a_line_in_a_spool_is_taken_back(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    spool = Spool(tmp_path, "w", 10_000)
    spool.write(line(1))
    await asyncio.sleep(0.1)
    with monkeypatch.context() as patched:
        half_written(patched)
        spool.write(line(2))
        await asyncio.sleep(0.1)
    spool.write(line(3))
    await spool.aclose()
    (path,) = tmp_path.iterdir()
    assert (numbers(path), spool.lost) == ([1, 3], 1)
