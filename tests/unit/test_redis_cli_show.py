"""Replies written as redis-cli writes them on a terminal; where it is installed, next to it."""

import io
import os
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from gateway.cli.redis_cli import redis_cli, show
from gateway.core.errors import StoreError
from tests.support.store import StoreServer, store_server

REAL = shutil.which("redis-cli")

SHOWN: list[tuple[Any, str]] = [
    (None, "(nil)"),
    (0, "(integer) 0"),
    (-7, "(integer) -7"),
    ("", '""'),
    ("a b", '"a b"'),
    ([], "(empty array)"),
    (["a"], '1) "a"'),
    (["a", None, 3], '1) "a"\n2) (nil)\n3) (integer) 3'),
    ([["a", "b"], ["c"]], '1) 1) "a"\n   2) "b"\n2) 1) "c"'),
    ([[["a"], []]], '1) 1) 1) "a"\n   2) (empty array)'),
    (
        [str(n) for n in range(10)],
        "\n".join(f'{n + 1:>2}) "{n}"' for n in range(10)),
    ),
    (
        [[str(n)] for n in range(9)] + [["9", "x"]],
        "\n".join(f'{n + 1:>2}) 1) "{n}"' for n in range(10)) + '\n    2) "x"',
    ),
    ({"a": "1", "b": "2"}, '1) "a"\n2) "1"\n3) "b"\n4) "2"'),
    ([StoreError("ERR no"), "a"], '1) (error) ERR no\n2) "a"'),
]


@pytest.mark.parametrize(("reply", "expected"), SHOWN)
def test_a_reply_is_written_as_redis_cli_does(reply: Any, expected: str) -> None:
    assert show(reply) == expected


# --- Whole commands, against a server ------------------------------------------------------------


@pytest.fixture(scope="module")
def server() -> Iterator[StoreServer]:
    with (
        tempfile.TemporaryDirectory(prefix="sluice-") as directory,
        store_server(Path(directory)) as running,
    ):
        running.redis.hset("h", mapping={"requests": 5, "cost_microusd": 12})
        running.redis.set("text", 'a "b"\n')
        running.redis.set("bytes", b"\xff\x00")
        running.redis.set("odd", "back\\slash\ttab\r é")
        running.redis.rpush("l", *range(12))
        running.redis.xadd("s", {"id": "req_1", "status": "200"}, id="1-1")
        yield running


@pytest.fixture
def our_own(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shutil, "which", lambda name: None)


COMMANDS = [
    (["PING"], "PONG\n", 0),
    (["SET", "x", "1"], "OK\n", 0),
    (["GET", "nothing"], "(nil)\n", 0),
    (["GET", "text"], '"a \\"b\\"\\n"\n', 0),
    (["GET", "bytes"], '"\\xff\\x00"\n', 0),
    (["GET", "odd"], '"back\\\\slash\\ttab\\r \\xc3\\xa9"\n', 0),
    (["STRLEN", "text"], "(integer) 6\n", 0),
    (["HGETALL", "h"], '1) "requests"\n2) "5"\n3) "cost_microusd"\n4) "12"\n', 0),
    (["LRANGE", "l", "8", "-1"], '1) "8"\n2) "9"\n3) "10"\n4) "11"\n', 0),
    (
        ["XREVRANGE", "s", "+", "-", "COUNT", "10"],
        '1) 1) "1-1"\n   2) 1) "id"\n      2) "req_1"\n      3) "status"\n      4) "200"\n',
        0,
    ),
    (["HGET", "text", "x"], None, 1),
    (["LRANGE", "l"], None, 1),
]


@pytest.mark.usefixtures("our_own")
@pytest.mark.parametrize(("command", "expected", "code"), COMMANDS)
def test_a_command_is_answered_as_by_redis_cli(
    server: StoreServer,
    capsys: pytest.CaptureFixture[str],
    command: list[str],
    expected: str | None,
    code: int,
) -> None:
    assert redis_cli(f"unix://{server.socket}", command) == code
    printed = capsys.readouterr().out
    if expected is not None:
        assert printed == expected
    if REAL is not None:
        real = subprocess.run(
            [REAL, "-s", server.socket, "--no-raw", *command],
            capture_output=True,
            text=True,
            check=False,
            env={"PATH": os.environ["PATH"]},
        )
        assert printed.rstrip("\n") == real.stdout.rstrip("\n")


@pytest.mark.usefixtures("our_own")
def test_commands_are_read_from_standard_input(
    server: StoreServer, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    typed = 'SET y "a b"\n\nGET y\nGET "\nNONESUCH\nSTRLEN y\nquit\nGET y\n'
    monkeypatch.setattr("sys.stdin", io.StringIO(typed))
    assert redis_cli(f"unix://{server.socket}", []) == 0
    shown = capsys.readouterr().out.splitlines()
    assert shown[:2] == ["OK", '"a b"']
    assert shown[2] == "Invalid argument(s)"
    assert shown[3].startswith("(error) ERR unknown command")
    assert shown[4:] == ["(integer) 3"]


@pytest.mark.usefixtures("our_own")
def test_a_server_that_is_away_is_an_error(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert redis_cli(f"unix://{tmp_path}/none.sock", ["PING"]) == 1
    assert "Could not connect" in capsys.readouterr().err


def test_an_installed_redis_cli_runs_without_the_password_in_its_arguments(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    ran: list[tuple[str, list[str], dict[str, str]]] = []

    def execve(path: str, argv: list[str], environ: dict[str, str]) -> None:
        ran.append((path, argv, environ))
        raise SystemExit(0)

    monkeypatch.setattr(shutil, "which", lambda name: f"/bin/{name}")
    monkeypatch.setattr(os, "execve", execve)
    with pytest.raises(SystemExit):
        redis_cli("rediss://u:secret@h:7/2?ssl_ca_certs=/ca", ["GET", "a b"])
    ((path, argv, environ),) = ran
    assert path == "/bin/redis-cli"
    shown = ["-h", "h", "-p", "7", "--user", "u", "--tls", "--cacert", "/ca", "-n", "2", "GET"]
    assert argv == ["/bin/redis-cli", *shown, "a b"]
    assert environ["REDISCLI_AUTH"] == "secret"
