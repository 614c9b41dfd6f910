"""Hot path: finds the principal behind a presented key. Secrets are held as SHA-256 only."""

import hashlib
import hmac

from gateway.config.schema import Config, Key
from gateway.core.errors import ApiError
from gateway.pipeline.limiting import LimitBook
from gateway.policy.access import Principal

ANONYMOUS = "anonymous"


class Keyring:
    """The static keys of a configuration."""

    def __init__(self, config: Config) -> None:
        book = LimitBook(config)
        self._by_digest: dict[bytes, Principal] = {}
        for i, key in enumerate(config.auth.keys):
            assert key.sha256 is not None
            self._by_digest[bytes.fromhex(key.sha256)] = book.principal(key, f"auth.keys[{i}]")
        self._anonymous = None
        if not config.auth.enabled:
            self._anonymous = book.principal(Key(name=ANONYMOUS), "limits.default")

    def authenticate(self, secret: str | None) -> Principal:
        """Return who holds the secret. Raises ApiError.

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
        digest = hashlib.sha256(secret.encode("utf-8", "surrogateescape")).digest()
        for known, principal in self._candidates(digest):
            if hmac.compare_digest(known, digest):
                return principal
        raise ApiError("invalid_api_key", "The API key is not valid.")

    def _candidates(self, digest: bytes) -> tuple[tuple[bytes, Principal], ...]:
        principal = self._by_digest.get(digest)
        return () if principal is None else ((digest, principal),)
