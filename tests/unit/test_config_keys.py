"""The keys of a configuration: what is known to everybody is refused, what is blank is no part."""

import hashlib

import pytest

from gateway.config.load import load_text
from gateway.config.schema import Auth
from gateway.core.errors import ConfigError

KEY = "a-key-of-the-search-team"
ADMIN_KEY = "7b1e90cc54d2aa83f0e6"


def read(text: str, **environ: str) -> Auth:
    return load_text(text, "sluice.yaml", environ).auth


def refused(text: str, **environ: str) -> ConfigError:
    with pytest.raises(ConfigError) as caught:
        read(text, **environ)
    return caught.value


def digest(key: str) -> str:
    return hashlib.sha256(key.encode()).hexdigest()


WORDS = ["test", "secret", "changeme", "password", "", "sk-first", "SECRET", "Password1", "sk-test"]


@pytest.mark.parametrize("word", [*WORDS, "REPLACE_ME", "your-api-key", "admin123"])
def test_the_digest_of_what_stands_in_examples_is_refused(word: str) -> None:
    error = refused(f"auth:\n  keys:\n    - name: ci\n      sha256: {digest(word)}\n")
    assert (error.line, error.field) == (4, "auth.keys[0].sha256")
    assert digest(word) not in str(error)


def test_any_other_digest_is_a_key() -> None:
    file = f"auth: {{keys: [{{name: ci, sha256: {digest(KEY)}}}]}}"
    assert read(file).keys[0].sha256 == digest(KEY)


BLANK = ["\n", "\r\n", " ", "\t"]


@pytest.mark.parametrize("blank", BLANK)
def test_what_is_blank_around_a_key_is_no_part_of_it(blank: str) -> None:
    file = "auth: {admin_key: env:ADMIN, keys: [{name: ci, key: env:CI}]}"
    found = read(file, ADMIN=ADMIN_KEY + blank, CI=blank + KEY + blank)
    assert (found.admin_key, found.keys[0].sha256) == (ADMIN_KEY, digest(KEY))
    error = refused(file, ADMIN=ADMIN_KEY, CI="1234567" + blank)
    assert error.field == "auth.keys[0].key"


@pytest.mark.parametrize("odd", ["\n", "\x7f", "é", "\u2028", "\x1b"])
def test_a_key_that_no_header_holds_is_refused(odd: str) -> None:
    file = "auth:\n  admin_key: env:ADMIN\n  keys:\n    - name: ci\n      key: env:CI\n"
    error = refused(file, ADMIN=ADMIN_KEY, CI=f"{KEY}{odd}{KEY}")
    assert (error.line, error.field) == (5, "auth.keys[0].key")
    error = refused(file, ADMIN=f"{ADMIN_KEY}{odd}{ADMIN_KEY}", CI=KEY)
    assert (error.line, error.field) == (2, "auth.admin_key")
    assert "API_KEYS" in refused("", API_KEYS=f"{KEY},{KEY}{odd}{KEY}").source
