"""`sluice keys`: virtual keys from the command line, through the gateway's own store."""

import argparse
import json
import re
import sys
import time
from datetime import UTC, datetime
from typing import Any

import msgspec

from gateway.cli.store import explained, with_store
from gateway.config.schema import Config, KeySettings
from gateway.config.shape import shaped
from gateway.core.errors import ConfigError, StoreError
from gateway.pipeline.limiting import LimitBook
from gateway.store.client import Client
from gateway.store.keys import MAX_GRACE_SECONDS, NoSuchKey, VirtualKey, VirtualKeys

_SPAN = re.compile(r"([0-9]{1,6})([smhd])")
_SECONDS = {"s": 1, "m": 60, "h": 3600, "d": 86_400}
_BUDGET = re.compile(r"([0-9]+(?:\.[0-9]+)?)(?:/([a-z0-9]+))?")
CLEARABLE = ("rpm", "burst", "tpm", "concurrency", "budget", "models", "labels", "expires", "cache")
_TIMES = ("created", "last_used", "previous_until", "revoked")
SETTINGS = ("name", "tenant", "models", "rpm", "burst", "tpm", "concurrency", "budget", "labels")


def add_parser(parser: argparse.ArgumentParser) -> None:
    """Declare the subcommands."""
    actions = parser.add_subparsers(required=True, metavar="ACTION", dest="action")

    def action(name: str, text: str) -> argparse.ArgumentParser:
        found = actions.add_parser(name, help=text)
        found.add_argument("--json", action="store_true", help="print JSON")
        found.add_argument("--config", default=argparse.SUPPRESS, help="as before the action")
        return found

    create = action("create", "make a key; its secret is shown this once")
    create.add_argument("--name", required=True)
    _add_settings(create)
    lister = action("list", "list keys")
    lister.add_argument("--tenant")
    for name, text in (
        ("show", "show a key"),
        ("update", "change a key"),
        ("rotate", "give a key a new secret"),
        ("revoke", "make a key worthless for good"),
    ):
        action(name, text).add_argument("id")
    update, rotate = actions.choices["update"], actions.choices["rotate"]
    update.add_argument("--name")
    _add_settings(update)
    update.add_argument(
        "--clear", action="append", default=[], choices=CLEARABLE, help="take it away; repeatable"
    )
    blocked = update.add_mutually_exclusive_group()
    blocked.add_argument("--block", dest="blocked", action="store_true", default=None)
    blocked.add_argument("--unblock", dest="blocked", action="store_false")
    rotate.add_argument(
        "--grace", type=grace, default=86_400, help="how long the old secret works (default 1d)"
    )


def _add_settings(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--tenant")
    parser.add_argument("--model", dest="models", action="append", help="allow it; repeatable")
    for name in ("rpm", "burst", "tpm", "concurrency"):
        parser.add_argument(f"--{name}", type=int)
    parser.add_argument(
        "--budget", type=budget, action="append", metavar="USD[/PER]", help="5/day, 250/30d"
    )
    parser.add_argument("--label", dest="labels", type=label, action="append", metavar="NAME=VALUE")
    parser.add_argument("--cache", choices=("on", "off"), help="whether answers are kept")
    parser.add_argument("--cache-ttl", type=span, metavar="SPAN", help="for how long: 90s, 12h")
    parser.add_argument("--expires", type=span, metavar="SPAN", help="from now: 12h, 30d")


def span(text: str) -> int:
    """Read a span such as 90s, 15m, 12h or 30d as seconds."""
    if match := _SPAN.fullmatch(text):
        return int(match[1]) * _SECONDS[match[2]]
    raise argparse.ArgumentTypeError(f"expected a span like 12h or 30d, got {text!r}")


def grace(text: str) -> int:
    """Read a span that a secret may outlive its rotation by."""
    if (seconds := span(text)) <= MAX_GRACE_SECONDS:
        return seconds
    raise argparse.ArgumentTypeError(f"at most {MAX_GRACE_SECONDS // 86_400}d, got {text!r}")


def budget(text: str) -> dict[str, Any]:
    """Read dollars and their period, a month unless it is given."""
    if match := _BUDGET.fullmatch(text):
        return {"usd": match[1], "per": match[2] or "month"}
    raise argparse.ArgumentTypeError(f"expected dollars and a period like 250/30d, got {text!r}")


def label(text: str) -> tuple[str, str]:
    """Read one label."""
    name, equals, value = text.partition("=")
    if not equals:
        raise argparse.ArgumentTypeError(f"expected name=value, got {text!r}")
    return name, value


def run(url: str, config: Config, arguments: argparse.Namespace) -> int:
    """Run one action; return the exit code."""

    async def work(client: Client) -> int:
        return await _act(VirtualKeys(client), LimitBook(config), config, arguments)

    try:
        return with_store(url, work)
    except (StoreError, NoSuchKey) as error:
        said = explained(error) if isinstance(error, StoreError) else f"{error}."
        print(f"sluice: {said}", file=sys.stderr)
        return 1


async def _act(
    keys: VirtualKeys, book: LimitBook, config: Config, arguments: argparse.Namespace
) -> int:
    action, secret = arguments.action, None
    if action == "list":
        found, more = await keys.all(arguments.tenant)
        _print_all(found, as_json=arguments.json)
        if more:
            print(f"sluice: these are the newest {len(found)}; there are more", file=sys.stderr)
        return 0
    if action == "create":
        settings = settings_of({}, arguments)
        book.check(settings)
        record, secret = await keys.create(settings)
    elif action == "update":

        def change(record: VirtualKey) -> KeySettings | None:
            before = record.settings
            built = msgspec.to_builtins(before)
            kept = {name: v for name, v in built.items() if name not in arguments.clear}
            settings = settings_of(kept, arguments)
            if settings == before:
                return None
            book.check(settings, before)
            return settings

        record = await keys.update(arguments.id, change, blocked=arguments.blocked)
    elif action == "rotate":
        record, secret = await keys.rotate(arguments.id, arguments.grace)
    elif action == "revoke":
        record = await keys.revoke(arguments.id)
    else:
        record = await keys.get(arguments.id)
    _print_one(record, secret, as_json=arguments.json)
    if action == "create" and not config.auth.enabled:
        print(
            "sluice: as this shell's configuration has it, authentication is off, so no key is "
            "asked for yet: set auth.admin_key, a static key, or AUTH_ENABLED=true",
            file=sys.stderr,
        )
    return 0


def settings_of(before: dict[str, Any], arguments: argparse.Namespace) -> KeySettings:
    """Return a key's settings with what the options change. Raises ConfigError."""
    given = {n: v for n in SETTINGS if (v := getattr(arguments, n)) is not None}
    if "labels" in given:
        given["labels"] = dict(given["labels"])
    if arguments.expires is not None:
        given["expires"] = int(time.time()) + arguments.expires
    cache = dict(before.get("cache") or {})
    if arguments.cache is not None:
        cache["enabled"] = arguments.cache == "on"
    if arguments.cache_ttl is not None:
        cache["ttl"] = arguments.cache_ttl
    if cache:
        given["cache"] = cache
    try:
        return shaped({**before, **given}, KeySettings)
    except ConfigError as error:
        name = re.split(r"[.\[]", error.field)[0]
        option = {"models": "model", "labels": "label", "cache": "cache-ttl"}.get(name, name)
        raise ConfigError(error.message, source=f"--{option}") from None


def _print_one(record: VirtualKey, secret: str | None, *, as_json: bool) -> None:
    shown = ({"key": secret} if secret else {}) | record.public()
    if as_json:
        print(json.dumps(shown))
        return
    width = max(map(len, shown))
    for name, value in shown.items():
        if value not in (None, [], {}, ()):
            print(f"{name:<{width}}  {_shown(name, value)}")


def _print_all(records: list[VirtualKey], *, as_json: bool) -> None:
    if as_json:
        print(json.dumps([record.public() for record in records]))
        return
    print(f"{'ID':<20}  {'NAME':<20}  {'TENANT':<16}  {'STATE':<8}  LAST USED")
    for record in records:
        state = "revoked" if record.revoked else "blocked" if record.blocked else "active"
        if state == "active" and not record.good_until(record.sha256, time.time()):
            state = "expired"
        used = _shown("last_used", record.last_used)
        settings = record.settings
        print(f"{record.id:<20}  {settings.name:<20}  {settings.tenant:<16}  {state:<8}  {used}")


def _shown(name: str, value: Any) -> str:
    if name == "expires" or (name in _TIMES and value):  # at 0 a key has expired
        return f"{datetime.fromtimestamp(value, UTC):%Y-%m-%d %H:%M:%SZ}"
    if name in _TIMES:
        return "never"
    return value if isinstance(value, str) else json.dumps(value)
