"""What the supervisor says, and that it waits for nobody who should hear it."""

import contextlib
import io
import os
import signal
import socket
import tempfile
from collections.abc import Iterator

import pytest

from workers.kernel import how_it_ended
from workers.report import PIECE_BYTES, report
from workers.systemd import Notifier


@contextlib.contextmanager
def heard() -> Iterator[int]:
    """The reader's end of standard error."""
    reads, writes = os.pipe()
    with open(writes, "w") as stderr, contextlib.redirect_stderr(stderr):
        yield reads
    with contextlib.suppress(OSError):
        os.close(reads)


def test_a_report_is_a_line() -> None:
    with heard() as reads:
        report("what \udce9 is")
        report("x" * 2 * PIECE_BYTES)
        lines = os.read(reads, 3 * PIECE_BYTES).decode().splitlines()
    assert lines == ["sluice: what \\udce9 is", "sluice: " + "x" * 2 * PIECE_BYTES]


def test_a_report_that_nobody_reads_is_left_out() -> None:
    with heard() as reads:
        for _ in range(100):  # more than any pipe holds
            report("x" * PIECE_BYTES)
        assert os.read(reads, 8) == b"sluice: "


@pytest.mark.parametrize("nobody", [None, io.StringIO()])
def test_a_report_to_nobody(nobody: io.StringIO | None) -> None:
    with contextlib.redirect_stderr(nobody):
        report("x")
    with heard() as reads:
        os.close(reads)
        report("x")


@pytest.mark.parametrize(
    ("signum", "said"),
    [
        (signal.SIGKILL, "was ended by SIGKILL"),
        (signal.SIGRTMIN + 3, f"was ended by signal {signal.SIGRTMIN + 3}"),
    ],
)
def test_every_signal_can_be_named(signum: int, said: str) -> None:
    pid = os.fork()
    if pid == 0:
        signal.pause()
    os.kill(pid, signum)
    assert how_it_ended(os.waitpid(pid, 0)[1]) == said


def test_a_manager_that_reads_nothing_holds_nobody_up() -> None:
    with (
        tempfile.TemporaryDirectory() as directory,
        socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as manager,
    ):
        manager.bind(f"{directory}/notify")
        notifier = Notifier({"NOTIFY_SOCKET": f"{directory}/notify"})
        for _ in range(2000):  # more than any queue holds
            notifier.watchdog()
        assert manager.recv(64) == b"WATCHDOG=1"
