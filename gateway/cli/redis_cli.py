"""`sluice redis-cli`: redis-cli where it is installed, and otherwise enough of it to read usage."""

import contextlib
import os
import re
import shlex
import shutil
import socket
import ssl
import sys
from typing import Any

import msgspec

from gateway.cli.store import with_master
from gateway.core.errors import StoreError
from gateway.store.location import Location, parse_url

CONNECT_SECONDS = 5.0
# A node of a cluster names the one that has a key, or gets it now: its host may be its own.
_ELSEWHERE = re.compile(r"(MOVED|ASK) \d+ (.*):(\d+)")
_SAME_HOST = ("", "?")
MOST_HOPS = 4  # while slots are on their way, and as a master has died


def redis_cli(url: str, command: list[str]) -> int:
    """Run one command, or without one read commands from standard input; return the exit code."""
    place = parse_url(url)
    if place.sentinels:
        place = with_master(url)
    if place.seeds:
        place = _first_there(place)
    binary = shutil.which("redis-cli") or shutil.which("valkey-cli")
    if binary:
        environ = dict(os.environ)
        if place.password:
            environ["REDISCLI_AUTH"] = place.password  # not in argv: others may read that
        os.execve(binary, [binary, *_options(place), *command], environ)  # noqa: S606  found above
    try:
        server = Server(place)
    except StoreError as error:
        print(f"{place} refused: {error}", file=sys.stderr)
        return 1
    except OSError as error:
        reason = error.strerror or error
        print(f"Could not connect to {place}: {reason}. Is the gateway running?", file=sys.stderr)
        return 1
    with contextlib.closing(server):
        return _answer(server, command) if command else _converse(server, place)


def _first_there(place: Location) -> Location:
    """Return where the first of a cluster's seeds is that can be reached; the last if none can."""
    for host, port in place.seeds:
        place = msgspec.structs.replace(place, host=host, port=port)
        with (
            contextlib.suppress(OSError),
            socket.create_connection((host, port), CONNECT_SECONDS),
        ):
            break
    return place


class Status(str):
    """A simple string of the protocol, shown without quotes."""


class Wire:
    """A connection that gives replies as the protocol has them (RESP 2). Raises StoreError."""

    def __init__(self, place: Location) -> None:
        if place.unix_path is not None:
            sock: socket.socket = _unix_socket(place.unix_path)
        else:
            sock = socket.create_connection((place.host, place.port), CONNECT_SECONDS)
        if place.tls:
            context = ssl.create_default_context(cafile=place.ca_file)
            sock = context.wrap_socket(sock, server_hostname=place.host)
        sock.settimeout(None)  # a command may block for as long as its user likes
        self._socket = sock
        self._file = sock.makefile("rb")
        try:
            if place.password is not None:
                self._greet("AUTH", *([place.username] if place.username else []), place.password)
            if place.database:
                self._greet("SELECT", str(place.database))
        except BaseException:
            self.close()
            raise

    def call(self, words: list[str]) -> Any:
        """Send a command and return its reply; an error is a StoreError among the values."""
        parts = [word.encode("utf-8", "surrogateescape") for word in words]
        data = b"*%d\r\n" % len(parts)
        data += b"".join(b"$%d\r\n%b\r\n" % (len(part), part) for part in parts)
        self._socket.sendall(data)
        return self._read()

    def close(self) -> None:
        """Close. Idempotent."""
        self._file.close()
        self._socket.close()

    def _greet(self, *words: str) -> None:
        reply = self.call(list(words))
        if isinstance(reply, StoreError):
            raise reply

    def _read(self) -> Any:
        line = self._file.readline()
        if not line.endswith(b"\r\n"):
            raise StoreError("the server closed the connection")
        kind, text = line[:1], line[1:-2]
        if kind == b"+":
            return Status(text.decode(errors="replace"))
        if kind == b"-":
            return StoreError(text.decode(errors="replace"))
        if kind == b":":
            return int(text)
        if kind == b"$":
            return None if text == b"-1" else self._file.read(int(text) + 2)[:-2]
        return None if text == b"-1" else [self._read() for _ in range(int(text))]


class Server:
    """The server that is asked; of a cluster the one that has the key. Raises OSError, StoreError.

    It is asked as the first was: with the same credentials, over TLS or not.
    """

    def __init__(self, place: Location) -> None:
        self._place, self._wire = place, Wire(place)

    def call(self, words: list[str]) -> Any:
        """Send a command, and again to the node that one names instead; return the reply."""
        reply = self._wire.call(words)
        for _ in range(MOST_HOPS):
            named = _ELSEWHERE.fullmatch(str(reply)) if isinstance(reply, StoreError) else None
            if named is None or not self._place.seeds:
                break
            kind, host, port = named.groups()
            host = self._place.host if host in _SAME_HOST else host
            place = msgspec.structs.replace(self._place, host=host, port=int(port))
            if kind == "ASK":  # for this command alone
                with contextlib.closing(Wire(place)) as other:
                    other.call(["ASKING"])
                    reply = other.call(words)
            else:
                self.close()
                self._place, self._wire = place, Wire(place)
                reply = self._wire.call(words)
        return reply

    def close(self) -> None:
        """Close. Idempotent."""
        self._wire.close()


def _unix_socket(path: str) -> socket.socket:
    sock = socket.socket(socket.AF_UNIX)
    sock.settimeout(CONNECT_SECONDS)
    try:
        sock.connect(path)
    except OSError:
        sock.close()
        raise
    return sock


def _answer(server: Server, words: list[str]) -> int:
    try:
        reply = server.call(words)
    except (OSError, StoreError) as error:
        reply = StoreError(str(error))
    print(show(reply))
    return int(isinstance(reply, StoreError))


def _converse(server: Server, place: Location) -> int:
    code = 0
    prompt = f"{place}> " if sys.stdin.isatty() else ""
    while True:
        try:
            words = shlex.split(input(prompt))
        except EOFError:
            return code
        except ValueError:
            print("Invalid argument(s)")
            continue
        if words and words[0].lower() in ("quit", "exit"):
            return code
        if words:
            code = _answer(server, words)


def _options(place: Location) -> list[str]:
    options = ["-s", place.unix_path] if place.unix_path else ["-h", place.host]
    if not place.unix_path:
        options += ["-p", str(place.port)]
    if place.username:
        options += ["--user", place.username]
    if place.tls:
        options += ["--tls", *(["--cacert", place.ca_file] if place.ca_file else [])]
    options += ["-c"] if place.seeds else []
    return [*options, "-n", str(place.database)] if place.database else options


_ESCAPES = {0x22: '\\"', 0x5C: "\\\\", 0x0A: "\\n", 0x0D: "\\r", 0x09: "\\t", 7: "\\a", 8: "\\b"}


def _quoted(data: bytes) -> str:
    shown = (
        _ESCAPES.get(byte) or (chr(byte) if 0x20 <= byte < 0x7F else f"\\x{byte:02x}")
        for byte in data
    )
    return f'"{"".join(shown)}"'


def show(reply: Any, indent: str = "") -> str:
    """Write a reply as redis-cli does."""
    if reply is None:
        return "(nil)"
    if isinstance(reply, StoreError):
        return f"(error) {reply}"
    if isinstance(reply, Status):
        return str(reply)
    if isinstance(reply, int):
        return f"(integer) {reply}"
    if isinstance(reply, bytes | str):
        return _quoted(reply if isinstance(reply, bytes) else reply.encode())
    if isinstance(reply, dict):
        reply = [part for pair in reply.items() for part in pair]
    if not reply:
        return "(empty array)"
    parts = list(reply)
    width = len(str(len(parts)))
    lines = []
    for number, part in enumerate(parts, 1):
        label = f"{number:>{width}}) "
        inner = show(part, indent + " " * len(label))
        lines.append(("" if number == 1 else indent) + label + inner)
    return "\n".join(lines)
