"""The listening sockets and the command line's word about them."""

import socket
from collections.abc import Iterator

import pytest

from gateway.config.address import parse_address
from gateway.core.errors import ConfigError
from workers.listeners import BALANCES, Listeners
from workers.settings import Flags, read


@pytest.fixture
def listeners() -> Iterator[Listeners]:
    made = Listeners("127.0.0.1:0")
    yield made
    made.close()
    made.close()
    assert made.sockets == []


@pytest.mark.skipif(not BALANCES, reason="SO_REUSEPORT does not balance here")
def test_every_slot_has_a_socket_and_all_share_a_port(listeners: Listeners) -> None:
    listeners.grow(4)
    ports = {sock.getsockname()[1] for sock in listeners.sockets}
    assert len(listeners.sockets) == 4
    assert listeners.url_host == f"127.0.0.1:{ports.pop()}"
    assert ports == set()
    listeners.grow(2)
    assert len(listeners.sockets) == 4
    served = [listeners.of_slot(slot, 3) for slot in range(3)]
    assert sorted(s.fileno() for each in served for s in each) == sorted(
        sock.fileno() for sock in listeners.sockets
    )
    assert all(served)


def accepted(sock: socket.socket) -> int:
    """Accept what waits; return how many connections that are."""
    count = 0
    while True:
        try:
            connection, _ = sock.accept()
        except BlockingIOError:
            return count
        connection.close()
        count += 1


@pytest.mark.skipif(not BALANCES, reason="SO_REUSEPORT does not balance here")
def test_connections_are_spread_over_the_sockets_that_listen(listeners: Listeners) -> None:
    listeners.grow(2)
    listeners.listen()
    listeners.grow(4)  # as a reload does, whose workers have yet to start
    address = parse_address(listeners.url_host)
    clients = [socket.create_connection(address) for _ in range(64)]
    taken = [accepted(sock) for sock in listeners.sockets[:2]]
    for client in clients:
        client.close()
    assert sum(taken) == 64
    assert all(taken)
    with pytest.raises(OSError, match="Invalid argument"):
        accepted(listeners.sockets[2])


def test_nobody_waits_at_an_address_without_workers(listeners: Listeners) -> None:
    listeners.grow(1)
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection(parse_address(listeners.url_host))
    listeners.listen()
    with socket.create_connection(parse_address(listeners.url_host)):
        assert accepted(listeners.sockets[0]) == 1


@pytest.mark.parametrize("shares", [False, True])
def test_a_port_that_is_taken_is_refused(shares: bool) -> None:
    with socket.socket() as other:
        if shares and BALANCES:  # as another gateway would
            other.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        other.bind(("127.0.0.1", 0))
        other.listen()
        taken = Listeners(f"127.0.0.1:{other.getsockname()[1]}")
        with pytest.raises(ConfigError, match=r"cannot listen on .*: address already in use"):
            taken.grow(2)
        assert taken.sockets == []


@pytest.mark.parametrize("address", ["203.0.113.1:0", "nowhere.invalid:80"])
def test_an_address_that_is_not_ours_is_refused(address: str) -> None:
    with pytest.raises(ConfigError, match=f"cannot listen on {address}") as caught:
        Listeners(address).grow(1)
    assert caught.value.field == "server.address"


def test_an_ipv6_address_stands_in_brackets() -> None:
    made = Listeners("[::1]:0")
    try:
        made.grow(1)
    except ConfigError:
        pytest.skip("this machine has no IPv6")
    host, port = parse_address(made.url_host)
    assert (host, port) == made.sockets[0].getsockname()[:2]
    made.close()


# --- Flags ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("flags", "environ", "address"),
    [
        (Flags(), {"SERVER_ADDRESS": "127.0.0.1:1"}, "127.0.0.1:1"),
        (Flags(port=2), {"SERVER_ADDRESS": "127.0.0.1:1"}, "127.0.0.1:2"),
        (Flags(port=2), {}, "127.0.0.1:2"),
        (Flags(port=2), {"API_KEYS": "sk-9c41f07a"}, "0.0.0.0:2"),
        (Flags(host="::1"), {}, "[::1]:8080"),
        (Flags(host="::1", port=0), {"SERVER_ADDRESS": "127.0.0.1:1"}, "[::1]:0"),
        (Flags(port=3), {"SERVER_ADDRESS": "[::1]:1"}, "[::1]:3"),
        (
            Flags(host="127.0.0.1"),
            {"SERVER_ADDRESS": "0.0.0.0:1", "API_KEYS": "sk-9c41f07a"},
            "127.0.0.1:1",
        ),
        (Flags(host="127.0.0.1"), {"SERVER_ADDRESS": "0.0.0.0:1"}, "127.0.0.1:1"),
    ],
)
def test_flags_are_above_the_environment(
    flags: Flags, environ: dict[str, str], address: str
) -> None:
    assert read(flags, environ).config.server.address == address


def test_the_flag_for_workers_is_above_the_environment() -> None:
    assert read(Flags(workers="3"), {"SLUICE_WORKERS": "5"}).config.server.workers == 3
    with pytest.raises(ConfigError, match="whole number"):
        read(Flags(workers="many"), {})
