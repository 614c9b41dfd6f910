"""Starts the upstream and the Python proxies, Sluice among them, on free loopback ports."""

import contextlib
import http.client
import importlib.util
import os
import tempfile
from collections.abc import Collection, Iterator
from pathlib import Path

from . import traffic
from .processes import (
    HOST,
    Server,
    Unavailable,
    announced_port,
    free_port,
    python_module,
    started,
    wait_until,
)

# Limits that never refuse, yet are all decided and counted for every request.
_SLUICE_CONFIGURATION = """\
server: {{address: "{host}:{port}", workers: {workers}}}
auth:
  enabled: true
  keys: [{{name: bench, tenant: bench, sha256: {sha256}, rpm: 60000000, burst: 60000000,
          tpm: 6000000000}}]
tenants: {{bench: {{rpm: 60000000, tpm: 6000000000}}}}
providers:
  mock: {{kind: openai-compatible, base_url: "http://{host}:{upstream}/v1", api_key: x}}
models: {{{model}: {{targets: [{{provider: mock, model: gpt-4o-mini}}]}}}}
cache: {{{cache}}}
"""
# Where a cached answer comes from: the setting that makes it so.
CACHES = {
    "memory": "enabled: true, requests: all",
    "Redis": "enabled: true, requests: all, memory_mb: 0",
}
# All that Sluice inherits: the person's own settings must not change the measurement.
_INHERITED = ("PATH", "HOME", "LANG", "PYTHONPATH", "VIRTUAL_ENV")


@contextlib.contextmanager
def upstream(
    directory: Path, *, gap_ms: float, chunks: int, cores: Collection[int] | None = None
) -> Iterator[Server]:
    """The mock upstream; its name is `direct`, as it is measured without a proxy too."""
    command = [*python_module(f"{__package__}.upstream"), "--host", HOST, "--port", "0"]
    command += ["--gap-ms", str(gap_ms), "--chunks", str(chunks)]
    log = directory / "upstream.log"
    with started(command, log=log, cores=cores, read_stdout=True) as child:
        yield Server("direct", announced_port(child, log), child.pid)


@contextlib.contextmanager
def passthrough(
    upstream_port: int, directory: Path, *, cores: Collection[int] | None = None
) -> Iterator[Server]:
    """The bare aiohttp server + ClientSession."""
    command = [*python_module(f"{__package__}.passthrough"), "--host", HOST, "--port", "0"]
    command += ["--upstream", f"http://{HOST}:{upstream_port}"]
    log = directory / "aiohttp.log"
    with started(command, log=log, cores=cores, read_stdout=True) as child:
        yield Server("aiohttp", announced_port(child, log), child.pid)


@contextlib.contextmanager
def sluice(
    upstream_port: int,
    directory: Path,
    *,
    workers: int = 1,
    cores: Collection[int] | None = None,
    cached_in: str = "",
) -> Iterator[Server]:
    """Sluice with everything on: authentication, limits, usage, metrics, a log line a request."""
    if importlib.util.find_spec("workers") is None:
        raise Unavailable("the package `workers` cannot be imported")
    port = free_port()
    configuration = directory / f"sluice{cached_in}.yaml"
    configuration.write_text(
        _SLUICE_CONFIGURATION.format(
            host=HOST,
            port=port,
            workers=workers,
            sha256=traffic.KEY_SHA256,
            upstream=upstream_port,
            model=traffic.MODEL,
            cache=CACHES.get(cached_in, ""),
        )
    )
    command = [*python_module("workers"), "serve", "--config", str(configuration)]
    command += ["--port", str(port), "--workers", str(workers)]
    environment = {name: os.environ[name] for name in _INHERITED if name in os.environ}
    log = directory / f"sluice{cached_in}.log"
    # A short path: a unix socket's may have about 100 bytes.
    with tempfile.TemporaryDirectory(prefix="sluice-", dir="/tmp") as state:
        environment["SLUICE_STATE_DIR"] = state
        with started(command, log=log, cores=cores, environment=environment) as child:
            wait_until(lambda: _healthy(port), child, log)
            name = f"sluice, hit in {cached_in}" if cached_in else "sluice"
            yield Server(name, port, child.pid, caches=bool(cached_in))


def _healthy(port: int) -> bool:
    connection = http.client.HTTPConnection(HOST, port, timeout=2)
    try:
        connection.request("GET", "/health/ready")
        return connection.getresponse().status == http.HTTPStatus.OK
    except (OSError, http.client.HTTPException):
        return False
    finally:
        connection.close()
