"""The keys that a configuration gives, the operator's and the clients': made ready, or refused."""

import hashlib
import re
from functools import cache

import msgspec

from gateway.config.placeholders import CALL_FOR_ANOTHER, is_placeholder
from gateway.config.schema import MIN_KEY_CHARS, Auth, Key
from gateway.core.errors import ConfigError

MIN_ADMIN_KEY_CHARS = 16
MIN_ADMIN_KEY_VARIETY = 8

# Of a digest nothing can be told but whether it is that of one of these, or of one with a prefix
# or digits such as these: what examples of keys and of `sha256sum` are made of. Not of digits
# alone: LiteLLM's documented master key is one, and clients of who moves from there go on with it.
_WELL_KNOWN = (
    *("a", "abc", "admin", "admin-key", "anything", "api", "api-key", "api_key", "apikey"),
    *("bar", "baz", "change-me", "change_me", "changeit", "changeme", "default", "demo", "dummy"),
    *("empty", "example", "fake", "foo", "foobar", "gateway", "guest", "hello", "hello world"),
    *("key", "letmein", "litellm", "local", "login", "master", "master-key", "my-api-key"),
    *("my-key", "my-secret", "my-secret-key", "mykey", "mysecret", "none", "null", "openai"),
    *("pass", "passw0rd", "passwd", "password", "placeholder", "proxy", "qwerty", "replace-me"),
    *("replace_me", "replaceme", "root", "sample", "secret", "secret-key", "secret_key"),
    *("secretkey", "sluice", "sluice-key", "string", "super-secret", "supersecret", "test"),
    *("test-key", "test_key", "testing", "testkey", "token", "user", "value", "virtual-key"),
    *("welcome", "x", "xxx", "xxxx", "xxxxxxxx", "your-api-key", "your-key", "your-secret-key"),
    *("first", "second"),
)
# What the manifests of `deploy` leave to be replaced. A provider of one's own takes any other word.
_TEMPLATE = re.compile(r"[\W_]*(?:sk[\W_]+)?(?:replace|change)[\W_]*me[\W_]*", re.IGNORECASE)
LEFT_IN = "this stands in the template still: replace it"

_BEFORE = ("", "sk-")
_BEHIND = ("", *("1234567890"[:count] for count in range(1, 11)), "!", "-1", "-123", "-1234")


def checked(auth: Auth) -> Auth:
    """Return the section with keys that can be compared, `enabled` settled. Raises ConfigError."""
    keys = tuple(_hashed(key, f"auth.keys[{i}]") for i, key in enumerate(auth.keys))
    _refuse_twins(keys)
    admin_key = None if auth.admin_key is None else _admin_key(auth.admin_key)
    enabled = auth.enabled
    if enabled is None:
        enabled = bool(keys) or admin_key is not None
    return msgspec.structs.replace(auth, keys=keys, enabled=enabled, admin_key=admin_key)


def _admin_key(given: str) -> str:
    """Refuse what anybody would try first."""
    key = _sendable(given, "auth.admin_key")
    short = len(key) < MIN_ADMIN_KEY_CHARS or len(set(key)) < MIN_ADMIN_KEY_VARIETY
    if short or is_placeholder(key, operators=True) or is_well_known(_digest(key)):
        raise ConfigError(
            f"an admin key has at least {MIN_ADMIN_KEY_CHARS} characters that nobody would guess; "
            "make one with: openssl rand -hex 32",
            field="auth.admin_key",
        )
    return key


def _hashed(key: Key, field: str) -> Key:
    """Keep only the SHA-256 of a key given in clear."""
    if (key.sha256 is None) == (key.key is None):
        raise ConfigError("give exactly one of sha256 and key", field=field)
    if key.key is None:
        if is_well_known(key.sha256 or ""):
            message = f"this is the digest of a word that stands in examples: {CALL_FOR_ANOTHER}"
            raise ConfigError(message, field=f"{field}.sha256")
        return key
    clear = _sendable(key.key, f"{field}.key")
    if len(clear) < MIN_KEY_CHARS:
        raise ConfigError(f"a key has at least {MIN_KEY_CHARS} characters", field=f"{field}.key")
    if is_placeholder(clear) or is_well_known(_digest(clear)):
        raise ConfigError(CALL_FOR_ANOTHER, field=f"{field}.key")
    return msgspec.structs.replace(key, sha256=_digest(clear), key=None)


def _sendable(key: str, field: str) -> str:
    """Return a key as it arrives in a header, which loses what is blank around it."""
    bare = key.strip()
    if not bare.isascii() or not bare.isprintable():
        message = "a key is of ASCII's printable characters: clients can send no others"
        raise ConfigError(message, field=field)
    return bare


def _refuse_twins(keys: tuple[Key, ...]) -> None:
    names: set[str] = set()
    digests: set[str | None] = set()
    for i, key in enumerate(keys):
        if key.sha256 in digests:
            raise ConfigError("this key stands here twice", field=f"auth.keys[{i}]")
        if key.name in names:
            raise ConfigError(f"two keys are named {key.name!r}", field=f"auth.keys[{i}].name")
        names.add(key.name)
        digests.add(key.sha256)


def is_left_in(text: str) -> bool:
    """Tell whether a text is what a template had in the place of a secret."""
    return _TEMPLATE.fullmatch(text) is not None


def is_well_known(sha256: str) -> bool:
    """Tell whether a digest is that of a key that anybody would try first."""
    return sha256 in _well_known_digests()


@cache
def _well_known_digests() -> frozenset[str]:
    return frozenset((_digest(""),)) | frozenset(
        _digest(f"{before}{spelled}{behind}")
        for word in _WELL_KNOWN
        for spelled in {word, word.capitalize(), word.upper()}
        for before in _BEFORE
        for behind in _BEHIND
    )


def _digest(key: str) -> str:
    return hashlib.sha256(key.encode()).hexdigest()
