"""Starts gateways as forks of a process that has all of one imported already.

A start is mostly imports and the tokenizer's vocabulary: nearly a second of CPU, the same for each
of some thousand gateways. A fork differs from a start of its own in its command line and in what
the interpreter reads before any code runs; `Gateway` says which tests get which.

The starter lives as long as the socket to it. A request on that is one message: `argv` and
`environ` with standard input, output and error, answered by the new process with its number; or
`ended`, the number of one that has ended, answered with its exit code as `subprocess` has it.
"""

import atexit
import contextlib
import functools
import importlib
import json
import os
import select
import signal
import socket
import subprocess
import sys
import threading
from pathlib import Path
from typing import IO, Any, TextIO

ROOT = Path(__file__).resolve().parents[2]
MESSAGE_BYTES = 128 * 1024
IMPORTED = ("workers.supervisor", "workers.worker", "gateway.app")
POSSIBLE = hasattr(os, "pidfd_open")


class Forked:
    """A process of the starter's; used as a `subprocess.Popen`."""

    def __init__(self, starter: "Starter", pid: int) -> None:
        self._starter, self.pid = starter, pid
        self.returncode: int | None = None
        self._lock = threading.Lock()
        self._pidfd = os.pidfd_open(pid)

    def __del__(self) -> None:
        with contextlib.suppress(OSError):
            os.close(self._pidfd)

    def poll(self) -> int | None:
        """Return the exit code, if it has ended."""
        return self._ended(0)

    def wait(self, timeout: float | None = None) -> int:
        """Wait for its end; return the exit code. Raises TimeoutExpired."""
        code = self._ended(timeout)
        if code is None:
            raise subprocess.TimeoutExpired(f"process {self.pid}", timeout or 0)
        return code

    def send_signal(self, signum: int) -> None:
        """Send it a signal, if it has not ended."""
        if self.poll() is None:
            signal.pidfd_send_signal(self._pidfd, signum)

    def terminate(self) -> None:
        """Ask it to end."""
        self.send_signal(signal.SIGTERM)

    def kill(self) -> None:
        """End it at once."""
        self.send_signal(signal.SIGKILL)

    def _ended(self, seconds: float | None) -> int | None:
        if self.returncode is None:
            waiting = select.poll()
            waiting.register(self._pidfd, select.POLLIN)
            if not waiting.poll(None if seconds is None else 1000 * seconds):
                return None
            with self._lock:
                if self.returncode is None:
                    self.returncode = self._starter.asked({"ended": self.pid})
        return self.returncode


class Starter:
    """The process that forks, as this one sees it."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._socket, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        with theirs:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "tests.support.starter", str(theirs.fileno())],
                cwd=ROOT,
                pass_fds=[theirs.fileno()],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                start_new_session=True,
            )
        self._socket.settimeout(60)

    def close(self) -> None:
        """End the starter; what it has started goes on."""
        self._socket.close()
        self._process.wait()

    def start(
        self, argv: list[str], environ: dict[str, str], log: IO[bytes], errors: IO[bytes]
    ) -> Forked:
        """Start the `sluice` command, with no other variables than these."""
        with open(os.devnull, "rb") as nothing:
            files = [nothing.fileno(), log.fileno(), errors.fileno()]
            return Forked(self, self.asked({"argv": argv, "environ": environ}, files))

    def asked(self, request: dict[str, Any], files: list[int] | None = None) -> int:
        """Return the answer to a request."""
        with self._lock:
            socket.send_fds(self._socket, [json.dumps(request).encode()], files or [])
            return int(self._socket.recv(MESSAGE_BYTES))


@functools.cache
def starter() -> Starter:
    """The one starter of this process."""
    made = Starter()
    atexit.register(made.close)
    return made


def _serve(requests: socket.socket) -> list[str]:
    """Answer requests; return in a forked child, with the arguments of its command."""
    while True:
        message, files, _, _ = socket.recv_fds(requests, MESSAGE_BYTES, 3)
        if not message:
            os._exit(0)
        request = json.loads(message)
        if "ended" in request:
            _, status = os.waitpid(request["ended"], 0)
            requests.send(str(os.waitstatus_to_exitcode(status)).encode())
            continue
        if os.fork():
            for fd in files:
                os.close(fd)
            continue
        os.setsid()
        for number, fd in enumerate(files):
            os.dup2(fd, number)
            os.close(fd)
        sys.stdin, sys.stdout, sys.stderr = _standard_files()
        os.environ.clear()
        os.environ.update(request["environ"])
        requests.send(str(os.getpid()).encode())
        requests.close()
        argv: list[str] = request["argv"]
        return argv


def _standard_files() -> tuple[TextIO, TextIO, TextIO]:
    """Open what the interpreter opens as it begins, in the same way."""
    return (
        open(0, closefd=False),
        open(1, "w", closefd=False),
        open(2, "w", buffering=1, errors="backslashreplace", closefd=False),
    )


def _run() -> int:
    for name in IMPORTED:
        importlib.import_module(name)
    from gateway.policy.tokens import preload
    from workers.__main__ import main

    preload()
    sys.argv[1:] = _serve(socket.socket(fileno=int(sys.argv[1])))
    return main()


if __name__ == "__main__":
    sys.exit(_run())
