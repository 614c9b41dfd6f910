"""Lines of several processes on one output: each is whole, whoever is slow or killed."""

import fcntl
import json
import os
import struct
import subprocess
import sys
import termios
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from gateway.observe.log import LineWriter
from tests.support.gateway import ROOT

PIPE_BYTES = 65_536
WRITE = """
import json, sys
from pathlib import Path
from gateway.observe.log import LineWriter
name, batches, lines, chars = sys.argv[2], *map(int, sys.argv[3:])
writer = LineWriter(sys.stdout.fileno(), Path(sys.argv[1]))
line = json.dumps({"who": name, "text": name * chars}).encode() + b"\\n"
for _ in range(batches):
    writer.write(line * lines)
print(file=sys.stderr, flush=True)
writer.close(60)
assert writer.dropped == 0
"""


class Shared:
    """A pipe that processes write to, a line of which on standard error says that they do."""

    def __init__(self, lock: Path) -> None:
        self.reading, self.writing = os.pipe()
        self._lock, self._writers = lock, list[subprocess.Popen[bytes]]()

    def start(self, name: str, batches: int, lines: int, chars: int) -> subprocess.Popen[bytes]:
        """Let one more process write."""
        words = [str(self._lock), name, str(batches), str(lines), str(chars)]
        command = [sys.executable, "-c", WRITE, *words]
        started = subprocess.Popen(command, cwd=ROOT, stdout=self.writing, stderr=subprocess.PIPE)
        self._writers.append(started)
        return started

    def begun(self) -> None:
        """Wait until all have something to write."""
        for one in self._writers:
            assert one.stderr is not None
            assert one.stderr.readline() == b"\n"

    @property
    def waiting(self) -> int:
        """How many bytes wait to be read."""
        found: tuple[int] = struct.unpack("i", fcntl.ioctl(self.reading, termios.FIONREAD, b"0000"))
        return found[0]

    def fill(self) -> subprocess.Popen[bytes]:
        """Let a process wait in the middle of a line; return it."""
        waits = self.start("a", batches=1, lines=1, chars=4 * PIPE_BYTES)
        deadline = time.monotonic() + 30
        while self.waiting < PIPE_BYTES:
            assert time.monotonic() < deadline
            time.sleep(0.01)
        return waits

    def rest(self) -> bytes:
        """Read to the end, once no other has it open."""
        os.close(self.writing)
        self.writing = -1
        with open(self.reading, "rb", closefd=False) as file:
            return file.read()

    def close(self) -> None:
        """End all."""
        for one in self._writers:
            one.kill()
            one.communicate()
        for fd in (self.reading, self.writing):
            if fd >= 0:
                os.close(fd)


@pytest.fixture
def shared(tmp_path: Path) -> Iterator[Shared]:
    made = Shared(tmp_path / "lock")
    yield made
    made.close()


def whos(lines: list[bytes]) -> list[str]:
    return [json.loads(line)["who"] for line in lines]


def test_batches_that_no_pipe_holds_are_not_mixed(shared: Shared) -> None:
    for name in ("a", "b", "c"):
        shared.start(name, batches=20, lines=100, chars=900)
    shared.begun()
    found = whos(shared.rest().splitlines())
    assert sorted(found) == sorted("abc" * 2000)


def test_a_line_that_a_killed_process_has_left_ends_there(shared: Shared) -> None:
    killed = shared.fill()
    shared.start("b", batches=2, lines=3, chars=10)
    killed.kill()
    half, *lines = shared.rest().splitlines()
    assert half.startswith(b'{"who": "a", "text": "aaa')
    assert whos(lines) == ["b"] * 6


def test_a_reader_that_is_stuck_stops_nobody_who_ends(shared: Shared, tmp_path: Path) -> None:
    shared.fill()
    writer = LineWriter(shared.writing, tmp_path / "lock")
    writer.write(b"{}\n")
    writer.close(0.1)
    seen = b""
    while not seen.endswith(b"}\n{}\n"):
        seen += os.read(shared.reading, PIPE_BYTES)
    writer.close(30)


def test_a_file_that_is_appended_to_needs_no_lock(tmp_path: Path) -> None:
    with open(tmp_path / "log", "ab") as file:
        writer = LineWriter(file.fileno(), tmp_path / "lock")
        writer.write(b"{}\n")
        writer.close()
    assert (tmp_path / "log").read_bytes() == b"{}\n"
    assert not (tmp_path / "lock").exists()


def test_a_log_without_its_lock_goes_on(tmp_path: Path) -> None:
    reading, writing = os.pipe()
    writer = LineWriter(writing, tmp_path / "nowhere" / "lock")
    writer.write(b"{}\n")
    writer.close()
    assert os.read(reading, 9) == b"{}\n"
    os.close(reading)
    os.close(writing)
