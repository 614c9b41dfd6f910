"""What a LiteLLM configuration says, read value by value; whatever nobody takes is noted.

LiteLLM's conventions end here: `os.environ/NAME`, numbers and switches written as text. No note
quotes a value: it may be a secret.
"""

import re
from collections.abc import Mapping
from decimal import Context, Decimal, InvalidOperation
from typing import Any, TypeGuard

import msgspec

from gateway.config.environment import NO_TEXT

REFERENCE = "env:"
THEIR_REFERENCE = "os.environ/"
_TEMPLATE = re.compile(r"\$\{([A-Za-z_][A-Za-z0-9_]*)\}")
_SWITCHES = {"true": True, "false": False}
# Fits any amount of money or time that means something; YAML has numbers of any length.
_LARGEST = 10**18
MIN_SECONDS, MAX_SECONDS = Decimal("0.001"), 7 * 86_400  # schema.Seconds
_READING = Context(prec=60, traps=[InvalidOperation])
# Written where a server wants no key.
_DUMMIES = {"none", "dummy", "fake", "fake-key", "empty", "null", "sk-no-key-required", "ollama"}

CLEAR = "this secret stands in clear in the result too; better: env:NAME"
_NO_TEXT = "it is not text"
_NO_NUMBER = "it is not a number that can be used"


class Note(msgspec.Struct, frozen=True):
    """What the operator should know about a place in the source."""

    field: str
    text: str


class NotCarried(Exception):
    """A part of the source that has no counterpart, and why."""


class Fields:
    """A mapping of the source, its fields to be taken one by one. A null is absent."""

    def __init__(self, value: object, place: str, notes: list[Note]) -> None:
        self.place, self._notes = place, notes
        self._left: dict[str, Any] = {}
        if isinstance(value, Mapping):
            self._left = {label(k): v for k, v in value.items() if v is not None}
        elif value is not None:
            self.lost("", "it is not a mapping")

    def __contains__(self, name: str) -> bool:
        return name in self._left

    def at(self, name: str) -> str:
        """Return where a field stands."""
        return f"{self.place}.{name}".strip(".")

    def note(self, name: str, text: str) -> None:
        """Say something of a field."""
        self._notes.append(Note(self.at(name), text))

    def lost(self, name: str, why: str) -> None:
        """Say that a field is not carried over."""
        self.note(name, f"not carried over: {why}")

    def take(self, name: str) -> Any:
        """Return a field as it is; None where it is absent."""
        return self._left.pop(name, None)

    def peek(self, name: str) -> Any:
        """Return a field that is yet to be taken."""
        return self._left.get(name)

    def names(self) -> tuple[str, ...]:
        """Return what nobody has taken yet."""
        return tuple(self._left)

    def fields(self, name: str) -> "Fields":
        """Return a field that is a mapping, empty where it is none."""
        return Fields(self.take(name), self.at(name), self._notes)

    def text(self, name: str) -> str | None:
        """Return a text, or `env:NAME`; None where there is none, or an empty one."""
        value = self.take(name)
        if value is None or value == "":
            return None
        try:
            return self._text(name, value)
        except NotCarried as error:
            self.lost(name, str(error))
            return None

    def literal(self, name: str) -> str | None:
        """Return a text that has to stand in the file itself."""
        text = self.text(name)
        if text is not None and text.startswith(REFERENCE):
            self.lost(name, "it comes from the environment, and has to stand in the file here")
            return None
        return text

    def secret(self, name: str) -> str | None:
        """Return a text that better were a reference."""
        text = self.text(name)
        if text and not text.startswith(REFERENCE) and text.lower() not in _DUMMIES:
            self.note(name, CLEAR)
        return text

    def flag(self, name: str) -> bool | None:
        """Return a switch."""
        value = self.take(name)
        if isinstance(value, str):
            value = _SWITCHES.get(value.strip().lower(), value)
        if value is None or isinstance(value, bool):
            return value
        self.lost(name, "expected true or false in the file itself")
        return None

    def number(self, name: str) -> Decimal | None:
        """Return a number from 0; YAML reads some, such as 1e-6, as text."""
        value = self.take(name)
        if value is None:
            return None
        found = amount(value)
        if found is None:
            self.lost(name, _NO_NUMBER)
        return found

    def whole(self, name: str) -> int | None:
        """Return a whole number from 0."""
        found = self.number(name)
        if found is None or found == int(found):
            return None if found is None else int(found)
        self.lost(name, "it is not a whole number")
        return None

    def seconds(self, name: str) -> int | float | None:
        """Return a deadline."""
        found = self.number(name)
        if found is None or MIN_SECONDS <= found <= MAX_SECONDS:
            return None if found is None else float_or_whole(found)
        self.lost(name, "a deadline is more than 0 and at most a week")
        return None

    def rest(self, reasons: Mapping[str, str], default: str) -> None:
        """Note every field that nobody took; what has a reason and is switched off is no loss."""
        for name, value in self._left.items():
            nothing = value is False or value in ("", [], {})
            if not (nothing and name in reasons):
                self.lost(name, reasons.get(name, default))
        self._left = {}

    def _text(self, name: str, value: object) -> str:
        if isinstance(value, bool) or not isinstance(value, str | int | float):
            raise NotCarried(_NO_TEXT)
        if not isinstance(value, str):
            if not -_LARGEST < value < _LARGEST:
                raise NotCarried(_NO_TEXT)
            return str(value)
        if not is_text(value):
            raise NotCarried(_NO_TEXT)
        if value.startswith(THEIR_REFERENCE) and len(value) > len(THEIR_REFERENCE):
            return REFERENCE + value.removeprefix(THEIR_REFERENCE)
        if found := _TEMPLATE.fullmatch(value):
            self.note(name, f"taken for the environment variable {found[1]}")
            return REFERENCE + found[1]
        if value.startswith(REFERENCE):
            raise NotCarried("what begins with env: means a variable here")
        return value


def is_text(value: object) -> TypeGuard[str]:
    """Tell whether a value is text that a configuration can hold."""
    return isinstance(value, str) and not NO_TEXT.search(value)


def amount(value: object) -> Decimal | None:
    """Return what a scalar says as a number from 0; None where that is none."""
    if isinstance(value, bool) or not isinstance(value, str | int | float):
        return None
    try:
        if not isinstance(value, str) and not 0 <= value <= _LARGEST:
            return None
        found = _READING.create_decimal(str(value).strip())
    except InvalidOperation:
        return None
    return found if found.is_finite() and 0 <= found <= _LARGEST else None


def float_or_whole(number: Decimal) -> int | float:
    """Return a number as YAML has it."""
    return int(number) if number == int(number) else float(number)


def references(value: object) -> set[str]:
    """Return the names of the environment variables that a configuration of ours refers to."""
    if isinstance(value, dict):
        return set().union(*map(references, value.values()))
    if isinstance(value, list):
        return set().union(*map(references, value))
    if isinstance(value, str) and value.startswith(REFERENCE):
        return {value.removeprefix(REFERENCE)}
    return set()


def label(key: object) -> str:
    """Return a key of a mapping as text."""
    try:
        return NO_TEXT.sub("?", str(key))
    except ValueError:  # a number of thousands of digits
        return "?"
