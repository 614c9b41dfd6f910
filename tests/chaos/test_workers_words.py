"""Words that nobody takes, and a disk that takes no change: the supervisor goes on."""

import asyncio
import errno
import json
import os
import signal
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.integration.conftest import unused_port
from tests.support.config import chat, config
from tests.support.gateway import ROOT, Gateway, running
from tests.support.load import Ask, flood, once
from tests.support.upstream import Upstream

REQUEST = b'"event":"request"'


class Heard:
    """A gateway whose standard output and standard error are one pipe, which the test holds."""

    def __init__(self, directory: Path, text: str, workers: int = 1) -> None:
        pipe = directory / "pipe"
        os.mkfifo(pipe)
        self.reading = os.open(pipe, os.O_RDONLY | os.O_NONBLOCK)
        for name in ("stdout.log", "stderr.log"):
            (directory / name).symlink_to(pipe)
        self.port = unused_port()
        self.gateway = Gateway(directory, text, workers=workers, port=self.port, wait=False)
        self.said = b""
        self.hear(b"serving on")

    def hear(self, word: bytes) -> None:
        """Read until a word comes."""
        deadline = time.monotonic() + 30
        while word not in self.said:
            assert time.monotonic() < deadline, self.said
            self.read()

    def read(self) -> None:
        """Read what there is."""
        try:
            self.said += os.read(self.reading, 65_536)
        except BlockingIOError:
            time.sleep(0.02)

    def fill(self) -> None:
        """Let nothing more fit in."""
        writing = os.open(f"/proc/self/fd/{self.reading}", os.O_WRONLY | os.O_NONBLOCK)
        size = 65_536
        while size:
            try:
                os.write(writing, b"x" * size)
            except BlockingIOError:
                size //= 2
        os.close(writing)

    async def lives(self) -> None:
        """See that a reload and a worker's end pass."""
        gateway = self.gateway
        for cause in (signal.SIGHUP, signal.SIGKILL):
            (before,) = gateway.worker_pids
            os.kill(gateway.process.pid if cause is signal.SIGHUP else before, cause)
            async with asyncio.timeout(30):
                while before in (pids := gateway.worker_pids) or len(pids) != 1:
                    assert gateway.process.poll() is None
                    await asyncio.sleep(0.05)


@pytest.fixture
def heard(upstream: Upstream) -> Iterator[Heard]:
    with tempfile.TemporaryDirectory(prefix="sluice-test-") as directory:
        server = {"address": f"127.0.0.1:{unused_port()}", "drain": {"grace": 1}}
        made = Heard(Path(directory), config(upstream.url, server=server))
        try:
            yield made
        finally:
            made.gateway.kill()


async def test_a_reader_of_standard_error_that_goes_away(heard: Heard) -> None:
    os.close(heard.reading)
    await heard.lives()
    assert await asyncio.to_thread(heard.gateway.stop) == 0


async def test_a_reader_of_standard_error_that_reads_nothing(heard: Heard) -> None:
    heard.fill()
    await heard.lives()
    assert await asyncio.to_thread(heard.gateway.stop) == 0
    os.close(heard.reading)


async def test_lines_of_several_workers_are_whole_whenever_they_are_read(
    upstream: Upstream, tmp_path: Path
) -> None:
    heard = Heard(tmp_path, config(upstream.url), workers=2)
    try:
        await flood(heard.port, [Ask(chat()) for _ in range(1000)], connections=32)
        deadline = time.monotonic() + 30
        while heard.said.count(REQUEST) < 1000 or not heard.said.endswith(b"\n"):
            assert time.monotonic() < deadline
            heard.read()
        printed = [line for line in heard.said.splitlines() if not line.startswith(b"sluice: ")]
        records = [line for line in map(json.loads, printed) if line["event"] == "request"]
        assert len({record["id"] for record in records}) == 1000
        assert await asyncio.to_thread(heard.gateway.stop) == 0
    finally:
        heard.gateway.kill()
        os.close(heard.reading)


async def test_a_state_directory_that_turns_read_only(upstream: Upstream) -> None:
    with tempfile.TemporaryDirectory(prefix="sluice-test-") as place:
        read_only = Path(place) / "read-only"
        (Path(place) / "sitecustomize.py").write_text(
            "import os, pathlib\n"
            "def refusing(done):\n"
            "    def tried(path, *rest):\n"
            f"        if os.path.exists({str(read_only)!r}) and 'state' in str(path):\n"
            f"            raise OSError({errno.EROFS}, os.strerror({errno.EROFS}))\n"
            "        return done(path, *rest)\n"
            "    return tried\n"
            "os.unlink = refusing(os.unlink)\n"
            "pathlib.Path.write_bytes = refusing(pathlib.Path.write_bytes)\n"
        )
        environ = {"PYTHONPATH": f"{place}:{ROOT}"}
        with running(config(upstream.url), workers=2, environ=environ) as gateway:
            read_only.touch()
            (first, second), everybody = gateway.worker_pids, len(gateway.family)
            os.kill(first, signal.SIGRTMIN + 3)
            gateway.wait_for(rf"\(pid {first}\) was ended by signal \d+")
            os.kill(gateway.store_pid, signal.SIGKILL)
            gateway.wait_for("cannot start the embedded store: Read-only file system")
            read_only.unlink()
            async with asyncio.timeout(30):
                while len(gateway.family) < everybody:
                    await asyncio.sleep(0.05)
            assert second in gateway.worker_pids
            assert (await once(gateway.port)).status == 200
            gateway.settled()
