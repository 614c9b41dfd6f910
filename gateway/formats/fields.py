"""What all client dialects share in reading a request's fields."""

from collections.abc import Callable
from typing import Any, TypeVar

import msgspec
from msgspec import Raw

from gateway.core.errors import ApiError
from gateway.core.messages import NO_ARGUMENTS
from gateway.core.raw import given

# What says which properties an object has.
_SHAPES = ("properties", "$ref", "allOf", "anyOf", "oneOf", "patternProperties")
_T = TypeVar("_T")
_encode = msgspec.json.Encoder().encode
_decoders: dict[type, msgspec.json.Decoder[Any]] = {}


def convert(fields: dict[str, Raw], kind: type[_T]) -> _T:
    """Decode the fields that a struct has. Raises ApiError naming the one that is wrong."""
    decoder = _decoders.get(kind)
    if decoder is None:
        decoder = _decoders[kind] = msgspec.json.Decoder(kind)
    wanted = {name: fields[name] for name in kind.__struct_fields__ if name in fields}  # type: ignore[attr-defined]
    try:
        found: _T = decoder.decode(_encode(wanted))
    except msgspec.ValidationError as error:
        raise invalid_field(str(error)) from None
    except (msgspec.DecodeError, RecursionError) as error:
        raise ApiError("invalid_json", f"The request body is not valid JSON: {error}") from None
    return found


class Unknown:
    """The places of a request that no other dialect has; whoever translates says what follows."""

    def __init__(self, fields: list[str]) -> None:
        self.places = fields

    def keep(self, make: Callable[..., _T], *args: Any) -> _T | None:
        """Translate a piece; None where it cannot be, which is noted."""
        try:
            return make(*args)
        except ApiError as error:
            if error.code != "unsupported_parameter" or error.param is None:
                raise
            self.places.append(error.param)
            return None


def present(fields: dict[str, Raw]) -> list[str]:
    """Return the names of the fields that say something."""
    return [name for name, raw in fields.items() if bytes(raw) != b"null"]


def arguments_schema(raw: Raw) -> Raw:
    """Return a tool's schema such as every provider takes it: of an object, with properties."""
    schema = given(raw)
    if schema is None:
        return NO_ARGUMENTS
    try:
        found = msgspec.json.decode(schema, type=dict[str, Raw])
    except (msgspec.DecodeError, RecursionError):
        return schema  # the provider's to refuse
    if not found:
        return NO_ARGUMENTS
    if bytes(found.get("type", b"")) == b'"object"' and found.keys().isdisjoint(_SHAPES):
        return Raw(_encode(found | {"properties": Raw(b"{}")}))
    return schema


def cache_ttl(control: Any) -> str:
    """Return how long a `cache_control` mark holds; empty without one."""
    if not isinstance(control, dict):
        return ""
    ttl = control.get("ttl")
    return ttl if isinstance(ttl, str) else "5m"


def invalid_field(error: str) -> ApiError:
    """Turn msgspec's message into one for the client, with the field as `param`."""
    message, _, place = error.partition(" - at ")
    field = place.strip("`").removeprefix("$").lstrip(".")
    if "missing required field" in message:
        name = message.rpartition("field ")[2].strip("`")
        path = f"{field}.{name}".lstrip(".")
        text = f"Missing required parameter: '{path}'."
        return ApiError("missing_required_parameter", text, param=path)
    if "unknown field" in message:
        field = f"{field}.{message.rpartition('field ')[2].strip('`')}".lstrip(".")
        return ApiError("invalid_value", f"Unknown field: '{field}'.", param=field)
    shown = field or "the body"
    return ApiError(
        "invalid_value", f"Invalid value for '{shown}': {message}.", param=field or None
    )
