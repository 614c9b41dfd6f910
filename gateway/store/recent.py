"""Reads the newest finished requests for people, and those that follow: `sluice:requests`."""

import asyncio

from gateway.store import names
from gateway.store.client import Client
from gateway.store.connection import Reply
from gateway.store.lease import batches

PAGE = 1000  # entries of one call
MAX_PAGES = names.REQUESTS_KEPT // PAGE
TENANTS_EVERY = 20  # looks; in a cluster each tenant has a stream of its own

NUMBERS = frozenset(
    {
        *("status", "prompt_tokens", "cached_tokens", "completion_tokens", "reasoning_tokens"),
        *("cost_microusd", "attempts", "duration_us"),
    }
)

# An entry of `gateway.store.requests`, with `time`, Unix seconds at its end.
Entry = dict[str, str | int | float]


class Recent:
    """The entries of all tenants or of one that have certain values. Raises StoreError."""

    def __init__(self, client: Client, wanted: dict[str, str], *, errors: bool = False) -> None:
        self._client, self._wanted, self._errors = client, wanted, errors
        self._after: dict[str, str] = {}  # the newest entry seen, by stream
        self._looks = 0

    async def last(self, count: int) -> list[Entry]:
        """Return the newest, oldest of them first; what is read next comes after them."""
        await self._find_streams()
        found: list[tuple[str, Entry]] = []
        for part in batches(list(self._after)):
            for some in await asyncio.gather(*(self._newest(stream, count) for stream in part)):
                found += some
        found.sort(key=lambda one: _order(one[0]))
        return [entry for _, entry in found[-count:]] if count else []

    async def next(self) -> list[Entry]:
        """Return what has been added since, oldest first."""
        self._looks += 1
        if self._client.clustered and self._looks % TENANTS_EVERY == 0:
            await self._find_streams()
        found: list[tuple[str, Entry]] = []
        for part in batches(list(self._after)):
            for some in await asyncio.gather(*map(self._added, part)):
                found += some
        found.sort(key=lambda one: _order(one[0]))
        return [entry for _, entry in found]

    async def _find_streams(self) -> None:
        """Know of every stream there is."""
        clustered = self._client.clustered
        tenants = [self._wanted.get("tenant", "")]
        if clustered and "tenant" not in self._wanted:  # those of nobody are under ""
            tenants += [one.decode() for one in await self._client.call("SMEMBERS", names.TENANTS)]
        for tenant in tenants:
            self._after.setdefault(names.requests(tenant, clustered=clustered), "0-0")

    async def _newest(self, stream: str, count: int) -> list[tuple[str, Entry]]:
        found: list[tuple[str, Entry]] = []
        until = "+"
        while True:
            page = await self._client.call("XREVRANGE", stream, until, "-", "COUNT", PAGE)
            if until == "+" and page:
                self._after[stream] = page[0][0].decode()
            found += self._read(page)
            if len(found) >= count or len(page) < PAGE:
                return found[:count]
            until = f"({page[-1][0].decode()}"

    async def _added(self, stream: str) -> list[tuple[str, Entry]]:
        found: list[tuple[str, Entry]] = []
        for _ in range(MAX_PAGES):
            start = f"({self._after[stream]}"
            page = await self._client.call("XRANGE", stream, start, "+", "COUNT", PAGE)
            if page:
                self._after[stream] = page[-1][0].decode()
            found += self._read(page)
            if len(page) < PAGE:
                break
        return found

    def _read(self, page: Reply) -> list[tuple[str, Entry]]:
        found = []
        for number, flat in page:
            texts = [part.decode(errors="replace") for part in flat]
            entry = dict(zip(texts[::2], texts[1::2], strict=True))
            if any(entry.get(name) != value for name, value in self._wanted.items()):
                continue
            if self._errors and not entry.get("error"):
                continue
            values = {n: int(v) if n in NUMBERS else v for n, v in entry.items()}
            found.append((number.decode(), {"time": _order(number.decode())[0] / 1000, **values}))
        return found


def _order(number: str) -> tuple[int, int]:
    """Return the milliseconds and the place in them that an entry's number says."""
    milliseconds, _, place = number.partition("-")
    return int(milliseconds), int(place)
