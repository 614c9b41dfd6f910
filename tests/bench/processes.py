"""Child processes: each in its own session, and gone with its whole tree when the block ends."""

import contextlib
import ctypes
import os
import select
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from . import cpu

PROJECT_ROOT = Path(__file__).resolve().parents[2]
HOST = "127.0.0.1"
_START_TIMEOUT_S = 20.0
_STOP_TIMEOUT_S = 10.0
_PR_SET_PDEATHSIG = 1  # linux/prctl.h


class Unavailable(Exception):
    """A proxy cannot take part; the message says why."""


@dataclass(frozen=True)
class Placement:
    """The cores of the load generator and the upstream, and of the proxies; None: all."""

    load: frozenset[int] | None = None
    proxy: frozenset[int] | None = None


@dataclass(frozen=True)
class Server:
    """A server to send load to; root_pid is the top of its process tree."""

    name: str
    port: int
    root_pid: int
    translates: bool = False
    caches: bool = False  # asked in another dialect than its upstream's

    @property
    def authority(self) -> str:
        return f"{HOST}:{self.port}"


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind((HOST, 0))
        port: int = probe.getsockname()[1]
        return port


@contextlib.contextmanager
def started(
    command: Sequence[str],
    *,
    log: Path,
    cores: Collection[int] | None = None,
    environment: dict[str, str] | None = None,
    read_stdout: bool = False,
) -> Iterator[subprocess.Popen[bytes]]:
    """Run command until the block ends: stderr to log, stdout to /dev/null unless read."""
    with log.open("wb") as errors:
        child = subprocess.Popen(
            command,
            cwd=PROJECT_ROOT,
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE if read_stdout else subprocess.DEVNULL,
            stderr=errors,
            start_new_session=True,
            preexec_fn=_bound_to_parent(cores),
        )
    with child:
        try:
            yield child
        finally:
            _stop(child)


def announced_port(child: subprocess.Popen[bytes], log: Path) -> int:
    """The port a child prints as its first line."""
    assert child.stdout is not None
    readable, _, _ = select.select([child.stdout], [], [], _START_TIMEOUT_S)
    line = child.stdout.readline() if readable else b""
    if not line.strip().isdigit():
        raise Unavailable(f"did not start: {tail(log)}")
    return int(line)


def wait_until(
    ready: Callable[[], bool],
    child: subprocess.Popen[bytes],
    log: Path,
    timeout_s: float = _START_TIMEOUT_S,
) -> None:
    """Poll ready until it is true; Unavailable when the child ends first or time runs out."""
    deadline = time.monotonic() + timeout_s
    while not ready():
        if child.poll() is not None:
            raise Unavailable(f"ended with {child.returncode} at start: {tail(log)}")
        if time.monotonic() > deadline:
            raise Unavailable(f"not ready after {timeout_s:.0f} s: {tail(log)}")
        time.sleep(0.02)


def listening(port: int) -> bool:
    try:
        socket.create_connection((HOST, port), timeout=1).close()
    except OSError:
        return False
    return True


def tail(log: Path) -> str:
    """The last lines a child wrote to stderr."""
    lines = log.read_text(errors="replace").strip().splitlines()
    return "\n".join(lines[-8:]) or "it wrote nothing to stderr"


def python_module(name: str) -> list[str]:
    return [sys.executable, "-m", name]


def _bound_to_parent(cores: Collection[int] | None) -> Callable[[], None]:
    # Looked up before the fork: only system calls are safe between fork and exec.
    prctl = ctypes.CDLL(None).prctl

    def prepare() -> None:
        prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)
        if cores is not None:
            os.sched_setaffinity(0, cores)

    return prepare


def _stop(child: subprocess.Popen[bytes]) -> None:
    """SIGTERM and time to end; then SIGKILL for whatever is left of the tree it had."""
    family = cpu.identities(child.pid)
    child.terminate()
    with contextlib.suppress(subprocess.TimeoutExpired):
        child.wait(_STOP_TIMEOUT_S)
    for pid in cpu.survivors(family):
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
    child.wait(_STOP_TIMEOUT_S)
