"""The command line: what its parser takes."""

import pytest

from workers.__main__ import _parser


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
