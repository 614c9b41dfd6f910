"""Turns parsed YAML into the schema's values; an error names the field and what it may be."""

import re
from collections.abc import Iterator
from typing import Any, TypeVar

import msgspec
from msgspec import inspect

from gateway.core.errors import ConfigError

_T = TypeVar("_T")
_STEP = re.compile(r"\.([^.\[\]]+)|\[(\d+)\]|\[(\.\.\.)\]")
_ANY = "..."  # where msgspec does not say which name of a mapping it means
_NO_CHOICE = "Invalid enum value"
_PATTERN = "matching regex"
_BOUND = re.compile(r"Expected `(int|float|str|array|object)` (of length )?(>=|>|<=|<) (\S+)")
_KINDS = {"int": "a whole number", "float": "a number"}
_SIDES = {">=": "at least", ">": "more than", "<=": "at most", "<": "less than"}
_NUMBERS = (inspect.IntType, inspect.FloatType)

# Names of fields and of mappings, and places in lists.
Path = list[str | int]


def shaped(value: object, kind: type[_T]) -> _T:
    """Convert a value. Raises ConfigError that names the field."""
    try:
        found: _T = msgspec.convert(value, kind)
    except RecursionError:
        raise ConfigError("is nested too deeply") from None
    except msgspec.ValidationError as error:
        raise _explained(value, kind, str(error)) from None
    return found


def _explained(value: object, kind: type, said: str) -> ConfigError:
    message, _, place = said.partition(" - at ")
    of_name = place.startswith("`key`")
    steps: Path = [
        int(number) if number else name or _ANY
        for name, number, _ in _STEP.findall(place.removeprefix("`key` in ").strip("`"))
    ]
    steps += [_ANY] if of_name else []
    names = _named(value, kind, steps, said)
    field = "".join(
        f"[{step}]" if isinstance(step, int) else f".{name}"
        for step, name in zip(steps, names, strict=False)
    )
    if of_name and message.startswith("Expected `str`, got"):
        message = "a name is text: put the name in quotes"
    if message.startswith(_NO_CHOICE) and (choice := _choice(kind, steps)):
        message = f"expected {choice}, got{message.removeprefix(_NO_CHOICE)}"
    if _PATTERN in message and (form := _form(kind, steps, of_name=of_name)):
        message = f"expected {form}"
    if bound := _BOUND.fullmatch(message):
        message = _bounded(*bound.groups())
    if unknown := re.search(r"unknown field `(.*)`", message):
        field, message = f"{field}.{unknown[1]}", "unknown field"
    return ConfigError(message, field=field.lstrip("."))


def _bounded(kind: str, of_length: str | None, side: str, bound: str) -> str:
    """Write what msgspec says of a bound in words."""
    if of_length:
        return f"expected a length of {_SIDES[side]} {bound}"
    return f"expected {_KINDS[kind]}, {_SIDES[side]} {bound}"


def _named(value: Any, kind: type, steps: Path, said: str) -> list[Any]:
    """Return a path with the names of mappings: the one that fails the same without the others."""
    found: list[Any] = []
    for step in steps:
        if step != _ANY:
            found.append(step)
            continue
        tried = _narrowings(value, found)
        failed = next((one for one in tried if _failure(one[1], kind) == said), None)
        if failed is None:
            break
        name, value = failed
        found.append(name)
    return found


def _narrowings(value: Any, path: list[Any]) -> Iterator[tuple[Any, Any]]:
    """Yield a value with a mapping in it reduced to one name, for each of them."""
    if not path:
        yield from ((name, {name: one}) for name, one in value.items())
        return
    first, *rest = path
    changed = value.copy()
    for name, narrowed in _narrowings(value[first], rest):
        changed[first] = narrowed
        yield name, changed


def _failure(value: object, kind: type) -> str:
    try:
        msgspec.convert(value, kind)
    except msgspec.ValidationError as error:
        return str(error)
    return ""


def _types(kind: type, steps: Path) -> list[inspect.Type]:
    """Return what may stand somewhere."""
    types = [inspect.type_info(kind)]
    for step in steps:
        types = [inner for one in types for inner in _inside(one, step)]
    return types


def _form(kind: type, steps: Path, *, of_name: bool) -> str:
    """Return the words that describe a text of a certain form."""
    types = _types(kind, steps[:-1] if of_name else steps)
    if of_name:
        kinds = [one for outer in types for one in _each(outer)]
        types = [one.key_type for one in kinds if isinstance(one, inspect.DictType)]
    return next(filter(None, map(_description, types)), "")


def _description(outer: inspect.Type) -> str:
    if isinstance(outer, inspect.UnionType):
        return next(filter(None, map(_description, outer.types)), "")
    schema = outer.extra_json_schema if isinstance(outer, inspect.Metadata) else None
    return str((schema or {}).get("description", ""))


def _choice(kind: type, steps: Path) -> str:
    """Return the words that may stand somewhere, and whether a number may."""
    kinds = [one for outer in _types(kind, steps) for one in _each(outer)]
    words = [str(w) for one in kinds if isinstance(one, inspect.LiteralType) for w in one.values]
    words += ["a number"] if any(isinstance(one, _NUMBERS) for one in kinds) else []
    return " or ".join(filter(None, (", ".join(words[:-1]), *words[-1:])))


def _inside(outer: inspect.Type, step: str | int) -> list[inspect.Type]:
    found: list[inspect.Type] = []
    for one in _each(outer):
        if isinstance(one, inspect.StructType):
            found += [field.type for field in one.fields if field.encode_name == step]
        elif isinstance(one, inspect.DictType):
            found.append(one.value_type)
        elif isinstance(one, inspect.VarTupleType):
            found.append(one.item_type)
    return found


def _each(outer: inspect.Type) -> list[inspect.Type]:
    """Return the alternatives of a type."""
    if isinstance(outer, inspect.Metadata):
        return _each(outer.type)
    if isinstance(outer, inspect.UnionType):
        return [one for inner in outer.types for one in _each(inner)]
    return [outer]
