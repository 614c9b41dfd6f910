"""Which of the headers that an operator has set for a provider hold a secret. Pure.

What is found is covered wherever the provider quotes it, so what is no secret must not be: the name
of a team is also a word of an answer.
"""

import re
from functools import lru_cache

MIN_CHARS = 8
# By other names a value counts that nobody could guess: letters and digits, without a space.
MIN_UNGUESSED_CHARS = 12

_CREDENTIAL = re.compile(
    r"auth|key|token|secret|passw|pwd|credential|cookie|signature|session", re.IGNORECASE
)
_SCHEME = re.compile(r"(?:bearer|basic|token|digest|key|apikey) +", re.IGNORECASE)
_UNGUESSED = re.compile(rf"(?=.*[0-9])(?=.*[A-Za-z])\S{{{MIN_UNGUESSED_CHARS},}}")
# What is in every manual.
_PUBLIC = frozenset(
    (
        *("accept", "accept-encoding", "accept-language", "content-type", "user-agent", "referer"),
        *("origin", "anthropic-version", "anthropic-beta", "openai-beta", "openai-version"),
        *("http-referer", "x-title", "api-version", "x-api-version", "x-goog-api-client"),
        *("x-stainless-lang", "x-region", "cache-control"),
    )
)


@lru_cache(maxsize=256)
def header_secrets(headers: tuple[tuple[str, str], ...]) -> tuple[str, ...]:
    """Return the secrets that header fields hold, each without the scheme before it."""
    return tuple([secret for name, value in headers if (secret := _secret(name.lower(), value))])


def _secret(name: str, value: str) -> str:
    """Return a field's secret; empty where it has none."""
    value = value.strip()
    scheme = _SCHEME.match(value)
    bare = value[scheme.end() :] if scheme is not None else value
    if name in _PUBLIC or len(bare) < MIN_CHARS:
        return ""
    if scheme is not None or _CREDENTIAL.search(name) or _UNGUESSED.fullmatch(bare):
        return bare
    return ""
