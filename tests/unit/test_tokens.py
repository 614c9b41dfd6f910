"""Token counts by the gateway itself."""

import pytest
import toktok

from gateway.policy.tokens import (
    ENCODING,
    MAX_CHARS,
    MAX_TOKENS,
    PIECE_CHARS,
    count_all,
    count_tokens,
)


@pytest.mark.parametrize(
    ("text", "count"),
    [
        ("", 0),
        ("hello", 1),
        ("hello world", 2),
        ("The quick brown fox jumps over the lazy dog.", 10),
        ("antidisestablishmentarianism", 6),
        ("你好世界", 2),
        ("1234567890", 4),
        (" " * 8, 1),
    ],
)
def test_a_text_is_counted_in_openais_current_vocabulary(text: str, count: int) -> None:
    assert count_tokens(text) == count


def test_a_marker_inside_a_text_is_text() -> None:
    assert count_tokens("<|endoftext|>") > 1
    assert count_tokens("\0\ufffd\U0010ffff") > 0


def test_parts_count_about_as_much_as_the_whole() -> None:
    words = " one two three four five six seven eight"
    assert count_tokens(words * 100) == pytest.approx(100 * count_tokens(words), rel=0.02)


@pytest.mark.parametrize("times", [1, 2, 5, 40])
def test_what_is_past_the_bound_counts_in_proportion(times: int) -> None:
    counted = count_tokens("word " * (MAX_CHARS // 5))
    assert count_tokens("word " * (MAX_CHARS // 5 * times)) == pytest.approx(
        counted * times, rel=0.001
    )


def test_one_character_past_the_bound_changes_almost_nothing() -> None:
    text = "ab " * (MAX_CHARS // 3) + "a"
    assert len(text) >= MAX_CHARS
    assert 0 <= count_tokens(text + "b") - count_tokens(text[:MAX_CHARS]) <= 1


@pytest.mark.parametrize("blank", [" ", ""])
def test_pieces_add_up(blank: str) -> None:
    text = "".join(f"{blank}word{number}" for number in range(4_000))
    exact = toktok.batch_count([text], ENCODING, 1)[0]
    assert exact < MAX_TOKENS
    slack = len(text) // PIECE_CHARS if not blank else 0
    assert exact <= count_tokens(text) <= exact + slack


def test_what_is_dear_to_count_is_counted_in_part() -> None:
    text = "".join(map(chr, range(0x4E00, 0x9FFF))) * 4
    exact = toktok.batch_count([text], ENCODING, 1)[0]
    assert exact > 4 * MAX_TOKENS
    assert count_tokens(text) == pytest.approx(exact, rel=0.05)


def test_several_texts_share_the_bound() -> None:
    assert count_all(["one two three", "", "four"]) == 4
    text = "ab " * (MAX_CHARS // 3)
    assert count_all([text] * 6) == pytest.approx(6 * count_tokens(text), rel=0.001)
