"""The admin API: virtual keys and usage, for whoever holds the admin key."""

import asyncio
import hashlib
import hmac
import re
from collections.abc import Awaitable, Callable, Coroutine
from typing import Any, TypeVar

import msgspec
from aiohttp import web

from gateway.config.schema import KeySettings
from gateway.config.shape import shaped
from gateway.core.errors import ApiError, ConfigError
from gateway.http.body import Room, read_body
from gateway.http.hot import secret_of
from gateway.pipeline.limiting import LimitBook
from gateway.store.keys import MAX_GRACE_SECONDS, NoSuchKey, VirtualKey, VirtualKeys
from gateway.store.usage import GROUPS, Query, UsageReader, as_csv

MAX_BODY_BYTES, BODY_SECONDS = 64 * 1024, 30.0
DEFAULT_GRACE_SECONDS = 24 * 3600
JSON = "application/json"

_T = TypeVar("_T")
_MISSING = re.compile(r"Object missing required field `(.*)`")

Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]


class Rotation(msgspec.Struct, forbid_unknown_fields=True):
    """The body of a rotation: how long the secret before goes on working."""

    grace_seconds: int = DEFAULT_GRACE_SECONDS


class AdminRoutes:
    """Handlers under /admin. Each refuses whoever does not present the admin key."""

    def __init__(
        self, admin_key: str | None, keys: VirtualKeys, book: LimitBook, usage: UsageReader
    ) -> None:
        self._digest = hashlib.sha256(admin_key.encode()).digest() if admin_key else None
        self._keys, self._book, self._usage = keys, book, usage
        self._changes: set[asyncio.Task[Any]] = set()

    def accept_only(self, digest: str | None) -> None:
        """Forget the admin key if it is not the one with this SHA-256."""
        if self._digest is not None and self._digest.hex() != digest:
            self._digest = None

    async def aclose(self, seconds: float) -> None:
        """Wait so long for changes under way, and give up the others. Idempotent."""
        if self._changes:
            _, left = await asyncio.wait(self._changes, timeout=seconds)
            for task in left:
                task.cancel()
            await asyncio.gather(*left, return_exceptions=True)

    def routes(self) -> list[web.RouteDef]:
        """Return the routes, guarded."""
        table = (
            ("GET", "/admin/keys", self.list_keys),
            ("POST", "/admin/keys", self.create),
            ("GET", "/admin/keys/{id}", self.show),
            ("PATCH", "/admin/keys/{id}", self.update),
            ("POST", "/admin/keys/{id}/rotate", self.rotate),
            ("POST", "/admin/keys/{id}/revoke", self.revoke),
            ("DELETE", "/admin/keys/{id}", self.revoke),
            ("GET", "/admin/usage", self.usage),
        )
        return [web.route(method, path, self._guarded(run)) for method, path, run in table]

    def _guarded(self, run: Handler) -> Handler:
        async def guarded(request: web.Request) -> web.StreamResponse:
            self._authorise(request)
            try:
                return await run(request)
            except NoSuchKey as error:
                raise ApiError("not_found", str(error)) from None
            except ConfigError as error:
                shown = error.field or "the body"
                message = f"Invalid value for '{shown}': {error.message}."
                raise ApiError("invalid_value", message, param=error.field or None) from None

        return guarded

    def _authorise(self, request: web.Request) -> None:
        secret = secret_of(request.headers)
        if not secret:
            raise ApiError("missing_api_key", "No admin key was given.")
        presented = hashlib.sha256(secret.encode("utf-8", "surrogateescape")).digest()
        if self._digest is None or not hmac.compare_digest(presented, self._digest):
            raise ApiError("admin_key_required", "This needs the admin key (auth.admin_key).")

    async def _whole(self, change: Coroutine[Any, Any, _T]) -> _T:
        """Make a change to its end, though its caller hangs up: half of one is told to nobody."""
        task = asyncio.create_task(change)
        self._changes.add(task)
        task.add_done_callback(self._done)
        return await asyncio.shield(task)

    def _done(self, task: asyncio.Task[Any]) -> None:
        self._changes.discard(task)
        if not task.cancelled():
            task.exception()  # whoever asked has it, unless they are gone

    async def list_keys(self, request: web.Request) -> web.Response:
        """List every virtual key, or a tenant's; `has_more`: there are older ones."""
        found, more = await self._keys.all(request.query.get("tenant"))

        def written() -> bytes:
            shown = [record.public() for record in found]
            return msgspec.json.encode({"object": "list", "data": shown, "has_more": more})

        return _response(await asyncio.to_thread(written), JSON)  # thousands of them, perhaps

    async def create(self, request: web.Request) -> web.Response:
        """Make a key; the answer is the only place where its secret ever stands."""
        settings = _convert(await _body(request), KeySettings)
        self._book.check(settings)
        record, secret = await self._whole(self._keys.create(settings))
        return _json({"key": secret, **record.public()}, status=201)

    async def show(self, request: web.Request) -> web.Response:
        """Show a key's record."""
        return _json((await self._keys.get(request.match_info["id"])).public())

    async def update(self, request: web.Request) -> web.Response:
        """Change what the body names; null takes a limit away."""
        key_id, changes = request.match_info["id"], await _body(request)
        if not isinstance(changes, dict):
            raise ApiError("invalid_value", "The body must be an object.")
        blocked = changes.pop("blocked", None)
        if blocked is not None and not isinstance(blocked, bool):
            raise ApiError("invalid_value", "'blocked' is true or false.", param="blocked")
        if changes.get("tenant", "") is None:
            raise ApiError("invalid_value", "'tenant' is a name.", param="tenant")

        def change(record: VirtualKey) -> KeySettings:
            settings = merged(record, changes)
            self._book.check(settings, record.settings)
            return settings

        update = self._keys.update(key_id, change if changes else None, blocked=blocked)
        return _json((await self._whole(update)).public())

    async def rotate(self, request: web.Request) -> web.Response:
        """Give a key a new secret."""
        content = await _body(request) if request.can_read_body else {}
        grace = _convert(content, Rotation).grace_seconds
        if not 0 <= grace <= MAX_GRACE_SECONDS:
            message = f"grace_seconds is from 0 to {MAX_GRACE_SECONDS}."
            raise ApiError("invalid_value", message, param="grace_seconds")
        rotate = self._keys.rotate(request.match_info["id"], grace)
        record, secret = await self._whole(rotate)
        return _json({"key": secret, **record.public()})

    async def revoke(self, request: web.Request) -> web.Response:
        """Make a key worthless for good."""
        revoke = self._keys.revoke(request.match_info["id"])
        return _json((await self._whole(revoke)).public())

    async def usage(self, request: web.Request) -> web.Response:
        """Sum up what was used, by any of the groups, as JSON or `format=csv`."""
        asked = dict(request.query)
        form = asked.pop("format", "json")
        if form not in ("json", "csv"):
            raise ApiError("invalid_value", "'format' is json or csv.", param="format")
        try:
            rows = await self._usage.read(Query.of(asked))
        except ValueError as error:
            raise ApiError("invalid_value", f"{error}. Groups: {', '.join(GROUPS)}.") from None
        if form == "csv":
            text = await asyncio.to_thread(as_csv, rows)
            return _response(text.encode(), "text/csv")
        whole = {"object": "list", "data": rows}
        return _response(await asyncio.to_thread(msgspec.json.encode, whole), JSON)


def merged(record: VirtualKey, changes: dict[str, Any]) -> KeySettings:
    """Return a key's settings with changes. Raises what `_convert` does."""
    fields = {**msgspec.to_builtins(record.settings), **changes}
    given = {name: value for name, value in fields.items() if value is not None}
    return _convert(given, KeySettings)


async def _body(request: web.Request) -> Any:
    room = Room(MAX_BODY_BYTES)  # the operator's requests have their own
    body = await read_body(request._message, request.content, MAX_BODY_BYTES, BODY_SECONDS, room)
    try:
        return msgspec.json.decode(body)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise ApiError("invalid_json", f"The request body is not valid JSON: {error}") from None


def _convert(content: Any, kind: type[_T]) -> _T:
    """Convert a body. Raises ConfigError, or ApiError where a field is missing."""
    try:
        return shaped(content, kind)
    except ConfigError as error:
        missing = _MISSING.fullmatch(error.message)
        if missing is None:
            raise
        name = f"{error.field}.{missing[1]}".lstrip(".")
        message = f"Missing required parameter: '{name}'."
        raise ApiError("missing_required_parameter", message, param=name) from None


def _json(content: object, status: int = 200) -> web.Response:
    return _response(msgspec.json.encode(content), JSON, status)


def _response(body: bytes, kind: str, status: int = 200) -> web.Response:
    response = web.Response(body=body, status=status, content_type=kind)
    response.headers["Cache-Control"] = "no-store"
    return response
