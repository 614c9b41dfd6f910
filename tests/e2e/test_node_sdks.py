"""The SDKs for Node against the gateway, unchanged: `openai`, `@anthropic-ai/sdk`, Vercel's `ai`.

The scripts in `node/` make all calls and print what each came to; here is what that must be, and
what the scripted providers must have been asked. `npm ci --prefix tests/e2e/node` sets them up.
"""

import json
import re
import shutil
import subprocess
import time
from collections import defaultdict
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from tests.golden.conversation import (
    QUESTION,
    TURNS,
    WIRES,
    Turn,
    Wire,
    gemini_answer,
    gemini_parts,
)
from tests.support.config import KEY, digest
from tests.support.gateway import Gateway, untroubled
from tests.support.threaded import UpstreamThread
from tests.support.upstream import Exchange, delta

Json = dict[str, Any]

SCRIPTS = Path(__file__).with_name("node")
OLDEST_NODE = 20
PATIENCE_SECONDS = 60.0
RECORD_SECONDS = 10.0

OPENAI = ("openai-chat", "openai-responses")
VERCEL = ("ai-responses", "ai-chat", "ai-anthropic", "ai-compatible")
SDKS = ("ai", "openai", "anthropic")  # a script for each
CLIENTS = (*OPENAI, "anthropic", *VERCEL)
MODES = ("whole", "streamed")
LIMITS: dict[str, Json] = {
    "slow": {"rpm": 1},
    "small": {"tpm": 100},
    "brisk": {"rpm": 300, "burst": 1},  # of two requests the second waits 200 ms
}
ASKED_AGAIN = 3  # all these SDKs try twice more of themselves
TRIES_IN_VAIN = dict.fromkeys(CLIENTS, 1) | dict.fromkeys(VERCEL, ASKED_AGAIN)

SYSTEM = "You know the weather."
TOOLS = ("weather", "note")
CITY: Json = {"city": "Bergen", "degrees": 7}
SCHEMA: Json = {
    "type": "object",
    "properties": {"city": {"type": "string"}, "degrees": {"type": "integer"}},
    "required": ["city", "degrees"],
    "additionalProperties": False,
}
VECTORS = [[0.25, -0.5], [1.0, 0.0]]
VECTORS_BASE64 = ["AACAPgAAAL8=", "AACAPwAAAAA="]
EMBEDDINGS = {"openai": "openai/text-embedding-3-small", "gemini": "gemini/gemini-embedding-001"}

FINISH = {**dict.fromkeys(CLIENTS, "stop"), "openai-responses": "completed"}
FINISH["anthropic"] = "end_turn"
USAGE = {
    **{client: {"inputTokens": 10, "outputTokens": 5, "totalTokens": 15} for client in VERCEL},
    "openai-chat": {"prompt_tokens": 10, "completion_tokens": 5, "total_tokens": 15},
    "openai-responses": {"input_tokens": 10, "output_tokens": 5, "total_tokens": 15},
    "anthropic": {"input_tokens": 10, "output_tokens": 5},
}


# --- What an SDK does not send back --------------------------------------------------------------

# Clients that lose thoughts, and of which providers.
FORGETS = {
    "ai-chat": tuple(WIRES),  # knows no thoughts
    "ai-compatible": ("anthropic", "bedrock"),  # sends them back without their signatures
}
THOUGHTS = frozenset(("thinking", "reasoningContent", "reasoning_content", "thoughtSignature"))


def history(wire: Wire, until: int, *, thoughts: bool) -> list[Json]:
    """The turns of a request behind its question, as its provider must find them."""
    found: list[Json] = []
    for turn in TURNS[:until]:
        given = wire.given(turn)
        found += [wire.said(turn), *(given if isinstance(given, list) else [given])]
    return [plain(turn, thoughts=thoughts) for turn in found]


def plain(turn: Json, *, thoughts: bool) -> Json:
    """A turn, such that what means the same looks the same; where so wished without thoughts."""
    found = {
        name: value
        for name, value in turn.items()
        if value is not None and (thoughts or name not in THOUGHTS)
    }
    for name in ("content", "parts"):
        if isinstance(found.get(name), list):
            blocks = [plain_block(block, thoughts=thoughts) for block in found[name]]
            found[name] = [block for block in blocks if block]
    if "tool_calls" in found:
        found["tool_calls"] = [
            {**call, "function": {**function, "arguments": json.loads(function["arguments"])}}
            for call in found["tool_calls"]
            for function in [call["function"]]
        ]
    return found


def plain_block(block: Json, *, thoughts: bool) -> Json:
    if not thoughts and block.get("type") in THOUGHTS:
        return {}
    found = {name: value for name, value in block.items() if thoughts or name not in THOUGHTS}
    if block.get("type") == "tool_result" and isinstance(block["content"], str):
        found["content"] = [{"type": "text", "text": block["content"]}]
    return found


# --- The providers -------------------------------------------------------------------------------


class Providers:
    """Every provider in one server; the first step of a path says which. Keeps what it is asked."""

    def __init__(self) -> None:
        self.asked: defaultdict[str, list[Json]] = defaultdict(list)  # case -> bodies

    async def answer(self, exchange: Exchange) -> None:
        """Say what the case wants that the system prompt names."""
        name, path = exchange.request.path.removeprefix("/").split("/", 1)
        body = exchange.request.json
        if name == "limited":
            await exchange.reply({"error": {"message": "slow down"}}, 429, {"Retry-After": "0"})
        elif name == "cut":
            await exchange.start_stream()
            await exchange.event(delta("one"))
            exchange.abort()
        elif path.endswith(("/embeddings", ":batchEmbedContents")):
            await exchange.reply(embedded(name, body))
        elif path.endswith("/count_tokens"):
            await exchange.reply({"input_tokens": 12})
        else:
            found = re.search(rf"{re.escape(SYSTEM)} \((.*?)\)", json.dumps(body))
            await self._converse(exchange, name, path, found[1] if found else "")

    async def _converse(self, exchange: Exchange, name: str, path: str, case: str) -> None:
        body, wire = exchange.request.json, WIRES[name]
        self.asked[case].append(body)
        turn = TURNS[-1]
        if "/turns " in case:
            said = [one["role"] for one in wire.turns_of(body)]
            turn = TURNS[said.count("assistant") + said.count("model")]
        if case.endswith("/object"):
            await exchange.reply(in_json(name, body))
        elif body.get("stream") or "stream" in path.partition("?")[0].lower():
            await exchange.send(
                f"HTTP/1.1 200 OK\r\nContent-Type: {wire.content_type}\r\n"
                "Transfer-Encoding: chunked\r\n\r\n".encode()
            )
            for frame in wire.stream(turn):
                await exchange.chunk(frame)
            await exchange.end_stream()
        else:
            await exchange.reply(wire.whole(turn))


def in_json(name: str, body: Json) -> Json:
    """A structured answer: as text, or by the tool that some clients offer instead."""
    if '"name": "json"' in json.dumps(body):
        turn = Turn(thought="Done.", signature="c2ln", calls=[("call_j", "json", CITY)])
    else:
        turn = Turn(thought="Done.", signature="c2ln", text=json.dumps(CITY))
    if name == "gemini":
        return gemini_answer(TURNS[-1], gemini_parts(turn), True)
    return WIRES[name].whole(turn)


def embedded(name: str, body: Json) -> Json:
    """Two vectors, in the encoding that was asked for."""
    if name == "gemini":
        values = [{"values": vector} for vector in VECTORS]
        return {"embeddings": values, "usageMetadata": {"promptTokenCount": 2}}
    shown: Any = VECTORS_BASE64 if body.get("encoding_format") == "base64" else VECTORS
    data = [{"object": "embedding", "index": i, "embedding": shown[i]} for i in range(2)]
    spent = {"prompt_tokens": 2, "total_tokens": 2}
    return {"object": "list", "data": data, "model": body["model"], "usage": spent}


# --- The calls -----------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def providers() -> Providers:
    return Providers()


@pytest.fixture(scope="module")
def gateway(providers: Providers) -> Iterator[Gateway]:
    with UpstreamThread(behaviour=providers.answer) as upstream:
        root = upstream.url.removesuffix("/v1")
        served = {
            name: {"kind": wire.kind, "base_url": f"{root}/{name}/v1", **wire.settings}
            for name, wire in WIRES.items()
        }
        for name in ("openai", "limited", "cut"):
            served[name] = {"kind": "openai", "base_url": f"{root}/{name}/v1", "api_key": "sk"}
        keys: list[Json] = [{"name": "good", "sha256": digest(KEY)}]
        for client in CLIENTS:
            for what, limit in LIMITS.items():
                name = f"{client}-{what}"
                keys.append({"name": name, "sha256": digest(secret(name)), **limit})
        with untroubled(json.dumps({"providers": served, "auth": {"keys": keys}})) as started:
            yield started


def secret(name: str) -> str:
    """The secret of a key."""
    return f"sk-node-{name}"


@pytest.fixture(scope="module")
def node() -> str:
    """The command that runs a script."""
    found = shutil.which("node")
    if found is None:
        pytest.skip("node is not installed")
    version = subprocess.run([found, "--version"], capture_output=True, text=True, check=True)
    if int(version.stdout.removeprefix("v").partition(".")[0]) < OLDEST_NODE:
        pytest.skip(f"node is {version.stdout.strip()}; the SDKs want {OLDEST_NODE}")
    if not (SCRIPTS / "node_modules").is_dir():
        pytest.skip("not set up; run: npm ci --prefix tests/e2e/node")
    return found


@pytest.fixture(scope="module")
def told(node: str, gateway: Gateway) -> Json:
    """What every call came to, by the call's name."""
    settings = {
        "url": gateway.url,
        "keys": {"good": KEY} | {f"{c}-{w}": secret(f"{c}-{w}") for c in CLIENTS for w in LIMITS},
        "models": {name: f"{name}/{wire.model}" for name, wire in WIRES.items()},
        "embeddings": EMBEDDINGS,
        "question": QUESTION,
        "system": SYSTEM,
        "tools": TOOLS,
        "results": {
            name + json.dumps(arguments, separators=(",", ":"), ensure_ascii=False): result
            for turn in TURNS
            for (_, name, arguments), result in zip(turn.calls, turn.results, strict=True)
        },
        "schema": SCHEMA,
    }
    commands = [[node, str(SCRIPTS / f"{name}.mjs"), json.dumps(settings)] for name in SDKS]
    with ThreadPoolExecutor() as pool:
        return {name: one for found in pool.map(printed, commands) for name, one in found.items()}


def printed(command: list[str]) -> Json:
    """What a script prints."""
    ended = subprocess.run(command, capture_output=True, text=True, timeout=PATIENCE_SECONDS)
    assert ended.returncode == 0, ended.stderr
    found: Json = json.loads(ended.stdout)
    return found


# --- What they must come to ----------------------------------------------------------------------


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("provider", WIRES)
@pytest.mark.parametrize("client", CLIENTS)
def test_a_text_with_its_usage(told: Json, client: str, provider: str, mode: str) -> None:
    found = told[f"{client}/{provider}/text {mode}"]
    assert found.get("text") == TURNS[-1].text, found
    assert found["finish"] == FINISH[client]
    assert USAGE[client].items() <= found["usage"].items()
    assert found.get("thought") == (None if client == "ai-chat" else TURNS[-1].thought)


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("provider", WIRES)
@pytest.mark.parametrize("client", CLIENTS)
def test_nothing_is_lost_in_five_turns(
    told: Json, providers: Providers, client: str, provider: str, mode: str
) -> None:
    case, wire = f"{client}/{provider}/turns {mode}", WIRES[provider]
    assert told[case] == [turn.text for turn in TURNS]
    assert len(providers.asked[case]) == len(TURNS)
    thoughts = provider not in FORGETS.get(client, ())
    for number, body in enumerate(providers.asked[case]):
        turns = [turn for turn in wire.turns_of(body) if turn.get("role") != "system"]
        assert QUESTION in json.dumps(turns[0], ensure_ascii=False)
        found = [plain(turn, thoughts=thoughts) for turn in turns[1:]]
        assert found == history(wire, number, thoughts=thoughts), number


@pytest.mark.parametrize("provider", WIRES)
@pytest.mark.parametrize("client", CLIENTS)
def test_a_structured_answer(told: Json, providers: Providers, client: str, provider: str) -> None:
    case = f"{client}/{provider}/object"
    assert told[case] == CITY
    (body,) = providers.asked[case]
    assert "degrees" in json.dumps(body)


@pytest.mark.parametrize("provider", EMBEDDINGS)
@pytest.mark.parametrize("client", ["openai-chat", "ai-responses", "ai-compatible"])
def test_embeddings(told: Json, client: str, provider: str) -> None:
    assert told[f"{client}/{provider}/embeddings"] == {"vectors": VECTORS, "tokens": 2}


@pytest.mark.parametrize("provider", WIRES)
def test_tokens_are_counted(told: Json, provider: str) -> None:
    found = told[f"anthropic/{provider}/count"]
    assert found == 12 if provider == "anthropic" else 0 < found < 30


# --- And what is refused -------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("what", "kind", "status"),
    [
        ("wrong key", "AuthenticationError", 401),
        ("wrong key, streamed", "AuthenticationError", 401),
        ("unknown model", "NotFoundError", 404),
        ("a limit", "RateLimitError", 429),
    ],
)
@pytest.mark.parametrize("client", CLIENTS)
def test_a_refusal_is_the_sdks_own_error(
    told: Json, gateway: Gateway, client: str, what: str, kind: str, status: int
) -> None:
    error = told[f"{client}/refused/{what}"]["thrown"]
    assert error["class"] == ("APICallError" if client in VERCEL else kind)
    assert error["status"] == status
    assert error["headers"]["x-request-id"].startswith("req_")
    if client in VERCEL:
        assert error["isRetryable"] is (status == 429)
    if what == "a limit":
        assert 1 <= int(error["headers"]["retry-after"]) <= 60
        assert used(gateway, f"{client}-slow", 2) == [200, 429]


def recorded(gateway: Gateway, count: int, **fields: str) -> list[Json]:
    """The records with these fields, once there are so many: they are written in batches."""
    deadline = time.monotonic() + RECORD_SECONDS
    while True:
        found = [one for one in gateway.records() if fields.items() <= one.items()]
        if len(found) >= count or time.monotonic() > deadline:
            return found
        time.sleep(0.02)


def used(gateway: Gateway, key: str, count: int) -> list[int]:
    """How the requests of a key ended, of which so many are expected."""
    return [record["status"] for record in recorded(gateway, count, key=key)]


@pytest.mark.parametrize("client", CLIENTS)
def test_what_can_never_fit_is_given_up(told: Json, gateway: Gateway, client: str) -> None:
    # Vercel's SDK does not read `x-should-retry`.
    error = told[f"{client}/refused/what never fits"]["thrown"]
    assert error["class"] == ("RetryError" if client in VERCEL else "RateLimitError")
    assert "more than this key's limit" in error["message"]
    tries = TRIES_IN_VAIN[client]
    assert used(gateway, f"{client}-small", tries) == [429] * tries


@pytest.mark.parametrize("client", CLIENTS)
def test_a_providers_limit_is_tried_again_twice(told: Json, gateway: Gateway, client: str) -> None:
    error = told[f"{client}/refused/a provider's limit"]["thrown"]
    assert error["class"] == ("RetryError" if client in VERCEL else "RateLimitError")
    assert error.get("last", error)["status"] == 429
    limited = recorded(gateway, ASKED_AGAIN, provider="limited", served_model=client)
    assert len(limited) == ASKED_AGAIN


@pytest.mark.parametrize("client", CLIENTS)
def test_an_sdk_waits_as_told_and_succeeds(told: Json, gateway: Gateway, client: str) -> None:
    assert told[f"{client}/waits/and succeeds"] is None
    statuses = used(gateway, f"{client}-brisk", 3)
    assert statuses.count(200) == 2
    assert 429 in statuses


@pytest.mark.parametrize("client", CLIENTS)
def test_a_cut_stream_is_an_error(told: Json, client: str) -> None:
    error = told[f"{client}/refused/a cut stream"]["thrown"]
    assert client in VERCEL or error["class"] == "APIError"
    assert "the connection ended before the reply" in error["message"]
