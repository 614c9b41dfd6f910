"""The command line: what its parser takes."""

from unittest.mock import Mock

import pytest

from gateway.cli import cache
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


def test_too_many_hits_to_count_are_said_with_what_can_be_done(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(cache, "with_store", Mock(side_effect=ValueError(TOO_MANY)))
    assert main(["cache", "stats"]) == 2
    said = capsys.readouterr().err
    assert "--tenant" in said
    assert "days" not in said
