"""Runs the real gateway: supervisor, workers and embedded store, on free loopback ports."""

import contextlib
import functools
import json
import os
import re
import signal
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import redis

from tests.support import starter
from workers.prices import load_prices

ROOT = Path(__file__).resolve().parents[2]
START_SECONDS = 30.0
STOP_SECONDS = 20.0
STOPPING_SECONDS = 5.0
PASSED_ON = ("PATH", "HOME", "LANG", "VIRTUAL_ENV", "PYTHONPATH")


@functools.cache
def compiled_prices() -> tuple[str, bytes]:
    """The table of prices as a first start leaves it: its name and content."""
    with tempfile.TemporaryDirectory() as directory:
        load_prices(Path(directory))
        (file,) = Path(directory).iterdir()
        return file.name, file.read_bytes()


class Gateway:
    """A started gateway. `environ` adds to a clean environment; `config` is YAML text.

    `prices`: whether it finds a table of them, as every start but a first one does. `afresh`: with
    an interpreter of its own, as users start it, and not as a fork (`tests.support.starter`); so is
    whatever has an environment of its own.
    """

    def __init__(
        self,
        directory: Path,
        config: str = "",
        *,
        workers: int | None = 1,
        environ: dict[str, str] | None = None,
        host: str | None = "127.0.0.1",
        port: int | None = 0,
        wait: bool = True,
        prices: bool = True,
        afresh: bool = False,
    ) -> None:
        self.directory = directory
        self.state = directory / "state"
        self.config_file = directory / "sluice.yaml"
        self.config_file.write_text(config)
        self.log_file = directory / "stdout.log"
        self.error_file = directory / "stderr.log"
        self._environ = {name: os.environ[name] for name in PASSED_ON if name in os.environ}
        self._environ |= {"SLUICE_STATE_DIR": str(self.state), **(environ or {})}
        self._forked = starter.POSSIBLE and not (afresh or environ)
        self._sessions = set[int]()
        self._command = ["serve"]
        if port is not None:  # else the configuration says on which
            self._command += ["--port", str(port)]
        if host is not None:
            self._command += ["--host", host]
        if workers is not None:
            self._command += ["--workers", str(workers)]
        if config:
            self._command += ["--config", str(self.config_file)]
        if prices and not self.state.exists():
            self.state.mkdir(mode=0o700)
            name, content = compiled_prices()
            (self.state / name).write_bytes(content)
        self.start(wait=wait)

    def start(self, *, wait: bool = True) -> None:
        """Start (again, on the same state directory)."""
        with self.log_file.open("ab") as log, self.error_file.open("wb") as errors:
            if self._forked:
                argv, environ = self._command, self._environ
                self.process: subprocess.Popen[bytes] | starter.Forked
                self.process = starter.starter().start(argv, environ, log, errors)
            else:
                self.process = subprocess.Popen(
                    [sys.executable, "-m", "workers", *self._command],
                    cwd=ROOT,
                    env=self._environ,
                    stdout=log,
                    stderr=errors,
                    stdin=subprocess.DEVNULL,
                    start_new_session=True,
                )
        self._sessions.add(self.process.pid)
        if wait:
            self.port = int(self.wait_for(r"serving on https?://\S+?:(\d+) ")[1])

    @property
    def url(self) -> str:
        """The gateway's base URL."""
        return f"http://127.0.0.1:{self.port}"

    @property
    def errors(self) -> str:
        """What the supervisor printed; nothing where the test itself reads it, from a pipe."""
        if self.error_file.is_fifo():
            return ""
        return self.error_file.read_text(errors="replace")

    def wait_for(self, pattern: str, seconds: float = START_SECONDS) -> re.Match[str]:
        """Wait until the supervisor has printed a pattern."""
        deadline = time.monotonic() + seconds
        while time.monotonic() < deadline:
            if found := re.search(pattern, self.errors):
                return found
            if self.process.poll() is not None:
                break
            time.sleep(0.01)
        raise AssertionError(f"never printed {pattern!r}:\n{self.errors}")

    def records(self, count: int = 0, seconds: float = 5.0) -> list[dict[str, Any]]:
        """The request records logged so far; waits until there are `count`."""
        deadline = time.monotonic() + seconds
        while True:
            whole, _, _ = self.log_file.read_text().rpartition("\n")  # the last may be half there
            lines = [json.loads(line) for line in whole.splitlines() if line]
            found = [line for line in lines if line["event"] == "request"]
            if len(found) >= count or time.monotonic() > deadline:
                return found
            time.sleep(0.02)

    @property
    def store(self) -> Any:
        """A redis-py client of the gateway's own store; replies are text."""
        path = str(self.state / "redis.sock")
        return redis.Redis(unix_socket_path=path, decode_responses=True)

    def usage(self, tenant: str, period: str | None = None, part: str = "") -> dict[str, int]:
        """A usage hash, today's by default."""
        day = period or time.strftime("%Y-%m-%d", time.gmtime())
        key = f"sluice:usage:{{{tenant}}}:{day}" + (f":{part}" if part else "")
        with contextlib.closing(self.store) as store:
            return {name: int(value) for name, value in store.hgetall(key).items()}

    def settled(self, seconds: float = 10.0) -> None:
        """Wait until no lease is open in any tenant."""
        deadline = time.monotonic() + seconds
        with contextlib.closing(self.store) as store:
            while True:
                leases = [
                    lease
                    for tenant in store.smembers("sluice:tenants")
                    for lease in store.zrange(f"sluice:leases:{{{tenant}}}", 0, -1)
                ]
                if not leases:
                    return
                assert time.monotonic() < deadline, f"leases still open: {leases}"
                time.sleep(0.02)

    @property
    def worker_pids(self) -> list[int]:
        """The workers: forked children that are not the store's keeper."""
        found = []
        for child in psutil.Process(self.process.pid).children():
            with contextlib.suppress(psutil.NoSuchProcess):  # a worker may die at any moment
                if not child.children() and child.status() != psutil.STATUS_ZOMBIE:
                    found.append(child.pid)
        return sorted(found)

    @property
    def store_pid(self) -> int:
        """The store's server process."""
        for child in psutil.Process(self.process.pid).children(recursive=True):
            with contextlib.suppress(psutil.NoSuchProcess, psutil.ZombieProcess):
                if "valkey-server" in " ".join(child.cmdline()):
                    return child.pid
        raise ProcessLookupError("there is no store at the moment")

    @property
    def family(self) -> list[psutil.Process]:
        """Every process of this gateway, orphans too: by their session, or state directory."""
        found = []
        for process in psutil.process_iter():
            with contextlib.suppress(psutil.Error, ProcessLookupError):
                mine = os.getsid(process.pid) in self._sessions or process.environ().get(
                    "SLUICE_STATE_DIR"
                ) == str(self.state)
                if mine and process.status() != psutil.STATUS_ZOMBIE:
                    found.append(process)
        return found

    def gone(self, seconds: float = STOP_SECONDS) -> bool:
        """Wait until no process of this gateway is left; tell whether that came."""
        deadline = time.monotonic() + seconds
        while self.family:
            if time.monotonic() > deadline:
                return False
            time.sleep(0.05)
        return True

    def get(self, path: str, headers: dict[str, str] | None = None) -> tuple[int, bytes]:
        """GET a path; return status and body, also of an error."""
        request = urllib.request.Request(self.url + path, headers=headers or {})
        try:
            with urllib.request.urlopen(request, timeout=10) as response:
                return response.status, response.read()
        except urllib.error.HTTPError as error:
            return error.code, error.read()

    def signal(self, signum: signal.Signals) -> None:
        """Send the supervisor a signal."""
        self.process.send_signal(signum)

    def stop(self) -> int:
        """End it in order; return the exit code."""
        if "sluice: stopping" in self.errors:  # a second signal ends it at once
            with contextlib.suppress(subprocess.TimeoutExpired):
                return self.process.wait(STOPPING_SECONDS)
        if self.process.poll() is None:
            self.process.terminate()
        try:
            return self.process.wait(STOP_SECONDS)
        except subprocess.TimeoutExpired:
            self.kill()
            raise AssertionError(f"did not stop:\n{self.errors}") from None

    def kill(self) -> None:
        """End everything it started, at once."""
        for process in self.family:
            with contextlib.suppress(psutil.NoSuchProcess):
                process.kill()
        if self.process.poll() is None:
            self.process.kill()
        self.process.wait()


@contextlib.contextmanager
def running(config: str = "", **options: Any) -> Iterator[Gateway]:
    """Run a gateway for the length of a block, and see that it stops without leftovers."""
    with tempfile.TemporaryDirectory(prefix="sluice-test-") as directory:
        gateway = Gateway(Path(directory), config, **options)
        try:
            yield gateway
            if gateway.process.poll() is None:
                assert gateway.stop() == 0, gateway.errors
            assert gateway.gone(5), f"left running: {gateway.family}"
        finally:
            gateway.kill()


@contextlib.contextmanager
def untroubled(config: str) -> Iterator[Gateway]:
    """A gateway for many tests: at the end its workers are those it began with, and all is well."""
    with running(config) as gateway:
        workers = gateway.worker_pids
        yield gateway
        assert gateway.worker_pids == workers
        gateway.settled()
        assert '"level":"error"' not in gateway.log_file.read_text()
