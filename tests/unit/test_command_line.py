"""The command line: what its parser takes."""

from pathlib import Path
from unittest.mock import Mock

import pytest

from gateway.cli import cache, keys
from gateway.cli.store import explained
from gateway.core.errors import ConfigError, StoreError
from gateway.store.usage import TOO_MANY
from workers.__main__ import _parser, main


@pytest.mark.parametrize(
    "words",
    [
        ["cache", "--config", "f.yaml", "stats"],
        ["cache", "stats", "--config", "f.yaml"],
        ["cache", "purge", "--all", "--config", "f.yaml"],
        ["keys", "--config", "f.yaml", "list"],
        ["keys", "list", "--config", "f.yaml"],
        ["usage", "--config", "f.yaml"],
    ],
)
def test_a_configuration_may_be_named_before_an_action_and_behind_it(words: list[str]) -> None:
    assert _parser().parse_args(words).config == "f.yaml"


def test_without_one_the_environments_holds(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SLUICE_CONFIG", "g.yaml")
    assert _parser().parse_args(["cache", "stats"]).config == "g.yaml"


def test_an_empty_one_is_none(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SLUICE_CONFIG", "")
    assert _parser().parse_args(["cache", "stats"]).config is None


@pytest.mark.parametrize(
    ("words", "variable", "said"),
    [
        (["usage"], "REDIS_URL", "redis.url: expected "),
        (["usage"], "SLUICE_STATE_DIR", "server.state_dir: there is no such home"),
        (["check"], "SLUICE_STATE_DIR", "server.state_dir: there is no such home"),
    ],
)
def test_a_variable_that_no_command_can_use_is_named(
    words: list[str],
    variable: str,
    said: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setenv(variable, "~no-such-user/x")
    assert main(words) == 2
    assert capsys.readouterr().err.startswith(f"sluice: environment {variable}: {said}")


def test_a_check_names_the_providers_that_are_left_out(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    monkeypatch.setenv("SLUICE_STATE_DIR", str(tmp_path))
    monkeypatch.setenv("AZURE_OPENAI_API_KEY", "k")
    monkeypatch.delenv("AZURE_OPENAI_ENDPOINT", raising=False)
    assert main(["check"]) == 0
    shown = capfd.readouterr()
    assert shown.out == "the environment: valid\n"
    assert "sluice: azure is left out: AZURE_OPENAI_API_KEY is set" in shown.err


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--name", "a b"], "--name: expected up to 64 letters"),
        (["--name", "a", "--label", "team=b c"], "--label: expected 1 to 64 letters"),
        (["--name", "a", "--model", ""], "--model: expected a length of at least 1"),
        (["--name", "a", "--rpm", "0"], "--rpm: expected a whole number, at least 1"),
    ],
)
def test_a_bad_setting_of_a_key_is_blamed_on_its_option(words: list[str], said: str) -> None:
    arguments = _parser().parse_args(["keys", "create", *words])
    with pytest.raises(ConfigError, match=f"^{said}"):
        keys.settings_of({}, arguments)


@pytest.mark.parametrize(
    ("error", "said"),
    [
        ("Redis answered: WRONGPASS no such user.", "Redis answered: WRONGPASS no such user."),
        ("cannot connect to Redis", "cannot connect to Redis. Is the gateway running?"),
    ],
)
def test_only_where_redis_is_away_the_gateway_may_be(error: str, said: str) -> None:
    assert explained(StoreError(error)) == said


def test_too_many_hits_to_count_are_said_with_what_can_be_done(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(cache, "with_store", Mock(side_effect=ValueError(TOO_MANY)))
    assert main(["cache", "stats"]) == 2
    said = capsys.readouterr().err
    assert "--tenant" in said
    assert "days" not in said
