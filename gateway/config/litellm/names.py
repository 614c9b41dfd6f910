"""The provider entries of the result, each once, under names that people can read."""

import json
import re
from collections.abc import Iterator
from urllib.parse import urlsplit

from gateway.config.litellm.services import Entry, Reached
from gateway.config.litellm.source import REFERENCE

_NUMERIC = re.compile(r"[\d.]+|.*:.*|localhost")
_SAYS_NOTHING = frozenset(("api", "key", "token", "secret", "azure", "openai"))


class Providers:
    """Names entries as they come; the name of one that is known stays."""

    def __init__(self) -> None:
        self.entries: dict[str, Entry] = {}
        self._names: dict[str, str] = {}

    def reserve(self, name: str, entry: Entry) -> bool:
        """Give an entry the name that clients know; False where another has it."""
        if name in self.entries:
            return False
        self.entries[name] = dict(entry)
        self._names.setdefault(_identity(entry), name)
        return True

    def name(self, reached: Reached) -> str:
        """Return the name of an entry, a new one where it is new."""
        key = _identity(reached.entry)
        if key not in self._names:
            name = next(one for one in self._candidates(reached) if one not in self.entries)
            self._names[key] = name
            self.entries[name] = dict(reached.entry)
        return self._names[key]

    def _candidates(self, reached: Reached) -> Iterator[str]:
        """Yield names for an entry, the shortest first."""
        name = _fit(reached.name) or "provider"
        yield name
        known = set(_marks(self.entries[name]))
        for mark in _marks(reached.entry):
            if mark not in known and _fit(mark):
                yield f"{name}-{_fit(mark)}"
        number = 2
        while True:
            yield f"{name}-{number}"
            number += 1


def _identity(entry: Entry) -> str:
    return json.dumps({name: value for name, value in entry.items() if name != "models"})


def _fit(text: str) -> str:
    """Return text as part of a name (schema.Name)."""
    return re.sub(r"[^A-Za-z0-9._-]+", "-", text).strip("-._")[:30]


def _marks(entry: Entry) -> Iterator[str]:
    """Yield what may tell an entry from others of its kind."""
    places = (entry.get(field, REFERENCE) for field in ("region", "location"))
    yield from (place for place in places if not place.startswith(REFERENCE))
    url = entry.get("base_url", "")
    host = "" if url.startswith(REFERENCE) else urlsplit(url).hostname or ""
    if not _NUMERIC.fullmatch(host):
        yield host.split(".")[0]
    key = entry.get("api_key", "")
    if key.startswith(REFERENCE):
        words = key.removeprefix(REFERENCE).lower().split("_")
        known = {*_SAYS_NOTHING, *entry["kind"].split("-")}
        yield "-".join(word for word in words if word not in known)
    yield from (entry[field] for field in ("api", "project", "unsupported") if field in entry)
    if "timeouts" in entry:
        yield "-".join(f"{seconds}s" for seconds in dict.fromkeys(entry["timeouts"].values()))
