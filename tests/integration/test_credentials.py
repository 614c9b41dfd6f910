"""What presents the gateway to its providers, over the wire: signatures, tokens, several keys."""

import asyncio
import calendar
import contextlib
import json
import re
import time
from collections import Counter
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass
from email.utils import formatdate
from typing import Any
from urllib.parse import quote

import pytest
from botocore.auth import SigV4Auth  # type: ignore[import-untyped]  # it has no types
from botocore.awsrequest import AWSRequest  # type: ignore[import-untyped]
from botocore.credentials import Credentials  # type: ignore[import-untyped]
from cryptography.hazmat.primitives.asymmetric import rsa
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat

from gateway.upstream.credentials import TRIED_AGAIN_SECONDS
from tests.integration.conftest import unused_port, wait
from tests.support.config import chat, config
from tests.support.gateway import Gateway, running
from tests.support.load import Ask, Client, Outcome, flood, once
from tests.support.threaded import UpstreamThread
from tests.support.upstream import Behaviour, Exchange, Received, delta, like_openai
from tests.support.wire import Reply, connected, head_of

REGION = "eu-central-1"
ACCESS, AWS_SECRET, SESSION = "AKIDEXAMPLE", "aws/secret+0123456789", "session/token+=="
AWS = {"access_key": ACCESS, "secret_key": AWS_SECRET}
PEM = (
    rsa.generate_private_key(65537, 2048)
    .private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
    .decode()
)
TOKEN, ASSERTION = "ya29.token-", "eyJhbGciOi"  # how each begins
AZURE_KEY, KEY = "azure-key-0123456789", "sk-upstream-key-"
# Nothing of this may be seen anywhere but at the provider.
SECRETS = (AWS_SECRET, SESSION, PEM.split("\n")[5], TOKEN, ASSERTION, AZURE_KEY, KEY)

GEMINI = {
    "candidates": [
        {"content": {"role": "model", "parts": [{"text": "hello"}]}, "finishReason": "STOP"}
    ],
    "usageMetadata": {"promptTokenCount": 7, "candidatesTokenCount": 5, "totalTokenCount": 12},
}
CONVERSE = {
    "output": {"message": {"role": "assistant", "content": [{"text": "hello"}]}},
    "stopReason": "end_turn",
    "usage": {"inputTokens": 7, "outputTokens": 5, "totalTokens": 12},
}


# --- The providers, told apart by the first part of the path -------------------------------------


Try = tuple[str, int, str]  # an attempt's provider, status and failure


@dataclass
class Cloud:
    """A gateway, and the one server that is all its providers and their token endpoints."""

    gateway: Gateway
    upstream: UpstreamThread
    behaviours: dict[str, Behaviour]
    raw_port: int

    @property
    def port(self) -> int:
        """The gateway's port."""
        return self.gateway.port

    def asked(self, name: str) -> list[Received]:
        """What reached a provider, or with `token-` before its name its token endpoint."""
        return [one for one in self.upstream.received if one.path.startswith(f"/{name}/")]

    def keys(self, name: str) -> Counter[str]:
        """How often each of a provider's keys was presented, by its last character."""
        return Counter(one.headers["authorization"][-1] for one in self.asked(name))

    def tries(self, *outcomes: Outcome) -> list[list[Try]]:
        """Each attempt at each request, as the records have them."""
        ids = [outcome.headers["x-request-id"] for outcome in outcomes]

        def written() -> dict[str, Any]:
            return {one["id"]: one for one in self.gateway.records() if one["id"] in ids}

        wait(lambda: len(written()) == len(ids))
        records = written()
        assert all(one["attempts"] == len(one["tries"]) for one in records.values())
        return [
            [(one["provider"], one["status"], one["failure"]) for one in records[name]["tries"]]
            for name in ids
        ]


async def usual(exchange: Exchange) -> None:
    path = exchange.request.path
    if path.startswith("/token-"):
        name = path.split("/")[1].removeprefix("token-")
        await exchange.reply({"access_token": TOKEN + name, "expires_in": 3599})
    elif ":generateContent" in path:
        await exchange.reply(GEMINI)
    else:
        await like_openai(exchange)


def answering(body: Any, status: int = 200, **headers: str) -> Behaviour:
    async def behave(exchange: Exchange) -> None:
        named = {name.replace("_", "-"): value for name, value in headers.items()}
        await exchange.reply(body, status, named)

    return behave


def late(seconds: float) -> Behaviour:
    async def behave(exchange: Exchange) -> None:
        await asyncio.sleep(seconds)
        await usual(exchange)

    return behave


async def hangs(exchange: Exchange) -> None:
    await exchange.gone()
    exchange.keep_alive = False


async def cuts(exchange: Exchange) -> None:
    exchange.abort()


def refusing(key: str, status: int, **headers: str) -> Behaviour:
    """Refuse the keys that end so, and quote them; the others are served."""

    async def behave(exchange: Exchange) -> None:
        shown = exchange.request.headers["authorization"]
        if shown[-1] not in key:
            await usual(exchange)
            return
        named = {name.replace("_", "-"): value for name, value in headers.items()}
        await exchange.reply({"error": {"message": f"not you, {shown}"}}, status, named)

    return behave


BROKEN_TOKENS: dict[str, Behaviour] = {
    "g-page": answering(b"<html>busy</html>"),
    "g-grant": answering({"error": "invalid_grant", "error_description": ASSERTION}, 400),
    "g-empty": answering({"token_type": "Bearer"}),
    "g-lines": answering({"access_token": f"{TOKEN}\r\nX-Evil: 1"}),
    "g-words": answering({"access_token": TOKEN, "expires_in": "soon"}),
    "g-cut": cuts,
}
GOOGLE = ("g-crowd", "g-left", "g-quotes", "g-path", "g-dead", "g-hangs", *BROKEN_TOKENS)
AZURE = ("", "/", "/openai", "/openai/", "/openai/v1", "/openai/v1/")
DATED = "2024-10-21"
# The refusals that let a key rest: provider -> how its first key is answered.
RESTING: dict[str, Behaviour] = {
    "k-401": refusing("1", 401),
    "k-402": refusing("1", 402),
    "k-403": refusing("1", 403),
    "k-429": refusing("1", 429),
    "k-after": refusing("1", 429, Retry_After="30"),
    "k-long": refusing("1", 429, Retry_After="999999"),
    "k-date": refusing("1", 429, Retry_After=formatdate(time.time() + 3600, usegmt=True)),
}
STREAMED = {f"{name}-s": RESTING[name] for name in ("k-401", "k-429", "k-after")}
KEYED = (
    *("k-share", "k-soon", "k-all", "k-quotes", "k-event", "k-tries", "k-tries-s"),
    "k-passed",
    *(*RESTING, *STREAMED),
)


def google(origin: str, name: str) -> dict[str, Any]:
    where = f"{origin}/token-{name}/here"
    if name == "g-dead":
        where = f"http://127.0.0.1:{unused_port()}/"
    account = {"type": "service_account", "client_email": "robot@p", "private_key": PEM}
    return {
        "kind": "vertex",
        "base_url": f"{origin}/{name}/v1",
        "project": "my-project",
        "location": "global",
        "credentials": json.dumps({**account, "token_uri": where}),
    }


def providers(origin: str, raw_port: int) -> dict[str, Any]:
    raw = f"http://127.0.0.1:{raw_port}"
    signed = {"kind": "bedrock", "region": REGION}
    found: dict[str, Any] = {
        "aws": {**signed, "aws": AWS, "base_url": raw},
        "aws-session": {**signed, "aws": {**AWS, "session_token": SESSION}, "base_url": raw},
        # A proxy that serves AWS below a path which a URL's reader may write otherwise.
        "aws-path": {**signed, "aws": AWS, "base_url": f"{raw}/a//b/./c/../(d);e=f%20g/"},
    }
    for name in GOOGLE:
        found[name] = google(origin, name)
    for i, base in enumerate(AZURE):
        azure = {"kind": "azure", "base_url": f"{origin}/az{i}{base}", "api_key": AZURE_KEY}
        found |= {f"az{i}": azure, f"az{i}-dated": {**azure, "api_version": DATED}}
    for name in KEYED:
        found[name] = {
            "kind": "openai",
            "base_url": f"{origin}/{name}/v1",
            "api_keys": [f"{KEY}1", {"key": f"{KEY}2", "weight": 3}],
        }
    return found


@contextlib.contextmanager
def clouded(**options: Any) -> Iterator[Cloud]:
    """Run a gateway with all the providers; at the end nothing of their secrets was written."""
    total = options.pop("total", 60)
    behaviours: dict[str, Behaviour] = {}

    async def behave(exchange: Exchange) -> None:
        await behaviours.get(exchange.request.path.split("/")[1], usual)(exchange)

    with UpstreamThread(behaviour=behave) as upstream:
        origin, raw_port = upstream.url.removesuffix("/v1"), unused_port()
        tried = [{"provider": "g-dead"}, {"provider": "k-share", "priority": 2}]
        text = config(
            providers=providers(origin, raw_port),
            models={"m": {"targets": tried}},
            server={"timeouts": {"total": total}},
            log={"level": "debug"},
        )
        with running(text, **options) as gateway:
            yield Cloud(gateway, upstream, behaviours, raw_port)
            status, metrics = gateway.get("/metrics")
            assert status == 200
            assert gateway.stop() == 0
            seen = metrics.decode() + gateway.log_file.read_text() + gateway.errors
            assert not [secret for secret in SECRETS if secret in seen]


@pytest.fixture(scope="module")
def cloud() -> Iterator[Cloud]:
    """One worker, and no trouble inside."""
    with clouded() as one:
        yield one
        one.gateway.settled()
        log = one.gateway.log_file.read_text() + one.gateway.errors
        assert '"level":"error"' not in log
        assert "Traceback" not in log


@pytest.fixture(scope="module")
def pair() -> Iterator[Cloud]:
    """Two workers, and little time for a request."""
    with clouded(workers=2, total=1.5) as one:
        yield one


def assert_unseen(outcome: Outcome) -> None:
    shown = outcome.body.decode() + str(outcome.headers)
    assert not [secret for secret in SECRETS if secret in shown], shown


def assert_served(outcome: Outcome) -> None:
    assert (outcome.status, outcome.failure) == (200, ""), outcome
    assert_unseen(outcome)
    if outcome.ask.body.get("stream"):
        assert outcome.events[-1] == "[DONE]"
    else:
        assert outcome.json["choices"][0]["message"]["content"]


def assert_failed(outcome: Outcome, provider: str, code: str = "upstream_failed") -> None:
    status = {"upstream_failed": 502, "rate_limit_exceeded": 429}[code]
    assert (outcome.status, outcome.failure) == (status, ""), outcome
    assert outcome.json["error"]["code"] == code
    assert provider in outcome.json["error"]["message"]
    assert_unseen(outcome)


# --- AWS: what is signed is what was sent --------------------------------------------------------


@contextlib.asynccontextmanager
async def recorded(port: int) -> AsyncIterator[list[tuple[bytes, bytes]]]:
    """A server on a port; gives the heads and bodies that it receives, byte for byte."""
    found: list[tuple[bytes, bytes]] = []

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        head = await reader.readuntil(b"\r\n\r\n")
        sizes = re.findall(rb"\r\nContent-Length: (\d+)\r\n", head)
        assert len(sizes) <= 1
        found.append((head, await reader.readexactly(int(sizes[0])) if sizes else b""))
        content = json.dumps(CONVERSE).encode()
        start = "HTTP/1.1 200 OK\r\nConnection: close\r\nContent-Type: application/json\r\n"
        shown = b"" if head.startswith(b"HEAD ") else content
        writer.write(f"{start}Content-Length: {len(content)}\r\n\r\n".encode() + shown)
        writer.close()

    async with await asyncio.start_server(serve, "127.0.0.1", port):
        yield found


def assert_signed(head: bytes, body: bytes) -> str:
    """Check a request's signature with nothing but what came over the wire and the secret key."""
    first, *lines = head.decode("ascii").removesuffix("\r\n\r\n").split("\r\n")
    method, path, version = first.split(" ")
    assert version == "HTTP/1.1"
    pairs = [line.split(": ", 1) for line in lines]
    headers = {name.lower(): value for name, value in pairs}
    assert len(headers) == len(pairs)
    scheme = r"AWS4-HMAC-SHA256 Credential=(\S+), SignedHeaders=(\S+), Signature=([0-9a-f]{64})"
    given = re.fullmatch(scheme, headers["authorization"])
    assert given is not None
    names = given[2].split(";")
    assert names == sorted(names)
    amazons = {name for name in headers if name.startswith("x-amz-")}
    assert {"host", "x-amz-date"} <= set(names) <= {"host"} | amazons
    assert ("x-amz-security-token" in names) == ("x-amz-security-token" in amazons)
    stamp = headers["x-amz-date"]
    assert abs(calendar.timegm(time.strptime(stamp, "%Y%m%dT%H%M%SZ")) - time.time()) < 60
    assert given[1] == f"{ACCESS}/{stamp[:8]}/{REGION}/bedrock/aws4_request"
    request = AWSRequest(method, f"http://{headers['host']}{path}", data=body)
    request.headers = AWSRequest(headers={name: headers[name] for name in names}).headers
    request.context["timestamp"] = stamp
    auth = SigV4Auth(Credentials(ACCESS, AWS_SECRET), "bedrock", REGION)
    text = auth.string_to_sign(request, auth.canonical_request(request))
    assert given[3] == auth.signature(text, request)
    assert headers.get("x-amz-security-token") in (None, SESSION)
    return path


MODELS = (
    *("anthropic.claude-3-5-sonnet-20240620-v1:0", "50%", "%3A%2F", "a b", "a+b&c=d?e#f", "模型"),
    "arn:aws:bedrock:eu-central-1:123456789012:inference-profile/eu.amazon.nova-lite-v1:0",
)


@pytest.mark.parametrize("stream", [False, True], ids=["unary", "stream"])
@pytest.mark.parametrize("provider", ["aws", "aws-session", "aws-path"])
async def test_the_signature_holds_for_what_came_over_the_wire(
    cloud: Cloud, provider: str, *, stream: bool
) -> None:
    texts = ("hello", "ünï€ \0 \n", "x" * 200_000)
    async with recorded(cloud.raw_port) as received:
        for model, text in zip(MODELS, (texts * 3), strict=False):
            said = [{"role": "user", "content": text}]
            ask = Ask({"model": f"{provider}/{model}", "messages": said, "stream": stream})
            assert_served(await once(cloud.port, ask))
    base = "/a//b/./c/../(d);e=f%20g" if provider == "aws-path" else ""
    method = "converse-stream" if stream else "converse"
    assert [assert_signed(*one) for one in received] == [
        f"{base}/model/{quote(model, safe='')}/{method}" for model in MODELS
    ]
    heads = b"".join(head for head, _ in received)
    assert heads.count(b"\r\nx-amz-security-token: ") == (provider == "aws-session") * len(MODELS)


async def test_requests_at_once_are_signed_each_for_itself(cloud: Cloud) -> None:
    asks = [Ask(chat(f"aws/model-{i}:0", user=f"{i}")) for i in range(60)]
    async with recorded(cloud.raw_port) as received:
        for outcome in await flood(cloud.port, asks, 20):
            assert_served(outcome)
    paths = {assert_signed(*one) for one in received}
    assert paths == {f"/model/model-{i}%3A0/converse" for i in range(60)}


PASSED: list[tuple[str, str, tuple[str, ...], bytes]] = [
    ("GET", "guardrails?maxResults=5&nextToken=a%2Bb%3D&bare", (), b""),
    ("HEAD", "guardrails", (), b""),
    ("DELETE", "guardrails/a%20b", (), b""),
    ("PUT", "guardrails/1", ("Content-Type: application/json",), b'{"name": "x"}'),
    ("PATCH", "x/y", ("Content-Type: text/plain",), b"plain text"),
    ("POST", "model/m%3A0/converse", ("Content-Type: application/json",), b'{"messages": []}'),
    (
        "POST",
        "model/m/invoke",
        ("Content-Type: application/octet-stream",),
        bytes(range(256)) * 999,
    ),
    ("POST", "model/m/invoke", (), b"no type"),
    ("POST", "model/m/invoke", ("X-Amzn-Bedrock-Trace: ENABLED",), b"{}"),
    # What a client signs itself counts for nothing.
    (
        "POST",
        "x",
        ("X-Amz-Date: 20200101T000000Z", "X-Amz-Security-Token: t", f"A: {'b' * 64}"),
        b"{}",
    ),
]


@pytest.mark.parametrize("provider", ["aws", "aws-session"])
@pytest.mark.parametrize(("method", "path", "lines", "body"), PASSED)
async def test_what_passes_through_is_signed_whatever_it_is(
    cloud: Cloud, provider: str, method: str, path: str, lines: tuple[str, ...], body: bytes
) -> None:
    length = (f"Content-Length: {len(body)}",) if body else ()
    async with recorded(cloud.raw_port) as received, connected(cloud.port) as wire:
        place = f"/providers/{provider}/{path}"
        await wire.send(head_of(*lines, *length, path=place, method=method) + body)
        reply = await wire.reply(method=method)
    assert reply.status == 200
    ((head, sent),) = received
    assert head.startswith(method.encode())
    assert sent == body
    assert assert_signed(head, sent) == f"/{path}"


async def test_an_upload_in_chunks_is_signed_whole(cloud: Cloud) -> None:
    async with recorded(cloud.raw_port) as received, connected(cloud.port) as wire:
        chunked = ("Transfer-Encoding: chunked", "Content-Type: text/plain")
        await wire.send(head_of(*chunked, path="/providers/aws/x", method="POST"))
        await wire.send(b"5\r\nhello\r\n")
        await wire.send(b"6\r\n world\r\n0\r\n\r\n")
        assert (await wire.reply()).status == 200
    ((head, sent),) = received
    assert sent == b"hello world"
    assert_signed(head, sent)


async def test_an_upload_too_large_to_be_signed_is_refused(cloud: Cloud) -> None:
    """What is signed must be held whole, so the bound of what is held holds for it."""
    async with recorded(cloud.raw_port) as received, connected(cloud.port) as wire:
        large = ("Content-Length: 10485761", "Content-Type: text/plain")
        await wire.send(head_of(*large, path="/providers/aws/x", method="POST"))
        reply = await wire.reply()
    assert (reply.status, reply.error["code"]) == (413, "request_too_large")
    assert received == []


# --- Google: tokens ------------------------------------------------------------------------------


async def test_a_crowd_is_served_with_one_token(cloud: Cloud) -> None:
    cloud.behaviours["token-g-crowd"] = late(0.2)
    outcomes = await flood(cloud.port, [Ask(chat("g-crowd/gemini-2.5-pro"))] * 100, 100)
    for outcome in outcomes:
        assert_served(outcome)
    assert len(cloud.asked("token-g-crowd")) == 1
    asked = cloud.asked("g-crowd")
    assert len(asked) == 100
    place = "/g-crowd/v1/projects/my-project/locations/global/publishers/google/models"
    assert {one.path for one in asked} == {f"{place}/gemini-2.5-pro:generateContent"}
    assert {one.headers["authorization"] for one in asked} == {f"Bearer {TOKEN}g-crowd"}
    assert not [one for one in asked if "x-goog-api-key" in one.headers]


async def test_whoever_leaves_while_a_token_is_fetched_takes_nothing_along(cloud: Cloud) -> None:
    cloud.behaviours["token-g-left"] = late(0.6)
    ask = Ask(chat("g-left/gemini-2.5-pro"))
    async with Client(cloud.port) as first:
        await first.send(ask)
        await asyncio.to_thread(wait, lambda: cloud.asked("token-g-left"))
        others = [asyncio.create_task(once(cloud.port, ask)) for _ in range(5)]
        await asyncio.sleep(0.1)
    for outcome in await asyncio.gather(*others):
        assert_served(outcome)
    assert len(cloud.asked("token-g-left")) == 1
    assert len(cloud.asked("g-left")) == 5


@dataclass
class Tokenless:
    """What became of requests while there was no token, and when one is asked for again."""

    outcomes: dict[str, list[Outcome]]
    again_at: float


@pytest.fixture(scope="module")
def tokenless(cloud: Cloud) -> Tokenless:
    """Requests to each provider whose token endpoint is broken, which it is not any more."""

    async def asked(name: str) -> list[Outcome]:
        ask = Ask(chat(f"{name}/gemini-2.5-pro"))
        crowd = await asyncio.gather(*(once(cloud.port, ask) for _ in range(5)))
        return [*crowd, await once(cloud.port, ask)]

    cloud.behaviours |= {f"token-{name}": one for name, one in BROKEN_TOKENS.items()}
    outcomes = {name: asyncio.run(asked(name)) for name in BROKEN_TOKENS}
    for name in BROKEN_TOKENS:
        del cloud.behaviours[f"token-{name}"]
    return Tokenless(outcomes, time.monotonic() + TRIED_AGAIN_SECONDS)


def test_without_a_token_requests_fail_cleanly(cloud: Cloud, tokenless: Tokenless) -> None:
    for name, outcomes in tokenless.outcomes.items():
        for outcome in outcomes:
            assert_failed(outcome, name)
            assert "no access token" in outcome.json["error"]["message"]
        assert len(cloud.asked(f"token-{name}")) == 1  # for six requests
        assert cloud.asked(name) == []
    tries = cloud.tries(*(outcomes[-1] for outcomes in tokenless.outcomes.values()))
    assert tries == [[(name, 0, "connect")] for name in tokenless.outcomes]
    printed = cloud.gateway.log_file.read_text() + cloud.gateway.errors
    assert "answered 400 (invalid_grant)" in printed


async def test_without_a_token_the_next_target_answers(cloud: Cloud) -> None:
    assert_failed(await once(cloud.port, Ask(chat("g-dead/gemini-2.5-pro"))), "g-dead")
    outcome = await once(cloud.port, Ask(chat("m")))
    assert_served(outcome)
    assert cloud.tries(outcome) == [[("g-dead", 0, "connect"), ("k-share", 200, "")]]


async def test_a_provider_that_quotes_the_token_tells_nobody(cloud: Cloud) -> None:
    async def quotes(exchange: Exchange) -> None:
        shown = exchange.request.headers["authorization"]
        await exchange.reply({"error": {"code": 400, "message": f"bad header {shown}"}}, 400)

    cloud.behaviours["g-quotes"] = quotes
    outcome = await once(cloud.port, Ask(chat("g-quotes/gemini-2.5-pro")))
    assert outcome.status == 400
    assert_unseen(outcome)


async def test_a_token_endpoint_that_hangs_takes_no_more_than_the_requests_time(
    pair: Cloud,
) -> None:
    pair.behaviours["token-g-hangs"] = hangs
    async with asyncio.timeout(2):
        outcome = await once(pair.port, Ask(chat("g-hangs/gemini-2.5-pro")))
    assert outcome.status == 504
    assert_unseen(outcome)


# --- Azure: addresses ----------------------------------------------------------------------------

OPERATIONS = {
    "/v1/chat/completions": ("/chat/completions", {"messages": chat()["messages"]}),
    "/v1/completions": ("/completions", {"prompt": "hello"}),
    "/v1/embeddings": ("/embeddings", {"input": "hello"}),
    "/v1/responses": ("/responses", {"input": "hello"}),
}


@pytest.mark.parametrize("path", OPERATIONS)
@pytest.mark.parametrize("number", range(len(AZURE)), ids=[base or "bare" for base in AZURE])
async def test_azure_is_asked_where_each_operation_is(cloud: Cloud, number: int, path: str) -> None:
    name, (own_path, fields) = f"az{number}", OPERATIONS[path]
    before = len(cloud.asked(name))
    for provider in (name, f"{name}-dated"):
        outcome = await once(cloud.port, Ask({"model": f"{provider}/my-dep", **fields}, path))
        assert outcome.status == 200, outcome
        assert_unseen(outcome)
    by_v1, by_date = cloud.asked(name)[before:]
    assert by_v1.path == f"/{name}/openai/v1{own_path}"
    below = "" if path == "/v1/responses" else "/deployments/my-dep"
    assert by_date.path == f"/{name}/openai{below}{own_path}?api-version={DATED}"
    for one in (by_v1, by_date):
        assert one.headers["api-key"] == AZURE_KEY
        assert "authorization" not in one.headers
        assert one.json["model"] == "my-dep"


async def test_azure_streams_from_the_same_address(cloud: Cloud) -> None:
    before = len(cloud.asked("az0"))
    for provider in ("az0", "az0-dated"):
        assert_served(await once(cloud.port, Ask(chat(f"{provider}/my-dep", stream=True))))
    by_v1, by_date = cloud.asked("az0")[before:]
    assert by_v1.path == "/az0/openai/v1/chat/completions"
    assert by_date.path.startswith("/az0/openai/deployments/my-dep/chat/completions?")


@pytest.mark.parametrize("provider", ["az0-dated", "g-path"])
@pytest.mark.parametrize("name", ["a b", "a?b=c", "a#b", "../../../x", "x HTTP/1.1", "é", "模型"])
async def test_a_name_made_up_by_a_client_stays_one_part_of_the_path(
    pair: Cloud, provider: str, name: str
) -> None:
    before = len(pair.upstream.received)
    outcome = await once(pair.port, Ask(chat(f"{provider}/{name}")))
    if outcome.status in (400, 404):  # refused by the gateway itself
        assert outcome.headers.get("x-sluice-attempts", "0") == "0"
        return
    assert outcome.status == 200
    *_, asked = pair.upstream.received[before:]
    assert quote(name, safe="") in asked.path


# --- Several keys --------------------------------------------------------------------------------


async def test_keys_share_the_requests_by_weight(cloud: Cloud) -> None:
    before = cloud.keys("k-share")
    asks = [Ask(chat("k-share/gpt-4o-mini", stream=bool(i % 2))) for i in range(400)]
    for outcome in await flood(cloud.port, asks, 16):
        assert_served(outcome)
        assert outcome.headers["x-sluice-attempts"] == "1"
    found = cloud.keys("k-share") - before
    assert found.total() == 400
    assert abs(found["1"] - 100) <= 1  # other tests may have left it in the middle of a round


@pytest.mark.parametrize("name", [*RESTING, *STREAMED])
async def test_a_key_that_is_refused_rests_and_no_client_notices(cloud: Cloud, name: str) -> None:
    cloud.behaviours[name] = {**RESTING, **STREAMED}[name]
    ask = Ask(chat(f"{name}/gpt-4o-mini", stream=name in STREAMED))
    outcomes = [await once(cloud.port, ask) for _ in range(8)]
    outcomes += await flood(cloud.port, [ask] * 16, 8)
    for outcome in outcomes:
        assert_served(outcome)
        assert outcome.headers["x-sluice-provider"] == name
    assert cloud.keys(name) == {"1": 1, "2": 24}
    attempts = Counter(outcome.headers["x-sluice-attempts"] for outcome in outcomes)
    assert attempts == {"1": 23, "2": 1}


async def pass_through(cloud: Cloud, path: str) -> Reply:
    body = b"{}"
    lines = ("Content-Type: application/json", f"Content-Length: {len(body)}")
    async with connected(cloud.port) as wire:
        await wire.send(head_of(*lines, path=f"/providers/{path}") + body)
        return await wire.reply()


async def test_keys_share_what_passes_through_and_one_that_is_refused_rests(cloud: Cloud) -> None:
    """Such a request is not asked again: its body may be gone. The next one fares better."""
    cloud.behaviours["k-passed"] = refusing("1", 401)
    replies = [await pass_through(cloud, "k-passed/v1/chat/completions") for _ in range(9)]
    del cloud.behaviours["k-passed"]
    assert cloud.keys("k-passed") == {"1": 1, "2": 8}
    assert Counter(reply.status for reply in replies) == {200: 8, 401: 1}
    (refused,) = [reply for reply in replies if reply.status == 401]
    shown = f"Bearer {'*' * len(KEY)}*"  # as long as what it stands for
    assert refused.json == {"error": {"message": f"not you, {shown}"}}
    assert int(refused.headers["content-length"]) == len(refused.body)


@pytest.mark.parametrize("stream", [False, True], ids=["unary", "stream"])
async def test_each_attempt_is_in_the_record(cloud: Cloud, *, stream: bool) -> None:
    name = "k-tries-s" if stream else "k-tries"
    cloud.behaviours[name] = refusing("1", 429)
    ask = Ask(chat(f"{name}/gpt-4o-mini", stream=stream))
    tries = cloud.tries(*[await once(cloud.port, ask) for _ in range(4)])
    refused = [(name, 429, "status"), (name, 200, "")]
    assert sorted(tries, key=len) == [*[[(name, 200, "")]] * 3, refused]


async def test_a_crowd_meets_a_refused_key_and_nobody_notices(cloud: Cloud) -> None:
    cloud.behaviours["k-soon"] = refusing("1", 429, Retry_After="1")
    ask = Ask(chat("k-soon/gpt-4o-mini"))
    for outcome in await asyncio.gather(*(once(cloud.port, ask) for _ in range(40))):
        assert_served(outcome)
    del cloud.behaviours["k-soon"]  # and a second later it is as good as the other
    await asyncio.sleep(1.05)
    before = cloud.keys("k-soon")
    for _ in range(8):
        assert_served(await once(cloud.port, ask))
    assert cloud.keys("k-soon") - before == {"1": 2, "2": 6}


async def test_when_all_keys_rest_they_are_tried_all_the_same(cloud: Cloud) -> None:
    async def refuses(exchange: Exchange) -> None:
        if exchange.request.headers["authorization"].endswith("1"):
            await refusing("1", 401)(exchange)
        else:
            await refusing("2", 429, Retry_After="7")(exchange)

    cloud.behaviours["k-all"] = refuses
    asks = [Ask(chat("k-all/gpt-4o-mini", stream=stream)) for stream in (False, True) * 2]
    outcomes = [await once(cloud.port, ask) for ask in asks]
    del cloud.behaviours["k-all"]
    again = await once(cloud.port, asks[0])
    assert_served(again)
    *tries, last = cloud.tries(*outcomes, again)
    assert last == [("k-all", 200, "")]
    seen = [[status for _, status, _ in one] for one in tries]
    # Once both rest, the one that is back first is tried first: the other's word is the last.
    assert sorted(seen[0]) == [401, 429]
    assert seen[1:] == [[429, 401]] * 3
    for outcome, (_, status) in zip(outcomes, seen, strict=True):
        limited = status == 429
        assert_failed(outcome, "k-all", "rate_limit_exceeded" if limited else "upstream_failed")
        assert outcome.headers.get("retry-after") == ("7" if limited else None)


async def test_a_key_that_is_quoted_is_not_shown(cloud: Cloud) -> None:
    cloud.behaviours["k-quotes"] = refusing("12", 400)
    for stream in (False, True) * 4:
        outcome = await once(cloud.port, Ask(chat("k-quotes/gpt-4o-mini", stream=stream)))
        assert outcome.status == 400
        assert "[key]" in outcome.json["error"]["message"]
        assert_unseen(outcome)
    assert cloud.keys("k-quotes") == {"1": 2, "2": 6}  # the client's own fault: no key rests


async def test_a_key_that_a_stream_quotes_is_not_shown(cloud: Cloud) -> None:
    async def quotes(exchange: Exchange) -> None:
        shown = exchange.request.headers["authorization"]
        await exchange.start_stream()
        await exchange.event(delta("one"))
        await exchange.event({"error": {"message": f"lost {shown}"}})
        await exchange.end_stream()

    cloud.behaviours["k-event"] = quotes
    ask = Ask(chat("k-event/gpt-4o-mini", stream=True))
    outcomes = [await once(cloud.port, ask) for _ in range(4)]
    for outcome in outcomes:
        assert "lost Bearer [key]" in outcome.body.decode()
        assert_unseen(outcome)
    assert cloud.tries(*outcomes) == [[("k-event", 0, "stream_error")]] * 4


async def test_each_of_two_workers_keeps_the_weights(pair: Cloud) -> None:
    outcomes = await flood(pair.port, [Ask(chat("k-share/gpt-4o-mini"))] * 400, 32)
    for outcome in outcomes:
        assert_served(outcome)
    assert abs(pair.keys("k-share")["1"] - 100) <= 2
    pair.behaviours["k-401"] = RESTING["k-401"]
    for outcome in await flood(pair.port, [Ask(chat("k-401/gpt-4o-mini"))] * 100, 8):
        assert_served(outcome)
    assert 1 <= pair.keys("k-401")["1"] <= 8  # what was under way when the first was refused
    for outcome in await flood(pair.port, [Ask(chat("g-crowd/gemini-2.5-pro"))] * 60, 30):
        assert_served(outcome)
    assert 1 <= len(pair.asked("token-g-crowd")) <= 2


async def test_as_soon_as_there_is_a_token_requests_are_served(
    cloud: Cloud, tokenless: Tokenless
) -> None:
    await asyncio.sleep(tokenless.again_at - time.monotonic())  # little: it stands last
    for name in BROKEN_TOKENS:
        before = len(cloud.asked(f"token-{name}"))
        for _ in range(2):
            assert_served(await once(cloud.port, Ask(chat(f"{name}/gemini-2.5-pro"))))
        assert len(cloud.asked(f"token-{name}")) == before + 1
