"""Takes the gateway's own credentials out of an answer that passes: some providers quote them.

What stands for them is as long as they are, so that an answer's declared length still holds.
"""


class Mask:
    """Covers secrets with stars, also where a part ends in the middle of one."""

    def __init__(self, secrets: tuple[str, ...]) -> None:
        self._secrets = [one.encode() for one in sorted(secrets, key=len, reverse=True) if one]
        self._held = b""

    def feed(self, data: bytes) -> bytes:
        """Take a part of the answer; return what may be shown by now."""
        data, self._held = self._held + data, b""
        for secret in self._secrets:
            data = data.replace(secret, b"*" * len(secret))
        kept = max([_begun(data, secret) for secret in self._secrets], default=0)
        if kept:
            data, self._held = data[:-kept], data[-kept:]
        return data

    def rest(self) -> bytes:
        """Return what was held back, at the end."""
        data, self._held = self._held, b""
        return data

    def text(self, value: str) -> str:
        """Return a header's value without secrets."""
        for secret in self._secrets:
            value = value.replace(secret.decode(), "*" * len(secret))
        return value


def _begun(data: bytes, secret: bytes) -> int:
    """Return how many bytes at the end may be the beginning of a secret."""
    at = data.find(secret[:1], max(0, len(data) - len(secret) + 1))
    while at >= 0:
        if secret.startswith(data[at:]):
            return len(data) - at
        at = data.find(secret[:1], at + 1)
    return 0
