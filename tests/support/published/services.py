"""Shapes read from the service descriptions that AWS publishes and its SDKs are driven by.

Which operations a gateway calls is not known here.
"""

from collections.abc import Callable, Mapping
from typing import Any

from tests.support.published.shapes import (
    FLAG,
    Anything,
    Constant,
    Field,
    ListOf,
    MapOf,
    Number,
    Record,
    Shape,
    Text,
)


class Service:
    """One service's description, as its service-2.json holds it."""

    def __init__(self, description: Mapping[str, Any]) -> None:
        self._operations = description["operations"]
        self._shapes = description["shapes"]
        self._records: dict[str, Record] = {}

    def body(self, operation: str) -> Shape:
        """The shape of an operation's body."""
        return self._shape(self._operations[operation]["input"]["shape"])

    def _shape(self, name: str) -> Shape:
        return KINDS[self._shapes[name]["type"]](self, name, self._shapes[name])

    def structure(self, name: str, given: Mapping[str, Any]) -> Shape:
        """An object, or any JSON where it is a document; what goes in the URI is left out."""
        if given.get("document"):
            return Anything()
        if name not in self._records:
            self._records[name] = Record(name, lambda: self._fields(given), one_of=_union(given))
        return self._records[name]

    def listed(self, _: str, given: Mapping[str, Any]) -> Shape:
        """An array."""
        return ListOf(self._shape(given["member"]["shape"]), given.get("min"), given.get("max"))

    def mapped(self, _: str, given: Mapping[str, Any]) -> Shape:
        """An object with whatever names."""
        value, name = self._shape(given["value"]["shape"]), self._shape(given["key"]["shape"])
        return MapOf(value, name, given.get("min"), given.get("max"))

    def text(self, _: str, given: Mapping[str, Any]) -> Shape:
        """A string, or one of those listed."""
        if "enum" in given:
            return Constant(tuple(given["enum"]))
        return Text(given.get("min"), given.get("max"), given.get("pattern"))

    def _fields(self, given: Mapping[str, Any]) -> dict[str, Field]:
        required = given.get("required", ())
        return {
            member.get("locationName", name): Field(self._shape(member["shape"]), name in required)
            for name, member in given["members"].items()
            if "location" not in member
        }


def _union(given: Mapping[str, Any]) -> frozenset[str]:
    return frozenset(given["members"]) if given.get("union") else frozenset()


def _blob(_: Service, __: str, given: Mapping[str, Any]) -> Shape:
    return Text(given.get("min"), given.get("max"), base64=True)


def _flag(_: Service, __: str, ___: Mapping[str, Any]) -> Shape:
    return FLAG


def _whole(_: Service, __: str, given: Mapping[str, Any]) -> Shape:
    return Number(True, given.get("min"), given.get("max"))


def _number(_: Service, __: str, given: Mapping[str, Any]) -> Shape:
    return Number(False, given.get("min"), given.get("max"))


KINDS: dict[str, Callable[[Service, str, Mapping[str, Any]], Shape]] = {
    "structure": Service.structure,
    "list": Service.listed,
    "map": Service.mapped,
    "string": Service.text,
    "blob": _blob,
    "boolean": _flag,
    "integer": _whole,
    "long": _whole,
    "float": _number,
    "double": _number,
}
