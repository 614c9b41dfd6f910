"""What is added to requests when they are sent: access tokens that expire, or AWS's signatures.

Nothing of it is on the event loop's time: keys are used in threads; tokens are fetched by aiohttp
and renewed before they expire.
"""

import asyncio
import json
import logging
import re
import time
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Protocol
from urllib.parse import quote, urlsplit

import aiohttp
import msgspec
from msgspec import Meta

from gateway.config.schema import Entra, Provider
from gateway.core.errors import ConfigError, Failure, UpstreamError
from gateway.providers.errors import UNREADABLE
from gateway.upstream.aws_signature import AwsSigner

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.asymmetric.rsa import RSAPrivateKey

logger = logging.getLogger("sluice.credentials")

TIMEOUT = aiohttp.ClientTimeout(total=10)
RENEWED_BEFORE_SECONDS = 300.0
TRIED_AGAIN_SECONDS = 5.0
ASSUMED_SECONDS = 3600.0  # where an endpoint does not say how long its token is good
LONGEST_SECONDS = 86_400.0  # Entra's longest
GOOGLE_SCOPE = "https://www.googleapis.com/auth/cloud-platform"
GOOGLE_TOKENS = "https://oauth2.googleapis.com/token"
METADATA_HOST = "metadata.google.internal"
ENTRA_HOST = "https://login.microsoftonline.com"


_SENDABLE = r"\A[!-~]+\Z"  # what a header can hold without a second thought
_ERROR_CODE = re.compile(r"[a-z_]{1,40}")  # RFC 6749 section 5.2


class Signer(Protocol):
    """Adds header lines, each with its CRLF. Raises UpstreamError.

    `signs_body`: it must see a request whole.
    """

    signs_body: bool

    async def headers(self, method: str, authority: str, path: str, body: bytes) -> bytes:
        """Return what goes with a request."""
        ...

    @property
    def secrets(self) -> tuple[str, ...]:
        """Return what a provider may quote, and nobody else should see."""
        ...


def make_signer(provider: Provider) -> Signer | None:
    """Return what a provider's requests need; None where its key is all."""
    if provider.kind == "bedrock" and not (provider.api_key or provider.api_keys):
        assert provider.aws is not None
        assert provider.region is not None
        return AwsSigner(provider.aws, provider.region, "bedrock")
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
    for name, value in msgspec.structs.asdict(provider.aws).items() if provider.aws else ():
        if value is not None and not re.match(_SENDABLE, value):
            message = "is empty, or holds characters that HTTP forbids"
            raise ConfigError(message, field=f"{field}.aws.{name}")
    if provider.kind == "vertex" and provider.credentials is not None:
        try:
            google_source(provider.credentials)
        except (OSError, ValueError, RuntimeError) as error:
            reason = (isinstance(error, OSError) and error.strerror) or error
            message = f"no Google credentials: {reason}"
            raise ConfigError(message, field=f"{field}.credentials") from None


# Fetches a token: (token, seconds that it is good for). Raises UpstreamError, or what aiohttp does.
TokenSource = Callable[[aiohttp.ClientSession], Awaitable[tuple[str, float]]]


class BearerToken:
    """An access token, fetched by whoever comes first, renewed in good time by one of the rest."""

    signs_body = False

    def __init__(self, source: TokenSource, clock: Callable[[], float] = time.monotonic) -> None:
        self._source, self._clock = source, clock
        self._token = self._trouble = ""
        self._good_until = self._renewed_at = 0.0
        self._fetching: asyncio.Task[None] | None = None

    @property
    def secrets(self) -> tuple[str, ...]:
        """Return the token, if there is one."""
        return (self._token,) if self._token else ()

    async def headers(self, method: str, authority: str, path: str, body: bytes) -> bytes:
        """Return the token as a header. Raises UpstreamError where there is none.

        After a failure all are told the same for a while: the endpoint is not asked every time.
        """
        now = self._clock()
        if now >= self._renewed_at and self._fetching is None:
            self._fetching = asyncio.get_running_loop().create_task(self._fetch())
        if now >= self._good_until:
            if self._fetching is not None:
                await asyncio.shield(self._fetching)
            if self._trouble:
                message = f"no access token could be had: {self._trouble}"
                raise UpstreamError(Failure.CONNECT, message)
        return f"Authorization: Bearer {self._token}\r\n".encode("latin-1")

    async def _fetch(self) -> None:
        try:
            async with aiohttp.ClientSession(timeout=TIMEOUT) as session:
                token, seconds = await self._source(session)
        except UpstreamError as error:
            self._failed(error.message)
        except (aiohttp.ClientError, OSError, ValueError) as error:
            self._failed(type(error).__name__)
        else:
            now = self._clock()
            self._token, self._trouble = token, ""
            self._good_until = now + seconds - min(10.0, seconds / 10)
            self._renewed_at = now + max(seconds - RENEWED_BEFORE_SECONDS, seconds / 2)
        finally:
            self._fetching = None

    def _failed(self, trouble: str) -> None:
        self._trouble = trouble
        self._renewed_at = self._clock() + TRIED_AGAIN_SECONDS
        logger.warning("no access token: %s", trouble)


class _Token(msgspec.Struct):
    """RFC 6749 section 5.1; some write the seconds as text."""

    access_token: Annotated[str, Meta(pattern=_SENDABLE)]
    expires_in: float | None = None


class _Refusal(msgspec.Struct):
    error: str = ""


async def _ask(
    session: aiohttp.ClientSession, method: str, url: str, **options: Any
) -> tuple[str, float]:
    async with session.request(method, url, allow_redirects=False, **options) as response:
        return _token(await response.read(), response.status)


def _token(body: bytes, status: int) -> tuple[str, float]:
    """Read an endpoint's answer. Raises UpstreamError, which quotes at most an error's code."""
    try:
        if status != 200:
            code = msgspec.json.decode(body, type=_Refusal).error
            shown = f" ({code})" if _ERROR_CODE.fullmatch(code) else ""
            raise UpstreamError(Failure.STATUS, f"the token endpoint answered {status}{shown}")
        found = msgspec.json.decode(body, type=_Token, strict=False)
    except UNREADABLE:
        message = f"the token endpoint answered {status}, without a token"
        raise UpstreamError(Failure.PROTOCOL, message) from None
    seconds = ASSUMED_SECONDS if found.expires_in is None else found.expires_in
    return found.access_token, min(max(0.0, seconds), LONGEST_SECONDS)  # NaN becomes 0


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
        return await _ask(session, "POST", self._url, data=self._form)


def google_source(credentials: str | None) -> TokenSource:
    """Return where Google's tokens come from: a file's path or its JSON, else this machine's own.

    Raises OSError, ValueError or RuntimeError, which say what is wrong and quote no secret.
    """
    if credentials is None:
        return MetadataSource()
    text = credentials
    if not text.lstrip().startswith("{"):
        text = Path(text).expanduser().read_text(encoding="utf-8")
    found = msgspec.json.decode(text, type=ServiceAccount | User)
    return UserSource(found) if isinstance(found, User) else ServiceAccountSource(found)


class User(msgspec.Struct, tag_field="type", tag="authorized_user"):
    """What `gcloud auth application-default login` leaves."""

    client_id: str
    client_secret: str
    refresh_token: str


class ServiceAccount(msgspec.Struct, tag_field="type", tag="service_account"):
    """The file of a service account's key."""

    client_email: str
    private_key: str
    private_key_id: str = ""
    token_uri: str = ""


class MetadataSource:
    """The account of the machine that the gateway runs on, at Google."""

    def __init__(self, host: str = METADATA_HOST) -> None:
        self._host = host

    async def __call__(self, session: aiohttp.ClientSession) -> tuple[str, float]:
        """Fetch a token."""
        url = f"http://{self._host}/computeMetadata/v1/instance/service-accounts/default/token"
        return await _ask(session, "GET", url, headers={"Metadata-Flavor": "Google"})


class UserSource:
    """A person's account."""

    def __init__(self, user: User) -> None:
        self._form = {"grant_type": "refresh_token", **msgspec.structs.asdict(user)}

    async def __call__(self, session: aiohttp.ClientSession) -> tuple[str, float]:
        """Fetch a token."""
        return await _ask(session, "POST", GOOGLE_TOKENS, data=self._form)


class ServiceAccountSource:
    """A service account: its key signs an assertion, which buys a token (RFC 7523)."""

    def __init__(self, account: ServiceAccount) -> None:
        self._email, self._key_id = account.client_email, account.private_key_id
        self._pem = account.private_key
        _rsa_key(self._pem, thoroughly=False)
        self._url = account.token_uri or GOOGLE_TOKENS
        if urlsplit(self._url).scheme not in ("https", "http"):
            raise ValueError("token_uri is no URL")

    async def __call__(self, session: aiohttp.ClientSession) -> tuple[str, float]:
        """Fetch a token."""
        assertion = await asyncio.to_thread(self._assertion)
        form = {"grant_type": "urn:ietf:params:oauth:grant-type:jwt-bearer", "assertion": assertion}
        return await _ask(session, "POST", self._url, data=form)

    def _assertion(self) -> str:
        """Sign in a thread: checking the key takes 40 ms, an RSA signature one."""
        from cryptography.hazmat.primitives import hashes
        from cryptography.hazmat.primitives.asymmetric import padding

        now = int(time.time())
        header = {"alg": "RS256", "typ": "JWT"} | ({"kid": self._key_id} if self._key_id else {})
        claims = {
            "iss": self._email,
            "scope": GOOGLE_SCOPE,
            "aud": self._url,
            "iat": now,
            "exp": now + 3600,
        }
        signed = f"{_base64url(json.dumps(header))}.{_base64url(json.dumps(claims))}"
        key = _rsa_key(self._pem, thoroughly=True)
        signature = key.sign(signed.encode(), padding.PKCS1v15(), hashes.SHA256())
        return f"{signed}.{_base64url(signature)}"


def _rsa_key(pem: str, *, thoroughly: bool) -> "RSAPrivateKey":
    """Read a private key, and try whether its primes are such. Raises ValueError."""
    from cryptography.exceptions import UnsupportedAlgorithm
    from cryptography.hazmat.primitives.asymmetric import rsa
    from cryptography.hazmat.primitives.serialization import load_pem_private_key

    try:
        data, skipped = pem.encode(), not thoroughly
        key = load_pem_private_key(data, None, unsafe_skip_rsa_key_validation=skipped)
    except (ValueError, TypeError, UnsupportedAlgorithm):  # TypeError: it is encrypted
        raise ValueError("private_key cannot be read") from None
    if not isinstance(key, rsa.RSAPrivateKey):
        raise ValueError("private_key is no RSA key")
    return key


def _base64url(data: str | bytes) -> str:
    import base64

    raw = data.encode() if isinstance(data, str) else data
    return base64.urlsafe_b64encode(raw).rstrip(b"=").decode()
