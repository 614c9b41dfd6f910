"""Who may call: the ways a key arrives, what it opens, and where its secret must never appear."""

import contextlib
import json
import subprocess
import sys
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest

from tests.support.config import KEY, bearer, chat, config, digest
from tests.support.gateway import ROOT, Gateway, running
from tests.support.threaded import UpstreamThread
from tests.support.upstream import Exchange, completion, delta, usage
from tests.support.wire import ask, connected, head_of, post

NARROW, WILD, CASED = "sk-narrow-0001", "sk-wild-00001", "sk-cased-0001"
MODELS = ("m", "small", "claude-a", "claude-b", "Team[1]")
KEYS: list[dict[str, Any]] = [
    {"name": "k", "sha256": digest(KEY)},
    {"name": "narrow", "sha256": digest(NARROW), "models": ["small"]},
    {"name": "wild", "sha256": digest(WILD), "models": ["claude-*", "p0/gpt-?"]},
    {"name": "cased", "sha256": digest(CASED), "models": ["Team[[]1]", "M"]},
]


@pytest.fixture(scope="module")
def provider() -> Iterator[UpstreamThread]:
    """The upstream behind every gateway here."""
    with UpstreamThread() as upstream:
        yield upstream


@pytest.fixture(scope="module")
def guarded(provider: UpstreamThread) -> Iterator[Gateway]:
    """A gateway with several keys; it serves MODELS."""
    target = {"provider": "p0", "model": "gpt-4o-mini"}
    models = {name: {"targets": [target]} for name in MODELS}
    with running(config(provider.url, auth={"keys": KEYS}, models=models)) as gateway:
        yield gateway


@pytest.fixture(autouse=True)
def fresh(provider: UpstreamThread) -> None:
    """The upstream behaves, and has received nothing."""
    provider.reset()


async def status(gateway: Gateway, *lines: str, model: str = "m", key: str | None = None) -> int:
    """The status of a chat with these header lines."""
    return (await ask(gateway.port, post(chat(model), *lines, key=key))).status


def get(gateway: Gateway, path: str, key: str | None) -> tuple[int, Any]:
    """A GET's status and decoded body."""
    code, body = gateway.get(path, bearer(key) if key else None)
    return code, json.loads(body)


# -- the ways a key arrives ------------------------------------------------------------------------


@pytest.mark.parametrize(
    "line",
    [
        f"Authorization: Bearer {KEY}",
        f"authorization: bearer {KEY}",
        f"AUTHORIZATION: BEARER   {KEY}  ",
        f"x-api-key: {KEY}",
        f"X-API-Key: {KEY}",
        f"api-key: {KEY}",
    ],
)
async def test_a_key_is_known_however_it_comes(
    guarded: Gateway, provider: UpstreamThread, line: str
) -> None:
    assert await status(guarded, line) == 200
    # The provider sees the gateway's own key, and nothing of the client's.
    sent = provider.received[0].headers
    assert sent["authorization"] == "Bearer sk-upstream-0"
    assert KEY not in str(sent)
    models = await ask(guarded.port, head_of(line, path="/v1/models", method="GET", key=None))
    assert models.status == 200


@pytest.mark.parametrize(
    "line",
    [
        "x-nothing: 1",
        "Authorization: ",
        "Authorization: Bearer",
        "Authorization: Bearer ",
        f"Authorization: {KEY}",
        f"Authorization: Basic {KEY}",
        f"Authorization: Bearer {KEY} {KEY}",
        f'Authorization: Bearer "{KEY}"',
        f"Authorization: Bearer {KEY.upper()}",
        f"Authorization: Bearer {digest(KEY)}",
        f"Authorization: Bearer {digest(KEY).upper()}",
        f"Authorization: Bearer {KEY[:-1]}",
        f"Authorization: Bearer {KEY}0",
        "Authorization: Bearer k",
        "x-api-key: ",
        f"x-api-key: Bearer {KEY}",
        f"x-api-key: {digest(KEY)}",
        f"cookie: api-key={KEY}",
        f"openai-api-key: {KEY}",
    ],
)
async def test_anything_else_is_not_a_key(
    guarded: Gateway, provider: UpstreamThread, line: str
) -> None:
    reply = await ask(guarded.port, post(chat(), line, key=None))
    assert reply.status == 401
    assert reply.error["type"] == "authentication_error"
    assert reply.error["code"] in ("missing_api_key", "invalid_api_key")
    for path in ("/v1/models", "/v1/models/m"):
        plain = await ask(guarded.port, head_of(line, path=path, method="GET", key=None))
        assert plain.status == 401
        assert plain.error["type"] == "authentication_error"
    assert provider.received == []


async def test_a_key_in_the_query_is_not_taken(guarded: Gateway) -> None:
    path = f"/v1/chat/completions?api-key={KEY}&key={KEY}"
    assert (await ask(guarded.port, post(chat(), path=path, key=None))).status == 401


async def test_a_wrong_bearer_is_not_made_good_by_another_header(guarded: Gateway) -> None:
    assert await status(guarded, f"x-api-key: {KEY}", key="sk-wrong") == 401
    assert await status(guarded, "x-api-key: sk-wrong", key=KEY) == 200
    # Basic credentials may be a proxy's; the key then stands beside them.
    assert await status(guarded, "Authorization: Basic YTpi", f"x-api-key: {KEY}") == 200


async def test_each_request_on_a_connection_is_asked_for_its_own_key(guarded: Gateway) -> None:
    async with connected(guarded.port) as wire:
        for key, expected in ((KEY, 200), (None, 401), (NARROW, 403), (KEY, 200), ("x", 401)):
            await wire.send(post(chat(), key=key))
            assert (await wire.reply()).status == expected


# -- what a key opens ------------------------------------------------------------------------------

ALLOWED = {
    KEY: {*MODELS, "p0/gpt-x", "gpt-4o"},
    NARROW: {"small"},
    WILD: {"claude-a", "claude-b", "p0/gpt-x"},
    CASED: {"Team[1]"},
}
ASKED = (*MODELS, "p0/gpt-x", "p0/gpt-4o", "gpt-4o", "p0/small", "p0/m", "CLAUDE-a", "xclaude-a")


@pytest.mark.parametrize("key", ALLOWED)
async def test_an_allowlist_decides_over_every_name(
    guarded: Gateway, provider: UpstreamThread, key: str
) -> None:
    for model in ASKED:
        provider.reset()
        reply = await ask(guarded.port, post(chat(model), key=key))
        exists = model.startswith(("p0/", "gpt-")) or model in MODELS
        refusal = 404 if key == KEY else 403
        expected = 200 if model in ALLOWED[key] or (key == KEY and exists) else refusal
        assert reply.status == expected, model
        assert len(provider.received) == (expected == 200)
        if expected == 403:
            error = reply.error
            assert (error["code"], error["param"]) == ("model_not_allowed", "model")


async def test_an_allowlist_holds_for_every_operation(
    guarded: Gateway, provider: UpstreamThread
) -> None:
    for path, fields in (
        ("/v1/chat/completions", {"messages": [1]}),
        ("/v1/chat/completions", {"messages": [1], "stream": True}),
        ("/v1/completions", {"prompt": "x"}),
        ("/v1/embeddings", {"input": "x"}),
    ):
        body = {"model": "m", **fields}
        assert (await ask(guarded.port, post(body, path=path, key=NARROW))).status == 403
        assert provider.received == []


async def test_a_key_does_not_learn_which_models_it_may_not_use_exist(guarded: Gateway) -> None:
    there = await ask(guarded.port, post(chat("m"), key=NARROW))
    not_there = await ask(guarded.port, post(chat("n"), key=NARROW))
    assert there.error == {
        **not_there.error,
        "message": not_there.error["message"].replace("'n'", "'m'"),
    }


@pytest.mark.parametrize("key", ALLOWED)
def test_the_list_of_models_is_what_the_key_may_use(guarded: Gateway, key: str) -> None:
    code, listed = get(guarded, "/v1/models", key)
    names = {model["id"] for model in listed["data"]}
    assert (code, listed["object"]) == (200, "list")
    assert names & set(MODELS) == ALLOWED[key] & set(MODELS)
    if key != KEY:
        assert names <= ALLOWED[key]
    assert all(model["object"] == "model" for model in listed["data"])


def test_a_single_model_is_shown_only_where_it_may_be_used(guarded: Gateway) -> None:
    assert get(guarded, "/v1/models/m", KEY)[1]["id"] == "m"
    assert get(guarded, "/v1/models/small", NARROW)[1]["id"] == "small"
    assert get(guarded, "/v1/models/p0/gpt-x", WILD)[1]["id"] == "p0/gpt-x"
    assert get(guarded, "/v1/models/p0%2Fgpt-x", WILD)[1]["id"] == "p0/gpt-x"
    for key, path in ((NARROW, "m"), (NARROW, "p0/small"), (KEY, "nope"), (WILD, "claude-")):
        code, body = get(guarded, f"/v1/models/{path}", key)
        assert (code, body["error"]["code"]) == (404, "model_not_found")


# -- health ----------------------------------------------------------------------------------------

HEALTH = ("/health", "/health/ready", "/health/live")


def test_health_is_public(guarded: Gateway) -> None:
    for path in HEALTH:
        assert guarded.get(path)[0] == 200
    # What it tells everybody names no key, tenant, model or provider.
    shown = b"".join(guarded.get(path)[1] for path in HEALTH)
    assert not any(word in shown for word in (b"narrow", b"p0", b"claude", b"127.0.0.1"))


def test_health_asks_for_a_key_where_that_is_set(provider: UpstreamThread) -> None:
    environ = {"AUTH_HEALTH_CHECK": "true"}
    with running(config(provider.url, auth={"keys": KEYS}), environ=environ) as gateway:
        for path in HEALTH:
            code, body = get(gateway, path, None)
            assert (code, body["error"]["code"]) == (401, "missing_api_key")
            assert get(gateway, path, "sk-wrong")[0] == 401
            assert get(gateway, path, NARROW)[0] == 200


# -- the environment -------------------------------------------------------------------------------


async def test_keys_from_the_environment(provider: UpstreamThread) -> None:
    environ = {"API_KEYS": f" sk-first-key-1 ,,{NARROW}x, sk-with=odd+chars/1 "}
    with running(config(provider.url), environ=environ) as gateway:
        for key in ("sk-first-key-1", NARROW + "x", "sk-with=odd+chars/1", KEY):
            assert await status(gateway, key=key) == 200
        for wrong in ("", ",", "sk-first-key-1 ,", environ["API_KEYS"].strip(), NARROW):
            assert await status(gateway, key=wrong) == 401


async def test_keys_from_the_environment_alone_switch_authentication_on() -> None:
    with running(environ={"API_KEYS": "sk-only-key-1"}) as gateway:
        assert "keys required" in gateway.errors
        assert await status(gateway, model="demo") == 401
        assert await status(gateway, model="demo", key="sk-only-key-1") == 200


async def test_without_keys_everybody_on_this_machine_may_call() -> None:
    with running(host=None) as gateway:
        assert await status(gateway, model="demo") == 200
        assert await status(gateway, model="demo", key="whatever") == 200
        listening = [
            connection.laddr.ip
            for pid in (gateway.process.pid, *gateway.worker_pids)
            for connection in psutil.Process(pid).net_connections("inet")
            if connection.status == psutil.CONN_LISTEN
        ]
        assert listening
        assert set(listening) == {"127.0.0.1"}


async def test_authentication_switched_off_lets_everybody_in(provider: UpstreamThread) -> None:
    environ = {"AUTH_ENABLED": "false", "AUTH_HEALTH_CHECK": "true"}
    with running(config(provider.url), environ=environ) as gateway:
        assert await status(gateway) == 200
        assert await status(gateway, key="sk-wrong") == 200
        assert gateway.get("/health")[0] == 200
        gateway.settled()
        assert gateway.usage("default")["requests"] == 2
        assert gateway.usage("acme") == {}


def refused_start(tmp_path: Path, text: str, **environ: str) -> str:
    """What is printed by a gateway that refuses to start."""
    file = tmp_path / "sluice.yaml"
    file.write_text(text)
    state = {"SLUICE_STATE_DIR": str(tmp_path / "state")}
    command = [sys.executable, "-m", "workers", "serve", "--config", str(file)]
    ended = subprocess.run(
        command, cwd=ROOT, env={**state, **environ}, capture_output=True, text=True, timeout=30
    )
    assert ended.returncode != 0
    return ended.stderr


@pytest.mark.parametrize("address", ["0.0.0.0:0", "[::]:0", ":0", "example.test:0"])
def test_without_keys_other_machines_may_not_call(tmp_path: Path, address: str) -> None:
    text = json.dumps({"server": {"address": address}})
    printed = refused_start(tmp_path, text)
    assert f"{tmp_path}/sluice.yaml:1" in printed
    assert "server.address" in printed
    assert "there is no key" in printed


def test_nor_when_the_environment_says_where_to_listen(tmp_path: Path) -> None:
    assert "there is no key" in refused_start(tmp_path, "", SERVER_ADDRESS="0.0.0.0:0")


@pytest.mark.parametrize("address", ["127.1.2.3:0", "localhost:0"])
async def test_without_keys_loopback_is_fine(address: str) -> None:
    with running(json.dumps({"server": {"address": address}}), host=None) as gateway:
        host = address.partition(":")[0]
        with urllib.request.urlopen(f"http://{host}:{gateway.port}/v1/models", timeout=5) as reply:
            assert reply.status == 200


async def test_authentication_may_wait_for_its_first_virtual_key() -> None:
    with running("", environ={"AUTH_ENABLED": "true"}) as gateway:
        assert get(gateway, "/v1/models", None)[0] == 401
        assert get(gateway, "/v1/models", KEY)[0] == 401


@pytest.mark.parametrize(
    ("auth", "field"),
    [
        ({"keys": [{"name": "a", "sha256": KEY}]}, "auth.keys[0].sha256"),
        ({"keys": [{"name": "a", "key": "short"}]}, "auth.keys[0].key"),
        ({"keys": [{"name": "a"}]}, "auth.keys[0]"),
        ({"keys": [{"name": "a", "key": KEY, "sha256": digest(KEY)}]}, "auth.keys[0]"),
        ({"keys": [{"name": n, "key": KEY} for n in "ab"]}, "auth.keys[1]"),
        ({"keys": [{"name": "a", "key": KEY + n} for n in "ab"]}, "auth.keys[1].name"),
        ({"keys": [{"name": "a", "key": KEY, "modles": ["m"]}]}, "auth.keys[0].modles"),
    ],
)
def test_a_key_that_cannot_be_is_refused_without_being_shown(
    tmp_path: Path, auth: dict[str, Any], field: str
) -> None:
    printed = refused_start(tmp_path, json.dumps({"auth": auth}))
    assert field in printed
    assert KEY not in printed
    assert "short" not in printed


# -- secrets ---------------------------------------------------------------------------------------

CLIENT_SECRET, ENV_SECRET = "sk-client-SECRET-1", "sk-environ-SECRET-2"
WRONG_SECRET, UPSTREAM_SECRET = "sk-wrong-SECRET-3", "sk-upstream-SECRET-4"
HEADER_SECRET, PROMPT, ANSWER = "header-SECRET-5", "PROMPT-SECRET-6", "ANSWER-SECRET-7"
SECRETS = (CLIENT_SECRET, ENV_SECRET, WRONG_SECRET, UPSTREAM_SECRET, HEADER_SECRET, PROMPT, ANSWER)


async def tells_secrets(exchange: Exchange) -> None:
    """Answer as the request's `seed` says; whatever fails quotes what it was given."""
    asked, key = exchange.request.json, exchange.request.headers["authorization"]
    told = {"message": f"no: {key} said {PROMPT}", "type": "x", "code": PROMPT, "param": None}
    match asked.get("seed"), bool(asked.get("stream")):
        case None, False:
            await exchange.reply(completion(ANSWER, usage(1, 1)))
        case None, True:
            await exchange.start_stream()
            await exchange.event(delta(ANSWER))
            await exchange.event(delta(None, "stop"))
            await exchange.event("[DONE]")
            await exchange.end_stream()
        case -500, True:
            await exchange.start_stream()
            await exchange.event(delta(ANSWER))
            await exchange.event({"error": told})
            await exchange.end_stream()
        case -2, _:
            await exchange.send(f"HTTP/1.1 {PROMPT} {key}\r\n\r\n".encode())
            exchange.abort()
        case code, _:
            await exchange.reply({"error": told}, status=abs(int(code)))


READ: dict[str, tuple[str, tuple[str, ...]]] = {
    "string": ("GET", ()),
    "hash": ("HGETALL", ()),
    "set": ("SMEMBERS", ()),
    "list": ("LRANGE", ("0", "-1")),
    "zset": ("ZRANGE", ("0", "-1", "WITHSCORES")),
    "stream": ("XRANGE", ("-", "+")),
}


def everything_in(gateway: Gateway) -> str:
    """Every key and value of the store, of every type."""
    store: Any = gateway.store
    with contextlib.closing(store):
        found = []
        for name in store.scan_iter():
            command, arguments = READ[store.type(name)]
            found.append((name, store.execute_command(command, name, *arguments)))
    return repr(found)


async def test_no_secret_appears_anywhere(provider: UpstreamThread) -> None:
    provider.reset(tells_secrets)
    p0 = {
        "kind": "openai",
        "api_key": "env:UPSTREAM_KEY",
        "base_url": provider.url,
        "headers": {"x-extra": HEADER_SECRET},
    }
    text = config(
        auth={"keys": [{"name": "k", "tenant": "acme", "key": "env:CLIENT_KEY"}]},
        providers={"p0": p0},
        models={"m": {"targets": [{"provider": "p0", "model": "gpt-4o-mini"}]}},
        log={"level": "debug"},
        tenants={"acme": {"rpm": 6000, "tpm": 10_000_000}},
    )
    environ = {
        "CLIENT_KEY": CLIENT_SECRET,
        "API_KEYS": ENV_SECRET,
        "UPSTREAM_KEY": UPSTREAM_SECRET,
    }
    said = [{"role": "user", "content": PROMPT}]
    with running(text, environ=environ) as gateway:
        told = []
        for key in (CLIENT_SECRET, ENV_SECRET, WRONG_SECRET):
            for seed in (None, -500, -2, 400, 401, 403, 404, 429, 500, 503):
                for stream in (False, True):
                    body = {"model": "m", "messages": said, "seed": seed, "stream": stream}
                    told.append(await ask(gateway.port, post(body, key=key)))
        bad = (
            json.dumps({"model": "m", "messages": said}).encode() + PROMPT.encode(),
            {"model": PROMPT, "messages": said},
            {"model": "m", "messages": PROMPT},
            {"model": "m", "messages": said, "max_tokens": PROMPT},
        )
        told += [await ask(gateway.port, post(body, key=CLIENT_SECRET)) for body in bad]
        await ask(gateway.port, head_of(f"{PROMPT} {CLIENT_SECRET}", key=CLIENT_SECRET))
        gateway.settled()
        records = gateway.records(len(told), 10)
        metrics = gateway.get("/metrics")[1].decode()
        store = everything_in(gateway)
        processes = psutil.Process(gateway.process.pid).children(recursive=True)
        lines = [" ".join(p.cmdline()) for p in (*processes, psutil.Process(gateway.process.pid))]
        files = {
            str(path): path.read_bytes().decode("latin-1")
            for path in gateway.state.rglob("*")
            if path.is_file()
        }
        log, errors = gateway.log_file.read_text(), gateway.errors
    # It has all happened, and been noted.
    assert len(records) == len(told)
    assert {reply.status for reply in told} >= {200, 400, 401, 404, 429, 502}
    assert "acme" in store
    assert "gen_ai" in metrics
    assert files
    places = {
        "the log": log,
        "stderr": errors,
        "the metrics": metrics,
        "the store": store,
        "a command line": "\n".join(lines),
        **files,
    }
    shown = {place: [s for s in SECRETS if s in text] for place, text in places.items()}
    assert {place: found for place, found in shown.items() if found} == {}


@pytest.mark.parametrize("seed", [-500, -2, 400, 401, 403, 404, 422, 429, 500, 503])
async def test_no_client_learns_the_gateways_own_key(
    guarded: Gateway, provider: UpstreamThread, seed: int
) -> None:
    # A provider that refuses a key likes to quote it.
    provider.reset(tells_secrets)
    for stream in (False, True):
        body = chat(seed=seed, stream=stream)
        reply = await ask(guarded.port, post(body))
        assert len(provider.received) > 0
        assert b"sk-upstream-0" not in reply.body
        assert "sk-upstream-0" not in str(reply.headers)
