"""Which answers were got anew before their time: workers forget theirs, and look into Redis again.

A stream in Redis has their names, the newest of them; what a worker reads of it is in their order.
"""

from gateway.store import names
from gateway.store.client import Client

MOST_RENEWALS = 10_000  # in a second, more or less: a worker that has missed some forgets all
KEPT_SECONDS = 3600


class Renewals:
    """Tells other workers of answers that were got anew, and hears of theirs."""

    def __init__(self, client: Client, own: str) -> None:
        self._client, self._own = client, own
        self._heard = b""  # the newest that is known, as Redis numbers them

    def tell(self, name: str) -> None:
        """Let other workers know that Redis has a newer answer."""
        key = names.CACHE_RENEWED
        self._client.post("XADD", key, "MAXLEN", "~", MOST_RENEWALS, "*", name, self._own)
        self._client.post("EXPIRE", key, KEPT_SECONDS)

    async def hear(self) -> tuple[list[str], bool]:
        """Return the names that others have told since, and whether some may be missing.

        Raises StoreError.
        """
        key = names.CACHE_RENEWED
        if not self._heard:
            newest = await self._client.call("XREVRANGE", key, "+", "-", "COUNT", 1)
            self._heard = newest[0][0] if newest else b"0-0"
            return [], True
        after = b"(" + self._heard
        found = await self._client.call("XRANGE", key, after, "+", "COUNT", MOST_RENEWALS)
        if found:
            self._heard = found[-1][0]
        told = [fields[0].decode() for _, fields in found if fields[1].decode() != self._own]
        return told, len(found) == MOST_RENEWALS
