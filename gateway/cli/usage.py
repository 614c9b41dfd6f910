"""`sluice usage`: what was used, as a table, CSV or JSON."""

import argparse
import json
import sys
from collections.abc import Sequence

import msgspec

from gateway.cli.store import explained, with_store
from gateway.core.errors import StoreError
from gateway.store.usage import COUNTERS, GROUPS, Query, Row, UsageReader, as_csv

_TITLES = {
    "requests": "REQUESTS",
    "errors": "ERRORS",
    "cache_hits": "HITS",
    "prompt_tokens": "PROMPT",
    "cached_tokens": "CACHED",
    "completion_tokens": "COMPLETION",
    "reasoning_tokens": "REASONING",
    "cost_microusd": "USD",
    "saved_microusd": "SAVED",
}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options."""
    parser.add_argument("--by", choices=GROUPS, default="tenant", help="what a row is of")
    parser.add_argument("--tenant", help="this tenant only")
    parser.add_argument("--from", dest="first", metavar="DATE", help="default: today (UTC)")
    parser.add_argument("--to", dest="last", metavar="DATE")
    parser.add_argument("--month", metavar="YYYY-MM", help="a month's sum, instead of days")
    parser.add_argument("--format", choices=("table", "csv", "json"), default="table")


def run(url: str, arguments: argparse.Namespace) -> int:
    """Print what was asked for; return the exit code."""
    fields = {
        "by": arguments.by,
        "tenant": arguments.tenant,
        "from": arguments.first,
        "to": arguments.last,
        "month": arguments.month,
    }
    try:
        query = Query.of({name: text for name, text in fields.items() if text is not None})
        rows = with_store(url, lambda client: UsageReader(client).read(query))
    except ValueError as error:
        print(f"sluice: {error}", file=sys.stderr)
        return 2
    except StoreError as error:
        print(f"sluice: {explained(error)}", file=sys.stderr)
        return 1
    if arguments.format == "json":
        print(json.dumps([msgspec.to_builtins(row) for row in rows]))
    elif arguments.format == "csv":
        sys.stdout.write(as_csv(rows))
    else:
        _print_table(rows, arguments.by)
    return 0


def _print_table(rows: list[Row], by: str) -> None:
    named = by != "tenant"
    head = ["PERIOD", "TENANT", *([by.upper()] if named else []), *_TITLES.values()]
    lines = [
        [r.period, r.tenant, *([r.group] if named else []), *(_cell(r, c) for c in COUNTERS)]
        for r in rows
    ]
    total = Row(period="", tenant="", **{c: sum(getattr(r, c) for r in rows) for c in COUNTERS})
    if len(rows) > 1 and by != "label":  # one request may have several labels
        lines.append(["TOTAL", "", *([""] if named else []), *(_cell(total, c) for c in COUNTERS)])
    widths = [max(len(line[i]) for line in [head, *lines]) for i in range(len(head))]
    texts = 3 if named else 2
    for line in [head, *lines]:
        print(_line(line, widths, texts))


def _line(cells: Sequence[str], widths: Sequence[int], texts: int) -> str:
    shown = [
        cell.ljust(width) if i < texts else cell.rjust(width)
        for i, (cell, width) in enumerate(zip(cells, widths, strict=True))
    ]
    return "  ".join(shown).rstrip()


def _cell(row: Row, counter: str) -> str:
    value: int = getattr(row, counter)
    if not counter.endswith("_microusd"):
        return str(value)
    whole, rest = divmod(value, 1_000_000)
    return f"{whole}.{rest:06d}"
