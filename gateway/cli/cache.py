"""`sluice cache`: what answers are kept, and how to be rid of them."""

import argparse
import json
import sys

import msgspec

from gateway.cli.store import with_store
from gateway.core.errors import StoreError
from gateway.store.cache import GROUPS, CacheKeeper, Kept, Which


def add_parser(parser: argparse.ArgumentParser) -> None:
    """Declare the commands."""
    commands = parser.add_subparsers(required=True, metavar="COMMAND", dest="action")
    chosen = argparse.ArgumentParser(add_help=False)
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
    except StoreError as error:
        print(f"sluice: {error}. Is the gateway running?", file=sys.stderr)
        return 1
    if arguments.format == "json":
        print(json.dumps([msgspec.to_builtins(row) for row in rows]))
    else:
        _print_table(rows, arguments.by)
    return 0


def _print_table(rows: list[Kept], by: str) -> None:
    lines = [(by.upper(), "ANSWERS", "BYTES")]
    lines += [(row.group or "-", str(row.answers), str(row.bytes)) for row in rows]
    if len(rows) > 1:
        answers, size = sum(row.answers for row in rows), sum(row.bytes for row in rows)
        lines.append(("TOTAL", str(answers), str(size)))
    widths = [max(len(line[i]) for line in lines) for i in range(3)]
    for name, answers_text, size_text in lines:
        print(f"{name:<{widths[0]}}  {answers_text:>{widths[1]}}  {size_text:>{widths[2]}}")
