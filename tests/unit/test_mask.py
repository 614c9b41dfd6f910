"""Credentials are covered however an answer is split, and nothing else is changed."""

import json
import re
from collections.abc import Callable
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.http.mask import Mask
from gateway.policy.spelled import MOST_SEARCHED, Spelled

SECRETS = ("sk-secret", "sk-secret-2", "aab")
PIECES = st.sampled_from([*SECRETS, "sk-", "secret", "a", "aa", "b", "s", "\n", "-2", "x"])


@given(st.lists(PIECES, max_size=30), st.data())
def test_secrets_are_covered_wherever_parts_end(pieces: list[str], data: st.DataObject) -> None:
    whole = "".join(pieces).encode()
    cuts = sorted(data.draw(st.lists(st.integers(0, len(whole)), max_size=8)))
    ends = [*cuts, len(whole)]
    parts = [whole[a:b] for a, b in zip([0, *cuts], ends, strict=True)]
    mask = Mask(SECRETS)
    shown = b"".join([mask.feed(part) for part in parts]) + mask.rest()
    assert len(shown) == len(whole)
    assert not [secret for secret in SECRETS if secret.encode() in shown]
    changed = {i for i, (a, b) in enumerate(zip(whole, shown, strict=True)) if a != b}
    covered: set[int] = set()
    for secret in SECRETS:
        for found in re.finditer(f"(?={re.escape(secret)})".encode(), whole):
            covered |= set(range(found.start(), found.start() + len(secret)))
    assert changed <= covered


SLASHED = ("team/se+cret", 'q"/é')
SPELLINGS: list[Callable[[str], str]] = [
    lambda c: c,
    lambda c: f"\\u{ord(c):04x}",
    lambda c: f"\\u{ord(c):04X}",
    lambda c: f"\\{c}" if c in '"\\/' else c,
    lambda c: json.dumps(f"\\u{ord(c):04x}")[1:-1],  # of JSON in a string of JSON
    lambda c: json.dumps(f"\\{c}" if c in '"\\/' else c, ensure_ascii=False)[1:-1],
]


@given(st.data())
def test_secrets_are_covered_however_they_are_spelled(data: st.DataObject) -> None:
    secret = data.draw(st.sampled_from(SLASHED))
    one_way = st.sampled_from(SPELLINGS)
    ways = data.draw(st.lists(one_way, min_size=len(secret), max_size=len(secret)))
    spelling = "".join([way(c) for way, c in zip(ways, secret, strict=True)]).encode()
    before = data.draw(st.sampled_from([b"", b"a/", b"te", b"\\n", b'{"key": "\\u00e9']))
    after = data.draw(st.sampled_from([b"", b'"}', b"\\n\n", b" ret"]))
    whole = before + spelling + after
    mask = Mask((secret,))
    assert mask.feed(whole) + mask.rest() == before + b"*" * len(spelling) + after
    mask, covered = Mask((secret,)), b""
    cuts = sorted(data.draw(st.sets(st.integers(0, len(whole)), max_size=8)))
    for start, end in pairwise([0, *cuts, len(whole)]):
        covered += mask.feed(whole[start:end])
    assert covered + mask.rest() == before + b"*" * len(spelling) + after


@pytest.mark.parametrize(
    "text", [b"a\\n", b'say \\"', b"tea\\/x", b"\\u00e9", b"\\u0074x", b"\\\\/", b"t\\u006"]
)
def test_other_escapes_stay_as_they_are(text: bytes) -> None:
    mask = Mask(("team/secret",))
    assert mask.feed(text) + mask.feed(b"\n\n") + mask.rest() == text + b"\n\n"


@pytest.mark.parametrize("first", ["0", "/"])
@pytest.mark.parametrize("way", SPELLINGS[1:5])
def test_a_backslash_before_a_secret_stays_whole(way: Callable[[str], str], first: str) -> None:
    spelling = "".join(map(way, f"{first}secret"))
    for before in ("", "\\\\", "\\\\\\\\", "x\\\\", "\\n\\\\"):
        whole = f'"{before}{spelling}"'.encode()
        expected = f'"{before}{"*" * len(spelling)}"'.encode()
        for size in (1, 2, 3, 4, len(whole)):
            mask = Mask((f"{first}secret",))
            parts = [mask.feed(whole[at : at + size]) for at in range(0, len(whole), size)]
            shown = b"".join(parts) + mask.rest()
            assert (shown, json.loads(shown)) == (expected, json.loads(expected))


def test_a_backslash_before_a_secret_stays_whole_in_a_string_of_json() -> None:
    whole = json.dumps(json.dumps("\\/secret")).encode()
    shown = Mask(("/secret",)).feed(whole)
    assert json.loads(json.loads(shown)) == "\\*******"


def test_an_escape_that_is_not_finished_is_held_back() -> None:
    mask = Mask(("team/secret",))
    assert mask.feed(b'data: "\\u00') == b'data: "'
    assert mask.feed(b"74eam") == b""
    assert mask.feed(b"\\") == b""
    assert mask.feed(b"/secret\\n") == b"*" * 17 + b"\\n"


def test_what_cannot_be_a_secret_is_shown_at_once() -> None:
    mask = Mask(("sk-secret",))
    assert mask.feed(b"data: {}\n\n") == b"data: {}\n\n"
    assert mask.feed(b"data: sk-") == b"data: "
    assert mask.feed(b"x") == b"sk-x"
    assert mask.feed(b"sk-secre") == b""
    assert mask.rest() == b"sk-secre"


def test_a_secret_that_is_longer_than_what_is_looked_for_at_once_is_covered_as_a_whole() -> None:
    secret = "eyJ" + "0123456789abcdef" * 100
    assert len(secret) > MOST_SEARCHED
    spelled = secret.replace("3", "\\u0033").encode()
    beginning = spelled[: 3 * MOST_SEARCHED]
    covered = Spelled(secret).replaced(b"a " + spelled + b" b " + beginning + b".", lambda _: b"*")
    assert covered == b"a * b " + beginning + b"."


def test_only_whole_secrets_are_looked_at_closely(monkeypatch: pytest.MonkeyPatch) -> None:
    looked = []
    end = Spelled._end

    def counted(self: Spelled, data: bytes, at: int) -> int:
        looked.append(at)
        return end(self, data, at)

    monkeypatch.setattr(Spelled, "_end", counted)
    text = b"sk-up s sk- \\u0073 " * 50_000  # one escape is enough to look for more
    assert Spelled("sk-upstream").replaced(text, lambda secret: b"*") == text
    assert looked == []
    assert (
        Spelled("sk-upstream").replaced(text + b"\\u0073k-upstream", lambda _: b"*") == text + b"*"
    )
    assert 1 <= len(looked) <= 2


def test_without_secrets_nothing_is_held() -> None:
    mask = Mask(("",))
    assert mask.feed(b"sk-secret") == b"sk-secret"
    assert mask.rest() == b""
    assert mask.text("sk") == "sk"


def test_a_header_is_covered() -> None:
    assert Mask(("sk-secret",)).text("key sk-secret!") == "key *********!"
    assert Mask(("a/secret",)).text('{"\udce9": "a\\/secret"}') == '{"\udce9": "*********"}'
