"""The admin API: virtual keys and usage, for whoever holds the admin key."""

import hashlib
import hmac
import re
from collections.abc import Awaitable, Callable
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
from gateway.store.usage import GROUPS, Query, UsageReader

MAX_BODY_BYTES, BODY_SECONDS = 64 * 1024, 30.0
DEFAULT_GRACE_SECONDS = 24 * 3600

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

    async def list_keys(self, request: web.Request) -> web.Response:
        """List every virtual key, or a tenant's; `has_more`: there are older ones."""
        found, more = await self._keys.all(request.query.get("tenant"))
        return _json({"object": "list", "data": [r.public() for r in found], "has_more": more})

    async def create(self, request: web.Request) -> web.Response:
        """Make a key; the answer is the only place where its secret ever stands."""
        settings = _convert(await _body(request), KeySettings)
        self._book.check(settings)
        record, secret = await self._keys.create(settings)
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
        record, settings = await self._keys.get(key_id), None
        if changes:
            settings = merged(record, changes)
            self._book.check(settings, record.settings)
        return _json((await self._keys.update(record, settings, blocked=blocked)).public())

    async def rotate(self, request: web.Request) -> web.Response:
        """Give a key a new secret."""
        content = await _body(request) if request.can_read_body else {}
        grace = _convert(content, Rotation).grace_seconds
        if not 0 <= grace <= MAX_GRACE_SECONDS:
            message = f"grace_seconds is from 0 to {MAX_GRACE_SECONDS}."
            raise ApiError("invalid_value", message, param="grace_seconds")
        record, secret = await self._keys.rotate(request.match_info["id"], grace)
        return _json({"key": secret, **record.public()})

    async def revoke(self, request: web.Request) -> web.Response:
        """Make a key worthless for good."""
        return _json((await self._keys.revoke(request.match_info["id"])).public())

    async def usage(self, request: web.Request) -> web.Response:
        """Sum up what was used, by any of the groups."""
        try:
            rows = await self._usage.read(Query.of(dict(request.query)))
        except ValueError as error:
            raise ApiError("invalid_value", f"{error}. Groups: {', '.join(GROUPS)}.") from None
        return _json({"object": "list", "data": [msgspec.to_builtins(row) for row in rows]})


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
    body = msgspec.json.encode(content)
    response = web.Response(body=body, status=status, content_type="application/json")
    response.headers["Cache-Control"] = "no-store"
    return response
