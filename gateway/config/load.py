"""Read a configuration from a file and the environment into one frozen, validated value."""

import contextlib
import os
from collections.abc import Collection, Iterator, Mapping
from pathlib import Path
from typing import Any

import msgspec

from gateway.config import environment
from gateway.config.address import MAX_PORT, is_loopback, parse_address
from gateway.config.caching import Cache
from gateway.config.discovery import complete_clouds, providers_from
from gateway.config.document import Document
from gateway.config.keys import checked
from gateway.config.schema import DEFAULT_PORT, Config, Limit, Model, Scope, When
from gateway.config.shape import shaped
from gateway.core.errors import ConfigError


class Loaded(msgspec.Struct, frozen=True):
    """A configuration and where it came from, to locate errors found later.

    `origins` are the fields that the environment or the command line set; `skipped` says which
    providers the environment has by half.
    """

    config: Config
    document: Document
    origins: dict[str, str] = {}
    skipped: tuple[str, ...] = ()

    def locate(self, error: ConfigError) -> ConfigError:
        """Add variable or flag, or file and line, to an error that names only its field."""
        return _located(error, self.document, self.origins)

    @contextlib.contextmanager
    def placing(self) -> Iterator[None]:
        """Locate the errors that are raised meanwhile."""
        try:
            yield
        except ConfigError as error:
            raise self.locate(error) from None


class CommandLine(msgspec.Struct, frozen=True):
    """The command line's words, which are above the file's and the environment's."""

    host: str | None = None
    port: int | None = None
    workers: str | None = None


NOTHING_SAID = CommandLine()


def load(path: str | None, environ: Mapping[str, str], words: CommandLine = NOTHING_SAID) -> Loaded:
    """Read a file, or with None the environment alone. Raises ConfigError."""
    if path is None:
        return _load("", "environment", environ, words)
    try:
        text = Path(path).read_text(encoding="utf-8")
    except OSError as error:
        raise ConfigError(f"cannot be read: {error.strerror}", source=path) from None
    except UnicodeDecodeError:
        raise ConfigError("is not UTF-8", source=path) from None
    return _load(text, path, environ, words)


def load_text(text: str, source: str, environ: Mapping[str, str]) -> Config:
    """Read a configuration from YAML text. Raises ConfigError."""
    return _load(text, source, environ, NOTHING_SAID).config


def _load(text: str, source: str, environ: Mapping[str, str], words: CommandLine) -> Loaded:
    document = Document(text, source)
    origins: dict[str, str] = {}
    skipped: tuple[str, ...] = ()
    try:
        raw = environment.resolve(document.value, environ)
        above = {"server.workers"} if words.workers is not None else set()
        origins |= environment.apply(raw, environ, above)
        origins |= _apply_words(raw, words)
        if not raw.get("providers"):
            raw["providers"], skipped = providers_from(environ, origins)
        complete_clouds(raw["providers"], environ, origins)
        config = finish(_convert(raw), words)
    except ConfigError as error:
        raise _located(error, document, origins) from None
    if words.host is not None:
        origins["server.address"] = "--host"
    elif words.port is not None and "address" not in (raw.get("server") or ()):
        origins["server.address"] = "--port"
    return Loaded(config, document, origins, skipped)


def _apply_words(raw: dict[str, Any], words: CommandLine) -> dict[str, str]:
    """Write the command line's words into the raw configuration; return which field is whose."""
    if words.port is not None and not 0 <= words.port <= MAX_PORT:
        raise ConfigError(f"expected a port from 0 to {MAX_PORT}, got {words.port}", "--port")
    if words.workers is None:
        return {}
    try:
        number = environment.workers(words.workers)
    except ValueError as error:
        raise ConfigError(str(error), "--workers") from None
    environment.assign(raw, "server.workers", number)
    return {"server.workers": "--workers"}


def _located(error: ConfigError, document: Document, origins: Mapping[str, str]) -> ConfigError:
    for field, source in () if error.source else origins.items():
        if error.field == field or error.field.startswith((f"{field}.", f"{field}[")):
            return ConfigError(error.message, source, field=error.field)
    return document.locate(error)


def _convert(raw: dict[str, Any]) -> Config:
    # An empty section (`tenants:` with nothing below it) is YAML's null: the same as absent.
    known = Config.__struct_encode_fields__
    present = {n: value for n, value in raw.items() if value is not None or n not in known}
    for name in present:
        if not isinstance(name, str):
            raise ConfigError("a section's name is text", field=str(name))
    return shaped(present, Config)


def finish(config: Config, words: CommandLine = NOTHING_SAID) -> Config:
    """Check what no single field shows, and settle the defaults that depend on others."""
    for i, key in enumerate(config.auth.keys):
        _check_scope(key, f"auth.keys[{i}]")
    auth = checked(config.auth)
    for name, tenant in config.tenants.items():
        _check_scope(tenant, f"tenants.{name}")
    _check_scope(config.limits.default, "limits.default")
    _check_scope(config.limits.everybody, "limits.global")
    for name, model in config.models.items():
        _check_model(model, f"models.{name}", config.providers)
    if Cache().ttl != config.cache.ttl > config.cache.max_ttl:
        message = f"{config.cache.ttl:g} seconds are more than max_ttl, {config.cache.max_ttl:g}"
        raise ConfigError(message, field="cache.ttl")
    return msgspec.structs.replace(
        config,
        auth=auth,
        server=msgspec.structs.replace(
            config.server, address=_address(config, bool(auth.enabled), words)
        ),
    )


def _address(config: Config, guarded: bool, words: CommandLine) -> str:
    """Listen everywhere once there are keys; without any, this machine alone may call.

    An operator who says `auth.enabled: false` in so many words may listen where they like.
    """
    everywhere = "0.0.0.0"  # noqa: S104  keys guard it
    address = config.server.address
    host, port = everywhere if guarded else "127.0.0.1", DEFAULT_PORT
    if address is not None:
        host, port = parse_address(address)
    host = host if words.host is None else words.host.strip("[]")
    port = port if words.port is None else words.port
    shown = f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
    if address is not None and words.host is None and words.port is None:
        shown = address
    if not guarded and config.auth.enabled is None and not is_loopback(host):
        raise ConfigError(
            f"{shown} is open to other machines and there is no key: set API_KEYS or auth.keys, "
            "or allow it with AUTH_ENABLED=false",
            source="" if words.host is None else "--host",
            field="server.address",
        )
    return shown


def _check_scope(scope: Scope, field: str) -> None:
    _check_limit(scope, field)
    for pattern, limit in scope.per_model.items():
        if not pattern:
            message = "a name or pattern of models is empty; '*' means all"
            raise ConfigError(message, field=f"{field}.per_model")
        _check_limit(limit, f"{field}.per_model.{pattern}")


def _check_model(model: Model, field: str, providers: Collection[str]) -> None:
    for i, target in enumerate(model.targets):
        place = f"{field}.targets[{i}]"
        if target.provider not in providers:
            message = f"no provider is named {target.provider!r}"
            raise ConfigError(message, field=f"{place}.provider")
        if target.when is not None:
            _check_when(target.when, f"{place}.when")
    if model.shadow is not None and model.shadow.provider not in providers:
        message = f"no provider is named {model.shadow.provider!r}"
        raise ConfigError(message, field=f"{field}.shadow.provider")
    canaries = [target.canary for target in model.targets if target.canary is not None]
    if len(canaries) == len(model.targets) or sum(canaries) > 100:
        message = "canaries need a target beside them, and have 100 percent at the most"
        raise ConfigError(message, field=f"{field}.targets")


def _check_when(when: When, field: str) -> None:
    least, most = when.min_tokens, when.max_tokens
    if least is not None and most is not None and least > most:
        message = f"no prompt has {least} tokens at least and {most} at most"
        raise ConfigError(message, field=f"{field}.min_tokens")


def _check_limit(limit: Limit, field: str) -> None:
    if limit.burst is not None and limit.rpm is None:
        raise ConfigError("a burst needs an rpm", field=f"{field}.burst")


def state_directory(config: Config, environ: Mapping[str, str]) -> Path:
    """Return where the gateway keeps what must survive it (systemd's, XDG's or the configured).

    Raises ConfigError.
    """
    if config.server.state_dir:
        try:
            return Path(config.server.state_dir).expanduser().absolute()
        except RuntimeError:
            message = "there is no such home directory"
            raise ConfigError(message, field="server.state_dir") from None
    if directory := environ.get("STATE_DIRECTORY"):
        return Path(directory.split(":")[0])
    base = environ.get("XDG_STATE_HOME") or os.path.expanduser("~/.local/state")
    if base.startswith("~"):
        message = "there is no home directory to keep state in; set SLUICE_STATE_DIR"
        raise ConfigError(message, field="server.state_dir")
    return (Path(base) / "sluice").absolute()
