"""Finished requests in rotated files."""

import json
from pathlib import Path

import pytest

from gateway.observe.ledger import LedgerFile
from tests.support.config import chat, config
from tests.support.gateway import running
from tests.support.load import Ask, flood
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
