"""What is wrong with a provider is found before a worker is started on it, and named."""

import json
from pathlib import Path
from typing import Any

import pytest

from gateway.config.load import load_text
from gateway.core.errors import ConfigError
from gateway.core.operations import Operation
from gateway.pipeline.catalogue import Catalogue
from gateway.providers import PROVIDERS
from workers.prices import load_prices
from workers.settings import Flags, read, verify


@pytest.fixture(scope="module")
def directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("prices")


def checked(directory: Path, text: str, **environ: str) -> None:
    """What a start and a reload do with a file."""
    file = directory / "sluice.yaml"
    file.write_text(text)
    verify(read(Flags(str(file)), environ), load_prices(directory))


def refused(directory: Path, text: str, **environ: str) -> ConfigError:
    with pytest.raises(ConfigError) as caught:
        checked(directory, text, **environ)
    return caught.value


# -- keys ------------------------------------------------------------------------------------------

SPELLINGS = ["REPLACE_ME", "replace-me", "<REPLACE ME>", "changeme", "CHANGE_ME", "sk-REPLACE_ME"]


@pytest.mark.parametrize("left", SPELLINGS)
def test_a_key_that_was_to_be_replaced_is_refused(directory: Path, left: str) -> None:
    file = "providers:\n  p:\n    kind: openai\n    api_keys:\n      - good\n      - env:KEY\n"
    error = refused(directory, file, KEY=left)
    assert (error.line, error.field) == (6, "providers.p.api_keys[1]")
    assert left not in str(error)
    error = refused(directory, "", OPENAI_API_KEY=left)
    assert str(error).startswith("environment OPENAI_API_KEY: providers.openai.api_key: ")
    error = refused(directory, "", REDIS_URL=f"redis://:{left.replace(' ', '%20')}@redis:6379/0")
    assert str(error).startswith("environment REDIS_URL: redis.url: the password: ")
    assert left not in str(error)


@pytest.mark.parametrize("word", ["x", "EMPTY", "none", "secret", "sk-1234", "ollama", "change"])
def test_any_other_word_is_a_key_where_a_server_asks_for_none(directory: Path, word: str) -> None:
    checked(directory, f"providers: {{p: {{kind: vllm, api_key: '{word}'}}}}")
    checked(directory, f"redis: {{url: 'redis://:{word}@redis:6379/0'}}")


# -- addresses -------------------------------------------------------------------------------------


@pytest.mark.parametrize("user", ["me:the-word@", "me@", ":the-word@", "@"])
def test_credentials_in_an_address_are_refused(directory: Path, user: str) -> None:
    file = f"providers:\n  p:\n    kind: vllm\n    base_url: http://{user}h:8000/v1\n"
    error = refused(directory, file)
    assert (error.line, error.field) == (4, "providers.p.base_url")
    assert "headers: Authorization" in error.message
    assert "the-word" not in str(error)
    error = refused(directory, "", OPENAI_API_KEY="k", OPENAI_BASE_URL=f"https://{user}h/v1")
    assert str(error).startswith("environment OPENAI_BASE_URL: ")
    checked(directory, f"providers: {{p: {{kind: vllm, proxy: 'http://{user}h:3128'}}}}")


# -- headers ---------------------------------------------------------------------------------------

PLACES = {"base_url": "https://h/v1", "region": "r", "project": "p", "location": "l"}
KEYED = sorted(name for name in PROVIDERS if name not in ("vertex", "demo"))


def provider(kind: str, **fields: object) -> str:
    """A file with one provider, which has what its kind needs."""
    known = PROVIDERS[kind]
    needed = {name: PLACES[name] for name in known.settings}
    if known.base_url is None:
        needed["base_url"] = PLACES["base_url"]
    return json.dumps({"providers": {"p": {"kind": kind, **needed, **fields}}})


@pytest.mark.parametrize("kind", KEYED)
def test_a_header_that_holds_the_key_has_one_source(directory: Path, kind: str) -> None:
    config = load_text(provider(kind, api_key="the-key"), "f", {})
    served = Catalogue(config, load_prices(directory), "").resolve("p/m")
    assert served is not None
    header = PROVIDERS[kind].credential
    assert f"\r\n{header}: ".encode() in served.routes[0].ways[Operation.CHAT].head
    own = {"X-Team": "a", header.upper(): "mine"}
    error = refused(directory, provider(kind, api_key="the-key", headers=own))
    assert error.field == f"providers.p.headers.{header.upper()}"
    assert "mine" not in str(error)
    if not PROVIDERS[kind].needs_key and kind not in ("azure", "bedrock"):
        checked(directory, provider(kind, headers=own))


SIGNED: dict[str, dict[str, Any]] = {
    "bedrock": {"aws": {"access_key": "a", "secret_key": "s"}},
    "azure": {"entra": {"tenant": "t", "client_id": "c", "client_secret": "s"}},
    "vertex": {},
}


@pytest.mark.parametrize("kind", SIGNED)
def test_a_header_that_holds_a_token_is_not_set_beside_it(directory: Path, kind: str) -> None:
    checked(directory, provider(kind, **SIGNED[kind], headers={"X-Team": "a"}))
    error = refused(directory, provider(kind, **SIGNED[kind], headers={"Authorization": "x"}))
    assert error.field == "providers.p.headers.Authorization"


# -- settings of some kinds ------------------------------------------------------------------------

SETTINGS: dict[str, Any] = {
    "api": "responses",
    "api_version": "2024-10-21",
    "region": "r",
    "project": "p",
    "location": "l",
    "credentials": '{"type": "authorized_user", "client_id": "c", "client_secret": "s", '
    '"refresh_token": "r"}',
    "entra": {"tenant": "t", "client_id": "c", "client_secret": "s"},
    "aws": {"access_key": "a", "secret_key": "s"},
}


@pytest.mark.parametrize("kind", PROVIDERS)
def test_a_setting_that_a_kind_does_not_know_is_refused(directory: Path, kind: str) -> None:
    known = {*PROVIDERS[kind].settings, *PROVIDERS[kind].options}
    assert known <= {*SETTINGS}
    ours = {name: SETTINGS[name] for name in SETTINGS if name in known}
    checked(directory, provider(kind, api_key="k", **ours))
    for name in {*SETTINGS} - known:
        error = refused(directory, provider(kind, api_key="k", **{name: SETTINGS[name]}))
        assert error.field == f"providers.p.{name}"
        assert error.message == f"kind '{kind}' has no {name}"
