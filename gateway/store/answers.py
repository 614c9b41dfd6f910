"""Answers that are kept: what is kept of one, where, and how it is put into bytes.

In Redis an answer is sealed with a key that only the request itself yields: whoever reads Redis
learns neither the prompt nor the answer. The seal also tells what is damaged or out of place.
"""

import hashlib
import os
from functools import lru_cache
from urllib.parse import quote

import msgspec
from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from gateway.core.messages import Reply, Text
from gateway.core.record import Cost
from gateway.core.usage import Usage
from gateway.store import names
from gateway.store.scripts import bulk

VERSION = b"\x02"
NONCE_BYTES = 12
NAME_BYTES, SECRET_BYTES = 20, 32
MAX_CIPHERS = 1024
_START = len(VERSION) + NONCE_BYTES  # of what is sealed


_pack = msgspec.msgpack.Encoder().encode
_unpack = msgspec.msgpack.Decoder(Reply).decode


class Answer(msgspec.Struct, frozen=True, gc=False, array_like=True):
    """A whole answer, and what it took.

    `body` is the reply as it was written, in its `form`, `reply` the hub's view of it (msgpack, as
    few ask for it) with the `logprobs` of its texts beside it; either may be missing. Money is
    micro-dollars, times are milliseconds: it is fresh for `ttl_ms` and kept for `kept_ms`.
    `created` is Unix seconds, for dialects that say it; `asked_us` is when its provider was asked
    (Unix microseconds, by Redis's clock as the worker knows it): of two answers the one that was
    asked for later is kept.
    """

    form: str
    body: bytes
    content_type: str
    reply: bytes
    logprobs: tuple[str, ...]
    provider: str
    model: str
    usage: Usage
    cost: Cost
    cost_microusd: int
    price: str
    dropped: tuple[str, ...]
    created: int
    ttl_ms: int
    kept_ms: int
    asked_us: int = 0

    def whole(self) -> Reply | None:
        """Return the reply as it was before it was split for storing."""
        if not self.reply:
            return None
        reply = _unpack(self.reply)
        if not any(self.logprobs):
            return reply
        texts = iter(self.logprobs)
        parts = [
            msgspec.structs.replace(part, logprobs=msgspec.Raw(found.encode()))
            if isinstance(part, Text) and (found := next(texts, ""))
            else part
            for part in reply.parts
        ]
        return msgspec.structs.replace(reply, parts=tuple(parts))


def split(reply: Reply) -> tuple[bytes, tuple[str, ...]]:
    """Pack a reply, and take the logprobs, which are JSON, out of its texts."""
    found = tuple(
        [
            bytes(part.logprobs).decode() if part.logprobs is not None else ""
            for part in reply.parts
            if isinstance(part, Text)
        ]
    )
    if not any(found):
        return _pack(reply), ()
    parts = [
        msgspec.structs.replace(part, logprobs=None) if isinstance(part, Text) else part
        for part in reply.parts
    ]
    return _pack(msgspec.structs.replace(reply, parts=tuple(parts))), found


class Place(msgspec.Struct, frozen=True, gc=False):
    """Where an answer is kept: the tenant whose it is, its name there, and the key of its seal.

    `entry` is what the index of the tenant's answers says of it: name, namespace, model, key;
    `keys` are the names of the answer and of who is getting it, in Redis, `packed` both in RESP.
    """

    tenant: str
    name: str
    secret: bytes
    entry: str
    keys: tuple[str, str]
    packed: bytes


def place(form: bytes, tenant: str, namespace: str, model: str, key: str) -> Place:
    """Return where the answer to a canonical request is kept."""
    digest = hashlib.blake2b(form, digest_size=NAME_BYTES + SECRET_BYTES, person=b"sluice-answer")
    found = digest.digest()
    name = found[:NAME_BYTES].hex()
    entry = " ".join((name, namespace or "-", quote(model, safe="/:@"), quote(key, safe="")))
    keys = names.answer(tenant, name)
    packed = b"".join([bulk(key.encode()) for key in keys])
    return Place(tenant, name, found[NAME_BYTES:], entry, keys, packed)


# Making one takes longer than opening an answer of a kilobyte.
_cipher = lru_cache(MAX_CIPHERS)(AESGCM)


def seal(packed: bytes, where: Place) -> bytes:
    """Return what Redis may have of an answer's bytes."""
    nonce = os.urandom(NONCE_BYTES)
    return VERSION + nonce + _cipher(where.secret).encrypt(nonce, packed, where.name.encode())


def unseal(sealed: bytes, where: Place) -> bytes:
    """Return an answer's bytes. Raises ValueError where they are damaged, or another's."""
    if not sealed.startswith(VERSION) or len(sealed) < _START:
        raise ValueError("of another version")
    nonce = sealed[len(VERSION) : _START]
    try:
        return _cipher(where.secret).decrypt(nonce, sealed[_START:], where.name.encode())
    except InvalidTag:
        raise ValueError("damaged") from None
