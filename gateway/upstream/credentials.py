"""What is added to requests when they are sent: AWS's signatures, and access tokens that expire.

Nothing of it is on the event loop's time: large bodies are hashed, and keys used, in threads;
tokens are fetched by aiohttp and renewed before they expire.
"""

import asyncio
import hashlib
import hmac
import json
import logging
import time
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any, Protocol
from urllib.parse import quote, urlsplit

import aiohttp

from gateway.config.schema import Aws, Entra, Provider
from gateway.core.errors import ConfigError, Failure, UpstreamError

logger = logging.getLogger("sluice.credentials")

LARGE_BODY_BYTES = 64 * 1024  # hashing that takes 0.1 ms
TIMEOUT = aiohttp.ClientTimeout(total=10)
RENEWED_BEFORE_SECONDS = 300.0
TRIED_AGAIN_SECONDS = 5.0
GOOGLE_SCOPE = "https://www.googleapis.com/auth/cloud-platform"
GOOGLE_TOKENS = "https://oauth2.googleapis.com/token"
METADATA_HOST = "metadata.google.internal"
ENTRA_HOST = "https://login.microsoftonline.com"


class Signer(Protocol):
    """Adds header lines, each with its CRLF. Raises UpstreamError."""

    async def headers(self, authority: str, path: str, body: bytes) -> bytes:
        """Return what goes with a POST of a body."""
        ...


def make_signer(provider: Provider) -> Signer | None:
    """Return what a provider's requests need; None where its key is all."""
    if provider.kind == "bedrock" and not (provider.api_key or provider.api_keys):
        assert provider.aws is not None
        return AwsSigner(provider.aws, provider.region or "us-east-1", "bedrock")
    if provider.kind == "azure" and provider.entra is not None:
        return BearerToken(EntraSource(provider.entra))
    if provider.kind == "vertex":
        return BearerToken(google_source(provider.credentials))
    return None


def check_signing(provider: Provider, field: str) -> None:
    """Raise ConfigError where a provider lacks what its requests need."""
    keyed = bool(provider.api_key or provider.api_keys)
    if provider.kind == "bedrock" and not keyed and provider.aws is None:
        message = "kind 'bedrock' needs an api_key, or aws keys (also AWS_ACCESS_KEY_ID ...)"
        raise ConfigError(message, field=field)
    if provider.kind == "azure" and not keyed and provider.entra is None:
        raise ConfigError("kind 'azure' needs an api_key, or entra", field=field)
    if provider.kind == "vertex" and provider.credentials is not None:
        try:
            google_source(provider.credentials)
        except (OSError, ValueError, KeyError) as error:
            message = f"no Google credentials: {type(error).__name__}"
            raise ConfigError(message, field=f"{field}.credentials") from None


class AwsSigner:
    """AWS Signature Version 4.

    https://docs.aws.amazon.com/IAM/latest/UserGuide/reference_sigv-create-signed-request.html
    """

    def __init__(
        self, keys: Aws, region: str, service: str, clock: Callable[[], float] = time.time
    ) -> None:
        self._keys, self._region, self._service, self._clock = keys, region, service, clock
        self._day_key: tuple[str, bytes] = ("", b"")

    async def headers(self, authority: str, path: str, body: bytes) -> bytes:
        """Sign a POST."""
        if len(body) > LARGE_BODY_BYTES:
            digest = await asyncio.to_thread(_sha256, body)
        else:
            digest = _sha256(body)
        return self.sign(authority, path, digest)

    def sign(self, authority: str, path: str, digest: str) -> bytes:
        """Return the header lines for a body's SHA-256."""
        moment = time.strftime("%Y%m%dT%H%M%SZ", time.gmtime(self._clock()))
        signed = {"host": authority, "x-amz-date": moment}
        if self._keys.session_token:
            signed["x-amz-security-token"] = self._keys.session_token
        names = ";".join(sorted(signed))
        bare, _, query = path.partition("?")
        canonical = "\n".join(
            (
                "POST",
                quote(bare, safe="/-_.~"),  # encoded again: only S3 wants it once
                query,
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


def _sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def _hmac(key: bytes, text: str) -> bytes:
    return hmac.digest(key, text.encode(), hashlib.sha256)


# Fetches a token: (token, seconds that it is good for).
TokenSource = Callable[[aiohttp.ClientSession], Awaitable[tuple[str, float]]]


class BearerToken:
    """An access token, fetched by whoever comes first, renewed in good time by one of the rest."""

    def __init__(self, source: TokenSource, clock: Callable[[], float] = time.monotonic) -> None:
        self._source, self._clock = source, clock
        self._token = ""
        self._good_until = self._renewed_at = 0.0
        self._fetching: asyncio.Task[None] | None = None

    async def headers(self, authority: str, path: str, body: bytes) -> bytes:
        """Return the token as a header. Raises UpstreamError where there is none."""
        now = self._clock()
        if now >= self._renewed_at and self._fetching is None:
            self._fetching = asyncio.get_running_loop().create_task(self._fetch())
        if now >= self._good_until:
            assert self._fetching is not None
            await asyncio.shield(self._fetching)
        return f"Authorization: Bearer {self._token}\r\n".encode("latin-1")

    async def _fetch(self) -> None:
        try:
            async with aiohttp.ClientSession(timeout=TIMEOUT) as session:
                token, seconds = await self._source(session)
        except (aiohttp.ClientError, TimeoutError, OSError, ValueError, KeyError) as error:
            self._renewed_at = self._clock() + TRIED_AGAIN_SECONDS
            logger.warning("no access token: %s", type(error).__name__)
            if self._clock() >= self._good_until:
                message = f"no access token could be had ({type(error).__name__})"
                raise UpstreamError(Failure.CONNECT, message) from None
        else:
            now = self._clock()
            self._token, self._good_until = token, now + seconds - 10
            self._renewed_at = now + max(seconds - RENEWED_BEFORE_SECONDS, seconds / 2)
        finally:
            self._fetching = None


async def _post_form(
    session: aiohttp.ClientSession, url: str, form: dict[str, str]
) -> tuple[str, float]:
    async with session.post(url, data=form, allow_redirects=False) as response:
        return _token(await response.json(content_type=None), response.status)


def _token(found: Any, status: int) -> tuple[str, float]:
    if status != 200 or not isinstance(found, dict):
        raise ValueError(f"the token endpoint answered {status}")
    return str(found["access_token"]), float(found.get("expires_in") or 3600)


class EntraSource:
    """Microsoft Entra, by an application's secret."""

    def __init__(self, entra: Entra, host: str = ENTRA_HOST) -> None:
        self._url = f"{host}/{quote(entra.tenant, safe='')}/oauth2/v2.0/token"
        self._form = {
            "grant_type": "client_credentials",
            "client_id": entra.client_id,
            "client_secret": entra.client_secret,
            "scope": entra.scope,
        }

    async def __call__(self, session: aiohttp.ClientSession) -> tuple[str, float]:
        """Fetch a token."""
        return await _post_form(session, self._url, self._form)


def google_source(credentials: str | None) -> TokenSource:
    """Return where Google's tokens come from: a file's path or its JSON, else this machine's own.

    Raises OSError, ValueError or KeyError.
    """
    if credentials is None:
        return MetadataSource()
    text = credentials
    if not text.lstrip().startswith("{"):
        text = Path(text).expanduser().read_text()
    found = json.loads(text)
    if found["type"] == "authorized_user":
        return UserSource(found)
    return ServiceAccountSource(found)


class MetadataSource:
    """The account of the machine that the gateway runs on, at Google."""

    def __init__(self, host: str = METADATA_HOST) -> None:
        self._host = host

    async def __call__(self, session: aiohttp.ClientSession) -> tuple[str, float]:
        """Fetch a token."""
        url = f"http://{self._host}/computeMetadata/v1/instance/service-accounts/default/token"
        async with session.get(url, headers={"Metadata-Flavor": "Google"}) as response:
            return _token(await response.json(content_type=None), response.status)


class UserSource:
    """A person's account, as `gcloud auth application-default login` leaves it."""

    def __init__(self, found: dict[str, Any]) -> None:
        self._form = {
            "grant_type": "refresh_token",
            **{name: str(found[name]) for name in ("client_id", "client_secret", "refresh_token")},
        }

    async def __call__(self, session: aiohttp.ClientSession) -> tuple[str, float]:
        """Fetch a token."""
        return await _post_form(session, GOOGLE_TOKENS, self._form)


class ServiceAccountSource:
    """A service account: its key signs an assertion, which buys a token (RFC 7523)."""

    def __init__(self, found: dict[str, Any]) -> None:
        self._email, self._pem = str(found["client_email"]), str(found["private_key"])
        self._key_id = str(found.get("private_key_id", ""))
        self._url = str(found.get("token_uri") or GOOGLE_TOKENS)
        if urlsplit(self._url).scheme not in ("https", "http"):
            raise ValueError("token_uri")

    async def __call__(self, session: aiohttp.ClientSession) -> tuple[str, float]:
        """Fetch a token."""
        assertion = await asyncio.to_thread(self._assertion)
        form = {"grant_type": "urn:ietf:params:oauth:grant-type:jwt-bearer", "assertion": assertion}
        return await _post_form(session, self._url, form)

    def _assertion(self) -> str:
        """Sign in a thread: an RSA signature takes a millisecond."""
        from cryptography.hazmat.primitives import hashes
        from cryptography.hazmat.primitives.asymmetric import padding, rsa
        from cryptography.hazmat.primitives.serialization import load_pem_private_key

        now = int(time.time())
        header = {"alg": "RS256", "typ": "JWT", "kid": self._key_id}
        claims = {
            "iss": self._email,
            "scope": GOOGLE_SCOPE,
            "aud": self._url,
            "iat": now,
            "exp": now + 3600,
        }
        signed = f"{_base64url(json.dumps(header))}.{_base64url(json.dumps(claims))}"
        key = load_pem_private_key(self._pem.encode(), None)
        if not isinstance(key, rsa.RSAPrivateKey):
            raise ValueError("private_key")
        signature = key.sign(signed.encode(), padding.PKCS1v15(), hashes.SHA256())
        return f"{signed}.{_base64url(signature)}"


def _base64url(data: str | bytes) -> str:
    import base64

    raw = data.encode() if isinstance(data, str) else data
    return base64.urlsafe_b64encode(raw).rstrip(b"=").decode()
