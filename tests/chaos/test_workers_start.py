"""A start that cannot succeed ends with a clear word and leaves nothing behind; a first one can."""

import asyncio
import json
import socket
import tempfile
from pathlib import Path
from typing import Any

import pytest

from tests.support.config import config
from tests.support.gateway import ROOT, Gateway, compiled_prices, running
from tests.support.load import once
from tests.support.upstream import Upstream

FAIL_SECONDS = 45.0


def fails(directory: Path, text: str, **options: Any) -> tuple[int, str]:
    """Start a gateway that must not start; return its exit code and what it said."""
    gateway = Gateway(directory, text, wait=False, afresh=True, **options)
    try:
        code = gateway.process.wait(FAIL_SECONDS)
        assert gateway.gone(5), f"left running: {gateway.family}\n{gateway.errors}"
    finally:
        gateway.kill()
    assert "Traceback" not in gateway.errors, gateway.errors
    assert "serving on" not in gateway.errors
    return code, gateway.errors


@pytest.fixture
def directory() -> Any:
    with tempfile.TemporaryDirectory(prefix="sluice-test-") as path:
        yield Path(path)


@pytest.mark.parametrize("reuse", [False, True], ids=["plain", "reuseport"])
def test_a_port_that_is_taken(directory: Path, reuse: bool) -> None:
    with socket.socket() as taken:
        if reuse:  # somebody else's shared port: to join it would steal half of its clients
            taken.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        code, said = fails(directory, config("http://127.0.0.1:9/v1"), port=port)
    assert code != 0
    place = f"server.address: cannot listen on 127.0.0.1:{port}"
    assert f"--host: {place}: address already in use" in said


def test_a_bad_certificate(directory: Path) -> None:
    pem = directory / "cert.pem"
    pem.write_text("not a certificate\n")
    server = {"tls": {"certificate": str(pem), "key": str(pem)}}
    text = json.dumps(json.loads(config("http://127.0.0.1:9/v1", server=server)), indent=1)
    code, said = fails(directory, text)
    assert code != 0
    line = next(n for n, x in enumerate(text.splitlines(), 1) if '"tls"' in x)
    assert f"sluice.yaml:{line}: server.tls: certificate and key do not load" in said


def test_a_bad_configuration(directory: Path) -> None:
    code, said = fails(directory, "server:\n  max_request_size: much\n")
    assert code != 0
    assert "sluice.yaml:2: server.max_request_size" in said


def test_an_unreachable_store(directory: Path) -> None:
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))
        url = f"redis://:secret-word@127.0.0.1:{closed.getsockname()[1]}/0"
        code, said = fails(directory, config("http://127.0.0.1:9/v1", redis={"url": url}))
    assert code != 0
    assert "cannot connect to Redis at" in said
    assert "the first start failed" in said
    assert "secret-word" not in said


def test_a_fault_of_our_own_is_shown(directory: Path) -> None:
    faulty = directory / "sitecustomize.py"
    faulty.write_text(
        "from gateway.app import Gateway\n"
        "def start(self):\n    raise LookupError('nobody thought of this')\n"
        "Gateway.start = start\n"
    )
    environ = {"PYTHONPATH": f"{directory}:{ROOT}"}
    gateway = Gateway(directory, config("http://127.0.0.1:9/v1"), wait=False, environ=environ)
    try:
        assert gateway.process.wait(FAIL_SECONDS) != 0
    finally:
        gateway.kill()
    assert "sluice: worker 0 failed\nTraceback" in gateway.errors
    assert "LookupError: nobody thought of this" in gateway.errors
    assert "the first start failed" in gateway.errors


@pytest.mark.parametrize("forks", [0, 2])
def test_a_machine_without_room_for_its_processes(directory: Path, forks: int) -> None:
    (directory / "sitecustomize.py").write_text(
        "import errno, os\n"
        "fork, left = os.fork, "
        f"[{forks}]\n"
        "def limited():\n"
        "    left[0] -= 1\n"
        "    if left[0] < 0:\n"
        "        raise BlockingIOError(errno.EAGAIN, os.strerror(errno.EAGAIN))\n"
        "    return fork()\n"
        "os.fork = limited\n"
    )
    environ = {"PYTHONPATH": f"{directory}:{ROOT}"}
    text = config("http://127.0.0.1:9/v1")
    code, said = fails(directory, text, environ=environ, workers=2)
    assert code != 0
    what = "cannot start worker 1" if forks else "the embedded store does not start"
    assert f"{what}: resource temporarily unavailable" in said.lower()


async def test_a_second_gateway_on_a_state_directory_is_refused(upstream: Upstream) -> None:
    with running(config(upstream.url)) as gateway, tempfile.TemporaryDirectory() as other:
        assert (await once(gateway.port)).status == 200
        second = Gateway(
            Path(other),
            config(upstream.url),
            environ={"SLUICE_STATE_DIR": str(gateway.state)},
            wait=False,
        )
        code = await asyncio.to_thread(second.process.wait, FAIL_SECONDS)
        assert code != 0
        assert f"another gateway uses {gateway.state}" in second.errors
        assert "SLUICE_STATE_DIR" in second.errors
        assert (await once(gateway.port)).status == 200
        gateway.settled()
        assert gateway.usage("acme")["requests"] == 2


async def test_a_first_start_has_its_prices_compiled(upstream: Upstream) -> None:
    """The gateways of other tests find them, as every later start does."""
    with running(config(upstream.url), prices=False, afresh=True) as gateway:
        (file,) = gateway.state.glob("prices-*")
        assert (file.name, file.read_bytes()) == compiled_prices()
        assert (await once(gateway.port)).status == 200
        (record,) = await asyncio.to_thread(gateway.records, 1)
        assert record["cost_microusd"] > 0
