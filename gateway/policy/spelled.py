"""Finds secrets in what others say, also where a writer of JSON has escaped characters. Pure.

`/` may stand there as `\\/`, and any character as `\\u0041`; in JSON that is itself a string of
JSON, with one more backslash.
"""

import re
from collections.abc import Callable, Iterable
from functools import lru_cache

MAX_REMEMBERED = 256  # targets' secrets, of which those of signers change by the hour
# Of a secret's characters so many are looked for at once: more than those that many secrets begin
# with, a JWT's header say, and as few as are made ready in some milliseconds.
MOST_SEARCHED = 64
_LONGEST_ESCAPE = 7  # `\\\\u0041`
# How many of its backslashes a spelling leaves to a literal one before it.
_TAKEN = (0, 1, 2, 1)
_OPEN = -1  # the data ends before the secret does


class Spelled:
    """One secret, however it is spelled."""

    def __init__(self, secret: str) -> None:
        self.plain = secret.encode()
        self._ways = [_ways(character) for character in secret]
        self._longest = sum([len(ways[0]) for ways in self._ways])
        self._firsts = {ord(way[:1]) for way in self._ways[0]}
        searched = [b"(?:%b)" % _any(ways) for ways in self._ways[:MOST_SEARCHED]]
        self._beginning = re.compile(b"".join(searched))
        escapes = {escape for character in secret for escape in _escapes(character)}
        self._short = [escape for escape in escapes if len(escape) == 2]
        self._long = re.compile(_any([escape for escape in escapes if len(escape) > 2]))

    def replaced(self, data: bytes, cover: Callable[[bytes], bytes]) -> bytes:
        """Return data with `cover` of every spelling in its place."""
        if not self._has_escapes(data):
            return data.replace(self.plain, cover(self.plain))
        parts, done, at = [], 0, 0
        while (found := self._beginning.search(data, at)) is not None:
            start, end = found.start(), self._end(data, found.start())
            at = start + 1
            if end > 0:
                later = start + _TAKEN[_run(data, start)]
                start = later if later > start and self._end(data, later) == end else start
                parts += [data[done:start], cover(data[start:end])]
                done = at = end
        return b"".join([*parts, data[done:]]).replace(self.plain, cover(self.plain))

    def begun(self, data: bytes) -> int:
        """Return how many bytes at the end may be the beginning of a spelling."""
        unfinished = b"\\" in data[1 - _LONGEST_ESCAPE :]
        if not unfinished and not self._has_escapes(data[1 - self._longest :]):
            return self._begun_plainly(data)
        at = max(0, len(data) - self._longest + 1)
        for start in range(at, len(data)):
            if data[start] in self._firsts and self._end(data, start) == _OPEN:
                return len(data) - start + _run(data, start)
        return 0

    def _has_escapes(self, data: bytes) -> bool:
        """Tell whether any of its characters is escaped there, with as little as that takes."""
        if b"\\u" in data and self._long.search(data) is not None:
            return True
        return any(escape in data for escape in self._short)

    def _begun_plainly(self, data: bytes) -> int:
        plain = self.plain
        at = data.find(plain[:1], max(0, len(data) - len(plain) + 1))
        while at >= 0:
            if plain.startswith(data[at:]):
                return len(data) - at
            at = data.find(plain[:1], at + 1)
        return 0

    def _end(self, data: bytes, at: int) -> int:
        """Return where the secret ends that begins here; 0 where there is none."""
        for ways in self._ways:
            for way in ways:
                if data.startswith(way, at):
                    at += len(way)
                    break
            else:
                rest = data[at : at + len(ways[0])]
                return _OPEN if any(way.startswith(rest) for way in ways) else 0
        return at


def _run(data: bytes, at: int) -> int:
    """Return how many backslashes before one are no whole one yet, of a string in a string."""
    if data[at : at + 1] != b"\\":
        return 0
    return (at - len(data[:at].rstrip(b"\\"))) % 4


@lru_cache(MAX_REMEMBERED)
def spelled(secrets: tuple[str, ...]) -> tuple[Spelled, ...]:
    """Return secrets as they are looked for, in the same order."""
    return tuple([Spelled(secret) for secret in secrets if secret])


def _ways(character: str) -> tuple[bytes, ...]:
    """Return how a character may be written, the longest first."""
    escapes = _escapes(character)
    nested = [one.replace(b"\\", b"\\\\").replace(b'"', b'\\"') for one in escapes]
    return tuple(sorted({character.encode(), *escapes, *nested}, key=len, reverse=True))


def _escapes(character: str) -> list[bytes]:
    code = ord(character)
    escapes = [f"\\u{code:04x}", f"\\u{code:04X}"] if code <= 0xFFFF else []
    escapes += [f"\\{character}"] if character in '"\\/' else []
    return [escape.encode() for escape in escapes]


def _any(ways: Iterable[bytes]) -> bytes:
    return b"|".join([re.escape(way) for way in ways])
