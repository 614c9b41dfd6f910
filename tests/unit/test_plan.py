"""What a generation of workers is started on, and what is left where it does not come up."""

import socket
from collections.abc import Iterator

import pytest

from gateway.core.errors import ConfigError
from tests.integration.conftest import unused_port
from workers.listeners import BALANCES
from workers.plan import LEAST_SEGMENTS, Plan
from workers.settings import Flags, read

pytestmark = pytest.mark.skipif(not BALANCES, reason="SO_REUSEPORT does not balance here")


def plan(host: str = "127.0.0.1", port: int = 0, workers: int = 2) -> Plan:
    loaded = read(Flags(host=host, port=port, workers=str(workers)), {"AUTH_ENABLED": "false"})
    return Plan.first(loaded)


@pytest.mark.parametrize(
    ("host", "key", "guard"),
    [
        ("127.0.0.1", "", "no keys: this machine only"),
        ("::1", "", "no keys: this machine only"),
        ("0.0.0.0", "", "no keys asked for: OPEN to other machines"),
        ("::", "", "no keys asked for: OPEN to other machines"),
        ("0.0.0.0", "sk-3fd1a0c75b29e846", "keys required"),
    ],
)
def test_it_says_who_may_call(host: str, key: str, guard: str) -> None:
    environ = {"API_KEYS": key} if key else {"AUTH_ENABLED": "false"}
    assert Plan.first(read(Flags(host=host, port=0, workers="1"), environ)).guard == guard


@pytest.fixture
def served() -> Iterator[Plan]:
    made = plan(port=unused_port()).ready()
    yield made
    made.listeners.close()


def test_what_a_reload_bound_goes_with_it(served: Plan) -> None:
    more = served.next(plan(port=served.listeners.port, workers=5).loaded, room=5)
    assert more.listeners is served.listeners
    # A worker of the one that serves takes nothing that the other one brought.
    assert [len(served.sockets_of(slot)) for slot in range(2)] == [1, 1]
    assert [len(more.sockets_of(slot)) for slot in range(5)] == [1] * 5
    more.give_up(served)
    assert len(served.listeners.sockets) == 2


def test_an_address_that_did_not_come_up_is_closed(served: Plan) -> None:
    other = served.next(plan().loaded, room=2)
    assert other.listeners.port != served.listeners.port
    other.give_up(served)
    assert (len(other.listeners.sockets), len(served.listeners.sockets)) == (0, 2)


def test_a_reload_that_cannot_bind_leaves_nothing(
    served: Plan, monkeypatch: pytest.MonkeyPatch
) -> None:
    make, left = socket.socket, [2]

    def limited(*words: int) -> socket.socket:
        left[0] -= 1
        if left[0] < 0:
            raise OSError(24, "Too many open files")
        return make(*words)

    monkeypatch.setattr(socket, "socket", limited)
    with pytest.raises(ConfigError, match="too many open files") as caught:
        served.next(plan(port=served.listeners.port, workers=5).loaded, room=5)
    assert caught.value.field == "server.address"
    assert len(served.listeners.sockets) == 2


@pytest.mark.parametrize("host", ["0.0.0.0", "localhost"])
def test_a_port_of_our_own_is_no_others(served: Plan, host: str) -> None:
    other = served.next(plan(host, served.listeners.port).loaded, room=2)
    assert other.listeners.url_host == f"{host}:{served.listeners.port}"
    other.listeners.close()


def test_there_is_room_for_a_reload_of_any_size() -> None:
    assert plan(workers=1).scoreboard().segments == LEAST_SEGMENTS
    assert plan(workers=43).scoreboard().segments > 3 * 43 + 1


def test_a_reload_without_room_is_refused(served: Plan) -> None:
    with pytest.raises(ConfigError, match="room for 4") as caught:
        served.next(plan(workers=5).loaded, room=4)
    assert caught.value.field == "server.workers"
