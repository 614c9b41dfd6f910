"""The Lua functions in `lua/`, each with the SHA-1 by which Redis knows it once it is loaded."""

import hashlib
from importlib.resources import files

import msgspec


class Script(msgspec.Struct, frozen=True):
    """One function's source and its EVALSHA name."""

    name: str
    source: bytes
    sha: bytes

    def beginning(self, keys: int, args: int) -> bytes:
        """Return its call in RESP up to the keys, for so many keys and arguments."""
        return b"*%d\r\n%b%b%b" % (
            3 + keys + args,
            bulk(b"EVALSHA"),
            bulk(self.sha),
            bulk(b"%d" % keys),
        )


def bulk(value: bytes) -> bytes:
    """Return a value as RESP has it: https://redis.io/docs/latest/develop/reference/protocol-spec"""
    return b"$%d\r\n%b\r\n" % (len(value), value)


def _read(*names: str) -> Script:
    """Put files together, what is shared first; the last one names the function."""
    folder, name = files("gateway.store").joinpath("lua"), names[-1]
    source = b"".join(folder.joinpath(f"{part}.lua").read_bytes() for part in names)
    sha = hashlib.sha1(source, usedforsecurity=False).hexdigest()  # Redis's own choice of digest
    return Script(name, source, sha.encode())


ADMIT = _read("limits", "admit")
GROW = _read("limits", "grow")
SETTLE = _read("limits", "settle")
EXTEND = _read("extend")
EXPIRED = _read("expired")
ROTATE = _read("rotate")
CHANGE_KEY = _read("change_key")
TARGET_WELL = _read("target_well")
CACHE_FIND = _read("cache_find")
CACHE_KEEP = _read("cache_keep")
CACHE_LEAD = _read("cache_lead")
CACHE_LEARN = _read("cache_learn")
ALL = (
    *(ADMIT, GROW, SETTLE, EXTEND, EXPIRED, ROTATE, CHANGE_KEY, TARGET_WELL),
    *(CACHE_FIND, CACHE_KEEP, CACHE_LEAD, CACHE_LEARN),
)
