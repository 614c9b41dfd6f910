"""Which provider answers for a bare name: LiteLLM's patterns as claims, which know no order.

LiteLLM takes the longest pattern that a name fits, and where none does, that of the prefix it
guesses for the name. Here two providers that claim a name are none, so what a longer pattern has
is cut out of the shorter. Pure.
"""

from collections.abc import Iterable, Mapping
from fnmatch import fnmatchcase

import msgspec

ANY = "*"
_LONGEST = 64  # characters of a pattern that is cut out: each of them makes two claims


class Pattern(msgspec.Struct, frozen=True):
    """A pattern of bare names, whose provider has it, and where it stands in the source."""

    text: str
    provider: str
    field: str


def divided(
    patterns: list[Pattern], guessed: Mapping[str, tuple[str, ...]]
) -> tuple[dict[str, list[str]], list[Pattern]]:
    """Return each provider's claims, and the patterns whose names cannot be told from another's.

    `guessed`: the names that a provider gets where no pattern has them.
    """
    claims: dict[str, list[str]] = {}
    unclear: list[Pattern] = []
    for one in patterns:
        others = [each for each in patterns if each.provider != one.provider]
        longer = [each for each in others if _head(each.text).startswith(_head(one.text))]
        claims.setdefault(one.provider, []).extend(
            _without(one.text, [each.text for each in longer])
        )
        met = [each for each in others if meets(one.text, each.text)]
        if not all(_is_told(one.text, each.text) for each in met):
            unclear.append(one)
    for provider, names in guessed.items():
        own = [each.text for each in patterns if each.provider == provider]
        others = [each for each in patterns if each.provider != provider]
        found = claims.setdefault(provider, [])
        for name in names:
            if not any(_covers(each, name) for each in own):
                found += _without(name, [each.text for each in others])
        unclear += [
            each
            for each in others
            if any(meets(each.text, name) and not _is_told(each.text, name) for name in names)
        ]
    return claims, list(dict.fromkeys(unclear))


def meets(one: str, other: str) -> bool:
    """Tell whether there is a name that fits both patterns; their only wildcard is `*`."""
    if ANY not in one or ANY not in other:
        return one == other or fnmatchcase(one, other) or fnmatchcase(other, one)
    heads = _head(one), _head(other)
    tails = one.rpartition(ANY)[2], other.rpartition(ANY)[2]
    return (heads[0].startswith(heads[1]) or heads[1].startswith(heads[0])) and (
        tails[0].endswith(tails[1]) or tails[1].endswith(tails[0])
    )


def meet_any(some: Iterable[str], others: Iterable[str]) -> bool:
    """Tell whether any pattern has a name in common with any of others."""
    listed = list(others)
    return any(meets(one, other) for one in some for other in listed)


def _head(pattern: str) -> str:
    return pattern.partition(ANY)[0]


def _is_head(pattern: str) -> bool:
    """Tell whether a pattern is the beginning of names."""
    return pattern.find(ANY) == len(pattern) - 1 < _LONGEST


def _is_told(one: str, other: str) -> bool:
    """Tell whether the names of both can be told apart: the one can be cut out of the other."""
    return all(_is_head(each) or ANY not in each for each in (one, other))


def _covers(pattern: str, other: str) -> bool:
    """Tell whether all names of the other fit a pattern that is the beginning of names."""
    return _is_head(pattern) and _head(other).startswith(_head(pattern))


def _without(pattern: str, others: Iterable[str]) -> list[str]:
    """Return patterns of the names that fit one and none of others that begin names."""
    holes = {_head(other) for other in others if _is_head(other)}
    if any(_head(pattern).startswith(hole) for hole in holes):
        return []
    if not _is_head(pattern):
        return [pattern]
    found, heads = [], [_head(pattern)]
    while heads:
        head = heads.pop()
        next_ones = {hole[len(head)] for hole in holes if hole.startswith(head) and hole != head}
        if head in holes:
            continue
        if not next_ones:
            found.append(f"{head}{ANY}")
            continue
        found += [*_exactly(head), f"{head}[!{_set(next_ones)}]{ANY}"]
        heads += sorted(head + char for char in next_ones)
    return found


def _exactly(name: str) -> list[str]:
    """Return a pattern of one name: a name alone would be listed as a model."""
    if not name:
        return []
    return [name if name[-1] == "!" else f"{name[:-1]}[{name[-1]}]"]


def _set(chars: set[str]) -> str:
    """Return characters in an order in which none of them means anything else."""
    return "".join(sorted(chars, key=lambda char: (char != "]", char == "-", char)))
