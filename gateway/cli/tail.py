"""`sluice tail`: the newest finished requests, and those that follow, a line each."""

import argparse
import asyncio
import json
import sys
from datetime import datetime

from gateway.cli.store import explained, with_store
from gateway.core.errors import StoreError
from gateway.store.client import Client
from gateway.store.recent import Entry, Recent

EVERY_SECONDS = 0.5
MAX_LINES = 10_000  # as many are kept

_FILTERS = ("tenant", "key", "model", "provider")
_WIDTHS = (12, 6, 24, 12, 24, 16, 14, 11, 9)
_TITLES = ("TIME", "STATUS", "TENANT/KEY", "OPERATION", "MODEL", "PROVIDER", "TOKENS", "USD", "MS")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options."""
    parser.add_argument(
        "-n", "--lines", type=_lines, default=10, metavar="N", help="begin with so many (10)"
    )
    parser.add_argument("--no-follow", action="store_true", help="do not wait for more")
    for name in _FILTERS:
        parser.add_argument(f"--{name}", metavar="NAME", help=f"this {name} only")
    parser.add_argument("--errors", action="store_true", help="what failed or was refused only")
    parser.add_argument("--format", choices=("table", "json"), default="table")


def run(url: str, arguments: argparse.Namespace) -> int:
    """Print as long as somebody reads; return the exit code."""
    try:
        with_store(url, lambda client: _follow(client, arguments))
    except StoreError as error:
        print(f"sluice: {explained(error)}", file=sys.stderr)
        return 1
    return 0


async def _follow(client: Client, arguments: argparse.Namespace) -> None:
    found = {name: getattr(arguments, name) for name in _FILTERS}
    wanted = {name: value for name, value in found.items() if value is not None}
    recent = Recent(client, wanted, errors=arguments.errors)
    show = _show_json if arguments.format == "json" else _show
    if arguments.format == "table":
        print(_line(_TITLES), flush=True)
    show(await recent.last(arguments.lines))
    away = False
    while not arguments.no_follow:
        await asyncio.sleep(EVERY_SECONDS)
        try:
            show(await recent.next())
        except StoreError as error:
            if not away:
                print(f"sluice: {error}; waiting for it", file=sys.stderr)
            away = True
        else:
            away = False


def _show(entries: list[Entry]) -> None:
    for entry in entries:
        whose = "/".join(str(entry[name]) for name in ("tenant", "key") if entry[name])
        tokens = f"{entry['prompt_tokens']}+{entry['completion_tokens']}"
        dollars = f"{int(entry['cost_microusd']) / 1e6:.6f}"
        at = datetime.fromtimestamp(float(entry["time"]))
        cells = (
            f"{at:%H:%M:%S}.{at.microsecond // 1000:03d}",
            str(entry["status"]),
            whose,
            *(str(entry[name]) for name in ("operation", "model", "provider")),
            tokens,
            dollars,
            f"{int(entry['duration_us']) / 1000:.0f}",
        )
        outcome, error = str(entry["outcome"]), str(entry["error"])
        notes = [outcome] if outcome not in ("ok", "") else []
        notes += [error] if error else []
        notes += [str(entry["cache"])] if entry["cache"] else []
        notes += [f"{entry['attempts']} attempts"] if int(entry["attempts"]) > 1 else []
        print(_line((*cells, " ".join(notes))))
    sys.stdout.flush()


def _show_json(entries: list[Entry]) -> None:
    for entry in entries:
        print(json.dumps(entry))
    sys.stdout.flush()


def _line(cells: tuple[str, ...]) -> str:
    """Return a line in which no name steers the terminal: clients choose some of them."""
    plain = ["".join(c if c.isprintable() else "?" for c in cell) for cell in cells]
    texts = [cell.ljust(width) for cell, width in zip(plain, _WIDTHS, strict=False)]
    return "  ".join([*texts, *plain[len(_WIDTHS) :]]).rstrip()


def _lines(text: str) -> int:
    number = int(text) if text.isdecimal() else -1
    if not 0 <= number <= MAX_LINES:
        raise argparse.ArgumentTypeError(f"expected a number from 0 to {MAX_LINES}, got {text!r}")
    return number
