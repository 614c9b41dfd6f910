"""What the supervisor runs on: the configuration as the file, the environment and flags give it."""

from collections.abc import Mapping

import msgspec

from gateway.check import check
from gateway.config.load import Listen, Loaded, load
from gateway.config.schema import Config
from gateway.core.errors import ConfigError
from gateway.policy.pricing import PriceTable


class Flags(msgspec.Struct, frozen=True):
    """The command line's word, which is above the environment's."""

    config: str | None = None
    host: str | None = None
    port: int | None = None
    workers: str | None = None


def read(flags: Flags, environ: Mapping[str, str]) -> Loaded:
    """Read the configuration. Raises ConfigError."""
    combined = dict(environ)
    if flags.workers is not None:
        combined["SLUICE_WORKERS"] = flags.workers
    return load(flags.config, combined, Listen(flags.host, flags.port))


def verify(loaded: Loaded, prices: PriceTable) -> None:
    """Compile what a worker would. Raises ConfigError naming file, line and field."""
    try:
        check(loaded.config, prices)
    except ConfigError as error:
        raise loaded.document.locate(error) from None


def refuse_what_cannot_change(old: Config, new: Config) -> None:
    """Raise ConfigError where a reload would need a restart."""
    if new.redis != old.redis:
        raise ConfigError("changes of redis need a restart", field="redis")
    if new.server.state_dir != old.server.state_dir:
        raise ConfigError("a change needs a restart", field="server.state_dir")
