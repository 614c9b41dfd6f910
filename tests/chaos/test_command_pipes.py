"""The command where nobody reads what it prints, where signals come early, and what it makes."""

import os
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from functools import partial
from pathlib import Path

import pytest

from tests.integration.conftest import unused_port
from tests.support.config import config
from tests.support.gateway import PASSED_ON, ROOT, Gateway


def environ(state: Path, **more: str) -> dict[str, str]:
    passed = {name: os.environ[name] for name in PASSED_ON if name in os.environ}
    return passed | {"SLUICE_STATE_DIR": str(state)} | more


@pytest.mark.parametrize("words", [["check"], ["--help"], ["check", "--config", "/nonexistent"]])
def test_a_reader_that_is_gone_is_no_error(tmp_path: Path, words: list[str]) -> None:
    reading, writing = os.pipe()
    os.close(reading)
    done = subprocess.run(
        [sys.executable, "-m", "workers", *words],
        cwd=ROOT,
        env=environ(tmp_path / "state"),
        stdin=subprocess.DEVNULL,
        stdout=writing,
        stderr=subprocess.PIPE,
    )
    os.close(writing)
    said = done.stderr.decode()
    if words[-1] == "/nonexistent":
        assert (done.returncode, said.count("\n")) == (2, 1)
    else:
        assert (done.returncode, said) == (1, "")


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="there is no /dev/full")
@pytest.mark.parametrize("words", [["check"], ["--help"]])
def test_an_output_that_is_full_is_said_in_a_line(tmp_path: Path, words: list[str]) -> None:
    with open("/dev/full", "wb") as full:
        done = subprocess.run(
            [sys.executable, "-m", "workers", *words],
            cwd=ROOT,
            env=environ(tmp_path / "state"),
            stdin=subprocess.DEVNULL,
            stdout=full,
            stderr=subprocess.PIPE,
            text=True,
        )
    assert (done.returncode, done.stderr) == (1, "sluice: cannot go on: No space left on device\n")


@pytest.mark.parametrize(
    "words", [["usage"], ["keys", "list"], ["cache", "stats"], ["redis-cli", "PING"]]
)
def test_an_interrupt_ends_a_command_that_redis_does_not_answer(
    tmp_path: Path, words: list[str]
) -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        silent.settimeout(30)
        url = f"redis://127.0.0.1:{silent.getsockname()[1]}"
        waiting = subprocess.Popen(
            [sys.executable, "-m", "workers", *words],
            cwd=ROOT,
            env=environ(tmp_path / "state", REDIS_URL=url, PATH=""),  # no redis-cli
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            # Of a job in the background it is ignored, and of what that starts.
            preexec_fn=partial(signal.signal, signal.SIGINT, signal.SIG_DFL),
        )
        try:
            connection, _ = silent.accept()
            with connection:
                connection.settimeout(30)
                assert connection.recv(1)
                waiting.send_signal(signal.SIGINT)
                assert waiting.communicate(timeout=30) == ("", "")
            assert waiting.returncode == 130
        finally:
            waiting.kill()
            waiting.communicate()


@pytest.mark.parametrize("closed", [">&-", "2>&-", "<&- >&- 2>&-"])
def test_a_gateway_without_standard_files_serves(tmp_path: Path, closed: str) -> None:
    port = unused_port()
    served = subprocess.Popen(
        ["sh", "-c", f"exec {sys.executable} -m workers serve --port {port} --workers 1 {closed}"],
        cwd=ROOT,
        env=environ(tmp_path / "state"),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    try:
        deadline = time.monotonic() + 30
        while True:
            try:
                with urllib.request.urlopen(f"http://127.0.0.1:{port}/health/live", timeout=5) as r:
                    assert r.status == 200
                break
            except OSError:  # not yet
                assert time.monotonic() < deadline
                assert served.poll() is None
                time.sleep(0.05)
        served.terminate()
        assert served.wait(30) == 0
    finally:
        served.kill()
        served.wait()


def test_a_check_leaves_nothing_behind(tmp_path: Path) -> None:
    state, ledger = tmp_path / "state", tmp_path / "ledger"
    state.mkdir()
    file = tmp_path / "sluice.yaml"
    file.write_text(config("http://127.0.0.1:9/v1", ledger={"directory": str(ledger)}))
    done = subprocess.run(
        [sys.executable, "-m", "workers", "check"],
        cwd=ROOT,
        env=environ(state, SLUICE_CONFIG=str(file)),
        capture_output=True,
        text=True,
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, f"{file}: valid\n", "")
    assert list(state.iterdir()) == []
    assert not ledger.exists()


def test_a_signal_during_the_start_ends_it_in_order(tmp_path: Path) -> None:
    """As early as the state directory is there, which is long before anybody waits for signals."""
    gateway = Gateway(tmp_path, config("http://127.0.0.1:9/v1"), wait=False)
    try:
        deadline = time.monotonic() + 30
        while not (gateway.state / "lock").exists():
            assert time.monotonic() < deadline
            time.sleep(0.001)
        gateway.signal(signal.SIGTERM)
        assert gateway.process.wait(30) == 0
        assert "stopping" in gateway.errors
        assert gateway.gone(5)
    finally:
        gateway.kill()
