"""What many files share: an upstream in a thread, and one gateway for all transport tests."""

import socket
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any

import pytest

from tests.support.config import PRICED_MODEL, config
from tests.support.gateway import Gateway, running
from tests.support.threaded import UpstreamThread
from tests.support.upstream import Behaviour, like_openai

TIMEOUTS = {"connect": 2, "first_byte": 2.5, "idle": 2.5, "total": 12}
PATIENT = {"connect": 2, "first_byte": 20, "idle": 20, "total": 60}


def unused_port() -> int:
    """A loopback port on which nobody listens."""
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        port: int = sock.getsockname()[1]
        return port


@dataclass
class Wired:
    """A gateway and its upstreams. Models: `one` (first), `m` (first, then second), `refused`
    (nobody, then second), `nobody`, `patient` (first, long timeouts), `narrow` (2 connections)."""

    gateway: Gateway
    first: UpstreamThread
    second: UpstreamThread

    @property
    def port(self) -> int:
        """The gateway's port."""
        return self.gateway.port

    def behave(self, first: Behaviour = like_openai, second: Behaviour = like_openai) -> None:
        """Set how the upstreams answer, and forget what they received."""
        self.first.reset(first)
        self.second.reset(second)

    def asked(self) -> tuple[int, int]:
        """How many requests each upstream has read."""
        return len(self.first.received), len(self.second.received)

    def record(self, request_id: str, seconds: float = 10.0) -> dict[str, Any]:
        """The one record of a request."""
        wait(lambda: any(r["id"] == request_id for r in self.gateway.records()), seconds)
        (found,) = [r for r in self.gateway.records() if r["id"] == request_id]
        return found


def wait(true: Callable[[], object], seconds: float = 10.0) -> None:
    """Wait until something is true; assert that it came."""
    deadline = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < deadline, "never came true"
        time.sleep(0.02)


@pytest.fixture(scope="module")
def provider() -> Iterator[UpstreamThread]:
    """The upstream behind the gateway."""
    with UpstreamThread() as upstream:
        yield upstream


@pytest.fixture(scope="package")
def shared() -> Iterator[Wired]:
    """The gateway; tests take `wired` instead."""
    with ExitStack() as stack:
        first, second = (stack.enter_context(UpstreamThread()) for _ in range(2))
        urls = {"p0": first.url, "p1": second.url, "patient": first.url, "narrow": first.url}
        urls["dead"] = f"http://127.0.0.1:{unused_port()}/v1"
        providers: dict[str, dict[str, Any]] = {
            name: {
                "kind": "openai",
                "api_key": "sk-upstream",
                "base_url": url,
                "timeouts": TIMEOUTS,
            }
            for name, url in urls.items()
        }
        providers["patient"]["timeouts"] = PATIENT
        providers["narrow"] |= {"timeouts": PATIENT, "max_connections": 2}
        # A host name of its own: a pool is per origin.
        providers["patient"]["base_url"] = first.url.replace("127.0.0.1", "localhost")
        models = {
            name: {
                "targets": [
                    {"provider": provider, "model": PRICED_MODEL, "priority": i + 1}
                    for i, provider in enumerate(tried)
                ]
            }
            for name, tried in {
                "one": ["p0"],
                "m": ["p0", "p1"],
                "refused": ["dead", "p1"],
                "nobody": ["dead"],
                "patient": ["patient"],
                "narrow": ["narrow"],
            }.items()
        }
        server = {"timeouts": {**TIMEOUTS, "total": 60}}
        text = config(providers=providers, models=models, server=server)
        gateway = stack.enter_context(running(text))
        yield Wired(gateway, first, second)


@pytest.fixture
def wired(shared: Wired) -> Wired:
    """The gateway, with upstreams that behave."""
    shared.behave()
    return shared
