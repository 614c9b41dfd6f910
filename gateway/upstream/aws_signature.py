"""AWS Signature Version 4. Large bodies are hashed in a thread.

https://docs.aws.amazon.com/IAM/latest/UserGuide/reference_sigv-create-signed-request.html
"""

import asyncio
import hashlib
import hmac
import time
from collections.abc import Callable
from urllib.parse import quote

from gateway.config.schema import Aws

LARGE_BODY_BYTES = 64 * 1024  # hashing that takes 0.1 ms


class AwsSigner:
    """Signs requests with one pair of keys."""

    signs_body = True

    def __init__(
        self, keys: Aws, region: str, service: str, clock: Callable[[], float] = time.time
    ) -> None:
        self._keys, self._region, self._service, self._clock = keys, region, service, clock
        self._day_key: tuple[str, bytes] = ("", b"")

    @property
    def secrets(self) -> tuple[str, ...]:
        """Return the keys."""
        keys = self._keys
        return (keys.secret_key, *([keys.session_token] if keys.session_token else []))

    async def headers(self, method: str, authority: str, path: str, body: bytes) -> bytes:
        """Return the header lines for a request."""
        if len(body) > LARGE_BODY_BYTES:
            digest = await asyncio.to_thread(_sha256, body)
        else:
            digest = _sha256(body)
        return self.sign(method, authority, path, digest)

    def sign(self, method: str, authority: str, path: str, digest: str) -> bytes:
        """Return the header lines for a body's SHA-256."""
        moment = time.strftime("%Y%m%dT%H%M%SZ", time.gmtime(self._clock()))
        signed = {"host": authority, "x-amz-date": moment}
        if self._keys.session_token:
            signed["x-amz-security-token"] = self._keys.session_token
        names = ";".join(sorted(signed))
        bare, _, query = path.partition("?")
        canonical = "\n".join(
            (
                method,
                _canonical_path(bare),
                _canonical_query(query),
                *[f"{name}:{signed[name]}" for name in sorted(signed)],
                "",
                names,
                digest,
            )
        )
        scope = f"{moment[:8]}/{self._region}/{self._service}/aws4_request"
        text = "\n".join(("AWS4-HMAC-SHA256", moment, scope, _sha256(canonical.encode())))
        signature = _hmac(self._key(moment[:8]), text).hex()
        credential = f"Credential={self._keys.access_key}/{scope}"
        lines = [
            f"Authorization: AWS4-HMAC-SHA256 {credential}, SignedHeaders={names}, "
            f"Signature={signature}",
            *[f"{name}: {value}" for name, value in signed.items() if name != "host"],
        ]
        return "".join([f"{line}\r\n" for line in lines]).encode("latin-1")

    def _key(self, day: str) -> bytes:
        if self._day_key[0] != day:
            key = f"AWS4{self._keys.secret_key}".encode()
            for part in (day, self._region, self._service, "aws4_request"):
                key = _hmac(key, part)
            self._day_key = (day, key)
        return self._day_key[1]


def _canonical_path(path: str) -> str:
    """Encode a path again (only S3 wants it once), without its empty and dot segments."""
    kept: list[str] = []
    for segment in path.split("/"):
        if segment == "..":
            del kept[-1:]
        elif segment not in ("", "."):
            kept.append(segment)
    end = "/" if kept and path.endswith("/") else ""
    return quote(f"/{'/'.join(kept)}{end}", safe="/-_.~")


def _canonical_query(query: str) -> str:
    pairs = sorted(pair.partition("=")[::2] for pair in query.split("&")) if query else []
    return "&".join([f"{name}={value}" for name, value in pairs])


def _sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def _hmac(key: bytes, text: str) -> bytes:
    return hmac.digest(key, text.encode(), hashlib.sha256)
