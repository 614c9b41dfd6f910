"""The demo model: the same question, the same answer, and honest counts."""

import base64
import math
import struct
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.providers.demo import MAX_ECHO_CHARS, Ask, Turn, answer, embed, reply_id, tokens, usage


def ask(text: str = "hello there", **fields: object) -> Ask:
    return msgspec.convert(
        {"model": "demo", "messages": [{"role": "user", "content": text}], **fields}, Ask
    )


@given(st.text())
def test_tokens_joined_are_the_text(text: str) -> None:
    assert "".join(tokens(text)) == text


def test_tokens_are_words_with_the_space_before_them() -> None:
    assert tokens("one two\n three") == ["one", " two", "\n three"]


def test_an_answer_is_deterministic_and_counts_what_it_says() -> None:
    words, prompt, reason = answer(ask())
    assert answer(ask()) == (words, prompt, reason)
    assert (prompt, reason) == (2, "stop")
    said = "".join(words)
    assert said.startswith("Hello! I am Sluice's built-in demo model. You said: 'hello there'.")
    assert tokens(said) == words
    assert answer(ask("something else"))[0] != words


@pytest.mark.parametrize(
    ("fields", "most"),
    [
        ({"max_tokens": 3}, 3),
        ({"max_completion_tokens": 4}, 4),
        ({"max_tokens": 9, "max_completion_tokens": 4}, 4),
        ({"max_tokens": 1}, 1),
    ],
)
def test_an_answer_is_cut_where_the_client_says(fields: dict[str, int], most: int) -> None:
    whole = answer(ask())[0]
    assert answer(ask("hello there", **fields)) == (whole[:most], 2, "length")
    assert answer(ask(max_tokens=len(whole)))[2] == "stop"
    assert answer(ask(max_tokens=10**6)) == answer(ask())


def test_the_whole_conversation_is_counted_and_the_last_question_answered() -> None:
    turns = [
        Turn("system", "be brief"),
        Turn("user", "one"),
        Turn("assistant", None),
        Turn("user", [{"type": "text", "text": "two words"}, {"type": "image_url"}]),
        Turn("assistant", "three"),
    ]
    words, prompt, _ = answer(Ask("demo", messages=turns))
    assert prompt == 2 + 1 + 0 + 2 + 1
    assert "You said: 'two words" in "".join(words)


def test_a_completion_has_a_prompt_instead() -> None:
    words, prompt, _ = answer(Ask("demo", prompt="tell me more"))
    assert prompt == 3
    assert "'tell me more'" in "".join(words)
    assert answer(Ask("demo", prompt=["tell", "me"]))[1] == 2


def test_a_long_question_is_not_echoed_whole() -> None:
    assert len("".join(answer(ask("x" * 100_000))[0])) < MAX_ECHO_CHARS + 300


def test_usage_is_the_sum_of_its_parts() -> None:
    expected = {"prompt_tokens": 3, "completion_tokens": 4, "total_tokens": 7}
    assert usage(3, 4) == expected


def test_the_same_question_has_the_same_id() -> None:
    assert reply_id(ask()) == reply_id(ask())
    assert len({reply_id(ask(text)) for text in "abc"}) == 3


# --- Embeddings ----------------------------------------------------------------------------------


def vectors(**fields: object) -> list[Any]:
    reply = embed(msgspec.convert({"model": "demo-embedding", **fields}, Ask))
    assert [entry["index"] for entry in reply["data"]] == list(range(len(reply["data"])))
    return [entry["embedding"] for entry in reply["data"]]


def test_equal_texts_have_equal_vectors_of_length_one() -> None:
    first, second, third = vectors(input=["a", "b", "a"])
    assert first == third != second
    assert vectors(input="a") == [first]
    for vector in (first, second):
        assert len(vector) == 64
        assert math.hypot(*vector) == pytest.approx(1)


@pytest.mark.parametrize(("wanted", "size"), [(None, 64), (3, 3), (4096, 4096), (10**9, 4096)])
def test_vectors_have_the_dimensions_asked_for(wanted: int | None, size: int) -> None:
    (vector,) = vectors(input="a", dimensions=wanted)
    assert len(vector) == size


def test_base64_holds_the_same_vector_as_32_bit_floats() -> None:
    (plain,) = vectors(input="a")
    (packed,) = vectors(input="a", encoding_format="base64")
    assert isinstance(packed, str)
    assert struct.unpack("<64f", base64.b64decode(packed)) == pytest.approx(plain)


@pytest.mark.parametrize(
    ("given", "count", "tokens_counted"),
    [("one two", 1, 2), (["one", "two three"], 2, 3), ([1, 2, 3], 1, 3), ([[1, 2], [3]], 2, 3)],
)
def test_every_form_of_input_is_embedded(given: object, count: int, tokens_counted: int) -> None:
    reply = embed(msgspec.convert({"model": "e", "input": given}, Ask))
    assert len(reply["data"]) == count
    assert reply["usage"] == {"prompt_tokens": tokens_counted, "total_tokens": tokens_counted}
