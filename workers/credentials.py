"""Which keys of a configuration are good now, as told to workers that serve by an older one.

Their clients' connections live on for a while, and a key that was taken away must not. It is a file
of the state directory, with SHA-256 alone.
"""

import hashlib
import os
from pathlib import Path

import msgspec

from gateway.config.schema import Config

_NAME = "credentials.json"


class Credentials(msgspec.Struct, frozen=True):
    """SHA-256 as hexadecimal digits; `anonymous`: nobody is asked for a key."""

    keys: frozenset[str]
    admin: str | None
    anonymous: bool


def write(directory: Path, config: Config) -> None:
    """Write down what a configuration takes. Raises OSError."""
    auth = config.auth
    admin = hashlib.sha256(auth.admin_key.encode()).hexdigest() if auth.admin_key else None
    good = Credentials(
        frozenset(key.sha256 for key in auth.keys if key.sha256), admin, not auth.enabled
    )
    fresh = directory / f"{_NAME}.new"
    fresh.write_bytes(msgspec.json.encode(good))
    os.replace(fresh, directory / _NAME)


def read(directory: Path) -> Credentials:
    """Read what was written last. Raises OSError and ValueError."""
    return msgspec.json.decode((directory / _NAME).read_bytes(), type=Credentials)
