"""Hot path: settlements on their way to Redis, a call a tenant and turn of the event loop."""

from collections.abc import Callable, Iterator
from itertools import chain

from gateway.store import names, scripts
from gateway.store.backlog import Backlog
from gateway.store.client import Client
from gateway.store.connection import Reply
from gateway.store.lease import Due
from gateway.store.packing import pack_settlements, unpack_counted
from gateway.store.part import Heard, Part, Parts


class Settling:
    """Sends settlements; `heard` is called with the tenant of those that Redis has taken."""

    def __init__(
        self,
        client: Client,
        parts: Parts,
        backlog: Backlog,
        now: Callable[[], float],
        heard: Heard,
    ) -> None:
        self._client, self._parts, self._backlog = client, parts, backlog
        self._now, self._heard = now, heard
        self._on_way: dict[int, tuple[str, list[Due]]] = {}  # without an answer
        self._sent = 0

    def send(self, tenant: str, due: list[Due]) -> None:
        """Tell Redis of these; what it does not take is kept."""
        stream = names.requests(tenant, clustered=self._client.clustered)
        keys, data = pack_settlements(tenant, stream, due, self._now())
        number = self._sent = self._sent + 1
        self._on_way[number] = tenant, due

        def done(reply: Reply | Exception) -> None:
            del self._on_way[number]
            part = self._parts.of(tenant)
            if not isinstance(reply, bytes):
                part.untold = True
                if part.refuses(reply):
                    self._parts.closed(part)
                self._backlog.keep(due)
                return
            self._backlog.settled(due)
            for (_, applied), counted in zip(due, unpack_counted(reply), strict=True):
                if applied is not None:
                    applied(counted)
            if part.alone or part.late:
                self._heard(tenant, part, took=True)

        self._client.run(scripts.SETTLE, keys, (data,), done)

    def on_way(self) -> Iterator[Due]:
        """Return what Redis has been sent, and has not answered."""
        return chain.from_iterable([due for _, due in self._on_way.values()])

    def save(self, part: Part) -> None:
        """Write down what is on its way to a part: it and this worker may both end."""
        for tenant, due in self._on_way.values():
            if self._parts.of(tenant) is part:
                self._backlog.save(due)
