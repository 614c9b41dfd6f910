"""Hot path: finds the principal behind a presented key. Secrets are held as SHA-256 only.

Static keys come from the configuration. Virtual ones are looked up in Redis and remembered until
any of them changes, which is asked twice a second while something is remembered.
"""

import asyncio
import contextlib
import hashlib
import logging
import time
from collections.abc import Set
from functools import lru_cache
from hmac import compare_digest

import msgspec

from gateway.config.schema import Config, Key
from gateway.core.errors import ApiError, ConfigError, StoreError
from gateway.pipeline.limiting import LimitBook
from gateway.policy.access import Principal
from gateway.store.keys import USED_EVERY_SECONDS, VirtualKey, VirtualKeys

logger = logging.getLogger("sluice.pipeline")

ANONYMOUS = "anonymous"
WATCH_SECONDS = 0.5
ANSWER_SECONDS = 0.4  # with the time between two looks less than the second that a change may take
MAX_REMEMBERED = 10_000
MAX_DIGESTS = 256  # of secrets as they came: as many as heads are remembered


class _Known(msgspec.Struct):
    """What is remembered of a digest; no principal: there is no such key."""

    principal: Principal | None
    until: float
    noted_at: float = 0.0


class Keyring:
    """The keys of a configuration and, where there is a store, the virtual ones."""

    def __init__(
        self, config: Config, virtual: VirtualKeys | None = None, *, trusting: bool = False
    ) -> None:
        self.book = LimitBook(config)
        self._by_digest: dict[bytes, tuple[bytes, Principal]] = {}
        for i, key in enumerate(config.auth.keys):
            assert key.sha256 is not None
            principal = self.book.principal(key, key.name, f"auth.keys[{i}]")
            digest = bytes.fromhex(key.sha256)
            self._by_digest[digest] = (digest, principal)
        self._expiry = {
            bytes.fromhex(key.sha256): key.expires
            for key in config.auth.keys
            if key.sha256 is not None and key.expires is not None
        }
        self._anonymous = None
        if not config.auth.enabled:
            anonymous = Key(name=ANONYMOUS)
            self._anonymous = self.book.principal(anonymous, ANONYMOUS, "limits.default")
        # Trusting: what is remembered still counts while Redis cannot be asked for changes.
        self._virtual, self._trusting = virtual, trusting
        self._remembered: dict[bytes, _Known] = {}
        self._version = -1
        self._generation = 0

    def find(self, secret: str | None) -> Principal | None:
        """Return who holds a secret as far as is known here. Raises ApiError if that is nobody.

        The lookup is by digest, so its timing tells nothing of the secret; the comparison that
        admits is constant in time.
        """
        if self._anonymous is not None:
            return self._anonymous
        if not secret:
            raise ApiError(
                "missing_api_key",
                "No API key was given. Send it as 'Authorization: Bearer KEY' or 'x-api-key: KEY'.",
            )
        digest = _digest(secret)
        known = self._by_digest.get(digest)
        if known is not None and compare_digest(known[0], digest):
            if self._expiry and self._expiry.get(digest, FOREVER) <= time.time():
                raise _invalid()
            return known[1]
        remembered = self._remembered.get(digest)
        if remembered is not None:
            return self._opened(remembered)
        if self._virtual is None:
            raise _invalid()
        return None

    def accept_only(self, digests: Set[str], *, anonymous: bool) -> None:
        """Forget static keys whose SHA-256 is none of these, and whoever needs none, if told so."""
        kept = {digest: one for digest, one in self._by_digest.items() if digest.hex() in digests}
        self._by_digest = kept
        if not anonymous:
            self._anonymous = None

    async def authenticate(self, secret: str | None) -> Principal:
        """Return who holds a secret, asking Redis if need be. Raises ApiError and StoreError."""
        principal = self.find(secret)
        if principal is not None:
            return principal
        assert self._virtual is not None
        assert secret is not None
        digest = _digest(secret)
        generation, now = self._generation, time.time()
        record = await self._virtual.find(digest.hex())
        known = _Known(None, FOREVER)
        if record is not None and (until := record.good_until(digest.hex(), now)):
            known = self._known(record, until)
        if generation == self._generation:  # else it may be of before the change
            if len(self._remembered) >= MAX_REMEMBERED:
                self._remembered.clear()
            self._remembered[digest] = known
        return self._opened(known)

    def _known(self, record: VirtualKey, until: float) -> _Known:
        try:
            return _Known(self.book.principal(record.settings, record.id), until)
        except ConfigError as error:  # who wrote it was not the gateway
            logger.warning("the key %s opens nothing: %s", record.id, error)
            return _Known(None, FOREVER)

    async def watch(self) -> None:
        """Forget what is remembered as soon as any virtual key changes; runs until cancelled."""
        while True:
            await asyncio.sleep(WATCH_SECONDS)
            if self._remembered and self._virtual is not None:
                version = await self._asked(self._virtual)
                if version != self._version or (version < 0 and not self._trusting):
                    self._remembered.clear()
                    self._generation += 1
                self._version = version

    async def _asked(self, virtual: VirtualKeys) -> int:
        """Return the version; where Redis does not say, the one before or, without trust, -1."""
        if self._trusting:
            with contextlib.suppress(StoreError):
                return await virtual.version()
            return self._version
        with contextlib.suppress(StoreError, TimeoutError):
            async with asyncio.timeout(ANSWER_SECONDS):
                return await virtual.version()
        return -1

    def _opened(self, known: _Known) -> Principal:
        now = time.time()
        if known.principal is None or known.until <= now:
            raise _invalid()
        if now - known.noted_at > USED_EVERY_SECONDS and self._virtual is not None:
            known.noted_at = now
            self._virtual.used(known.principal.key, now)
        return known.principal


FOREVER = float("inf")


@lru_cache(MAX_DIGESTS)
def _digest(secret: str) -> bytes:
    return hashlib.sha256(secret.encode("utf-8", "surrogateescape")).digest()


def _invalid() -> ApiError:
    return ApiError("invalid_api_key", "The API key is not valid.")
