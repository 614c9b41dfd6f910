"""Read a configuration from a file and the environment into one frozen, validated value."""

import hashlib
import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypeVar

import msgspec

from gateway.config import environment
from gateway.config.address import is_loopback, parse_address
from gateway.config.document import Document
from gateway.config.schema import (
    DEFAULT_PORT,
    Config,
    Key,
    Limit,
    Model,
    Name,
    Provider,
    Scope,
    Tenant,
)
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

# Section -> what its names and its entries must be.
NAMED_SECTIONS: dict[str, tuple[Any, type]] = {
    "tenants": (Name, Tenant),
    "providers": (Name, Provider),
    "models": (str, Model),
}

_T = TypeVar("_T")


class Loaded(msgspec.Struct, frozen=True):
    """A configuration and the document it came from, to locate errors found later."""

    config: Config
    document: Document


class Listen(msgspec.Struct, frozen=True):
    """The command line's host and port, which are above every other word on the address."""

    host: str | None = None
    port: int | None = None


ANYWHERE = Listen()


def load(path: str | None, environ: Mapping[str, str], listen: Listen = ANYWHERE) -> Loaded:
    """Read a file, or with None the environment alone. Raises ConfigError."""
    if path is None:
        return _load("", "environment", environ, listen)
    try:
        text = Path(path).read_text(encoding="utf-8")
    except OSError as error:
        raise ConfigError(f"cannot be read: {error.strerror}", source=path) from None
    except UnicodeDecodeError:
        raise ConfigError("is not UTF-8", source=path) from None
    return _load(text, path, environ, listen)


def load_text(text: str, source: str, environ: Mapping[str, str]) -> Config:
    """Read a configuration from YAML text. Raises ConfigError."""
    return _load(text, source, environ, ANYWHERE).config


def _load(text: str, source: str, environ: Mapping[str, str], listen: Listen) -> Loaded:
    document = Document(text, source)
    origins: dict[str, str] = {}
    try:
        raw = environment.resolve(document.value, environ)
        origins = environment.apply(raw, environ)
        if not raw.get("providers"):
            raw["providers"] = _providers_from(environ)
        _complete_clouds(raw["providers"], environ)
        config = finish(_convert(raw), listen)
    except ConfigError as error:
        if variable := origins.get(error.field):
            source = f"environment {variable}"
            raise ConfigError(error.message, source=source, field=error.field) from None
        raise document.locate(error) from None
    return Loaded(config, document)


def _providers_from(environ: Mapping[str, str]) -> dict[str, Any]:
    """Return every provider whose key variable is set, or else the demo provider."""
    found: dict[str, Any] = {}
    for name, kind in PROVIDERS.items():
        if not kind.variable or not environ.get(kind.variable):
            continue
        entry = {"kind": name, "api_key": environ[kind.variable]}
        for field, variables in FURTHER_VARIABLES.get(name, {}).items():
            value = next((environ[v] for v in variables if environ.get(v)), None)
            if value is not None:
                entry[field] = value
        needed = kind.settings if kind.base_url is not None else ("base_url",)
        if all(field in entry for field in needed):
            found[name] = entry
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
    for section, (name_kind, kind) in NAMED_SECTIONS.items():
        entries = present.get(section)
        if isinstance(entries, dict):
            # Entry by entry: msgspec's own path does not say which name of a mapping is meant.
            for name, value in entries.items():
                _checked(name, name_kind, f"{section}.{name}")
                if isinstance(value, dict) and isinstance(value.get("headers"), dict):
                    for header, text in value["headers"].items():
                        _checked(text, str, f"{section}.{name}.headers.{header}")
                _checked(value, kind, f"{section}.{name}")
    return _checked(present, Config, "")


def _checked(value: object, kind: type[_T], field: str) -> _T:
    try:
        checked: _T = msgspec.convert(value, kind)
    except RecursionError:
        raise ConfigError("is nested too deeply", field=field) from None
    except msgspec.ValidationError as error:
        message, _, place = str(error).partition(" - at ")
        inner = place.strip("`").removeprefix("$").replace("[...]", "")
        if unknown := re.search(r"unknown field `(.*)`", message):
            inner, message = f"{inner}.{unknown[1]}", "unknown field"
        raise ConfigError(message, field=f"{field}{inner}".lstrip(".")) from None
    return checked


def finish(config: Config, listen: Listen = ANYWHERE) -> Config:
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
        server=msgspec.structs.replace(config.server, address=_address(config, enabled, listen)),
    )


def _address(config: Config, guarded: bool, listen: Listen) -> str:
    """Listen everywhere once there are keys; without any, this machine alone may call.

    An operator who says `auth.enabled: false` in so many words may listen where they like.
    """
    everywhere = "0.0.0.0"  # noqa: S104  keys guard it
    address = config.server.address
    host, port = everywhere if guarded else "127.0.0.1", DEFAULT_PORT
    if address is not None:
        host, port = parse_address(address)
    host = host if listen.host is None else listen.host.strip("[]")
    port = port if listen.port is None else listen.port
    shown = f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
    if address is not None and listen == ANYWHERE:
        shown = address
    if not guarded and config.auth.enabled is None and not is_loopback(host):
        raise ConfigError(
            f"{shown} is open to other machines and there is no key: set API_KEYS or auth.keys, "
            "or allow it with AUTH_ENABLED=false",
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
    if len(key.key) < 8:
        raise ConfigError("a key has at least 8 characters", field=f"{field}.key")
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
    return Path(base) / "sluice"
