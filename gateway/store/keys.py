"""Virtual keys in Redis: made, listed, changed, rotated and revoked while the gateway runs.

A secret is shown once and never kept: the record has its SHA-256. Every change raises a version
that workers watch, so none acts on an old record for longer than a second.
"""

import asyncio
import contextlib
import hashlib
import logging
import secrets
import time
from collections.abc import Awaitable, Callable
from functools import partial
from typing import Any

import msgspec

from gateway.config.schema import KeySettings
from gateway.core.errors import SluiceError, StoreError
from gateway.store import names, scripts
from gateway.store.client import Client, ran
from gateway.store.connection import Reply
from gateway.store.lease import batches

SECRET_PREFIX = "sk-sluice-"  # noqa: S105  what all of them begin with
SECRET_BYTES = 32
ID_BYTES = 8
MAX_LISTED = 10_000
USED_EVERY_SECONDS = 60
MAX_GRACE_SECONDS = 10 * 366 * 86_400  # that both secrets of a rotation work
MAX_TRIES = 5
PAUSE_SECONDS = 0.2  # between them

logger = logging.getLogger("sluice.store")

_json = msgspec.json.Encoder().encode
_TEXT = {"name", "tenant"}  # settings kept as they are; the others as JSON
_TOGETHER = ("rpm", "burst")  # the second means nothing without the first


class VirtualKey(msgspec.Struct, frozen=True):
    """A key's record. Times are Unix seconds; 0 means never. After a rotation the secret before is
    good until `previous_until`.
    """

    id: str
    settings: KeySettings
    sha256: str
    created: int
    previous_sha256: str = ""
    previous_until: int = 0
    last_used: int = 0
    blocked: bool = False
    revoked: int = 0
    edition: int = 0  # of the settings: how often they were changed

    def good_until(self, digest: str, now: float) -> float:
        """Return until when a secret with this digest opens anything; 0 for not at all."""
        if self.blocked or self.revoked:
            return 0
        expires = self.settings.expires
        until = float("inf") if expires is None else expires
        if digest == self.previous_sha256:
            until = min(until, self.previous_until)
        elif digest != self.sha256:
            return 0
        return until if until > now else 0

    def public(self) -> dict[str, Any]:
        """Return what may be shown: everything, as it holds no secret."""
        shown = msgspec.to_builtins(self.settings)
        own = ("sha256", "created", "previous_until", "last_used", "blocked", "revoked")
        return {"id": self.id, **shown} | {name: getattr(self, name) for name in own}


# Returns what a key's settings are to be, None for what they are; raises what forbids it.
Change = Callable[[VirtualKey], KeySettings | None]


class NoSuchKey(SluiceError):
    """There is no virtual key of that id, or none that could be meant."""


class VirtualKeys:
    """All virtual keys. Every method raises StoreError."""

    def __init__(self, client: Client) -> None:
        self._client = client

    async def create(self, settings: KeySettings) -> tuple[VirtualKey, str]:
        """Make a key; return its record and its secret, which nobody can show again."""
        secret = new_secret()
        record = VirtualKey(
            id="key_" + secrets.token_hex(ID_BYTES),
            settings=settings,
            sha256=sha256(secret),
            created=int(time.time()),
        )
        await self._change(record.id, encode(record))
        await self._client.call("HSET", names.KEYS, record.sha256, record.id)
        return record, secret

    async def find(self, digest: str) -> VirtualKey | None:
        """Return the key that a secret with this SHA-256 belongs to."""
        found = await self._client.call("HGET", names.KEYS, digest)
        return None if found is None else await self._read(found.decode())

    async def get(self, key_id: str) -> VirtualKey:
        """Return a record. Raises NoSuchKey."""
        record = await self._read(key_id)
        if record is None:
            raise NoSuchKey(f"there is no key {key_id[:64]!r}")
        return record

    async def all(self, tenant: str | None = None) -> tuple[list[VirtualKey], bool]:
        """Return all records, or a tenant's, the oldest first; and whether older ones are left out.

        MAX_LISTED at the most: those that were made last.
        """
        ids = {value.decode() for value in await self._client.call("HVALS", names.KEYS)}
        newest: list[VirtualKey] = []
        more = False
        for part in batches(sorted(ids)):  # requests share this connection
            found = await asyncio.gather(*(self._read(one) for one in part))
            newest += [r for r in found if r is not None and tenant in (None, r.settings.tenant)]
            if len(newest) > MAX_LISTED:
                more = True
                newest = sorted(newest, key=_age)[-MAX_LISTED:]
        return sorted(newest, key=_age), more

    async def update(
        self, key_id: str, change: Change | None = None, *, blocked: bool | None = None
    ) -> VirtualKey:
        """Change what differs from a record as it was read, and nothing else. Raises NoSuchKey.

        Others may be changing it as well: `change` is asked again where they were faster, so what
        it allows is what comes about. Raises what it does.
        """
        own = {} if blocked is None else {"blocked": str(int(blocked))}
        for _ in range(MAX_TRIES):
            record = await self.get(key_id)
            settings = None if change is None else change(record)
            if settings is None:
                await self._change(key_id, own)
                return await self.get(key_id)
            before, after = _encode_settings(record.settings), _encode_settings(settings)
            changes = {name: value for name, value in after.items() if value != before.get(name)}
            if not changes.keys().isdisjoint(_TOGETHER):
                changes |= {name: after[name] for name in _TOGETHER}
            args = [b"%d" % record.edition, *map(str.encode, _flat(changes | own))]
            if await _insisted(
                partial(ran, self._client, scripts.CHANGE_KEY, [names.key(key_id)], *args)
            ):
                await self._tell()
                return await self.get(key_id)
        raise StoreError(f"the key {key_id!r} is being changed by others")

    async def rotate(self, key_id: str, grace_seconds: int) -> tuple[VirtualKey, str]:
        """Give a key a new secret; the one before works for the grace. Raises NoSuchKey."""
        for _ in range(MAX_TRIES):
            record, secret = await self.get(key_id), new_secret()
            if record.revoked:
                raise NoSuchKey(f"the key {key_id[:64]!r} is revoked")
            digest, until = sha256(secret), int(time.time()) + grace_seconds
            await self._client.call("HSET", names.KEYS, digest, key_id)
            args = (record.sha256.encode(), digest.encode(), b"%d" % until)
            change = partial(ran, self._client, scripts.ROTATE, [names.key(key_id)], *args)
            if await _insisted(change):  # without a reply nobody knows whether it is done
                return await self._rotated(key_id, record, digest, until), secret
            await self._client.call("HDEL", names.KEYS, digest)
        raise StoreError(f"the key {key_id!r} is being changed by others")

    async def _rotated(
        self, key_id: str, before: VirtualKey, digest: str, until: int
    ) -> VirtualKey:
        """Let it be known of a rotation, and return the record: it is done, whatever fails now."""
        try:
            await self._tell()
            await self._client.call("HDEL", names.KEYS, before.previous_sha256 or "-")
            return await self.get(key_id)
        except StoreError as error:
            logger.warning("the key %s is rotated; not all workers may know: %s", key_id, error)
        return msgspec.structs.replace(
            before, sha256=digest, previous_sha256=before.sha256, previous_until=until
        )

    async def revoke(self, key_id: str) -> VirtualKey:
        """Make a key's secrets worthless for good; the record stays. Raises NoSuchKey."""
        record = await self.get(key_id)
        revoked = record.revoked or int(time.time())
        await self._change(key_id, {"revoked": str(revoked)})
        return await self.get(key_id)

    async def version(self) -> int:
        """Return a number that changes with every change of any key."""
        return int(await self._client.call("GET", names.KEYS_VERSION) or 0)

    def used(self, key_id: str, now: float) -> None:
        """Note that a key was used. Its record exists for ever, so this makes none."""
        self._client.post("HSET", names.key(key_id), "last_used", int(now))

    async def _read(self, key_id: str) -> VirtualKey | None:
        flat = await self._client.call("HGETALL", names.key(key_id))
        return decode(dict(zip(flat[::2], flat[1::2], strict=True))) if flat else None

    async def _change(self, key_id: str, changes: dict[str, str]) -> None:
        """Write what is to change, and then let it be known.

        Also where nothing is: somebody who asks again may have failed in between.
        """
        if changes:
            await self._client.call("HSET", names.key(key_id), *_flat(changes))
        await self._tell()

    async def _tell(self) -> None:
        """Let workers know that a key has changed."""
        await _insisted(partial(self._client.call, "INCR", names.KEYS_VERSION))


def _flat(pairs: dict[str, str]) -> list[str]:
    return [part for pair in pairs.items() for part in pair]


async def _insisted(ask: Callable[[], Awaitable[Reply]]) -> Reply:
    """Ask again where Redis does not answer. Raises StoreError."""
    for _ in range(MAX_TRIES - 1):
        with contextlib.suppress(StoreError):
            return await ask()
        await asyncio.sleep(PAUSE_SECONDS)
    return await ask()


def _age(record: VirtualKey) -> tuple[int, str]:
    return record.created, record.id


def new_secret() -> str:
    """Return a new secret of 256 random bits."""
    return SECRET_PREFIX + secrets.token_urlsafe(SECRET_BYTES)


def sha256(secret: str) -> str:
    """Return the digest under which a secret is known."""
    return hashlib.sha256(secret.encode("utf-8", "surrogateescape")).hexdigest()


def encode(record: VirtualKey) -> dict[str, str]:
    """Return a record as a flat hash that can be read with redis-cli."""
    flat = _encode_settings(record.settings)
    for name in VirtualKey.__struct_fields__:
        if name not in ("settings", "last_used"):
            flat[name] = str(int(v)) if isinstance(v := getattr(record, name), int) else v
    return flat


def _encode_settings(settings: KeySettings) -> dict[str, str]:
    built = msgspec.to_builtins(settings)
    return {n: v if n in _TEXT else _json(v).decode() for n, v in built.items()}


def decode(flat: dict[bytes, bytes]) -> VirtualKey | None:
    """Read a hash; None for one that is not a key's whole record."""
    try:
        text = {name.decode(): value.decode() for name, value in flat.items()}
        settings = {
            name: text[name] if name in _TEXT else msgspec.json.decode(text[name])
            for name in KeySettings.__struct_fields__
            if name in text
        }
        return VirtualKey(
            id=text["id"],
            settings=msgspec.convert(settings, KeySettings),
            sha256=text["sha256"],
            created=int(text["created"]),
            previous_sha256=text["previous_sha256"],
            previous_until=int(text["previous_until"]),
            last_used=int(text.get("last_used", "0")),
            blocked=text["blocked"] != "0",
            revoked=int(text["revoked"]),
            edition=int(text.get("edition", "0")),
        )
    except (KeyError, ValueError, RecursionError, msgspec.MsgspecError):
        return None
