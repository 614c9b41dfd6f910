"""The real SDKs at `/providers/NAME`: what they do beyond chat, and how large it may be.

Nothing is translated here, so one upstream plays every provider by the path that it is asked.
"""

import contextlib
import hashlib
import io
import json
import re
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import anthropic
import openai
import psutil
import pytest
import pytest_asyncio
from google import genai
from google.genai import types

from tests.e2e.test_openai_sdk import every
from tests.integration.conftest import wait
from tests.support.config import KEY, PRICED_MODEL, config, digest
from tests.support.gateway import Gateway, untroubled
from tests.support.threaded import UpstreamThread
from tests.support.upstream import Exchange, delta, usage

OWN = "sk-upstream-secret"
NARROW_KEY, SLOW_KEY = "sk-narrow-1", "sk-slow-1"
KEYS: list[dict[str, Any]] = [
    {"name": "k", "tenant": "acme", "sha256": digest(KEY)},
    {"name": "narrow", "sha256": digest(NARROW_KEY), "models": [PRICED_MODEL]},
    {"name": "slow", "sha256": digest(SLOW_KEY), "rpm": 1},
]
# Every model is retired one day, and the SDK warns of that.
pytestmark = pytest.mark.filterwarnings("ignore:The model .* is deprecated:DeprecationWarning")
CLAUDE, IMAGER = "claude-haiku-4-5", "gpt-image-1"
MEBIBYTE = 1024 * 1024
LARGE = bytes(range(256)) * (30 * MEBIBYTE // 256)
MOST_GROWTH = 20 * MEBIBYTE
HELLO: Any = [{"role": "user", "content": "hello"}]

# -- every provider in one -------------------------------------------------------------------------

TOKENS = {"input_tokens": 7, "output_tokens": 5, "total_tokens": 12}
FILE = {"id": "file-1", "object": "file", "created_at": 1, "filename": "f", "purpose": "batch"}
BATCH = {
    "id": "batch_1",
    "object": "batch",
    "endpoint": "/v1/chat/completions",
    "input_file_id": "file-1",
    "completion_window": "24h",
    "status": "validating",
    "created_at": 1,
}
MESSAGE: dict[str, Any] = {
    "id": "msg_1",
    "type": "message",
    "role": "assistant",
    "model": CLAUDE,
    "content": [{"type": "text", "text": "one"}],
    "stop_reason": "end_turn",
    "stop_sequence": None,
    "usage": {"input_tokens": 4, "cache_read_input_tokens": 3, "output_tokens": 5},
}
GOOGLE = {
    "candidates": [{"content": {"role": "model", "parts": [{"text": "one"}]}, "index": 0}],
    "usageMetadata": {"promptTokenCount": 7, "candidatesTokenCount": 5, "totalTokenCount": 12},
}
GENERATE = "models/gemini-2.0-flash:generateContent"
REPLIES: dict[str, Any] = {
    "/v1/images/generations": {"created": 1, "data": [{"b64_json": "AAAA"}], "usage": TOKENS},
    "/v1/audio/transcriptions": {"text": "hello", "usage": {"type": "tokens", **TOKENS}},
    "/v1/files": {**FILE, "bytes": 3, "status": "processed"},
    "/v1/batches": BATCH,
    "/v1/messages": MESSAGE,
    "/v1/messages/batches": {"id": "msgbatch_1", "type": "message_batch"},
    **{f"/{version}/{GENERATE}": GOOGLE for version in ("v1", "v1alpha", "v1beta")},
}


async def plays_them_all(exchange: Exchange) -> None:
    """Answer as the provider would whose path it is."""
    request = exchange.request
    path = request.path.partition("?")[0]
    if path == "/v1/files/file-1/content":
        await exchange.reply(LARGE, headers={"Content-Type": "application/octet-stream"})
    elif path == "/v1/audio/speech":
        await exchange.reply(LARGE[:100_000], headers={"Content-Type": "audio/mpeg"})
    elif request.method == "POST" and b'"stream":true' in request.body[:10_000]:
        await streams(exchange, path)
    else:
        await exchange.reply(REPLIES.get(path, {"object": "list", "data": [], "has_more": False}))


async def streams(exchange: Exchange, path: str) -> None:
    """Stream a chat or a message."""
    await exchange.start_stream()
    if path == "/v1/messages":
        begun = {**MESSAGE, "content": [], "usage": {**MESSAGE["usage"], "output_tokens": 1}}
        for event in (
            {"type": "message_start", "message": begun},
            {
                "type": "content_block_start",
                "index": 0,
                "content_block": {"type": "text", "text": ""},
            },
            {
                "type": "content_block_delta",
                "index": 0,
                "delta": {"type": "text_delta", "text": "one"},
            },
            {"type": "content_block_stop", "index": 0},
            {
                "type": "message_delta",
                "delta": {"stop_reason": "end_turn"},
                "usage": {"output_tokens": 5},
            },
            {"type": "message_stop"},
        ):
            await exchange.chunk(f"event: {event['type']}\ndata: {json.dumps(event)}\n\n".encode())
    else:
        for word in ("one", " two"):
            await exchange.event(delta(word))
        await exchange.event(delta(None, "stop"))
        await exchange.event({**delta(None), "choices": [], "usage": usage(7, 5)})
        await exchange.event("[DONE]")
    await exchange.end_stream()


@pytest.fixture(scope="module")
def provider() -> Iterator[UpstreamThread]:
    with UpstreamThread(behaviour=plays_them_all) as upstream:
        yield upstream


@pytest.fixture(scope="module")
def gateway(provider: UpstreamThread) -> Iterator[Gateway]:
    host = provider.url.removesuffix("/v1")
    providers = {
        "openai": {"kind": "openai", "base_url": provider.url},
        "claude": {"kind": "anthropic", "base_url": provider.url},
        "gemini": {"kind": "gemini", "base_url": f"{host}/v1beta"},
        "azure": {"kind": "azure", "base_url": host},
    }
    for row in providers.values():
        row["api_key"] = OWN
    with untroubled(config(providers=providers, models={}, auth={"keys": KEYS})) as running:
        yield running
        log = running.log_file.read_text()
        assert OWN not in log
        assert KEY not in log


@pytest.fixture(autouse=True)
def _forget(provider: UpstreamThread) -> None:
    provider.reset(plays_them_all)


@pytest.fixture(params=["", "/v1"], ids=["bare", "v1"])
def client(request: pytest.FixtureRequest, gateway: Gateway) -> Iterator[openai.OpenAI]:
    """OpenAI's SDK, with and without the version that its own default address has."""
    with client_of(f"{gateway.url}/providers/openai{request.param}") as made:
        yield made


def client_of(url: str, key: str = KEY) -> openai.OpenAI:
    """OpenAI's SDK, which never tries again."""
    return openai.OpenAI(base_url=url, api_key=key, max_retries=0, timeout=30)


@pytest_asyncio.fixture
async def asynchronous(gateway: Gateway) -> AsyncIterator[openai.AsyncOpenAI]:
    url = f"{gateway.url}/providers/openai/v1"
    async with openai.AsyncOpenAI(base_url=url, api_key=KEY, max_retries=0, timeout=30) as made:
        yield made


@pytest.fixture
def claude(gateway: Gateway) -> Iterator[anthropic.Anthropic]:
    url = f"{gateway.url}/providers/claude"
    with anthropic.Anthropic(base_url=url, api_key=KEY, max_retries=0, timeout=30) as made:
        yield made


@contextlib.contextmanager
def counted(gateway: Gateway, model: str = "") -> Iterator[None]:
    """See that 7 and 5 tokens are counted, once, and what a model costs with a price."""
    before = gateway.usage("acme")
    yield
    wait(lambda: gateway.usage("acme")["requests"] > before.get("requests", 0))
    after = gateway.usage("acme")
    found = {name: after[name] - before.get(name, 0) for name in after}
    assert (found["requests"], found["prompt_tokens"], found["completion_tokens"]) == (1, 7, 5)
    assert (found["cost_microusd"] > 0) == bool(model)
    if model:
        assert gateway.usage("acme", part=f"model:{model}")["prompt_tokens"] >= 7


# -- OpenAI's --------------------------------------------------------------------------------------


def test_an_image(client: openai.OpenAI, gateway: Gateway, provider: UpstreamThread) -> None:
    with counted(gateway, f"openai/{IMAGER}"):
        made = client.images.generate(model=IMAGER, prompt="a cat")
    assert made.data is not None
    assert made.data[0].b64_json == "AAAA"
    assert made.usage is not None
    assert made.usage.output_tokens == 5
    (received,) = provider.received
    assert received.path == "/v1/images/generations"
    assert received.headers["authorization"] == f"Bearer {OWN}"
    assert received.json == {"model": IMAGER, "prompt": "a cat"}


def test_a_transcription(client: openai.OpenAI, gateway: Gateway, provider: UpstreamThread) -> None:
    sound = LARGE[:100_000]
    with counted(gateway):
        made = client.audio.transcriptions.create(
            model="gpt-4o-transcribe", file=("a.wav", io.BytesIO(sound), "audio/wav")
        )
    assert made.text == "hello"
    (received,) = provider.received
    boundary = received.headers["content-type"].partition("boundary=")[2].encode()
    parts = received.body.split(b"--" + boundary)
    assert any(part.endswith(b"\r\n\r\n" + sound + b"\r\n") for part in parts)
    assert any(b'name="model"' in part and b"gpt-4o-transcribe" in part for part in parts)


def test_speech(client: openai.OpenAI) -> None:
    made = client.audio.speech.create(model="tts-1", voice="alloy", input="hello")
    assert made.read() == LARGE[:100_000]


def test_a_batch_and_its_file(client: openai.OpenAI, provider: UpstreamThread) -> None:
    lines = b'{"custom_id": "1", "method": "POST", "url": "/v1/chat/completions"}\n'
    file = client.files.create(file=("batch.jsonl", lines), purpose="batch")
    batch = client.batches.create(
        input_file_id=file.id, endpoint="/v1/chat/completions", completion_window="24h"
    )
    client.batches.retrieve(batch.id)
    client.batches.list(limit=3, after="batch_0")
    client.files.delete(file.id)
    assert [(one.method, one.path) for one in provider.received] == [
        ("POST", "/v1/files"),
        ("POST", "/v1/batches"),
        ("GET", "/v1/batches/batch_1"),
        ("GET", "/v1/batches?after=batch_0&limit=3"),
        ("DELETE", "/v1/files/file-1"),
    ]
    assert provider.received[1].json["input_file_id"] == "file-1"


def test_a_chat_stream(client: openai.OpenAI, gateway: Gateway) -> None:
    with counted(gateway, f"openai/{PRICED_MODEL}"):
        chunks = list(
            client.chat.completions.create(model=PRICED_MODEL, messages=HELLO, stream=True)
        )
    text = "".join(one.choices[0].delta.content or "" for one in chunks if one.choices)
    assert text == "one two"
    assert chunks[-1].usage is not None


async def test_an_asynchronous_chat_stream(
    asynchronous: openai.AsyncOpenAI, gateway: Gateway
) -> None:
    with counted(gateway, f"openai/{PRICED_MODEL}"):
        stream = await asynchronous.chat.completions.create(
            model=PRICED_MODEL, messages=HELLO, stream=True
        )
        assert len(await every(stream)) == 4


# -- large files -----------------------------------------------------------------------------------


@contextlib.contextmanager
def of_constant_memory(gateway: Gateway) -> Iterator[None]:
    """See that the worker's memory grows by little at its most."""
    (worker,) = gateway.worker_pids
    Path(f"/proc/{worker}/clear_refs").write_text("5")  # the peak is now; see proc(5)
    before = psutil.Process(worker).memory_info().rss
    yield
    status = Path(f"/proc/{worker}/status").read_text()
    found = re.search(r"VmHWM:\s+(\d+) kB", status)
    assert found is not None
    assert int(found[1]) * 1024 - before < MOST_GROWTH


def test_a_large_upload(
    client: openai.OpenAI, gateway: Gateway, provider: UpstreamThread, tmp_path: Path
) -> None:
    file = tmp_path / "large.jsonl"
    file.write_bytes(LARGE)
    with of_constant_memory(gateway):
        assert client.files.create(file=file, purpose="batch").id == "file-1"
    (received,) = provider.received
    start = received.body.index(b'filename="large.jsonl"')
    start = received.body.index(b"\r\n\r\n", start) + 4
    sent = hashlib.sha256(received.body[start : start + len(LARGE)]).digest()
    assert sent == hashlib.sha256(LARGE).digest()


def test_a_large_download(client: openai.OpenAI, gateway: Gateway) -> None:
    found = hashlib.sha256()
    with (
        of_constant_memory(gateway),
        client.files.with_streaming_response.content("file-1") as response,
    ):
        assert int(response.headers["content-length"]) == len(LARGE)
        for part in response.iter_bytes(MEBIBYTE):
            found.update(part)
    assert found.digest() == hashlib.sha256(LARGE).digest()


# -- Anthropic's, Google's, Azure's ----------------------------------------------------------------


def test_a_message(claude: anthropic.Anthropic, gateway: Gateway, provider: UpstreamThread) -> None:
    with counted(gateway, f"claude/{CLAUDE}"):
        made = claude.messages.create(model=CLAUDE, max_tokens=9, messages=HELLO)
    assert made.usage.output_tokens == 5
    (received,) = provider.received
    assert received.path == "/v1/messages"
    assert received.headers["x-api-key"] == OWN
    assert received.headers["anthropic-version"]
    assert "authorization" not in received.headers


def test_a_message_stream(claude: anthropic.Anthropic, gateway: Gateway) -> None:
    with (
        counted(gateway, f"claude/{CLAUDE}"),
        claude.messages.stream(model=CLAUDE, max_tokens=9, messages=HELLO) as stream,
    ):
        assert "".join(stream.text_stream) == "one"


def test_what_else_there_is_of_anthropics(
    claude: anthropic.Anthropic, provider: UpstreamThread
) -> None:
    params: Any = {"model": CLAUDE, "max_tokens": 9, "messages": HELLO}
    claude.messages.batches.create(requests=[{"custom_id": "1", "params": params}])
    claude.models.list(limit=5)
    claude.beta.files.upload(file=("a.txt", b"hello", "text/plain"))
    claude.beta.messages.create(betas=["of-the-day"], **params)
    batch, models, file, message = provider.received
    assert (batch.path, models.path) == ("/v1/messages/batches", "/v1/models?limit=5")
    assert file.path.startswith("/v1/files")
    assert "of-the-day" in message.headers["anthropic-beta"]


@pytest.mark.parametrize("version", [None, "v1beta", "v1alpha"])
def test_google(gateway: Gateway, provider: UpstreamThread, version: str | None) -> None:
    """By any version, also by the SDK's own."""
    options = types.HttpOptions(
        base_url=f"{gateway.url}/providers/gemini", api_version=version, timeout=30_000
    )
    with (
        counted(gateway, "gemini/gemini-2.0-flash"),
        genai.Client(api_key=KEY, http_options=options) as client,
    ):
        made = client.models.generate_content(model="gemini-2.0-flash", contents="hello")
        assert made.text == "one"
    (received,) = provider.received
    assert re.fullmatch(f"/{version or 'v1(beta)?'}/{GENERATE}", received.path)
    assert received.headers["x-goog-api-key"] == OWN
    assert KEY not in json.dumps(received.headers)


def test_azure(gateway: Gateway, provider: UpstreamThread) -> None:
    url = f"{gateway.url}/providers/azure"
    with openai.AzureOpenAI(
        azure_endpoint=url, api_key=KEY, api_version="2024-10-21", max_retries=0
    ) as client:
        client.chat.completions.create(model="mini", messages=HELLO)
    (received,) = provider.received
    assert received.path == "/openai/deployments/mini/chat/completions?api-version=2024-10-21"
    assert received.headers["api-key"] == OWN


# -- refusals --------------------------------------------------------------------------------------


def test_refusals_are_the_sdks_own(gateway: Gateway, provider: UpstreamThread) -> None:
    url = f"{gateway.url}/providers/openai"
    with client_of(url, "sk-wrong") as stranger, pytest.raises(openai.AuthenticationError):
        stranger.files.create(file=("a", LARGE[:MEBIBYTE]), purpose="batch")
    with client_of(url, NARROW_KEY) as narrow:
        narrow.chat.completions.create(model=PRICED_MODEL, messages=HELLO)
        with pytest.raises(openai.PermissionDeniedError):
            narrow.chat.completions.create(model="gpt-4o", messages=HELLO)
        with pytest.raises(openai.PermissionDeniedError):
            narrow.files.create(file=("a", b"x"), purpose="batch")
    with client_of(f"{gateway.url}/providers/nobody") as lost, pytest.raises(openai.NotFoundError):
        lost.files.list()
    with client_of(url, SLOW_KEY) as slow:
        slow.files.list()
        with pytest.raises(openai.RateLimitError) as caught:
            slow.files.list()
        assert int(caught.value.response.headers["retry-after"]) > 0
    assert len(provider.received) == 2


def test_an_error_of_the_providers_is_told_in_its_words(
    client: openai.OpenAI, provider: UpstreamThread
) -> None:
    async def fails(exchange: Exchange) -> None:
        error = {"message": "no such voice", "type": "invalid_request_error", "code": "voice"}
        await exchange.reply({"error": error}, status=400)

    provider.reset(fails)
    with pytest.raises(openai.BadRequestError, match="no such voice") as caught:
        client.audio.speech.create(model="tts-1", voice="none", input="hello")
    assert caught.value.code == "voice"


def test_a_download_that_breaks_off_raises(client: openai.OpenAI, provider: UpstreamThread) -> None:
    async def breaks(exchange: Exchange) -> None:
        await exchange.send(b"HTTP/1.1 200 OK\r\nContent-Length: 1000000\r\n\r\n" + LARGE[:1000])
        exchange.abort()

    provider.reset(breaks)
    with pytest.raises(openai.APIError):
        client.files.content("file-1").read()
