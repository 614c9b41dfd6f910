"""`sluice redis-cli`: redis-cli where it is installed, and otherwise enough of it to read usage."""

import os
import shlex
import shutil
import sys
from typing import Any

import redis
from redis.exceptions import RedisError

from gateway.store.location import Location, parse_url


def redis_cli(url: str, command: list[str]) -> int:
    """Run one command, or without one read commands from standard input; return the exit code."""
    place = parse_url(url)
    binary = shutil.which("redis-cli") or shutil.which("valkey-cli")
    if binary:
        environ = dict(os.environ)
        if place.password:
            environ["REDISCLI_AUTH"] = place.password  # not in argv: others may read that
        os.execve(binary, [binary, *_options(place), *command], environ)  # noqa: S606  found above
    client = redis.Redis.from_url(url, decode_responses=True)
    if command:
        return _run(client, command)
    code = 0
    prompt = f"{place}> " if sys.stdin.isatty() else ""
    while True:
        try:
            words = shlex.split(input(prompt))
        except EOFError:
            return code
        except ValueError as error:
            print(f"(error) {error}")
            continue
        if words and words[0].lower() in ("quit", "exit"):
            return code
        if words:
            code = _run(client, words)


def _options(place: Location) -> list[str]:
    options = ["-s", place.unix_path] if place.unix_path else ["-h", place.host]
    if not place.unix_path:
        options += ["-p", str(place.port)]
    if place.username:
        options += ["--user", place.username]
    if place.tls:
        options += ["--tls", *(["--cacert", place.ca_file] if place.ca_file else [])]
    return [*options, "-n", str(place.database)] if place.database else options


def _run(client: redis.Redis, words: list[str]) -> int:
    try:
        # Straight to the wire: the answer is shown as Redis gives it, not as redis-py shapes it.
        connection = client.connection_pool.get_connection()
        try:
            connection.send_command(*words)  # type: ignore[no-untyped-call]
            reply = connection.read_response()
        finally:
            client.connection_pool.release(connection)
    except RedisError as error:
        print(f"(error) {error}")
        return 1
    print(show(reply))
    return 0


def show(reply: Any, indent: str = "") -> str:
    """Write a reply as redis-cli does."""
    if reply is None:
        return "(nil)"
    if isinstance(reply, int):
        return f"(integer) {reply}"
    if isinstance(reply, dict):
        reply = [part for pair in reply.items() for part in pair]
    if isinstance(reply, set | tuple):
        reply = list(reply)
    if isinstance(reply, list):
        if not reply:
            return "(empty array)"
        width = len(str(len(reply)))
        lines = []
        for number, part in enumerate(reply, 1):
            label = f"{number:>{width}}) "
            inner = show(part, indent + " " * len(label))
            lines.append(("" if number == 1 else indent) + label + inner)
        return "\n".join(lines)
    return f'"{reply}"'
