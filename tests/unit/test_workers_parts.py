"""The supervisor's parts: cores, service manager, state directory."""

import fcntl
import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from gateway.config.schema import Config
from gateway.core.errors import ConfigError
from workers import state
from workers.backoff import HEALTHY_SECONDS, LEAST_SECONDS, Backoff
from workers.cores import cpu_quota, worker_count
from workers.process import HUNG_SECONDS, TURN_SECONDS, Phase, Process, Turns
from workers.state import MAX_SOCKET_PATH, StateDirectory, socket_path
from workers.store_server import sync_changed
from workers.systemd import Notifier

# --- Starting again ------------------------------------------------------------------------------


def test_what_ends_early_is_waited_for_longer_and_longer() -> None:
    worker, store = Backoff(), Backoff(LEAST_SECONDS)
    assert [worker.after(0.2) for _ in range(7)] == pytest.approx([0, 0.1, 0.2, 0.4, 0.8, 1.6, 3])
    assert [store.after(0.2) for _ in range(6)] == pytest.approx([0.1, 0.2, 0.4, 0.8, 1.6, 3])
    # Whatever became of those before it: this one was well.
    assert [worker.after(HEALTHY_SECONDS), worker.after(0)] == [0, 0.1]
    assert [store.after(HEALTHY_SECONDS), store.after(0)] == [0.1, 0.2]


# --- Signs of life -------------------------------------------------------------------------------


@pytest.fixture
def watched(monkeypatch: pytest.MonkeyPatch) -> Iterator[tuple[Process, list[int]]]:
    """A worker that serves, and the signals it was sent."""
    sent: list[int] = []
    monkeypatch.setattr(os, "kill", lambda _, signum: sent.append(signum))
    process = Process(0, 1, 1, Config())
    process.phase, process.pid = Phase.READY, 1
    process.channel, theirs = socket.socketpair()
    with process.channel, theirs:
        yield process, sent


def turns(process: Process, start: float, *steps: float, answers: bool = False) -> None:
    """What the supervisor does with a worker in turns that begin so many seconds apart."""
    clock, now = Turns(start), start
    for step in steps:
        now += step
        if answers:
            process.heard()
        process.excuse(clock.late(now))
        process.tick(now)


def test_a_worker_that_answers_nothing_is_aborted(watched: tuple[Process, list[int]]) -> None:
    process, sent = watched
    turns(process, process.started_at, *[0.5] * int(2 * HUNG_SECONDS))
    assert sent == []
    turns(process, process.started_at + HUNG_SECONDS, *[0.5] * 5)
    assert (sent, process.phase) == ([signal.SIGABRT], Phase.HUNG)


def test_a_worker_that_answers_is_left_alone(watched: tuple[Process, list[int]]) -> None:
    process, sent = watched
    turns(process, process.started_at, *[0.5] * 100, answers=True)
    assert sent == []


@pytest.mark.parametrize("phase", [Phase.STARTING, Phase.READY, Phase.DRAINING])
def test_nobody_is_blamed_for_a_pause_of_all(
    watched: tuple[Process, list[int]], phase: Phase
) -> None:
    process, sent = watched
    process.phase = phase
    pause = 100.0
    turns(process, process.started_at, 0.5, 0.5, 0.5, pause, 0.5, 0.5)
    assert sent == []
    # Whoever hangs from then on has no more time than anybody else.
    start = process.started_at + pause + 2.5
    left = max(HUNG_SECONDS, process.deadline - start) + TURN_SECONDS
    turns(process, start, *[0.5] * int(2 * left + 2))
    assert sent[0] == (signal.SIGKILL if phase is Phase.DRAINING else signal.SIGABRT)


# --- Cores ---------------------------------------------------------------------------------------


def cgroup(directory: Path, files: dict[str, str]) -> Path:
    for name, content in files.items():
        (directory / name).parent.mkdir(parents=True, exist_ok=True)
        (directory / name).write_text(content)
    return directory


@pytest.mark.parametrize(
    ("files", "cores"),
    [
        ({}, None),
        ({"cpu.max": "200000 100000\n"}, 2.0),
        ({"cpu.max": "50000 100000\n"}, 0.5),
        ({"cpu.max": "max 100000\n"}, None),
        ({"cpu.max": ""}, None),
        ({"cpu.max": "100000 0\n"}, None),
        ({"cpu/cpu.cfs_quota_us": "150000\n", "cpu/cpu.cfs_period_us": "100000\n"}, 1.5),
        ({"cpu/cpu.cfs_quota_us": "-1\n", "cpu/cpu.cfs_period_us": "100000\n"}, None),
        ({"cpu/cpu.cfs_quota_us": "150000\n"}, None),
    ],
)
def test_the_quota_of_a_container(
    tmp_path: Path, files: dict[str, str], cores: float | None
) -> None:
    assert cpu_quota(cgroup(tmp_path, files)) == cores


@pytest.mark.parametrize(
    ("configured", "quota", "workers"),
    [
        (3, "100000 100000", 3),
        ("auto", "max 100000", 8),
        ("auto", "50000 100000", 1),
        ("auto", "100001 100000", 2),
        ("auto", "250000 100000", 3),
        ("auto", "1600000 100000", 8),
    ],
)
def test_workers_fit_the_cores_that_may_be_used(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    configured: str | int,
    quota: str,
    workers: int,
) -> None:
    monkeypatch.setattr("workers.cores.CGROUP", cgroup(tmp_path, {"cpu.max": quota}))
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(8)), raising=False)
    assert worker_count(configured) == workers


# --- The service manager -------------------------------------------------------------------------


@pytest.fixture(params=["path", "abstract"])
def manager(request: pytest.FixtureRequest) -> Iterator[tuple[socket.socket, str]]:
    """A service manager's socket, and how it is named in NOTIFY_SOCKET."""
    if request.param == "abstract" and sys.platform != "linux":
        pytest.skip("abstract sockets are Linux's")
    with (
        tempfile.TemporaryDirectory() as directory,
        socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sock,
    ):
        path = f"{directory}/notify"
        sock.bind(path if request.param == "path" else "\0" + path)
        sock.settimeout(10)
        yield sock, path if request.param == "path" else "@" + path


def test_each_change_of_state_is_one_datagram(manager: tuple[socket.socket, str]) -> None:
    sock, address = manager
    notifier = Notifier({"NOTIFY_SOCKET": address})
    notifier.ready("4 workers on :8080")
    notifier.watchdog()
    before = time.monotonic_ns() // 1000
    notifier.reloading()
    notifier.stopping()
    received = [sock.recv(4096).decode() for _ in range(4)]
    assert received[0] == f"READY=1\nSTATUS=4 workers on :8080\nMAINPID={os.getpid()}"
    assert received[1] == "WATCHDOG=1"
    first, _, stamp = received[2].partition("\nMONOTONIC_USEC=")
    assert first == "RELOADING=1"
    assert before <= int(stamp) <= time.monotonic_ns() // 1000
    assert received[3] == "STOPPING=1"


@pytest.mark.parametrize("address", ["", "/nowhere/notify", "@sluice-nobody-listens"])
def test_without_a_manager_nothing_is_said_and_nothing_breaks(address: str) -> None:
    notifier = Notifier({"NOTIFY_SOCKET": address} if address else {})
    notifier.ready("x")
    notifier.stopping()


@pytest.mark.parametrize(
    ("environ", "seconds"),
    [
        ({}, None),
        ({"WATCHDOG_USEC": "30000000"}, 15.0),
        ({"WATCHDOG_USEC": "30000000", "WATCHDOG_PID": str(os.getpid())}, 15.0),
        ({"WATCHDOG_USEC": "30000000", "WATCHDOG_PID": "1"}, None),
        ({"WATCHDOG_USEC": "soon"}, None),
        ({"WATCHDOG_USEC": "0"}, None),
    ],
)
def test_the_watchdog_is_told_at_half_its_interval(
    environ: dict[str, str], seconds: float | None
) -> None:
    assert Notifier(environ).watchdog_seconds == seconds


# --- The state directory -------------------------------------------------------------------------


def test_the_state_directory_is_made_private(tmp_path: Path) -> None:
    made = StateDirectory(tmp_path / "a" / "b")
    assert made.path.stat().st_mode & 0o777 == 0o700
    assert os.fstat(made.lock_fd).st_mode & 0o777 == 0o600
    os.close(made.lock_fd)


HOLDER = """
import fcntl, os, sys
fd = os.open(sys.argv[1], os.O_RDWR | os.O_CREAT)
fcntl.flock(fd, fcntl.LOCK_EX)
print("held", flush=True)
sys.stdin.read()
"""


def test_a_directory_that_another_process_holds_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(state, "LOCK_SECONDS", 0.0)
    command = [sys.executable, "-c", HOLDER, str(tmp_path / "lock")]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as other:
        assert other.stdout is not None
        assert other.stdout.readline() == b"held\n"
        with pytest.raises(ConfigError, match=f"another gateway uses {tmp_path}") as caught:
            StateDirectory(tmp_path)
        assert caught.value.field == "server.state_dir"
        other.kill()
    os.close(StateDirectory(tmp_path).lock_fd)


def test_the_lock_lasts_as_long_as_any_child(tmp_path: Path) -> None:
    held = StateDirectory(tmp_path)
    reading, writing = os.pipe()
    pid = os.fork()
    if pid == 0:
        os.close(writing)
        os.read(reading, 1)
        os._exit(0)
    os.close(reading)
    os.close(held.lock_fd)
    with (tmp_path / "lock").open() as other:
        with pytest.raises(BlockingIOError):
            fcntl.flock(other, fcntl.LOCK_EX | fcntl.LOCK_NB)
        os.close(writing)
        os.waitpid(pid, 0)
        fcntl.flock(other, fcntl.LOCK_EX | fcntl.LOCK_NB)


def test_a_directory_that_cannot_be_made_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(ConfigError, match=f"cannot use {tmp_path}/file/x") as caught:
        StateDirectory(tmp_path / "file" / "x")
    assert caught.value.field == "server.state_dir"


def test_a_sockets_path_fits_the_kernel(monkeypatch: pytest.MonkeyPatch) -> None:
    with tempfile.TemporaryDirectory(prefix="sluice-") as directory:  # pytest's own is too deep
        monkeypatch.setattr(tempfile, "tempdir", directory)
        _check_paths(Path(directory))


def _check_paths(tmp_path: Path) -> None:
    name = "redis.sock"
    fits = Path("/" + "d" * (MAX_SOCKET_PATH - len(name) - 2))
    assert socket_path(fits, name) == f"{fits}/{name}"
    assert len(socket_path(fits, name)) == MAX_SOCKET_PATH
    too_long = Path(f"{fits}d")
    short = socket_path(too_long, name)
    assert short == socket_path(too_long, name)
    assert Path(short).parent.parent == tmp_path
    assert Path(short).parent.stat().st_mode & 0o777 == 0o700
    assert socket_path(Path(f"{fits}e"), name) != short
    umlauts = Path("/" + "ä" * 60)  # 61 characters, 121 bytes
    assert Path(socket_path(umlauts, name)).parent.parent == tmp_path
    with socket.socket(socket.AF_UNIX) as sock:
        sock.bind(short)


def test_a_short_directory_that_others_may_use_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    long = Path("/" + "d" * MAX_SOCKET_PATH)
    Path(socket_path(long, "s")).parent.chmod(0o755)
    with pytest.raises(ConfigError, match="not a private directory"):
        socket_path(long, "s")


# --- The store's files ---------------------------------------------------------------------------


def test_what_the_store_has_written_is_synced_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    synced: list[int] = []
    monkeypatch.setattr(os, "fsync", lambda fd: synced.append(os.fstat(fd).st_ino))
    logs = tmp_path / "appendonlydir"
    logs.mkdir()
    first, second = logs / "appendonly.aof.1.incr.aof", logs / "appendonly.aof.2.incr.aof"
    first.write_bytes(b"*1")
    (tmp_path / "store.log").write_bytes(b"a warning")
    seen = sync_changed(tmp_path, {})
    assert synced == [first.stat().st_ino]
    assert sync_changed(tmp_path, seen) == seen
    assert len(synced) == 1
    with first.open("ab") as file:
        file.write(b"*2")
    second.write_bytes(b"")  # a rewrite begins
    seen = sync_changed(tmp_path, seen)
    assert set(synced[1:]) == {first.stat().st_ino, second.stat().st_ino}
    first.unlink()
    assert set(sync_changed(tmp_path, seen)) == {second}


def test_what_could_not_be_synced_is_tried_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fails(_: int) -> None:
        raise OSError("the disk")

    (tmp_path / "appendonly.aof").write_bytes(b"*1")
    with monkeypatch.context() as broken:
        broken.setattr(os, "fsync", fails)
        assert sync_changed(tmp_path, {}) == {}
    assert set(sync_changed(tmp_path, {})) == {tmp_path / "appendonly.aof"}
