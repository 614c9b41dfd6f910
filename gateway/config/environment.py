"""The environment variables that override the file, each with the field it sets."""

import hashlib
import re
from collections.abc import Callable, Collection, Mapping
from typing import Any
from urllib.parse import unquote

from gateway.core.errors import ConfigError

TRUE, FALSE = {"1", "true", "yes", "on"}, {"0", "false", "no", "off"}
MAX_KEYS = 10_000

# Neither is text: a path cannot hold the one, nothing that is sent the other.
NO_TEXT = re.compile("[\0\ud800-\udfff]")

Raw = dict[str, Any]


def boolean(text: str) -> bool:
    """Read a switch. Raises ValueError."""
    word = text.strip().lower()
    if word not in TRUE | FALSE:
        raise ValueError(f"expected true or false, got {text!r}")
    return word in TRUE


def whole(text: str) -> int:
    """Read a whole number. Raises ValueError."""
    if not re.fullmatch(r"\s*\d+\s*", text):
        raise ValueError(f"expected a whole number, got {text!r}")
    return int(text)


def seconds(text: str) -> float:
    """Read a number of seconds. Raises ValueError."""
    try:
        return float(text)
    except ValueError:
        raise ValueError(f"expected a number of seconds, got {text!r}") from None


def workers(text: str) -> str | int:
    """Read a number of workers, or `auto`. Raises ValueError."""
    return text if text == "auto" else whole(text)


def pairs(text: str) -> dict[str, str]:
    """Read `name=value,name=value`, values percent-encoded (OTLP exporter specification)."""
    found = {}
    for part in filter(None, (part.strip() for part in text.split(","))):
        name, equals, value = part.partition("=")
        if not equals or not name.strip():
            raise ValueError("expected name=value, separated by commas")
        found[name.strip()] = unquote(value.strip())
    return found


VARIABLES: dict[str, tuple[str, Callable[[str], object]]] = {
    "SERVER_ADDRESS": ("server.address", str.strip),
    "SERVER_TIMEOUT_SECONDS": ("server.timeouts.total", seconds),
    "MAX_REQUEST_SIZE": ("server.max_request_size", whole),
    "SLUICE_STATE_DIR": ("server.state_dir", str),
    "SLUICE_WORKERS": ("server.workers", workers),
    "AUTH_ENABLED": ("auth.enabled", boolean),
    "AUTH_HEALTH_CHECK": ("auth.health_check", boolean),
    "SLUICE_ADMIN_KEY": ("auth.admin_key", str.strip),
    "RATE_LIMIT_ENABLED": ("limits.enabled", boolean),
    "RATE_LIMIT_RPM": ("limits.default.rpm", whole),
    "RATE_LIMIT_BURST": ("limits.default.burst", whole),
    "LOG_LEVEL": ("log.level", lambda text: text.strip().lower()),
    "ENABLE_METRICS": ("metrics.enabled", boolean),
    "ENABLE_TRACING": ("tracing.enabled", boolean),
    "OTEL_EXPORTER_OTLP_ENDPOINT": ("tracing.endpoint", str.strip),
    "OTEL_EXPORTER_OTLP_HEADERS": ("tracing.headers", pairs),
    "OTEL_SERVICE_NAME": ("tracing.service_name", str.strip),
    "REDIS_URL": ("redis.url", str.strip),
}
# Empty, the others are as if they were not set; who sets this one means to have a key.
NEVER_EMPTY = frozenset(("SLUICE_ADMIN_KEY",))


def apply(raw: Raw, environ: Mapping[str, str], above: Collection[str] = ()) -> dict[str, str]:
    """Write the variables that are set and not empty into the raw configuration.

    Fields in `above` are left to a higher word. Returns what set which field, for errors that are
    found later.
    """
    origins = {}
    for variable, (field, read) in VARIABLES.items():
        text = environ.get(variable, "")
        if (text or (variable in environ and variable in NEVER_EMPTY)) and field not in above:
            source = f"environment {variable}"
            _check_text(text, source=source)
            try:
                value = read(text)
            except ValueError as error:
                raise ConfigError(str(error), source=source) from None
            assign(raw, field, value)
            origins[field] = source
    if keys := [part.strip() for part in environ.get("API_KEYS", "").split(",") if part.strip()]:
        if len(keys) > MAX_KEYS:
            raise ConfigError(f"more than {MAX_KEYS} keys", source="environment API_KEYS")
        _check_text("".join(keys), source="environment API_KEYS")
        first = _add_keys(raw, [_key_entry(key) for key in keys])
        origins |= {f"auth.keys[{first + i}]": "environment API_KEYS" for i in range(len(keys))}
    return origins


def assign(raw: Raw, field: str, value: object) -> None:
    """Set a dotted field, making the mappings on the way.

    What is no mapping there is for the schema to refuse.
    """
    *parents, last = field.split(".")
    inner: object = raw
    for parent in parents:
        if isinstance(inner, dict):
            if inner.get(parent) is None:
                inner[parent] = {}
            inner = inner[parent]
    if isinstance(inner, dict):
        inner[last] = value


def resolve(node: object, environ: Mapping[str, str], field: str = "") -> Any:
    """Replace every `env:NAME` string by the variable's value. Raises ConfigError.

    Also where something is no text.
    """
    if isinstance(node, dict):
        found = {}
        for name, value in node.items():
            place = f"{field}.{name}" if field else str(name)
            _check_text(str(name), field=place)
            found[name] = resolve(value, environ, place)
        return found
    if isinstance(node, list):
        return [resolve(value, environ, f"{field}[{i}]") for i, value in enumerate(node)]
    if not isinstance(node, str):
        return node
    text = node
    if text.startswith("env:"):
        name = text.removeprefix("env:")
        text = environ.get(name, "")
        if not text:
            raise ConfigError(f"environment variable {name} is not set", field=field)
    _check_text(text, field=field)
    return text


def _check_text(text: str, source: str = "", field: str = "") -> None:
    if NO_TEXT.search(text):
        place = field.encode(errors="backslashreplace").decode()
        message = "holds what no text does: a NUL, or half of a character"
        raise ConfigError(message, source=source, field=place)


def _add_keys(raw: Raw, entries: list[Raw]) -> int:
    """Add keys behind those of the file; return the first one's place.

    What is not a list there is for the schema to refuse.
    """
    if raw.get("auth") is None:
        raw["auth"] = {}
    auth = raw["auth"]
    if isinstance(auth, dict):
        present = auth.get("keys") or []
        if isinstance(present, list):
            auth["keys"] = [*present, *entries]
            return len(present)
    return 0


def _key_entry(key: str) -> Raw:
    digest = hashlib.sha256(key.encode()).hexdigest()
    return {"name": f"key-{digest[:8]}", "key": key}
