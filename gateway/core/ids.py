"""Hot path: identifiers of requests. Unguessable, and cheap: one system call serves 256 of them."""

import os

_BATCH = 256
_SIZE_BYTES = 12  # 96 random bits: no collision in any ledger that fits a disk

_pool: list[str] = []


def request_id() -> str:
    """Return a new `req_` id; it also names the request's lease."""
    if not _pool:
        _refill()
    return _pool.pop()


def forget_after_fork() -> None:
    """Drop what was drawn before a fork, so that two workers never share an id."""
    _pool.clear()


def _refill() -> None:
    text = os.urandom(_BATCH * _SIZE_BYTES).hex()
    step = _SIZE_BYTES * 2
    _pool.extend("req_" + text[i : i + step] for i in range(0, len(text), step))


os.register_at_fork(after_in_child=forget_after_fork)
