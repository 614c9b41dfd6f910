"""Which keys anybody would try first, and that no others are taken for one."""

import base64
import random
import uuid

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.config.keys import checked
from gateway.config.placeholders import is_placeholder
from gateway.config.schema import Auth, Key
from gateway.core.errors import ConfigError
from gateway.store.keys import sha256

PLACEHOLDERS = [
    *("changeme-changeme", "CHANGE ME", "change-me-2024", "REPLACE_ME", "REPLACE_ME_REPLACE_ME"),
    *("your-secret-admin-key", "<your-api-key>", "${API_KEY}", "example", "example-key", "secret"),
    *("password", "password123", "1234567890123456", "12345678", "0123456789abcdef", "sk-1234"),
    *("sk-xxxxxxxxxxxxxxxx", "sk-your-key-here", "--------", "sluice-admin-key"),
    *("change-me-in-production", "CHANGE_ME_BEFORE_DEPLOY", "insecure-default-key"),
    *("your-super-secret-key-change-in-production", "your_openai_api_key_here"),
    *("sk-1234567890abcdef", "sk-1234567890abcdef1234567890abcdef", "0123456789abcdef" * 4),
    *("qwertyuiopasdfgh", "qwertyuiop123", "password12345678", "admin0987654321"),
    *("openssl rand -hex 32", "$(openssl rand -hex 32)", "generate-a-long-random-string"),
    *("sk-proj-xxxxxxxxxxxx", "sk-ant-your-key", "sk-proj-1234567890", "admin-00000000"),
]
KEYS = [
    *("sk-test-0123456789", "an-admin-key-0123456", "sk-a-client-key", "key-of-the-search-team"),
    *("secret1f0c9a7e41d8", "9d2f-change-me-51", "correct horse battery staple", "tr0ub4dor&3"),
    *("schlüssel-für-alle", "\u9375\u9375\u5319\u79d8\u5bc6\u306e\u9375\u3067\u3059"),
]


@pytest.mark.parametrize("key", PLACEHOLDERS)
def test_what_stands_in_examples_is_known(key: str) -> None:
    assert is_placeholder(key)
    assert is_placeholder(key.upper())


@pytest.mark.parametrize(
    "key",
    [
        *("test-admin-key-123", "local-admin-key-1", "dev-admin-key-1234", "Passw0rd!Passw0rd!"),
        *("staging-admin-key", "welcome-admin-123", "administrator-password"),
    ],
)
def test_an_operators_key_is_none_for_trials_either(key: str) -> None:
    assert is_placeholder(key, operators=True)
    with pytest.raises(ConfigError, match="nobody would guess"):
        checked(Auth(admin_key=key))


@pytest.mark.parametrize("key", ["test-key", "testkey123", "sk-testing1", "foobar123", "welcome1"])
def test_a_key_is_refused_in_clear_as_its_digest_is(key: str) -> None:
    for one in (Key(name="k", key=key), Key(name="k", sha256=sha256(key))):
        with pytest.raises(ConfigError, match="anybody would try"):
            checked(Auth(keys=(one,)))


@pytest.mark.parametrize("key", KEYS)
def test_a_key_of_ones_own_is_none(key: str) -> None:
    assert not is_placeholder(key)


# Bytes as a generator of keys makes them; those of Hypothesis repeat themselves.
RANDOM = st.integers(0, 2**64).map(lambda seed: random.Random(seed).randbytes(32))


@given(RANDOM, st.integers(8, 32))
def test_random_bytes_are_none(data: bytes, size: int) -> None:
    few = data[:size]
    for text in (few.hex(), base64.b64encode(few).decode(), base64.urlsafe_b64encode(few).decode()):
        assert not is_placeholder(text)
        assert not is_placeholder(f"sk-{text}", operators=True)
        assert not is_placeholder(f"changeme-{text}")
    assert not is_placeholder(str(uuid.UUID(bytes=data[:16], version=4)))


def test_a_text_that_is_no_key_is_none() -> None:
    assert not is_placeholder("passkeys" * 50_000 + "!b")
    assert not is_placeholder("passkeys" * 30 + "!b")
    assert not is_placeholder("")
