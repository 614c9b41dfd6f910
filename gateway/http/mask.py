"""Takes the gateway's own credentials out of an answer that passes: some providers quote them.

What stands for them is as long as they are, so that an answer's declared length still holds.
"""

from gateway.policy.spelled import spelled


class Mask:
    """Covers secrets with stars, also where a part ends in the middle of one."""

    def __init__(self, secrets: tuple[str, ...]) -> None:
        self._secrets = spelled(tuple(sorted(secrets, key=len, reverse=True)))
        self._held = b""

    def feed(self, data: bytes) -> bytes:
        """Take a part of the answer; return what may be shown by now."""
        data, self._held = self._covered(self._held + data), b""
        kept = max([secret.begun(data) for secret in self._secrets], default=0)
        if kept:
            data, self._held = data[:-kept], data[-kept:]
        return data

    def rest(self) -> bytes:
        """Return what was held back, at the end."""
        data, self._held = self._held, b""
        return data

    def text(self, value: str) -> str:
        """Return a header's value without secrets."""
        return self._covered(value.encode(errors="surrogateescape")).decode(
            errors="surrogateescape"
        )

    def _covered(self, data: bytes) -> bytes:
        for secret in self._secrets:
            data = secret.replaced(data, _stars)
        return data


def _stars(secret: bytes) -> bytes:
    return b"*" * len(secret)
