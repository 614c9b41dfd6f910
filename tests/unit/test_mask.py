"""Credentials are covered however an answer is split, and nothing else is changed."""

import re

from hypothesis import given
from hypothesis import strategies as st

from gateway.http.mask import Mask

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


def test_what_cannot_be_a_secret_is_shown_at_once() -> None:
    mask = Mask(("sk-secret",))
    assert mask.feed(b"data: {}\n\n") == b"data: {}\n\n"
    assert mask.feed(b"data: sk-") == b"data: "
    assert mask.feed(b"x") == b"sk-x"
    assert mask.feed(b"sk-secre") == b""
    assert mask.rest() == b"sk-secre"


def test_without_secrets_nothing_is_held() -> None:
    mask = Mask(("",))
    assert mask.feed(b"sk-secret") == b"sk-secret"
    assert mask.rest() == b""
    assert mask.text("sk") == "sk"


def test_a_header_is_covered() -> None:
    assert Mask(("sk-secret",)).text("key sk-secret!") == "key *********!"
