"""The sentinels of a Redis: who is its master now, as most of them say."""

import asyncio
from collections import Counter
from collections.abc import Awaitable, Callable

import msgspec

from gateway.core.errors import StoreError
from gateway.store.connection import Connection
from gateway.store.location import Location


class Sentinels:
    """Asks all of them at once, on connections that are kept. Methods raise StoreError."""

    def __init__(
        self, location: Location, connect: Callable[[Location], Awaitable[Connection]]
    ) -> None:
        self._service = location.service
        self._connect = connect
        self._places = [
            msgspec.structs.replace(location, host=host, port=port, sentinels=())
            for host, port in location.sentinels
        ]
        self._connections: dict[Location, Connection] = {}

    async def masters(self) -> list[Location]:
        """Return the servers that they name, those first that most of them do."""
        return [master for master, _ in (await self._votes()).most_common()]

    async def agreed(self) -> Location | None:
        """Return the server that more than half of them name, if there is one."""
        votes = await self._votes()
        return next((one for one, count in votes.items() if self._is_majority(count)), None)

    def close(self) -> None:
        """Close the connections; idempotent."""
        for connection in self._connections.values():
            connection.close()
        self._connections.clear()

    def _is_majority(self, votes: int) -> bool:
        return 2 * votes > len(self._places)

    async def _votes(self) -> Counter[Location]:
        """Count whom they name, in the order in which they are configured, until most agree."""
        tasks = [asyncio.ensure_future(self._ask(place)) for place in self._places]
        early: Counter[Location] = Counter()
        trouble = StoreError("no sentinel answers")
        try:
            for answer in asyncio.as_completed(tasks):
                try:
                    named = await answer
                except StoreError as error:
                    trouble = error
                    continue
                early[named] += 1
                if self._is_majority(early[named]):
                    break
        finally:
            for task in tasks:
                task.cancel()
            answers = await asyncio.gather(*tasks, return_exceptions=True)
        votes = Counter(one for one in answers if isinstance(one, Location))
        if not votes:
            raise trouble
        return votes

    async def _ask(self, place: Location) -> Location:
        connection = self._connections.get(place)
        if connection is None or connection.closed:
            connection = self._connections[place] = await self._connect(place)
        found = await connection.call("SENTINEL", "GET-MASTER-ADDR-BY-NAME", self._service)
        if found is None:
            raise StoreError(f"a sentinel knows no service {self._service!r}")
        return msgspec.structs.replace(place, host=found[0].decode(), port=int(found[1]))
