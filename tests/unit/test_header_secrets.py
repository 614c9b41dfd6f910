"""Which headers of a provider's settings hold a secret, by their name or by their look."""

import pytest

from gateway.policy.header_secrets import header_secrets

TOKEN = "0a1b2c3d4e5f6a7b"

HELD = [
    ("Authorization", "Bearer HEADERSECRET", "HEADERSECRET"),
    ("authorization", "basic dXNlcjpwYXNz", "dXNlcjpwYXNz"),
    ("X-Upstream", "Bearer opensesame", "opensesame"),
    ("api-key", "open sesame", "open sesame"),
    ("X-Gateway-Token", "opensesame", "opensesame"),
    ("X-Client-Secret", " opensesame ", "opensesame"),
    ("Ocp-Apim-Subscription-Key", TOKEN, TOKEN),
    ("X-Team", TOKEN, TOKEN),
    ("X-Team", "HEADERSECRET-1", "HEADERSECRET-1"),
]
NOT_HELD = [
    ("X-Team", "marketing and sales"),
    ("X-Team", "marketing"),
    ("X-Auth", "yes"),
    ("Authorization", "Bearer x"),
    ("User-Agent", "sluice/1.0.0-rc.1"),
    ("Content-Type", "application/json;charset=utf-8"),
    ("anthropic-beta", "prompt-caching-2024-07-31"),
    ("OpenAI-Beta", "assistants=v2,responses=v1"),
    ("X-Since", "2024-07-31"),
    ("X-Empty", ""),
]


@pytest.mark.parametrize(("name", "value", "secret"), HELD)
def test_a_secret_is_known_by_its_name_or_its_look(name: str, value: str, secret: str) -> None:
    assert header_secrets((("Accept", "text/html"), (name, value))) == (secret,)


@pytest.mark.parametrize(("name", "value"), NOT_HELD)
def test_what_anybody_may_know_is_none(name: str, value: str) -> None:
    assert header_secrets(((name, value),)) == ()
