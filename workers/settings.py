"""What the supervisor runs on: the configuration as the file, the environment and flags give it."""

import contextlib
import traceback
from collections.abc import Iterator, Mapping

import msgspec

from gateway.check import check
from gateway.config.load import CommandLine, Loaded, load
from gateway.config.schema import Config, Redis
from gateway.core.errors import ConfigError
from gateway.policy.pricing import PriceTable
from workers.report import report


class Flags(msgspec.Struct, frozen=True):
    """The command line's word, which is above the environment's."""

    config: str | None = None
    host: str | None = None
    port: int | None = None
    workers: str | None = None


def read(flags: Flags, environ: Mapping[str, str]) -> Loaded:
    """Read the configuration. Raises ConfigError."""
    with _translated(flags.config):
        return load(flags.config, environ, CommandLine(flags.host, flags.port, flags.workers))


def verify(loaded: Loaded, prices: PriceTable) -> None:
    """Compile what a worker would, and report what it lacks that the environment has by half.

    Raises ConfigError naming file, line and field.
    """
    with loaded.placing(), _translated(loaded.document.source):
        check(loaded.config, prices)
    for words in loaded.skipped:
        report(words)


@contextlib.contextmanager
def _translated(source: str | None) -> Iterator[None]:
    """Refuse also what fails as nobody foresaw: where, and no value, as that may be a secret."""
    try:
        yield
    except ConfigError:
        raise
    except Exception as error:
        last = traceback.extract_tb(error.__traceback__)[-1]
        message = f"cannot be used: {type(error).__name__} at {last.filename}:{last.lineno}"
        raise ConfigError(message, source=source or "environment") from error


def refuse_what_cannot_change(old: Config, new: Loaded) -> None:
    """Raise ConfigError where a reload would need a restart."""
    changed = [
        f"redis.{name}"
        for name in Redis.__struct_fields__
        if getattr(new.config.redis, name) != getattr(old.redis, name)
    ]
    if new.config.server.state_dir != old.server.state_dir:
        changed.append("server.state_dir")
    if changed:
        raise new.locate(ConfigError("a change needs a restart", field=changed[0]))
