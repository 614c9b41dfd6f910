"""Read a configuration from a file and the environment into one frozen, validated value."""

import hashlib
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import msgspec

from gateway.config import environment
from gateway.config.address import MAX_PORT, is_loopback, parse_address
from gateway.config.document import Document
from gateway.config.schema import DEFAULT_PORT, MIN_KEY_CHARS, Config, Key, Limit, Scope
from gateway.config.shape import shaped
from gateway.core.errors import ConfigError
from gateway.providers import PROVIDERS

# Of a provider that is there without a file: field -> the variables that set it.
FURTHER_VARIABLES: dict[str, dict[str, tuple[str, ...]]] = {
    "openai": {"base_url": ("OPENAI_BASE_URL",)},
    "azure": {"base_url": ("AZURE_OPENAI_ENDPOINT",), "api_version": ("OPENAI_API_VERSION",)},
    "bedrock": {"region": ("AWS_REGION", "AWS_DEFAULT_REGION")},
}

CLOUD_VARIABLES: dict[str, dict[str, tuple[str, ...]]] = {
    "bedrock": {"region": ("AWS_REGION", "AWS_DEFAULT_REGION")},
    "vertex": {
        "project": ("GOOGLE_CLOUD_PROJECT",),
        "location": ("GOOGLE_CLOUD_LOCATION", "GOOGLE_CLOUD_REGION"),
        "credentials": ("GOOGLE_APPLICATION_CREDENTIALS",),
    },
}
AWS_KEYS = {
    "access_key": "AWS_ACCESS_KEY_ID",
    "secret_key": "AWS_SECRET_ACCESS_KEY",
    "session_token": "AWS_SESSION_TOKEN",
}

MIN_ADMIN_KEY_CHARS = 16
MIN_ADMIN_KEY_VARIETY = 8


class Loaded(msgspec.Struct, frozen=True):
    """A configuration and where it came from, to locate errors found later.

    `origins` are the fields that the environment or the command line set.
    """

    config: Config
    document: Document
    origins: dict[str, str] = {}

    def locate(self, error: ConfigError) -> ConfigError:
        """Add variable or flag, or file and line, to an error that names only its field."""
        return _located(error, self.document, self.origins)


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
    try:
        raw = environment.resolve(document.value, environ)
        above = {"server.workers"} if words.workers is not None else set()
        origins |= environment.apply(raw, environ, above)
        origins |= _apply_words(raw, words)
        if not raw.get("providers"):
            raw["providers"] = _providers_from(environ, origins)
        _complete_clouds(raw["providers"], environ)
        config = finish(_convert(raw), words)
    except ConfigError as error:
        raise _located(error, document, origins) from None
    return Loaded(config, document, origins)


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


def _providers_from(environ: Mapping[str, str], origins: dict[str, str]) -> dict[str, Any]:
    """Return every provider whose key variable is set, or else the demo provider."""
    found: dict[str, Any] = {}
    for name, kind in PROVIDERS.items():
        if not kind.variable or not environ.get(kind.variable):
            continue
        entry = {"kind": name, "api_key": environ[kind.variable]}
        for field, variables in FURTHER_VARIABLES.get(name, {}).items():
            variable = next((v for v in variables if environ.get(v)), None)
            if variable is not None:
                entry[field] = environ[variable]
                origins[f"providers.{name}.{field}"] = f"environment {variable}"
        needed = kind.settings if kind.base_url is not None else ("base_url",)
        if all(field in entry for field in needed):
            found[name] = entry
            origins[f"providers.{name}"] = f"environment {kind.variable}"
    return found or {"demo": {"kind": "demo"}}


def _complete_clouds(providers: object, environ: Mapping[str, str]) -> None:
    """Take what a cloud's own tools would take from the environment, where the file is silent."""
    for entry in providers.values() if isinstance(providers, dict) else ():
        if not isinstance(entry, dict):
            continue
        for field, variables in CLOUD_VARIABLES.get(str(entry.get("kind")), {}).items():
            value = next((environ[v] for v in variables if environ.get(v)), None)
            if value is not None and entry.get(field) is None:
                entry[field] = value
        keys = {name: environ.get(variable) for name, variable in AWS_KEYS.items()}
        if entry.get("kind") == "bedrock" and keys["access_key"] and keys["secret_key"]:
            given = {name: value for name, value in keys.items() if value}
            entry["aws"] = entry.get("aws") or given


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
    keys = tuple(_hashed(key, f"auth.keys[{i}]") for i, key in enumerate(config.auth.keys))
    _refuse_twins(keys)
    for name, tenant in config.tenants.items():
        _check_scope(tenant, f"tenants.{name}")
    _check_scope(config.limits.default, "limits.default")
    _check_scope(config.limits.everybody, "limits.global")
    for name, model in config.models.items():
        for i, target in enumerate(model.targets):
            if target.provider not in config.providers:
                field = f"models.{name}.targets[{i}].provider"
                raise ConfigError(f"no provider is named {target.provider!r}", field=field)
        if model.shadow is not None and model.shadow.provider not in config.providers:
            message = f"no provider is named {model.shadow.provider!r}"
            raise ConfigError(message, field=f"models.{name}.shadow.provider")
        canaries = [target.canary for target in model.targets if target.canary is not None]
        if len(canaries) == len(model.targets) or sum(canaries) > 100:
            message = "canaries need a target beside them, and have 100 percent at the most"
            raise ConfigError(message, field=f"models.{name}.targets")
    enabled = config.auth.enabled
    if enabled is None:
        enabled = bool(keys) or config.auth.admin_key is not None
    _check_admin_key(config.auth.admin_key)
    return msgspec.structs.replace(
        config,
        auth=msgspec.structs.replace(config.auth, keys=keys, enabled=enabled),
        server=msgspec.structs.replace(config.server, address=_address(config, enabled, words)),
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


def _check_admin_key(key: str | None) -> None:
    """Refuse what anybody would try first."""
    if key is None:
        return
    if len(key) < MIN_ADMIN_KEY_CHARS or len(set(key)) < MIN_ADMIN_KEY_VARIETY:
        raise ConfigError(
            f"an admin key has at least {MIN_ADMIN_KEY_CHARS} characters that nobody would guess; "
            "make one with: openssl rand -hex 32",
            field="auth.admin_key",
        )


def _hashed(key: Key, field: str) -> Key:
    """Keep only the SHA-256 of a key given in clear."""
    _check_scope(key, field)
    if (key.sha256 is None) == (key.key is None):
        raise ConfigError("give exactly one of sha256 and key", field=field)
    if key.key is None:
        return key
    if len(key.key) < MIN_KEY_CHARS:
        raise ConfigError(f"a key has at least {MIN_KEY_CHARS} characters", field=f"{field}.key")
    digest = hashlib.sha256(key.key.encode()).hexdigest()
    return msgspec.structs.replace(key, sha256=digest, key=None)


def _check_scope(scope: Scope, field: str) -> None:
    _check_limit(scope, field)
    for pattern, limit in scope.per_model.items():
        _check_limit(limit, f"{field}.per_model.{pattern}")


def _check_limit(limit: Limit, field: str) -> None:
    if limit.burst is not None and limit.rpm is None:
        raise ConfigError("a burst needs an rpm", field=f"{field}.burst")


def _refuse_twins(keys: tuple[Key, ...]) -> None:
    names: set[str] = set()
    digests: set[str | None] = set()
    for i, key in enumerate(keys):
        if key.name in names:
            raise ConfigError(f"two keys are named {key.name!r}", field=f"auth.keys[{i}].name")
        if key.sha256 in digests:
            raise ConfigError("this key stands here twice", field=f"auth.keys[{i}]")
        names.add(key.name)
        digests.add(key.sha256)


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
