"""A disk that is slow to sync: what the store has answered for outlives its death all the same."""

import os
import shutil
import signal
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.store import StoreServer, store_server

SLOW = "inject=fsync,fdatasync:delay_enter=3000000"  # microseconds


@pytest.fixture
def store(tmp_path: Path) -> Iterator[StoreServer]:
    with store_server(tmp_path) as running:
        yield running


def test_a_killed_store_has_written_what_it_answered(store: StoreServer, tmp_path: Path) -> None:
    strace = shutil.which("strace")
    if strace is None:
        pytest.skip("strace, which makes syncs slow, is not installed")
    pid = str(store.redis.info("server")["process_id"])
    said = tmp_path / "strace"
    command = [strace, "-f", "-o", str(said), "-e", "trace=fsync,fdatasync", "-e", SLOW, "-p", pid]
    with subprocess.Popen(command, stderr=subprocess.PIPE) as slower:
        assert slower.stderr is not None
        if b"attached" not in slower.stderr.readline():
            pytest.skip("no process may be traced here")
        try:
            answered, until = 0, time.monotonic() + 2.5
            while time.monotonic() < until:
                answered = store.redis.incr("answered")
            os.kill(int(pid), signal.SIGKILL)
        finally:
            slower.kill()
    store.kill()
    store.start()
    assert int(store.redis.get("answered")) == answered
