"""Bounds the sum of the workers that have ended: of names that clients made up, the first stay.

What was counted by any other such name is counted as `other` from then on, so no request is lost.
"""

from collections.abc import Collection, Iterator

from gateway.observe.exposition import COUNTERS, HISTOGRAMS
from gateway.observe.series import SEPARATOR, Totals

OTHER = "other"
MAX_NAMES = 200  # as many as a worker gives counters of their own

# Series -> where among its labels the model's name is.
_PLACES = {
    name: place
    for name, (_, labels) in (COUNTERS | HISTOGRAMS).items()
    for place, label in enumerate(labels)
    if label in ("model", "gen_ai_request_model")
}


def add_ended(retired: Totals, ended: Totals, configured: Collection[str]) -> Totals:
    """Return the sum of two totals, with MAX_NAMES names at the most that are not configured."""
    names = dict.fromkeys([*_names(retired), *_names(ended)])
    names.pop(OTHER, None)
    made_up = [name for name in names if name not in configured]
    folded = frozenset(made_up[MAX_NAMES:])
    total = Totals()
    for part in (retired, ended):
        total.merge(_folded(part, folded) if folded else part)
    return total


def _names(totals: Totals) -> Iterator[str]:
    for families in (totals.counters, totals.histograms):
        for name, family in families.items():
            for labels in family:
                yield from labels.split(SEPARATOR)[_place(name)]


def _folded(totals: Totals, folded: frozenset[str]) -> Totals:
    """Return the same amounts, those of some names under one that stands for all of them."""
    found = Totals(gauges=totals.gauges)
    for name, counters in totals.counters.items():
        for labels, amount in counters.items():
            found.merge(Totals(counters={name: {_relabelled(name, labels, folded): amount}}))
    for name, histograms in totals.histograms.items():
        for labels, cells in histograms.items():
            found.merge(Totals(histograms={name: {_relabelled(name, labels, folded): cells}}))
    return found


def _relabelled(name: str, labels: str, folded: frozenset[str]) -> str:
    values = labels.split(SEPARATOR)
    place = _place(name)
    values[place] = [OTHER if value in folded else value for value in values[place]]
    return SEPARATOR.join(values)


def _place(name: str) -> slice:
    """Return where the model's name is; nowhere for a series that has none."""
    place = _PLACES.get(name)
    return slice(0, 0) if place is None else slice(place, place + 1)
