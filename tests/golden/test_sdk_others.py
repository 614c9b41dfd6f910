"""The recordings that are no conversations, read through the gateway with the OpenAI SDK."""

import base64
import json
import struct
from collections.abc import Iterator
from typing import Any

import openai
import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import rsa

from tests.golden.recordings import NEEDS_RECORDINGS, RECORDINGS, Recording, read
from tests.golden.replay import DELIVERIES, Replay, model_of, status
from tests.golden.sdk import Reader
from tests.support.gateway import Gateway, running
from tests.support.threaded import UpstreamThread
from tests.support.upstream import Exchange

pytestmark = NEEDS_RECORDINGS

KINDS = {"google-vertex": "vertex", "google": "gemini"}


def of(api: str) -> list[Any]:
    found = [recording for recording in RECORDINGS if recording.api == api]
    return [pytest.param(recording, id=recording.name) for recording in found]


async def token(exchange: Exchange) -> None:
    await exchange.reply({"access_token": "t0ken", "expires_in": 3600, "token_type": "Bearer"})


def account(url: str) -> str:
    """A Google service account whose tokens come from a server of this test."""
    key = rsa.generate_private_key(public_exponent=65537, key_size=2048)
    pem = key.private_bytes(
        serialization.Encoding.PEM,
        serialization.PrivateFormat.PKCS8,
        serialization.NoEncryption(),
    )
    return json.dumps(
        {
            "type": "service_account",
            "client_email": "gateway@project.iam.gserviceaccount.com",
            "private_key": pem.decode(),
            "token_uri": url,
        }
    )


@pytest.fixture(scope="module")
def replay() -> Iterator[Replay]:
    with Replay() as server:
        yield server


@pytest.fixture(scope="module")
def gateway(replay: Replay) -> Iterator[Gateway]:
    with UpstreamThread(behaviour=token) as tokens:
        common = {"base_url": f"{replay.url}/v1"}
        providers: dict[str, Any] = {
            name: {**common, "kind": KINDS.get(name, name), "api_key": "sk-upstream"}
            for name in ("openai", "cohere", "google")
        }
        providers["google-vertex"] = {
            **common,
            "kind": "vertex",
            "project": "p",
            "location": "global",
            "credentials": account(f"http://127.0.0.1:{tokens.upstream.port}/token"),
        }
        with running(json.dumps({"providers": providers})) as started:
            yield started


@pytest.fixture(scope="module")
def reader(gateway: Gateway) -> Iterator[Reader]:
    clients = Reader(gateway.url)
    yield clients
    clients.close()


@pytest.mark.parametrize("recording", of("completions"))
def test_a_legacy_completion(reader: Reader, recording: Recording) -> None:
    expected = read(recording)
    for how in DELIVERIES:
        model = f"openai/{model_of(recording, how)}"
        seen = reader.read("completions", model, stream=recording.stream)
        assert seen.error is None
        assert (seen.text, seen.finish) == (expected.text, expected.finish)
        assert seen.usage == expected.usage


@pytest.mark.parametrize("recording", of("embeddings"))
@pytest.mark.parametrize("encoding", ["float", "base64"])
def test_embeddings(reader: Reader, replay: Replay, recording: Recording, encoding: str) -> None:
    if encoding == "base64" and recording.provider == "openai":
        pytest.skip("passed on as it came, and it was recorded as floats")
    expected = read(recording)
    name = model_of(recording)
    asked: Any = {"model": f"{recording.provider}/{name}", "input": ["a", "b"]}
    asked["encoding_format"] = encoding
    reply = reader.openai.embeddings.create(**asked)
    found = [vector(one.embedding, encoding) for one in reply.data]
    assert len(found) == len(expected.vectors)
    for got, recorded in zip(found, expected.vectors, strict=True):
        assert got == pytest.approx(recorded, rel=1e-6)
    assert expected.usage is not None
    assert reply.usage.prompt_tokens == expected.usage.prompt_tokens
    if recording.provider == "google-vertex":
        assert replay.requests[name].headers["authorization"] == "Bearer t0ken"


def vector(embedding: Any, encoding: str) -> list[float]:
    """Numbers, also of what an SDK left encoded."""
    if isinstance(embedding, str):
        raw = base64.b64decode(embedding)
        return list(struct.unpack(f"<{len(raw) // 4}f", raw))
    return list(embedding)


@pytest.mark.parametrize("recording", of("error"))
@pytest.mark.parametrize("dialect", ["chat", "responses", "messages"])
def test_an_error(reader: Reader, recording: Recording, dialect: str) -> None:
    expected = read(recording)
    seen = reader.read(dialect, f"{recording.provider}/{model_of(recording)}", stream=False)
    assert seen.error is not None
    if status(recording) == 400:  # the client's to know; of limits only that there is one
        assert expected.error is not None
        assert expected.error[:200] in seen.error
    else:
        assert "limiting" in seen.error


def test_an_error_has_the_status_it_had(reader: Reader) -> None:
    (recording,) = [one for one in RECORDINGS if one.name.endswith("google-429-retry-info.json")]
    with pytest.raises(openai.RateLimitError):
        reader.openai.chat.completions.create(
            model=f"google/{model_of(recording)}", messages=[{"role": "user", "content": "Hi"}]
        )
