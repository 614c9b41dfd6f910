"""`sluice doctor` looks at the gateway, its store and its providers, and says what is amiss."""

import json
import re
from pathlib import Path
from typing import Any

from tests.integration.conftest import unused_port
from tests.support.command import sluice
from tests.support.config import KEY, config, digest
from tests.support.gateway import running
from tests.support.store import store_server
from tests.support.threaded import UpstreamThread
from tests.support.upstream import Exchange

SECRET = "sk-of-the-provider"


async def lists(exchange: Exchange) -> None:
    """List models to who has the key."""
    keys = exchange.request.headers.get("authorization", "")
    if "/broken/" in exchange.request.path:
        await exchange.reply({"error": {"message": "no \x1b[2J"}}, status=500)
    elif "/narrow/" in exchange.request.path:
        await exchange.reply({"error": {"message": "Missing scopes: api.model.read"}}, status=403)
    elif "/google/" in exchange.request.path:
        await exchange.reply({"error": {"details": [{"reason": "API_KEY_INVALID"}]}}, status=400)
    elif "/page/" in exchange.request.path:
        await exchange.reply({"welcome": "to this server"})
    elif SECRET not in keys:
        await exchange.reply({"error": {"message": f"bad key {keys}"}}, status=401)
    else:
        await exchange.reply({"object": "list", "data": [{"id": "m"}, {"id": "n"}]})


def providers(url: str) -> dict[str, Any]:
    ours = {"kind": "openai-compatible", "base_url": url, "api_key": SECRET}
    return {
        "good": ours,
        "wrong-key": {**ours, "api_key": "sk-wrong"},
        "broken": {**ours, "base_url": f"{url}/broken"},
        "gone": {**ours, "base_url": f"http://127.0.0.1:{unused_port()}"},
        "narrow": {**ours, "base_url": f"{url}/narrow"},
        "google": {**ours, "base_url": f"{url}/google"},
        "page": {**ours, "base_url": f"{url}/page"},
        "two": {**ours, "api_key": None, "api_keys": [SECRET, "sk-wrong"]},
        "demo": {"kind": "demo"},
    }


def found(out: str) -> dict[str, tuple[str, str]]:
    """What is said of each thing, and how bad it is."""
    lines = [re.fullmatch(r"(\w+) +(\S+(?: \S+)?)  +(.*)", line) for line in out.splitlines()]
    return {one[2]: (one[1], one[3]) for one in lines if one is not None}


def test_what_is_amiss_is_named(tmp_path: Path) -> None:
    with UpstreamThread(behaviour=lists) as upstream, store_server(tmp_path) as store:
        text = json.loads(
            config(
                providers=providers(upstream.url),
                auth={"keys": [{"name": "k", "tenant": "acme", "sha256": digest(KEY)}]},
                models={"m": {"targets": [{"provider": "good"}]}},
                redis={"url": f"unix://{store.socket}"},
            )
        )
        port = unused_port()
        text["server"] = {**text.get("server", {}), "address": f"127.0.0.1:{port}"}
        with running(json.dumps(text), port=None, host=None) as gateway:
            store.redis.config_set("maxmemory", "100mb")
            store.redis.config_set("maxmemory-policy", "allkeys-lru")
            done = sluice(gateway.state, gateway.config_file, "doctor")
            offline = sluice(gateway.state, gateway.config_file, "doctor", "--offline")
        assert done.returncode == 1
        assert done.stderr == "sluice: 4 of 18 are bad\n"
        seen = found(done.stdout)
        assert seen["configuration"] == ("ok", "valid")
        assert seen["gateway"] == ("ok", f"ready at 127.0.0.1:{port}")
        level, said = seen["store"]
        assert re.fullmatch(r".*\.sock answers in [0-9.]+ ms", said), said
        assert seen["store's memory"][0] == "note"
        assert "may be evicted" in seen["store's memory"][1]
        level, said = seen["provider good"]
        assert (level, re.fullmatch(r"2 models, told in \d+ ms", said) is not None) == ("ok", True)
        assert seen["provider wrong-key"] == ("BAD", "refuses the key (401)")
        assert seen["provider broken"][0] == "note"
        assert seen["provider gone"][0] == "BAD"
        assert seen["provider narrow"] == ("note", "reached; the key may not list its models (403)")
        assert seen["provider google"] == ("BAD", "refuses the key (400)")
        assert seen["provider page"] == (
            "note",
            "reached; it lists no model: is the address right?",
        )
        assert seen["provider two"][0] == "ok"
        assert re.search(r"(?m)^BAD +provider two, key 2 +refuses the key \(401\)$", done.stdout)
        assert seen["provider demo"] == ("ok", "answers by itself")
        assert SECRET not in done.stdout + done.stderr
        assert (offline.returncode, offline.stderr) == (0, "")
        assert not [name for name in found(offline.stdout) if name.startswith("provider")]


def test_a_store_that_is_away_is_bad_where_it_is_not_ours(tmp_path: Path) -> None:
    text = config(redis={"url": f"redis://127.0.0.1:{unused_port()}"}, models={})
    file = tmp_path / "sluice.yaml"
    file.write_text(text)
    done = sluice(tmp_path / "state", file, "doctor", "--offline")
    seen = found(done.stdout)
    assert (done.returncode, seen["store"][0], seen["gateway"][0]) == (1, "BAD", "note")
    assert not (tmp_path / "state").exists()


def test_a_configuration_that_is_wrong_comes_first(tmp_path: Path) -> None:
    file = tmp_path / "sluice.yaml"
    file.write_text("server: {adress: x}")
    done = sluice(tmp_path / "state", file, "doctor")
    assert (done.returncode, done.stdout) == (2, "")
    assert "adress" in done.stderr
