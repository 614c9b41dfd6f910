"""The Lua functions in `lua/`, each with the SHA-1 by which Redis knows it once it is loaded."""

import hashlib
from importlib.resources import files

import msgspec


class Script(msgspec.Struct, frozen=True):
    """One function's source and its EVALSHA name."""

    name: str
    source: bytes
    sha: bytes


def _read(name: str) -> Script:
    source = files("gateway.store").joinpath("lua", f"{name}.lua").read_bytes()
    sha = hashlib.sha1(source, usedforsecurity=False).hexdigest()  # Redis's own choice of digest
    return Script(name, source, sha.encode())


ADMIT = _read("admit")
SETTLE = _read("settle")
EXTEND = _read("extend")
EXPIRED = _read("expired")
ALL = (ADMIT, SETTLE, EXTEND, EXPIRED)
