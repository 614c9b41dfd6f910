"""Shapes of JSON: what a schema allows, and what is wrong with a value, each problem by its field.

Where a schema was published, and in which notation, is not known here.
"""

import base64
import binascii
import json
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any, Protocol

SHOWN_CHARACTERS = 60


class Shape(Protocol):
    """What a value may be: `called` for people, `takes` by its kind of JSON alone."""

    @property
    def called(self) -> str:
        """What a value of this shape is called, with its article."""

    def takes(self, value: object) -> bool:
        """Whether the value is of the right kind of JSON, be it right inside or not."""

    def problems(self, value: object, at: str) -> Iterator[str]:
        """What is wrong with the value of a field."""


@dataclass(frozen=True)
class Anything:
    """Any JSON."""

    called: str = "anything"

    def takes(self, value: object) -> bool:
        """Everything."""
        return True

    def problems(self, value: object, at: str) -> Iterator[str]:
        """None."""
        yield from ()


@dataclass(frozen=True)
class Plain:
    """A null or a boolean."""

    called: str
    types: tuple[type, ...]

    def takes(self, value: object) -> bool:
        """By its type."""
        return isinstance(value, self.types)

    def problems(self, value: object, at: str) -> Iterator[str]:
        """Another type."""
        if not self.takes(value):
            yield wrong(at, value, self.called)


NULL = Plain("null", (type(None),))
FLAG = Plain("a boolean", (bool,))


@dataclass(frozen=True)
class Number:
    """A number; `whole` ones have no fraction."""

    whole: bool = False
    least: float | None = None
    most: float | None = None

    @property
    def called(self) -> str:
        """With or without a fraction."""
        return "an integer" if self.whole else "a number"

    def takes(self, value: object) -> bool:
        """By its type: JSON's booleans are no numbers, Python's are."""
        kinds = (int,) if self.whole else (int, float)
        return isinstance(value, kinds) and not isinstance(value, bool)

    def problems(self, value: object, at: str) -> Iterator[str]:
        """Another type, or out of range."""
        if not self.takes(value):
            yield wrong(at, value, self.called)
            return
        assert isinstance(value, int | float)
        yield from outside(at, value, self.least, self.most)


@dataclass(frozen=True)
class Text:
    """A string; lengths are in characters, or in bytes where it is `base64`."""

    least: int | None = None
    most: int | None = None
    pattern: str | None = None
    base64: bool = False

    called = "a string"

    def takes(self, value: object) -> bool:
        """By its type."""
        return isinstance(value, str)

    def problems(self, value: object, at: str) -> Iterator[str]:
        """Another type, too short or long, or not of the pattern."""
        if not isinstance(value, str):
            yield wrong(at, value, self.called)
            return
        size = _decoded_size(value) if self.base64 else len(value)
        if size is None:
            yield wrong(at, value, "base64")
            return
        yield from outside(at, size, self.least, self.most, "length ")
        if self.pattern is not None and not re.fullmatch(self.pattern, value):
            yield wrong(at, value, f"of the pattern {self.pattern}")


@dataclass(frozen=True)
class Constant:
    """One of the values listed."""

    values: tuple[object, ...]

    @property
    def called(self) -> str:
        """The values themselves."""
        return _called(self.values)

    def takes(self, value: object) -> bool:
        """By its type."""
        return any(type(value) is type(one) for one in self.values)

    def has(self, value: object) -> bool:
        """Whether the value is listed; Python's 1 == True is not JSON's."""
        return any(type(value) is type(one) and value == one for one in self.values)

    def problems(self, value: object, at: str) -> Iterator[str]:
        """Not listed."""
        if not self.has(value):
            yield wrong(at, value, self.called)


@dataclass(frozen=True)
class ListOf:
    """An array."""

    member: Shape
    least: int | None = None
    most: int | None = None

    called = "an array"

    def takes(self, value: object) -> bool:
        """By its type."""
        return isinstance(value, list)

    def problems(self, value: object, at: str) -> Iterator[str]:
        """Another type, too short or long, or what is wrong with a member."""
        if not isinstance(value, list):
            yield wrong(at, value, self.called)
            return
        yield from outside(at, len(value), self.least, self.most, "length ")
        for i, member in enumerate(value):
            yield from self.member.problems(member, f"{at}[{i}]")


@dataclass(frozen=True)
class MapOf:
    """An object with whatever names."""

    value: Shape
    name: Shape = field(default_factory=Text)
    least: int | None = None
    most: int | None = None

    called = "an object"

    def takes(self, value: object) -> bool:
        """By its type."""
        return isinstance(value, dict)

    def problems(self, value: object, at: str) -> Iterator[str]:
        """Another type, too few or many, or what is wrong with a name or a value."""
        if not isinstance(value, dict):
            yield wrong(at, value, self.called)
            return
        yield from outside(at, len(value), self.least, self.most, "length ")
        for name, one in value.items():
            yield from self.name.problems(name, inside(at, name))
            yield from self.value.problems(one, inside(at, name))


@dataclass(frozen=True)
class Field:
    """A field of a record."""

    shape: Shape
    required: bool = False


@dataclass(frozen=True)
class Record:
    """An object with the fields that `read` gives; records may hold themselves, so it is read late.

    Exactly one of the fields `one_of` must be there, where it names any.
    """

    of: str
    read: Callable[[], Mapping[str, Field]]
    open: bool = False
    one_of: frozenset[str] = frozenset()

    called = "an object"

    @cached_property
    def fields(self) -> Mapping[str, Field]:
        """The fields by name."""
        return self.read()

    @cached_property
    def tags(self) -> Mapping[str, Field]:
        """The fields that tell this record from others, as a content block's `type`."""
        return {name: one for name, one in self.fields.items() if _constants(one.shape)}

    def takes(self, value: object) -> bool:
        """By its type."""
        return isinstance(value, dict)

    def problems(self, value: object, at: str) -> Iterator[str]:
        """Another type, a field that is missing, unknown or wrong, or more than one of `one_of`."""
        if not isinstance(value, dict):
            yield wrong(at, value, self.called)
            return
        for name, one in self.fields.items():
            if name in value:
                yield from one.shape.problems(value[name], inside(at, name))
            elif one.required:
                yield f"{inside(at, name)}: missing"
        if not self.open:
            unknown = (name for name in value if name not in self.fields)
            yield from (f"{inside(at, name)}: not a field of {self.of}" for name in unknown)
        if self.one_of and len(given := sorted(self.one_of & value.keys())) != 1:
            yield f"{at or 'body'}: has {given or 'none'} of {sorted(self.one_of)}, not exactly one"

    def foreign(self, value: dict[str, Any]) -> int:
        """How many tags the value lacks or has otherwise."""
        return sum(_is_foreign(tag, name, value) for name, tag in self.tags.items())


@dataclass(frozen=True)
class OneOf:
    """Any of several shapes; what is wrong is said of the one that the value comes closest to."""

    branches: tuple[Shape, ...]

    @property
    def called(self) -> str:
        """All of them."""
        return " or ".join(dict.fromkeys(branch.called for branch in self.branches))

    def takes(self, value: object) -> bool:
        """By its kind."""
        return any(branch.takes(value) for branch in self.branches)

    def problems(self, value: object, at: str) -> Iterator[str]:
        """Those of the closest branch."""
        able = [branch for branch in self.branches if branch.takes(value)]
        if not able:
            yield wrong(at, value, self.called)
        else:
            yield from _of_the_closest(able, value, at)


def wrong(at: str, value: object, called: str) -> str:
    """Say that a field's value is not what it is to be."""
    return f"{at or 'body'}: {_shown(value)} is not {called}"


def outside(
    at: str, size: float, least: float | None, most: float | None, what: str = ""
) -> Iterator[str]:
    """Say that a size is out of its range."""
    if least is not None and size < least:
        yield f"{at or 'body'}: {what}{size} is below {least}"
    if most is not None and size > most:
        yield f"{at or 'body'}: {what}{size} is above {most}"


def inside(at: str, name: str) -> str:
    """The path of a field of an object."""
    return f"{at}.{name}" if at else name


def widened(record: Record, **fields: Field) -> Record:
    """The same record with more fields."""
    return replace(record, read=lambda: {**record.fields, **fields})


def narrowed(record: Record, *names: str) -> Record:
    """The same record without some fields."""
    return replace(record, read=lambda: {x: y for x, y in record.fields.items() if x not in names})


def _of_the_closest(branches: list[Shape], value: object, at: str) -> list[str]:
    """The problems of the branch that has the right tags, or else the fewest problems."""
    distances = [_distance(branch, value) for branch in branches]
    least = min(distances)
    if least and (untagged := _untagged(branches, value, at)):
        return [untagged]
    near = [one for one, far in zip(branches, distances, strict=True) if far == least]
    return min((list(branch.problems(value, at)) for branch in near), key=len)


def _distance(branch: Shape, value: object) -> int:
    return branch.foreign(value) if isinstance(branch, Record) and isinstance(value, dict) else 0


def _untagged(branches: list[Shape], value: object, at: str) -> str | None:
    """Say which tag, of those that all branches have, is none of theirs."""
    tags = [branch.tags for branch in branches if isinstance(branch, Record)]
    if not isinstance(value, dict) or len(tags) < len(branches):
        return None
    for name in tags[0]:
        known = [one[name] for one in tags if name in one]
        values = tuple(dict.fromkeys(x for one in known for x in _constants(one.shape)))
        path = inside(at, name)
        if len(known) < len(tags) or not all(_is_foreign(one, name, value) for one in known):
            continue
        return wrong(path, value[name], _called(values)) if name in value else f"{path}: missing"
    return None


def _is_foreign(tag: Field, name: str, value: dict[str, Any]) -> bool:
    """Whether a value lacks a tag or has it otherwise."""
    return any(tag.shape.problems(value[name], name)) if name in value else tag.required


def _called(values: tuple[object, ...]) -> str:
    return " or ".join(_shown(value) for value in values)


def _constants(shape: Shape) -> tuple[object, ...]:
    """The values of a shape that allows nothing but some, and perhaps null; else none."""
    branches = shape.branches if isinstance(shape, OneOf) else (shape,)
    constants = [branch for branch in branches if isinstance(branch, Constant)]
    others = [x for x in branches if not isinstance(x, Constant) and x is not NULL]
    return () if others else tuple(value for one in constants for value in one.values)


def _decoded_size(value: str) -> int | None:
    try:
        return len(base64.b64decode(value, validate=True))
    except binascii.Error:
        return None


def _shown(value: object) -> str:
    text = json.dumps(value, ensure_ascii=False)
    return text if len(text) <= SHOWN_CHARACTERS else text[:SHOWN_CHARACTERS] + "..."
