"""`sluice cache`: what answers are kept, and how to be rid of them."""

import argparse
import json
import sys

import msgspec

from gateway.cli.store import explained, with_store
from gateway.core.errors import StoreError
from gateway.store.cache import GROUPS, CacheKeeper, Kept, Which


def add_parser(parser: argparse.ArgumentParser) -> None:
    """Declare the commands."""
    commands = parser.add_subparsers(required=True, metavar="COMMAND", dest="action")
    chosen = argparse.ArgumentParser(add_help=False)
    chosen.add_argument("--config", default=argparse.SUPPRESS, help="as before the command")
    chosen.add_argument("--tenant", help="of this tenant; '~shared': what all tenants share")
    chosen.add_argument("--namespace", help="of this x-sluice-cache-namespace; '': of none")
    chosen.add_argument("--model", help="of this model, as clients name it")
    chosen.add_argument("--key", help="first asked for with this key (its name or id)")
    stats = commands.add_parser("stats", parents=[chosen], help="show what is kept")
    stats.add_argument("--by", choices=GROUPS, default="model", help="what a row is of")
    stats.add_argument("--format", choices=("table", "json"), default="table")
    purge = commands.add_parser("purge", parents=[chosen], help="delete what is kept")
    purge.add_argument("--all", action="store_true", help="everything, where nothing is chosen")


def run(url: str, arguments: argparse.Namespace) -> int:
    """Do what was asked for; return the exit code."""
    which = Which(*(getattr(arguments, name) for name in GROUPS))
    try:
        if arguments.action == "purge":
            if which == Which() and not arguments.all:
                message = "say what to purge, or --all"
                print(f"sluice: {message}", file=sys.stderr)
                return 2
            count = with_store(url, lambda client: CacheKeeper(client).purge(which))
            print(f"purged {count}")
            return 0
        rows = with_store(url, lambda client: CacheKeeper(client).stats(arguments.by, which))
    except ValueError:
        message = "there is too much to count: choose a tenant (--tenant), or rows of --by tenant"
        print(f"sluice: {message}", file=sys.stderr)
        return 2
    except StoreError as error:
        print(f"sluice: {explained(error)}", file=sys.stderr)
        return 1
    if arguments.format == "json":
        print(json.dumps([msgspec.to_builtins(row) for row in rows]))
    else:
        _print_table(rows, arguments.by)
    return 0


def _print_table(rows: list[Kept], by: str) -> None:
    total = Kept(
        "TOTAL",
        sum(row.answers for row in rows),
        sum(row.bytes for row in rows),
        _sum([row.hits for row in rows]),
        _sum([row.saved_microusd for row in rows]),
    )
    shown = [*rows, total] if len(rows) > 1 else rows
    lines = [(by.upper(), "ANSWERS", "BYTES", "HITS", "SAVED")]
    lines += [
        (
            row.group or "-",
            str(row.answers),
            str(row.bytes),
            "-" if row.hits is None else str(row.hits),
            "-" if row.saved_microusd is None else _dollars(row.saved_microusd),
        )
        for row in shown
    ]
    widths = [max(len(line[i]) for line in lines) for i in range(5)]
    for name, *figures in lines:
        aligned = [one.rjust(width) for one, width in zip(figures, widths[1:], strict=True)]
        print("  ".join((name.ljust(widths[0]), *aligned)))


def _sum(figures: list[int | None]) -> int | None:
    """Return the sum of those that are known; None where none is."""
    known = [figure for figure in figures if figure is not None]
    return sum(known) if known else None


def _dollars(microusd: int) -> str:
    whole, rest = divmod(microusd, 1_000_000)
    return f"{whole}.{rest:06d}"
