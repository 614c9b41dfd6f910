"""What a service manager hears, on a real datagram socket."""

import os
import signal
import socket
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.config import config
from tests.support.gateway import running

NOBODY = "http://127.0.0.1:9/v1"
State = dict[str, str]


class Manager:
    """The manager's end of NOTIFY_SOCKET."""

    def __init__(self, address: str) -> None:
        self.socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self.socket.bind(address)
        self.heard: list[State] = []

    def listen(self, until: str, seconds: float = 20.0) -> list[State]:
        """Return the states up to one that sets a variable; watchdogs are kept apart."""
        states: list[State] = []
        deadline = time.monotonic() + seconds
        while not any(until in state for state in states):
            self.socket.settimeout(max(0.01, deadline - time.monotonic()))
            data = self.socket.recv(4096).decode()
            state = dict(line.split("=", 1) for line in data.splitlines())
            self.heard.append(state)
            if "WATCHDOG" not in state or until == "WATCHDOG":
                states.append(state)
        return states


@pytest.fixture(params=["path", "abstract"])
def manager(request: pytest.FixtureRequest) -> Iterator[tuple[Manager, str]]:
    with tempfile.TemporaryDirectory() as directory:
        if request.param == "path":
            name = address = str(Path(directory) / "notify")
        else:
            name, address = f"@sluice-test-{os.getpid()}", f"\0sluice-test-{os.getpid()}"
        heard = Manager(address)
        yield heard, name
        heard.socket.close()


def test_every_change_of_state_is_told(manager: tuple[Manager, str]) -> None:
    heard, name = manager
    environ = {"NOTIFY_SOCKET": name, "WATCHDOG_USEC": "1000000"}
    with running(config(NOBODY), workers=2, environ=environ) as gateway:
        (ready,) = heard.listen("READY")
        assert ready["READY"] == "1"
        assert ready["MAINPID"] == str(gateway.process.pid)
        assert f":{gateway.port} " in ready["STATUS"]
        assert gateway.get("/health/live")[0] == 200, "told to be ready, and is not"

        earliest = time.clock_gettime_ns(time.CLOCK_MONOTONIC) // 1000
        gateway.signal(signal.SIGHUP)
        reloading, ready = heard.listen("READY")
        latest = time.clock_gettime_ns(time.CLOCK_MONOTONIC) // 1000
        assert reloading["RELOADING"] == "1"
        assert earliest <= int(reloading["MONOTONIC_USEC"]) <= latest
        assert ready["READY"] == "1"

        gateway.config_file.write_text("nonsense: true\n")
        gateway.signal(signal.SIGHUP)  # refused; yet the manager must not wait for its end
        assert [s.get("READY") for s in heard.listen("READY")] == [None, "1"]

        started = time.monotonic()
        for _ in range(4):
            heard.listen("WATCHDOG")
        assert time.monotonic() - started < 10

        gateway.signal(signal.SIGTERM)
        assert heard.listen("STOPPING")[-1]["STOPPING"] == "1"
        assert gateway.process.wait(20) == 0
    assert not any("ERRNO" in state for state in heard.heard)


def test_a_watchdog_meant_for_another_process_is_left_alone(manager: tuple[Manager, str]) -> None:
    heard, name = manager
    environ = {"NOTIFY_SOCKET": name, "WATCHDOG_USEC": "200000", "WATCHDOG_PID": "1"}
    with running(config(NOBODY), environ=environ):
        heard.listen("READY")
        with pytest.raises(TimeoutError):
            heard.listen("WATCHDOG", 1.5)


def test_a_manager_that_is_gone_does_not_matter() -> None:
    with running(config(NOBODY), environ={"NOTIFY_SOCKET": "/nonexistent/notify"}) as gateway:
        assert gateway.get("/health/live")[0] == 200
