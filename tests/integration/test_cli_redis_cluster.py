"""`sluice redis-cli` in a Redis Cluster, where redis-cli is not installed."""

import io
import os
import shutil
from collections.abc import Iterator
from urllib.parse import urlsplit

import pytest

from gateway.cli.redis_cli import redis_cli
from gateway.store.cluster import slot_of
from tests.integration.conftest import unused_port
from tests.support.cluster import Nodes, cluster

TENANTS = [f"t{number}" for number in range(6)]  # of which every master has some
PASSWORD = "a-password-of-the-store"


@pytest.fixture(scope="module")
def nodes(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Nodes]:
    """Three masters, with a user that asks nothing about the cluster."""
    with cluster(tmp_path_factory.mktemp("cluster"), replicas=False) as found:
        for port in found.ports:
            client = found.at(port)
            client.acl_setuser(
                "sluice", enabled=True, passwords=[f"+{PASSWORD}"], keys="*", commands=["+@all"]
            )
            client.close()
        yield found


@pytest.fixture(autouse=True)
def our_own(monkeypatch: pytest.MonkeyPatch) -> None:
    """Have no redis-cli."""
    monkeypatch.setattr(shutil, "which", lambda _: None)


def url_of(nodes: Nodes) -> str:
    """The cluster as the user, behind a seed that is down."""
    seeds = urlsplit(nodes.url).netloc
    return f"redis+cluster://sluice:{PASSWORD}@127.0.0.1:{unused_port()},{seeds}"


def test_the_node_that_has_a_key_is_asked(nodes: Nodes, capsys: pytest.CaptureFixture[str]) -> None:
    url = url_of(nodes)
    for tenant in TENANTS:
        assert redis_cli(url, ["HSET", f"sluice:usage:{{{tenant}}}", "requests", tenant]) == 0
        assert redis_cli(url, ["HGETALL", f"sluice:usage:{{{tenant}}}"]) == 0
        assert capsys.readouterr().out == f'(integer) 1\n1) "requests"\n2) "{tenant}"\n'


def test_one_session_goes_from_node_to_node(
    nodes: Nodes, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    typed = [f"SET session:{{{tenant}}} {tenant}\nGET session:{{{tenant}}}" for tenant in TENANTS]
    monkeypatch.setattr("sys.stdin", io.StringIO(os.linesep.join([*typed, "ACL WHOAMI"])))
    assert redis_cli(url_of(nodes), []) == 0
    replies = [line for tenant in TENANTS for line in ("OK", f'"{tenant}"')]
    assert capsys.readouterr().out.splitlines() == [*replies, '"sluice"']


def test_a_key_on_its_way_is_asked_for_where_it_goes(
    nodes: Nodes, capsys: pytest.CaptureFixture[str]
) -> None:
    slot = slot_of("moving")
    clients = [nodes.at(port) for port in nodes.ports]
    ids = [client.execute_command("CLUSTER", "MYID").decode() for client in clients]
    owners = [client.execute_command("CLUSTER", "COUNTKEYSINSLOT", slot) for client in clients]
    assert owners == [0, 0, 0]
    owner = slot * len(clients) >> 14
    other = (owner + 1) % len(clients)
    clients[other].execute_command("CLUSTER", "SETSLOT", slot, "IMPORTING", ids[owner])
    clients[owner].execute_command("CLUSTER", "SETSLOT", slot, "MIGRATING", ids[other])
    try:
        assert redis_cli(url_of(nodes), ["SET", "moving", "there"]) == 0
        assert redis_cli(url_of(nodes), ["GET", "moving"]) == 0
        assert capsys.readouterr().out == 'OK\n"there"\n'
        assert clients[owner].execute_command("CLUSTER", "COUNTKEYSINSLOT", slot) == 0
    finally:
        for client in clients:
            client.close()
