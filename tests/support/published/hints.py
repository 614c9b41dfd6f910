"""Shapes read from Python's type hints, as SDKs publish an API: typed dicts and pydantic's models.

Which SDK and which API is not known here: where an SDK's types are not the wire's, a `Dialect`
says so.
"""

import collections.abc
import datetime
import enum
import inspect
import types
import typing
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from typing_extensions import TypeAliasType, is_typeddict

from tests.support.published.shapes import (
    FLAG,
    NULL,
    Anything,
    Constant,
    Field,
    ListOf,
    MapOf,
    Number,
    OneOf,
    Record,
    Shape,
    Text,
)

SIMPLE: dict[object, Shape] = {
    type(None): NULL,
    None: NULL,
    object: Anything(),
    Any: Anything(),
    bool: FLAG,
    int: Number(whole=True),
    float: Number(),
    str: Text(),
    bytes: Text(base64=True),
    datetime.datetime: Text(),
    dict: MapOf(Anything()),
    list: ListOf(Anything()),
}
LISTS = (list, collections.abc.Sequence, collections.abc.Iterable)
MAPS = (dict, collections.abc.Mapping)
UNIONS = (typing.Union, types.UnionType)
WRAPPERS = (typing.Annotated, typing.Required, typing.NotRequired)


@dataclass(frozen=True)
class Dialect:
    """How an SDK's types differ from what its API takes.

    `unsent` judges classes: those that stand for nothing on the wire. `taken` and `required` judge
    a model's field by its pydantic FieldInfo. `one_of` names, by class, fields of which exactly one
    must be there.
    """

    unsent: Callable[[type], bool] = lambda _: False
    taken: Callable[[Any], bool] = lambda _: True
    required: Callable[[Any], bool] = lambda _: False
    one_of: Mapping[str, frozenset[str]] = field(default_factory=dict)


class Reader:
    """Reads hints; a class becomes one record however often it is met."""

    def __init__(self, dialect: Dialect | None = None) -> None:
        self._dialect = dialect or Dialect()
        self._records: dict[type, Record] = {}

    def read(self, hint: Any) -> Shape:
        """The shape of a hint. Raises TypeError where no JSON has it."""
        return _needed(self._shape(hint), hint)

    def record(self, cls: type) -> Record:
        """The record of a typed dict or a model."""
        if cls not in self._records:
            self._records[cls] = self._typed_dict(cls) if is_typeddict(cls) else self._model(cls)
        return self._records[cls]

    def arguments(self, function: Callable[..., object]) -> Record:
        """The record of what a method takes, for SDKs that have no type for a whole request."""

        def fields() -> dict[str, Field]:
            hints = typing.get_type_hints(function, include_extras=True)
            taken = [x for x in inspect.signature(function).parameters.values() if x.name != "self"]
            return {x.name: self._argument(hints[x.name], x.default) for x in taken}

        return Record(function.__qualname__, fields)

    def _argument(self, hint: Any, default: object) -> Field:
        required = default is inspect.Parameter.empty
        return Field(self.read(hint) if required else self._not_null(hint), required)

    def _shape(self, hint: Any) -> Shape | None:
        """The shape of a hint; None where no JSON has it, as of a file or of "not given"."""
        origin = typing.get_origin(hint)
        if isinstance(hint, TypeAliasType) or isinstance(origin, TypeAliasType):
            return self._shape(_aliased(hint, origin))
        if origin in WRAPPERS:
            return self._shape(typing.get_args(hint)[0])
        if origin in UNIONS:
            return self._union(typing.get_args(hint))
        if origin is typing.Literal:
            return Constant(typing.get_args(hint))
        if origin in LISTS:
            return ListOf(self.read(typing.get_args(hint)[0]))
        if origin in MAPS:
            return MapOf(self.read(typing.get_args(hint)[1]))
        return SIMPLE[hint] if hint in SIMPLE else self._class(hint)

    def _class(self, cls: Any) -> Shape | None:
        if isinstance(cls, str | typing.ForwardRef):
            raise TypeError(f"not resolved: {cls!r}")
        if not isinstance(cls, type) or self._dialect.unsent(cls):
            return None
        if issubclass(cls, enum.Enum):
            return Constant(tuple(one.value for one in cls))
        return self.record(cls) if is_typeddict(cls) or is_model(cls) else None

    def _union(self, hints: tuple[Any, ...]) -> Shape | None:
        """Any beside other hints is how SDKs bear values of tomorrow; what is sent is of today."""
        known = [one for one in hints if one is not Any] or [Any]
        shapes = [shape for one in known if (shape := self._shape(one)) is not None]
        flat = [x for one in shapes for x in (one.branches if isinstance(one, OneOf) else (one,))]
        branches = tuple(dict.fromkeys(flat))
        return OneOf(branches) if len(branches) > 1 else next(iter(branches), None)

    def _not_null(self, hint: Any) -> Shape:
        """The shape of a field that may be left out: an Optional there means no null."""
        if typing.get_origin(hint) in UNIONS:
            hints = tuple(one for one in typing.get_args(hint) if one is not type(None))
            return _needed(self._union(hints), hint)
        return self.read(hint)

    def _typed_dict(self, cls: Any) -> Record:
        is_open = getattr(cls, "__pydantic_config__", {}).get("extra") == "allow"

        def fields() -> dict[str, Field]:
            hints = typing.get_type_hints(cls, include_extras=True)
            return {
                name: Field(self.read(hint), _is_required(cls, name, hint))
                for name, hint in hints.items()
            }

        return Record(cls.__name__, fields, is_open)

    def _model(self, cls: Any) -> Record:
        """A model's record.

        That a model allows what it does not know is its generator's habit; only one with a type
        for its other fields is meant to be open.
        """
        is_open = any("__pydantic_extra__" in inspect.get_annotations(one) for one in _own(cls))

        def fields() -> dict[str, Field]:
            cls.model_rebuild()
            infos = {x.alias or name: x for name, x in cls.model_fields.items()}
            return {name: self._field(x) for name, x in infos.items() if self._dialect.taken(x)}

        one_of = self._dialect.one_of.get(cls.__name__, frozenset())
        return Record(cls.__name__, fields, is_open, one_of)

    def _field(self, info: Any) -> Field:
        """A model's field; a constant that the SDK fills in has to be sent like a required one."""
        required = info.is_required() or self._dialect.required(info)
        read = self.read if info.is_required() else self._not_null
        shape = read(info.annotation)
        filled_in = isinstance(shape, Constant) and shape.values == (info.default,)
        return Field(shape, required or filled_in)


def is_model(cls: type) -> bool:
    """Whether a class is one of pydantic's."""
    return hasattr(cls, "model_fields")


def _needed(shape: Shape | None, hint: object) -> Shape:
    if shape is None:
        raise TypeError(f"nothing in JSON is {hint!r}")
    return shape


def _is_required(cls: Any, name: str, hint: Any) -> bool:
    """Where annotations are strings, a typed dict itself does not see what is Required inside."""
    wrapper = typing.get_origin(hint)
    if wrapper in (typing.Required, typing.NotRequired):
        return wrapper is typing.Required
    return name in cls.__required_keys__


def _aliased(hint: Any, origin: Any) -> Any:
    """What an alias stands for, its parameters filled in."""
    return origin.__value__[typing.get_args(hint)] if origin is not None else hint.__value__


def _own(cls: type) -> list[type]:
    """A model's classes below pydantic's own."""
    return [one for one in cls.__mro__ if not one.__module__.startswith("pydantic.")]
