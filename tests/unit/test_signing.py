"""Signatures as botocore and AWS make them; tokens from endpoints that misbehave; configuration."""

import asyncio
import base64
import gc
import hashlib
import json
import logging
import time
from functools import cache
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, quote

import aiohttp
import pytest
from botocore.auth import SigV4Auth  # type: ignore[import-untyped]  # it has no types
from botocore.awsrequest import AWSRequest  # type: ignore[import-untyped]
from botocore.credentials import Credentials  # type: ignore[import-untyped]
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, padding, rsa
from cryptography.hazmat.primitives.asymmetric.types import PrivateKeyTypes
from cryptography.hazmat.primitives.serialization import (
    BestAvailableEncryption,
    Encoding,
    KeySerializationEncryption,
    NoEncryption,
    PrivateFormat,
)
from hypothesis import given
from hypothesis import strategies as st

from gateway.config.load import load
from gateway.config.schema import Aws, Entra
from gateway.core.errors import ConfigError, Failure, UpstreamError
from gateway.core.operations import Operation
from gateway.pipeline.catalogue import Catalogue
from gateway.pipeline.served import Route
from gateway.policy.pricing import PriceTable, Table
from gateway.upstream import credentials
from gateway.upstream.aws_signature import LARGE_BODY_BYTES, AwsSigner
from gateway.upstream.credentials import (
    GOOGLE_SCOPE,
    LONGEST_SECONDS,
    TRIED_AGAIN_SECONDS,
    BearerToken,
    EntraSource,
    MetadataSource,
    google_source,
)
from tests.support.upstream import Behaviour, Exchange, Upstream
from workers.settings import verify

SUITE = Aws("AKIDEXAMPLE", "wJalrXUtnFEMI/K7MDENG+bPxRfiCYEXAMPLEKEY")
SUITE_MOMENT = 1440938160.0  # 2015-08-30 12:36:00 UTC
SUITE_TOKEN = (
    "AQoDYXdzEPT//////////wEXAMPLEtc764bNrC9SAPBSM22wDOk4x4HIZ8j4FZTwdQWLWsKWHGBuFqwAeMicRXmxfpSPfI"
    "eoIYRqTflfKD8YUuwthAx7mSEI/qkPpKPi/kMcGdQrmGdeehM4IC1NtBmUpp2wUE8phUZampKsburEDy0KPkyQDYwT7WZ0"
    "wq5VSXDvp75YU9HFvlRd8Tx6q6fE8YQcHNVXAkiY9q6d+xo0rKwT38xVqr7ZD0u0iPPkUL64lIZbqBAz+scqKmlzm8FDry"
    "pNC9Yjc8fPOLn9FX9KSYvKTr4rvx3iSIlTJabIQwj2ICCR/oLxBA=="
)
HOST = "bedrock-runtime.eu-central-1.amazonaws.com"
TOKEN, SECRET = "token-0123456789", "very-secret-0123456789"
ENTRA = Entra("a tenant/x", "client-1", SECRET)


# --- AWS's signatures ----------------------------------------------------------------------------


def lines_of(head: bytes) -> dict[str, str]:
    assert head.endswith(b"\r\n")
    pairs = [line.partition(": ") for line in head.decode("ascii").split("\r\n")[:-1]]
    assert len({name.lower() for name, _, _ in pairs}) == len(pairs)
    return {name.lower(): value for name, _, value in pairs}


def ours(
    keys: Aws,
    path: str,
    body: bytes,
    region: str = "eu-central-1",
    moment: float = SUITE_MOMENT,
    method: str = "POST",
) -> dict[str, str]:
    signer = AwsSigner(keys, region, "bedrock", lambda: moment)
    return lines_of(signer.sign(method, HOST, path, hashlib.sha256(body).hexdigest()))


def theirs(
    keys: Aws,
    path: str,
    body: bytes,
    region: str = "eu-central-1",
    moment: float = SUITE_MOMENT,
    method: str = "POST",
) -> str:
    """The signature that botocore makes."""
    found = Credentials(keys.access_key, keys.secret_key, keys.session_token)
    auth = SigV4Auth(found, "bedrock", region)
    request = AWSRequest(method, f"https://{HOST}{path}", data=body)
    stamp = time.strftime("%Y%m%dT%H%M%SZ", time.gmtime(moment))
    request.context["timestamp"] = stamp
    request.headers["X-Amz-Date"] = stamp
    if keys.session_token:
        request.headers["X-Amz-Security-Token"] = keys.session_token
    text = auth.string_to_sign(request, auth.canonical_request(request))
    return str(auth.signature(text, request))


def assert_signed_alike(path: str, body: bytes = b"{}", **options: Any) -> None:
    keys = options.pop("keys", SUITE)
    expected = theirs(keys, path, body, **options)
    assert ours(keys, path, body, **options)["authorization"].endswith(f"Signature={expected}")


# AWS's own test suite for Signature Version 4, those of its POSTs that sign no further header.
VECTORS = {
    "post-vanilla": ("/", None, "5da7c1a2acd57cee7505fc6676e4e544621c30862966e37dddb68e92efbe5d6b"),
    "post-vanilla-query": (
        "/?Param1=value1",
        None,
        "28038455d6de14eafc1f9222cf5aa6f1a96197d7deb8263271d420d138af7f11",
    ),
    "post-sts-header-before": (
        "/",
        SUITE_TOKEN,
        "85d96828115b5dc0cfc3bd16ad9e210dd772bbebba041836c64533a82be05ead",
    ),
}


@pytest.mark.parametrize(("path", "token", "signature"), VECTORS.values(), ids=VECTORS)
async def test_signatures_are_those_that_aws_publishes(
    path: str, token: str | None, signature: str
) -> None:
    keys = Aws(SUITE.access_key, SUITE.secret_key, token)
    signer = AwsSigner(keys, "us-east-1", "service", lambda: SUITE_MOMENT)
    found = lines_of(await signer.headers("POST", "example.amazonaws.com", path, b""))
    names = "host;x-amz-date" + (";x-amz-security-token" if token else "")
    assert found.pop("authorization") == (
        "AWS4-HMAC-SHA256 Credential=AKIDEXAMPLE/20150830/us-east-1/service/aws4_request, "
        f"SignedHeaders={names}, Signature={signature}"
    )
    given = {"x-amz-security-token": token} if token else {}
    assert found == {"x-amz-date": "20150830T123600Z", **given}


MODELS = (
    "anthropic.claude-3-5-sonnet-20240620-v1:0",
    "eu.amazon.nova-lite-v1:0",
    "arn:aws:bedrock:eu-central-1:123456789012:inference-profile/eu.amazon.nova-lite-v1:0",
    "arn:aws:bedrock:us-east-1:123456789012:application-inference-profile/a1b2c3",
    "arn:aws:sagemaker:us-west-2:123456789012:endpoint/my-endpoint",
    *("50%", "%3A", "a b", "a+b", "a=b&c", "~_-.", "模型", "\N{ROBOT FACE}", "a'b(c)!*", "é"),
)


@pytest.mark.parametrize("model", MODELS)
def test_a_models_path_is_signed_as_botocore_does(model: str) -> None:
    for method in ("converse", "converse-stream"):
        assert_signed_alike(f"/model/{quote(model, safe='')}/{method}")


@pytest.mark.parametrize(
    "path",
    [
        *("/", "", "//", "/a//b", "/a/", "/a//", "/./a", "/a/.", "/a/./", "/..", "/a/..", "/a/../"),
        *("/../../a", "/a/b/../../c//./d/", "/...", "/a/..b", "/%2E%2E/a", "/a%2Fb", "/a%252Fb"),
        *("/a?", "/?b=2&a=1", "/?a=2&a=1", "/?a", "/?a&b=", "/?a-b=1&a=1", "/?a=b=c", "/?=x&&y"),
        *("/?a=%20+%2B", "/a/../b?x=/../y", "/?a=?b"),
    ],
)
def test_an_odd_path_is_signed_as_botocore_does(path: str) -> None:
    assert_signed_alike(path)


VISIBLE = st.characters(min_codepoint=0x21, max_codepoint=0x7E, exclude_characters="?#/\\")
SEGMENTS = st.text(VISIBLE, max_size=8) | st.sampled_from(["", ".", "..", "%2e"])
PATHS = st.lists(SEGMENTS, max_size=6).map(lambda segments: "/" + "/".join(segments))
QUERIES = st.text(VISIBLE | st.sampled_from("&=&="), max_size=12).map(lambda text: f"?{text}")
SECRETS = st.text(st.characters(min_codepoint=0x21, max_codepoint=0x7E), min_size=1, max_size=50)


@given(
    path=PATHS,
    query=QUERIES | st.just(""),
    body=st.binary(max_size=200),
    keys=st.builds(Aws, SECRETS, SECRETS, st.none() | SECRETS),
    region=st.sampled_from(["us-east-1", "ap-southeast-2", "us-gov-west-1", "cn-north-1"]),
    moment=st.floats(min_value=0, max_value=4e9),
    method=st.sampled_from(["POST", "GET", "PUT", "PATCH", "DELETE", "HEAD", "OPTIONS"]),
)
def test_any_path_and_body_are_signed_as_botocore_does(
    path: str, query: str, body: bytes, keys: Aws, region: str, moment: float, method: str
) -> None:
    assert_signed_alike(path + query, body, keys=keys, region=region, moment=moment, method=method)


async def test_a_large_body_is_signed_as_a_small_one() -> None:
    signer = AwsSigner(SUITE, "eu-central-1", "bedrock", lambda: SUITE_MOMENT)
    for size in (0, LARGE_BODY_BYTES, LARGE_BODY_BYTES + 1, 5 * LARGE_BODY_BYTES):
        found = lines_of(await signer.headers("POST", HOST, "/model/m/converse", b"x" * size))
        expected = theirs(SUITE, "/model/m/converse", b"x" * size)
        assert found["authorization"].endswith(f"Signature={expected}")


def test_the_key_of_a_day_is_not_used_on_the_next() -> None:
    midnight = 1440979200.0  # 2015-08-31 00:00:00 UTC
    moments = iter([midnight - 1, midnight, midnight - 0.5])
    signer = AwsSigner(SUITE, "eu-central-1", "bedrock", lambda: next(moments))
    for moment in (midnight - 1, midnight, midnight - 0.5):
        head = lines_of(signer.sign("POST", HOST, "/", hashlib.sha256(b"").hexdigest()))
        assert head["authorization"].endswith(theirs(SUITE, "/", b"", moment=moment))


# --- Access tokens: when they are fetched --------------------------------------------------------


class Clock:
    """A clock that a test turns."""

    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


class Source:
    """Gives token-1, token-2 ... while its gate is open; `trouble` is raised instead."""

    def __init__(self, seconds: float = 3600.0) -> None:
        self.asked, self.seconds = 0, seconds
        self.trouble: Exception | None = None
        self.gate = asyncio.Event()
        self.gate.set()

    async def __call__(self, session: aiohttp.ClientSession) -> tuple[str, float]:
        self.asked += 1
        await self.gate.wait()
        if self.trouble is not None:
            raise self.trouble
        return f"token-{self.asked}", self.seconds


async def shown(token: BearerToken) -> str:
    async with asyncio.timeout(5):
        head = await token.headers("POST", "h", "/", b"")
    return head.decode().removeprefix("Authorization: Bearer ").removesuffix("\r\n")


def origin(upstream: Upstream) -> str:
    return upstream.url.removesuffix("/v1")


async def settle() -> None:
    for _ in range(20):
        await asyncio.sleep(0)


async def refused(token: BearerToken) -> str:
    with pytest.raises(UpstreamError) as caught:
        await shown(token)
    assert caught.value.failure is Failure.CONNECT
    assert (caught.value.status, caught.value.body) == (0, b"")
    return caught.value.message


async def test_one_fetch_serves_everybody() -> None:
    source = Source()
    token = BearerToken(source, Clock())
    source.gate.clear()
    waiting = [asyncio.create_task(shown(token)) for _ in range(100)]
    await settle()
    source.gate.set()
    assert set(await asyncio.gather(*waiting)) == {"token-1"}
    assert [await shown(token) for _ in range(5)] == ["token-1"] * 5
    assert source.asked == 1


async def test_a_token_is_renewed_in_good_time_and_nobody_waits() -> None:
    source, clock = Source(), Clock()
    token = BearerToken(source, clock)
    await shown(token)
    clock.now += 3299
    assert await shown(token) == "token-1"
    assert source.asked == 1
    clock.now += 1
    source.gate.clear()
    assert [await shown(token) for _ in range(50)] == ["token-1"] * 50
    await settle()
    assert source.asked == 2
    clock.now += 200
    assert await shown(token) == "token-1"
    source.gate.set()
    await settle()
    assert await shown(token) == "token-2"
    assert source.asked == 2


async def test_a_renewal_that_outlasts_the_old_token_is_waited_for() -> None:
    source, clock = Source(), Clock()
    token = BearerToken(source, clock)
    await shown(token)
    clock.now += 3400
    source.gate.clear()
    assert await shown(token) == "token-1"
    clock.now += 200
    waiting = [asyncio.create_task(shown(token)) for _ in range(10)]
    await settle()
    source.gate.set()
    assert set(await asyncio.gather(*waiting)) == {"token-2"}


async def test_while_renewing_fails_the_old_token_is_used_up() -> None:
    source, clock = Source(), Clock()
    token = BearerToken(source, clock)
    await shown(token)
    source.trouble = aiohttp.ClientError()
    for _ in range(58):  # from 3300 s to 3590 s of its 3600
        clock.now = 1000 + 3300 + (source.asked - 1) * TRIED_AGAIN_SECONDS
        for _ in range(3):
            assert await shown(token) == "token-1"
        await settle()
    assert source.asked == 59
    clock.now = 1000 + 3600
    assert await refused(token)
    source.trouble = None
    clock.now += TRIED_AGAIN_SECONDS
    assert await shown(token) == "token-61"


async def test_after_a_failure_nobody_asks_for_a_while() -> None:
    source, clock = Source(), Clock()
    source.trouble = aiohttp.ClientError()
    token = BearerToken(source, clock)
    failed = await asyncio.gather(*(refused(token) for _ in range(100)))
    assert len(set(failed)) == 1
    clock.now += TRIED_AGAIN_SECONDS - 0.01
    assert await refused(token) == failed[0]
    assert source.asked == 1
    source.trouble = None
    clock.now += 0.02
    assert await shown(token) == "token-2"


async def test_whoever_leaves_takes_nothing_from_the_others(
    caplog: pytest.LogCaptureFixture,
) -> None:
    for trouble in (None, aiohttp.ClientError()):
        source = Source()
        source.trouble = trouble
        token = BearerToken(source, Clock())
        source.gate.clear()
        first, *others = [
            asyncio.create_task(token.headers("POST", "h", "/", b"")) for _ in range(3)
        ]
        await settle()
        first.cancel()
        await settle()
        source.gate.set()
        done = await asyncio.gather(first, *others, return_exceptions=True)
        assert isinstance(done[0], asyncio.CancelledError)
        expected = UpstreamError if trouble else bytes
        assert all(isinstance(one, expected) for one in done[1:])
        assert source.asked == 1

        source.gate.clear()  # now all of them leave, and the fetch goes on for nobody
        lonely = BearerToken(source, Clock())
        task = asyncio.create_task(lonely.headers("POST", "h", "/", b""))
        await settle()
        task.cancel()
        await settle()
        source.gate.set()
        await settle()
    del done, task
    gc.collect()
    assert not [record for record in caplog.records if record.name == "asyncio"]


# Seconds that an endpoint gives, and how long its token is used without asking again at most.
LIFETIMES: list[tuple[Any, float]] = [
    *((0, 0), (-5, 0), ("0", 0), ("-1e9", 0), ("nan", 0), (1, 1), (0.001, 1)),
    *((5, 5), (15, 15), (20, 20), (299, 299), (301, 301), ("3599", 3599), (None, 3600)),
    *((10**12, LONGEST_SECONDS), ("inf", LONGEST_SECONDS)),
]


@pytest.mark.parametrize(("given", "most"), LIFETIMES, ids=repr)
async def test_however_long_a_token_is_good_requests_have_one(
    upstream: Upstream, given: Any, most: float
) -> None:
    clock, since = Clock(), dict[str, float]()

    async def behave(exchange: Exchange) -> None:
        name = f"token-{len(since) + 1}"
        since[name] = clock.now
        await exchange.reply({"access_token": name, "expires_in": given})

    upstream.behaviour = behave
    token = BearerToken(MetadataSource(origin(upstream).removeprefix("http://")), clock)
    for _ in range(60):
        assert clock.now - since.get(await shown(token), 0) <= most
        await settle()
        clock.now += max(most, 1) / 17
    assert len(since) > 3  # 60 steps are three lifetimes and a half


# --- Access tokens: endpoints --------------------------------------------------------------------


def answering(body: Any, status: int = 200, **headers: str) -> Behaviour:
    async def behave(exchange: Exchange) -> None:
        named = {name.replace("_", "-"): value for name, value in headers.items()}
        await exchange.reply(body, status, named)

    return behave


async def drips(exchange: Exchange) -> None:
    await exchange.send(b"HTTP/1.1 200 OK\r\nContent-Length: 100000\r\n\r\n")
    while True:
        await exchange.send(b" ")
        await asyncio.sleep(0.01)


async def hangs(exchange: Exchange) -> None:
    await exchange.gone()
    exchange.keep_alive = False


async def cuts(exchange: Exchange) -> None:
    exchange.abort()


GOOD = answering({"access_token": TOKEN, "expires_in": 3599, "token_type": "Bearer"})
INVALID = {"error": "invalid_grant", "error_description": f"{SECRET} is wrong"}
BROKEN: dict[str, tuple[Behaviour, str]] = {
    "page": (answering(b"<html>busy</html>"), "answered 200, without a token"),
    "page of 502": (answering(b"<html>busy</html>", 502), "answered 502, without a token"),
    "invalid_grant": (answering(INVALID, 400), "answered 400 (invalid_grant)"),
    "error that quotes": (answering({"error": f"bad {SECRET}"}, 401), "answered 401"),
    "error as an object": (answering({"error": {"message": SECRET}}, 403), "answered 403"),
    "token of a 500": (answering({"access_token": TOKEN}, 500), "answered 500"),
    "redirect": (answering(b"", 307, Location="/elsewhere"), "answered 307"),
    "nothing": (answering(b""), "answered 200"),
    "no token": (answering({"token_type": "Bearer", "expires_in": 3599}), "answered 200"),
    "null": (answering({"access_token": None}), "answered 200"),
    "number": (answering({"access_token": 5}), "answered 200"),
    "empty": (answering({"access_token": ""}), "answered 200"),
    "two lines": (answering({"access_token": f"{TOKEN}\r\nX-Evil: 1"}), "answered 200"),
    "line's end": (answering({"access_token": f"{TOKEN}\n"}), "answered 200"),
    "not ASCII": (answering({"access_token": "tök€n"}), "answered 200"),
    "list": (answering([TOKEN]), "answered 200"),
    "text": (answering(TOKEN), "answered 200"),
    "deep": (answering(b'{"x":' * 100_000), "answered 200"),
    "deep error": (answering(b'{"x":' * 100_000, 400), "answered 400"),
    "not UTF-8": (answering(b'{"access_token": "\xff\xfe"}'), "answered 200"),
    "seconds as words": (answering({"access_token": TOKEN, "expires_in": "soon"}), "answered 200"),
    "seconds as a list": (answering({"access_token": TOKEN, "expires_in": [9]}), "answered 200"),
    "no JSON": (answering(b'{"access_token": "t", "expires_in": NaN}'), "answered 200"),
    "seconds beyond": (answering({"access_token": TOKEN, "expires_in": 10**400}), "answered 200"),
    "no gzip": (answering(b"plain text", Content_Encoding="gzip"), "Client"),
    "cut": (cuts, "ServerDisconnectedError"),
    "hangs": (hangs, "Timeout"),
    "drips": (drips, "Timeout"),
}


@pytest.mark.parametrize(("behaviour", "said"), BROKEN.values(), ids=BROKEN)
async def test_an_endpoint_that_gives_no_token_is_one_clean_failure(
    upstream: Upstream,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    behaviour: Behaviour,
    said: str,
) -> None:
    monkeypatch.setattr(credentials, "TIMEOUT", aiohttp.ClientTimeout(total=0.3))
    caplog.set_level(logging.DEBUG)
    clock = Clock()
    token = BearerToken(EntraSource(ENTRA, origin(upstream)), clock)
    upstream.behaviour = behaviour
    messages = await asyncio.gather(*(refused(token) for _ in range(10)))
    messages.append(await refused(token))
    assert len(set(messages)) == 1
    assert said in messages[0]
    assert [one.path for one in upstream.received] == ["/a%20tenant%2Fx/oauth2/v2.0/token"]
    upstream.behaviour = GOOD
    clock.now += TRIED_AGAIN_SECONDS
    assert await shown(token) == TOKEN
    for secret in (SECRET, TOKEN):
        assert secret not in messages[0]
        assert secret not in caplog.text


async def test_an_endpoint_that_is_not_there(caplog: pytest.LogCaptureFixture) -> None:
    async with Upstream() as gone:
        host = origin(gone)
    token = BearerToken(EntraSource(ENTRA, host), Clock())
    assert "ClientConnectorError" in await refused(token)
    assert "no access token" in caplog.text
    assert SECRET not in caplog.text


async def test_entra_is_asked_with_the_applications_secret(upstream: Upstream) -> None:
    upstream.behaviour = GOOD
    assert await shown(BearerToken(EntraSource(ENTRA, origin(upstream)))) == TOKEN
    (asked,) = upstream.received
    assert asked.headers["content-type"] == "application/x-www-form-urlencoded"
    assert parse_qs(asked.body.decode(), strict_parsing=True) == {
        "grant_type": ["client_credentials"],
        "client_id": ["client-1"],
        "client_secret": [SECRET],
        "scope": ["https://cognitiveservices.azure.com/.default"],
    }


async def test_google_is_asked_with_a_persons_refresh_token(
    upstream: Upstream, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(credentials, "GOOGLE_TOKENS", f"{origin(upstream)}/token")
    monkeypatch.setenv("HOME", str(tmp_path))
    person = {"client_id": "c", "client_secret": SECRET, "refresh_token": "1//r&="}
    file = {"type": "authorized_user", "account": "", "universe_domain": "googleapis.com", **person}
    (tmp_path / "adc.json").write_text(json.dumps(file))
    upstream.behaviour = GOOD
    assert await shown(BearerToken(google_source("~/adc.json"))) == TOKEN
    (asked,) = upstream.received
    assert (asked.method, asked.path) == ("POST", "/token")
    form = {name: values[0] for name, values in parse_qs(asked.body.decode()).items()}
    assert form == {"grant_type": "refresh_token", **person}


async def test_the_machines_own_account_is_asked_of_its_metadata(upstream: Upstream) -> None:
    upstream.behaviour = GOOD
    source = MetadataSource(origin(upstream).removeprefix("http://"))
    assert await shown(BearerToken(source)) == TOKEN
    (asked,) = upstream.received
    assert asked.method == "GET"
    assert asked.path == "/computeMetadata/v1/instance/service-accounts/default/token"
    assert asked.headers["metadata-flavor"] == "Google"
    upstream.behaviour = answering(b"", 302, Location="http://127.0.0.1:1/")
    assert "answered 302" in await refused(BearerToken(source, Clock()))


# --- Google's service accounts -------------------------------------------------------------------


@cache
def rsa_key() -> rsa.RSAPrivateKey:
    return rsa.generate_private_key(65537, 2048)


def pem(key: PrivateKeyTypes, encryption: KeySerializationEncryption | None = None) -> str:
    return key.private_bytes(
        Encoding.PEM, PrivateFormat.PKCS8, encryption or NoEncryption()
    ).decode()


def account(**fields: Any) -> dict[str, Any]:
    found = {
        "type": "service_account",
        "project_id": "p",
        "client_email": "robot@p.iam.gserviceaccount.com",
        "private_key": pem(rsa_key()),
        "private_key_id": "key-1",
        **fields,
    }
    return {name: value for name, value in found.items() if value is not None}


def unpacked(part: str) -> bytes:
    assert "=" not in part
    return base64.urlsafe_b64decode(part + "=" * (-len(part) % 4))


@pytest.mark.parametrize("key_id", ["key-1", None])
@pytest.mark.parametrize("as_file", [True, False], ids=["file", "inline"])
async def test_a_service_account_signs_for_its_token(
    upstream: Upstream, tmp_path: Path, key_id: str | None, *, as_file: bool
) -> None:
    where = f"{origin(upstream)}/token"
    text = "\n " + json.dumps(account(token_uri=where, private_key_id=key_id))
    if as_file:
        (tmp_path / "account.json").write_text(text)
        text = str(tmp_path / "account.json")
    upstream.behaviour = GOOD
    before = int(time.time())
    assert await shown(BearerToken(google_source(text))) == TOKEN
    (asked,) = upstream.received
    form = parse_qs(asked.body.decode(), strict_parsing=True)
    assert form.pop("grant_type") == ["urn:ietf:params:oauth:grant-type:jwt-bearer"]
    ((assertion,),) = form.values()
    head, claims, signature = assertion.split(".")
    named = {"kid": key_id} if key_id else {}
    assert json.loads(unpacked(head)) == {"alg": "RS256", "typ": "JWT", **named}
    said = json.loads(unpacked(claims))
    assert before <= said["iat"] <= time.time()
    assert said == {
        "iss": "robot@p.iam.gserviceaccount.com",
        "scope": GOOGLE_SCOPE,
        "aud": where,
        "iat": said["iat"],
        "exp": said["iat"] + 3600,
    }
    signed = f"{head}.{claims}".encode()
    rsa_key().public_key().verify(unpacked(signature), signed, padding.PKCS1v15(), hashes.SHA256())


# --- Configuration -------------------------------------------------------------------------------


def refusal(text: str, tmp_path: Path, **environ: str) -> str:
    """What `sluice check` says of a file."""
    path = tmp_path / "sluice.yaml"
    path.write_text(text)
    with pytest.raises(ConfigError) as caught:
        verify(load(str(path), environ), PriceTable(Table("1", ())))
    assert str(caught.value).startswith(f"{path}:")
    return str(caught.value).removeprefix(f"{path}:")


def provider(**fields: Any) -> str:
    """A file whose third line begins the provider p, each field on a line of its own."""
    lines = [f"    {name}: {json.dumps(value)}" for name, value in fields.items()]
    return "\n".join(["log: {}", "providers:", "  p:", *lines, ""])


AWS = {"access_key": "AKID", "secret_key": SECRET}
REFUSED: dict[str, tuple[dict[str, Any], str]] = {
    "bedrock, no region": ({"kind": "bedrock", "aws": AWS}, "3: providers.p: * region"),
    "bedrock, no keys": ({"kind": "bedrock", "region": "r"}, "3: providers.p: * aws keys"),
    "half of the keys": (
        {"kind": "bedrock", "region": "r", "aws": {"access_key": "AKID"}},
        "6: providers.p.aws: * `secret_key`",
    ),
    "empty secret": (
        {"kind": "bedrock", "region": "r", "aws": {**AWS, "secret_key": ""}},
        "6: providers.p.aws.secret_key: is empty",
    ),
    "access key of two lines": (
        {"kind": "bedrock", "region": "r", "aws": {**AWS, "access_key": "AKID\r\nX: y"}},
        "6: providers.p.aws.access_key: * forbids",
    ),
    "session token with an end of line": (
        {"kind": "bedrock", "region": "r", "aws": {**AWS, "session_token": "abc\n"}},
        "6: providers.p.aws.session_token: * forbids",
    ),
    "session token beyond ASCII": (
        {"kind": "bedrock", "region": "r", "aws": {**AWS, "session_token": "tök€n"}},
        "6: providers.p.aws.session_token: * forbids",
    ),
    "a region that is a URL": (
        {"kind": "bedrock", "region": "x/y", "aws": AWS},
        "5: providers.p.region: ",
    ),
    "vertex, no project": ({"kind": "vertex", "location": "global"}, "3: providers.p: * project"),
    "vertex, no location": ({"kind": "vertex", "project": "p"}, "3: providers.p: * location"),
    "azure, no base_url": ({"kind": "azure", "api_key": "k"}, "3: providers.p: * base_url"),
    "azure, no key": (
        {"kind": "azure", "base_url": "https://r.openai.azure.com"},
        "3: providers.p: * api_key, or entra",
    ),
    "entra, no secret": (
        {"kind": "azure", "base_url": "https://x", "entra": {"tenant": "t", "client_id": "c"}},
        "6: providers.p.entra: * `client_secret`",
    ),
}
# Google's credentials, as text or as the bytes of a file.
UNUSABLE: dict[str, tuple[Any, str]] = {
    "no file": (None, "No such file"),
    "folder": ("/", "directory"),
    "empty": ("", "directory"),
    "nobody's home": ("~nobody-of-that-name/x.json", "home"),
    "zero byte": ("a\0b", "a NUL"),
    "empty file": (b"", "truncated"),
    "page": (b"<html>", "JSON"),
    "cut": (b'{"type": "service_account"', "truncated"),
    "list": (b"[]", "object"),
    "number": (b"5", "object"),
    "null": (b"null", "object"),
    "not UTF-8": (b'{"type": "\xff"}', "utf-8"),
    "deep": (b'{"a":' * 100_000, "recursion"),
    "no type": ({"client_email": "e"}, "`type`"),
    "of another type": ({"type": "external_account", "audience": "a"}, "external_account"),
    "no email": (account(client_email=None), "`client_email`"),
    "no key": (account(private_key=None), "`private_key`"),
    "key is null": ({**account(), "private_key": None}, "private_key"),
    "key is none": (account(private_key=SECRET), "private_key cannot be read"),
    "key is cut": (account(private_key=pem(rsa_key())[:200]), "private_key cannot be read"),
    "key is encrypted": (
        account(private_key=pem(rsa_key(), BestAvailableEncryption(b"x"))),
        "private_key cannot be read",
    ),
    "key is elliptic": (
        account(private_key=pem(ec.generate_private_key(ec.SECP256R1()))),
        "private_key is no RSA key",
    ),
    "token_uri": (account(token_uri="ftp://x"), "token_uri"),  # no token, but where it comes from
    "half a person": ({"type": "authorized_user", "client_id": "c"}, "`client_secret`"),
}


def assert_said(message: str, expected: str) -> None:
    start, _, end = expected.partition("*")
    assert message.startswith(start.rstrip()), message
    assert end.strip() in message
    assert SECRET not in message
    assert "PRIVATE" not in message


@pytest.mark.parametrize(("fields", "expected"), REFUSED.values(), ids=REFUSED)
def test_what_a_provider_lacks_is_said_by_line_and_field(
    tmp_path: Path, fields: dict[str, Any], expected: str
) -> None:
    assert_said(refusal(provider(**fields), tmp_path), expected)


@pytest.mark.parametrize(("content", "said"), UNUSABLE.values(), ids=UNUSABLE)
def test_credentials_of_google_that_cannot_be_used(tmp_path: Path, content: Any, said: str) -> None:
    text = content if isinstance(content, str) else str(tmp_path / "account.json")
    if content is not None and not isinstance(content, str):
        data = content if isinstance(content, bytes) else json.dumps(content).encode()
        (tmp_path / "account.json").write_bytes(data)
    fields = {"kind": "vertex", "project": "p", "location": "global"}
    kind = "" if said == "a NUL" else "no Google credentials: "
    expected = f"7: providers.p.credentials: {kind}*{said}"
    assert_said(refusal(provider(**fields, credentials=text), tmp_path), expected)


@pytest.mark.parametrize(
    "fields",
    [
        {"kind": "vertex", "location": "global"},
        {"kind": "vertex", "project": "p"},
        {"kind": "bedrock", "aws": AWS},
    ],
    ids=["no project", "no location", "no region"],
)
def test_a_base_url_does_not_replace_what_requests_are_made_of(
    tmp_path: Path, fields: dict[str, Any]
) -> None:
    assert refusal(provider(**fields, base_url="http://127.0.0.1:9"), tmp_path)


@pytest.mark.parametrize("setting", ["project", "location", "region", "api_version"])
def test_a_setting_does_not_end_with_a_new_line(tmp_path: Path, setting: str) -> None:
    fields = {"kind": "vertex", "project": "p", "location": "l", "base_url": "http://127.0.0.1:9"}
    assert refusal(provider(**{**fields, setting: "x\n"}), tmp_path)


# --- The environment -----------------------------------------------------------------------------


def route(environ: dict[str, str], model: str, file: Path | None = None) -> Route | None:
    """The way to a model with this environment and this file."""
    config = load(str(file) if file else None, environ).config
    served = Catalogue(config, PriceTable(Table("1", ())), "/demo").resolve(model)
    return served.routes[0] if served is not None else None


async def sent(route: Route | None) -> tuple[str, str, dict[str, str]]:
    """Where a chat would go: the host, the path, and what presents the gateway."""
    assert route is not None
    way = route.ways[Operation.CHAT]
    lines = way.head.decode().split("\r\n")[1:]
    if route.signer is not None:
        more = await route.signer.headers("POST", route.target.origin.authority, way.path, b"")
        lines += more.decode().split("\r\n")
    pairs = [line.partition(": ") for line in lines]
    kept = ("authorization", "api-key", "x-amz-security-token", "x-goog-api-key")
    shown = {name.lower(): value for name, _, value in pairs if name.lower() in kept}
    return route.target.origin.authority, way.path, shown


async def test_azure_needs_no_file() -> None:
    environ = {"AZURE_OPENAI_API_KEY": "k", "AZURE_OPENAI_ENDPOINT": "https://r.openai.azure.com/"}
    host, path, shown = await sent(route(environ, "azure/d"))
    assert (host, path) == ("r.openai.azure.com", "/openai/v1/chat/completions")
    assert shown == {"api-key": "k"}
    environ["OPENAI_API_VERSION"] = "2024-10-21"
    _, path, _ = await sent(route(environ, "azure/d"))
    assert path == "/openai/deployments/d/chat/completions?api-version=2024-10-21"
    environ["AZURE_OPENAI_ENDPOINT"] = ""
    assert route(environ, "azure/d") is None


async def test_bedrock_with_a_key_of_its_own_needs_no_file() -> None:
    environ = {"AWS_BEARER_TOKEN_BEDROCK": "k", "AWS_REGION": "", "AWS_DEFAULT_REGION": "eu-west-1"}
    # Keys to sign with are there too, and not needed.
    environ |= {"AWS_ACCESS_KEY_ID": "AKID", "AWS_SECRET_ACCESS_KEY": SECRET}
    host, path, shown = await sent(route(environ, "bedrock/a:0"))
    assert (host, path) == ("bedrock-runtime.eu-west-1.amazonaws.com", "/model/a%3A0/converse")
    assert shown == {"authorization": "Bearer k"}
    host, _, _ = await sent(route({**environ, "AWS_REGION": "us-east-2"}, "bedrock/m"))
    assert host == "bedrock-runtime.us-east-2.amazonaws.com"
    assert route({**environ, "AWS_DEFAULT_REGION": ""}, "bedrock/m") is None
    unsigned = {"AWS_BEARER_TOKEN_BEDROCK": "", "AWS_SECRET_ACCESS_KEY": ""}
    assert route({**environ, **unsigned}, "bedrock/m") is None


async def test_bedrock_with_keys_to_sign_with_needs_no_file() -> None:
    environ = {
        "AWS_ACCESS_KEY_ID": "AKID",
        "AWS_SECRET_ACCESS_KEY": SECRET,
        "AWS_SESSION_TOKEN": "session",
        "AWS_DEFAULT_REGION": "eu-west-1",
    }
    host, _, shown = await sent(route(environ, "bedrock/m"))
    assert host == "bedrock-runtime.eu-west-1.amazonaws.com"
    assert shown["authorization"].startswith("AWS4-HMAC-SHA256 Credential=AKID/")
    assert shown["x-amz-security-token"] == "session"


async def test_a_file_that_names_bedrock_takes_keys_and_region_from_the_environment(
    tmp_path: Path,
) -> None:
    file = tmp_path / "sluice.yaml"
    file.write_text(provider(kind="bedrock"))
    environ = {
        "AWS_ACCESS_KEY_ID": "AKID",
        "AWS_SECRET_ACCESS_KEY": SECRET,
        "AWS_SESSION_TOKEN": "",
        "AWS_DEFAULT_REGION": "eu-west-1",
    }
    host, _, shown = await sent(route(environ, "p/m", file))
    assert host == "bedrock-runtime.eu-west-1.amazonaws.com"
    assert shown["authorization"].startswith("AWS4-HMAC-SHA256 Credential=AKID/")
    assert "/eu-west-1/bedrock/aws4_request, SignedHeaders=host;x-amz-date," in str(shown)
    environ["AWS_SESSION_TOKEN"] = "session"
    _, _, shown = await sent(route(environ, "p/m", file))
    assert shown["x-amz-security-token"] == "session"
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        message = refusal(file.read_text(), tmp_path, **{**environ, name: ""})
        assert_said(message, "3: providers.p: * aws keys")
    message = refusal(file.read_text(), tmp_path, **{**environ, "AWS_DEFAULT_REGION": ""})
    assert_said(message, "3: providers.p: * region")
    # The file's own word is above the environment's, for keys as a whole: no foreign token.
    file.write_text(provider(kind="bedrock", region="us-east-2", aws=AWS | {"access_key": "MINE"}))
    host, _, shown = await sent(route(environ, "p/m", file))
    assert host == "bedrock-runtime.us-east-2.amazonaws.com"
    assert "Credential=MINE/" in shown["authorization"]
    assert "x-amz-security-token" not in shown


async def test_a_file_that_names_vertex_takes_the_rest_from_the_environment(
    tmp_path: Path, upstream: Upstream
) -> None:
    file = tmp_path / "sluice.yaml"
    file.write_text(provider(kind="vertex"))
    (tmp_path / "a.json").write_text(json.dumps(account(token_uri=f"{origin(upstream)}/token")))
    upstream.behaviour = GOOD
    environ = {
        "GOOGLE_CLOUD_PROJECT": "my-project",
        "GOOGLE_CLOUD_LOCATION": "",
        "GOOGLE_CLOUD_REGION": "europe-west4",
        "GOOGLE_APPLICATION_CREDENTIALS": str(tmp_path / "a.json"),
    }
    host, path, shown = await sent(route(environ, "p/gemini-2.5-pro", file))
    assert host == "europe-west4-aiplatform.googleapis.com"
    place = "/v1/projects/my-project/locations/{}/publishers/{}/models/{}"
    where = place.format("europe-west4", "google", "gemini-2.5-pro")
    assert path == f"{where}:generateContent"
    assert shown == {"authorization": f"Bearer {TOKEN}"}
    environ["GOOGLE_CLOUD_LOCATION"] = "global"
    host, path, _ = await sent(route(environ, "p/claude-sonnet-4-5", file))
    assert host == "aiplatform.googleapis.com"
    assert path == place.format("global", "anthropic", "claude-sonnet-4-5") + ":rawPredict"
    message = refusal(file.read_text(), tmp_path, **{**environ, "GOOGLE_CLOUD_PROJECT": ""})
    assert_said(message, "3: providers.p: * project")
    gone = {"GOOGLE_APPLICATION_CREDENTIALS": str(tmp_path / "none.json")}
    with pytest.raises(ConfigError, match=r"^environment GOOGLE_APPLICATION_CRED.* No such"):
        verify(load(str(file), {**environ, **gone}), PriceTable(Table("1", ())))


async def test_entra_takes_the_place_of_a_key(tmp_path: Path) -> None:
    file = tmp_path / "sluice.yaml"
    entra = {"tenant": "t", "client_id": "c", "client_secret": SECRET}
    file.write_text(provider(kind="azure", base_url="https://r.openai.azure.com", entra=entra))
    found = route({}, "p/d", file)
    assert found is not None
    assert isinstance(found.signer, BearerToken)
    assert b"key" not in found.ways[Operation.CHAT].head.lower()
