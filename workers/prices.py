"""The price table: compiled once a version of the data set, by a process of its own, and cached."""

import subprocess
import sys
from pathlib import Path

from gateway.core.errors import ConfigError
from gateway.policy.price_data import UNWRITABLE, source_version
from gateway.policy.pricing import PriceDataError, PriceTable

COMPILE_SECONDS = 60


def load_prices(directory: Path, written: Path | None = None) -> PriceTable:
    """Return the table of the installed data set. Raises ConfigError if it cannot be compiled.

    It is kept in the directory, or in `written`, which is then all that is changed. Compiling
    imports the data set's library (32 MB): in a process of its own, so that no worker inherits it.
    """
    name = f"prices-{source_version().replace('/', '-')}.bin"
    try:
        return PriceTable.decode((directory / name).read_bytes())
    except (OSError, PriceDataError):
        path = (written or directory) / name
    _compile(path, "" if written else "server.state_dir")
    return PriceTable.decode(path.read_bytes())


def _compile(path: Path, field: str) -> None:
    """Have the table written; `field` is what says where to. Raises ConfigError."""
    command = [sys.executable, "-m", "gateway.policy.price_data", str(path)]
    try:
        done = subprocess.run(  # noqa: S603  our own interpreter and module
            command, capture_output=True, timeout=COMPILE_SECONDS, check=False
        )
    except subprocess.TimeoutExpired:
        message = f"the price data does not compile within {COMPILE_SECONDS} seconds"
        raise ConfigError(message) from None
    except OSError as error:
        raise ConfigError(f"the price data does not compile: {error.strerror}") from None
    said = done.stderr.decode(errors="replace").strip().rpartition("\n")[2][-500:]
    if done.returncode == UNWRITABLE:
        raise ConfigError(f"cannot write prices to {path.parent}: {said}", field=field)
    if done.returncode:
        raise ConfigError(f"the price data does not compile: {said}")
