"""A Redis Cluster: a link to each master, and for each key the link that has its slot.

Keys of a tenant share a hash tag, so every call of the gateway has all of its keys in one slot.
"""

import asyncio
import binascii
import contextlib
import logging
from collections.abc import Callable
from itertools import compress

import hiredis
import msgspec

from gateway.core.errors import StoreError
from gateway.store.connection import Callback, Reply
from gateway.store.link import Link
from gateway.store.location import Location
from gateway.store.scripts import Script

logger = logging.getLogger("sluice.store")

SLOTS = 16384
REFRESH_SECONDS = 0.25  # between two looks at the topology
WATCH_SECONDS = 5.0  # how often it is looked at though nothing seems to have changed

Address = tuple[str, int]


def slot_of(key: str) -> int:
    """Return a key's slot: the CRC-16 (XMODEM) of its hash tag, or of all of it."""
    start = key.find("{")
    end = key.find("}", start + 1)
    tag = key[start + 1 : end] if 0 <= start < end - 1 else key
    return binascii.crc_hqx(tag.encode(), 0) % SLOTS


class Cluster:
    """Implements `client.Client`."""

    clustered = True

    def __init__(self, location: Location, timeout: float, name: str) -> None:
        self._location, self._timeout, self._name = location, timeout, name
        self._loop = asyncio.get_running_loop()
        self._links: dict[Address, Link] = {}
        self._by_slot: list[Link] = []
        self._moved, self._linked = asyncio.Event(), asyncio.Event()
        self._watcher: asyncio.Task[None] | None = None
        self.on_connect: Callable[[], None] = lambda: None

    @property
    def connected(self) -> bool:
        """Tell whether every slot's master can be reached now."""
        return bool(self._by_slot) and all(link.connected for link in self._links.values())

    def reaches(self, tenant: str) -> bool:
        """Tell whether the master of a tenant's keys can be reached now."""
        return bool(self._by_slot) and self._link(f"{{{tenant}}}").connected

    async def start(self) -> None:
        """Find the masters through any of the seeds and connect to all. Raises StoreError."""
        await self._ask_seeds()
        await self._settle_in()
        self._watcher = self._loop.create_task(self._watch(), name="cluster")

    def start_later(self) -> None:
        """Find the masters in the background, as often as it takes."""
        self._moved.set()
        self._watcher = self._loop.create_task(self._watch(), name="cluster")

    async def aclose(self) -> None:
        """Close every link. Idempotent."""
        if self._watcher is not None:
            self._watcher.cancel()
            await asyncio.gather(self._watcher, return_exceptions=True)
            self._watcher = None
        links, self._links, self._by_slot = self._links, {}, []
        await asyncio.gather(*(link.aclose() for link in links.values()))

    def call(self, *args: bytes | str | int) -> asyncio.Future[Reply]:
        """Send a command to the master of its key, the second argument, or to any."""
        future: asyncio.Future[Reply] = self._loop.create_future()

        def done(reply: Reply | Exception) -> None:
            if future.done():
                return
            if isinstance(reply, Exception):
                error = reply if isinstance(reply, StoreError) else StoreError(f"Redis: {reply}")
                future.set_exception(error)
            else:
                future.set_result(reply)

        if not self._by_slot:
            done(StoreError("Redis is not reachable"))
        elif len(args) == 1:
            self._any().send(args, done)
        else:
            key = args[1].decode() if isinstance(args[1], bytes) else str(args[1])
            self._route(key, lambda link, answered: link.send(args, answered), done)
        return future

    async def scan(self, pattern: str, most: int) -> set[bytes]:
        """Return the keys of all masters that match a pattern. Raises StoreError."""
        parts = (link.scan(pattern, most) for link in self._links.values())
        return set().union(*await asyncio.gather(*parts))

    def post(self, *args: bytes | str | int) -> None:
        """Send a command whose reply does not matter."""
        if self._by_slot:
            self._route(
                str(args[1]), lambda link, answered: link.send(args, answered), lambda _: None
            )

    def run(
        self,
        script: Script,
        keys: list[str],
        args: tuple[bytes, ...],
        done: Callback,
        command: bytes = b"",
    ) -> None:
        """Run a Lua function where its keys are; `done` gets its reply or an exception."""
        if not self._by_slot:
            done(StoreError("Redis is not reachable"))
            return

        def send(link: Link, answered: Callback) -> None:
            link.run(script, keys, args, answered, command)

        self._route(keys[0], send, done)

    def flush(self) -> None:
        """Write what is queued at once."""
        for link in self._links.values():
            link.flush()

    def _route(self, key: str, send: Callable[[Link, Callback], None], done: Callback) -> None:
        """Send to the master of a key; once more where another one says it has it now."""

        def answered(reply: Reply | Exception) -> None:
            word, *rest = str(reply).split(" ") if isinstance(reply, hiredis.ReplyError) else [""]
            if word != "MOVED":
                if word in ("ASK", "TRYAGAIN", "CLUSTERDOWN"):
                    done(StoreError(f"Redis: {reply}"))
                else:
                    done(reply)
                return
            self._moved.set()
            link = self._links.get(_address(rest[1])) if len(rest) > 1 else None
            if link is None:
                done(StoreError("the cluster has moved this key to a server not known yet"))
            else:
                send(link, done)

        send(self._link(key), answered)

    def _link(self, key: str) -> Link:
        return self._by_slot[slot_of(key)]

    def _any(self) -> Link:
        links = list(self._links.values())
        return next((link for link in links if link.connected), links[0])

    def _make(self, address: Address) -> Link:
        host, port = address
        place = msgspec.structs.replace(self._location, host=host, port=port, seeds=())
        link = Link(place, self._timeout, self._name)
        link.on_connect = self._on_link
        link.on_lost = self._moved.set
        return link

    def _on_link(self) -> None:
        self._linked.set()
        self.on_connect()

    async def _learn(self, source: Link) -> None:
        """Ask a server who has which slots. Raises StoreError."""
        ranges = await source.call("CLUSTER", "SLOTS")
        by_slot: list[Address | None] = [None] * SLOTS
        for first, last, master, *_ in ranges:
            # No host, or none that it knows to be the right one: the one that was asked.
            address = ((_known(master[0]) or b"").decode() or source.host, int(master[1]))
            by_slot[first : last + 1] = [address] * (last + 1 - first)
        if None in by_slot:
            raise StoreError("the cluster does not serve every slot")
        masters = [address for address in by_slot if address is not None]
        for address in dict.fromkeys(masters):
            if address not in self._links:
                self._links[address] = self._make(address)
                self._links[address].start_later()
        self._by_slot = [self._links[address] for address in masters]
        for address in set(self._links).difference(masters):
            await self._links.pop(address).aclose()

    async def _ask_seeds(self) -> None:
        """Learn from the first seed that answers. Raises StoreError."""
        trouble: StoreError | None = None
        for host, port in self._location.seeds:
            seed = self._make((host, port))
            seed.on_connect, seed.on_lost = _nothing, _nothing
            try:
                await seed.start()
                await self._learn(seed)
            except StoreError as error:
                trouble = error
            else:
                return
            finally:
                await seed.aclose()
        raise trouble or StoreError("no seed of the cluster answers")

    async def _settle_in(self) -> None:
        """Wait a moment for the links; one that does not come up is tried on."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(self._timeout):
                while not self.connected:
                    self._linked.clear()
                    await self._linked.wait()

    async def _watch(self) -> None:
        """Look at the topology when a key has moved or a server is gone, and now and then."""
        while True:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(WATCH_SECONDS):
                    await self._moved.wait()
            self._moved.clear()
            try:
                await self._look()
            except StoreError:
                pass  # nobody knows better: again soon
            except Exception:  # nobody else would look again
                logger.exception("the cluster's topology cannot be read")
            if not self.connected:
                self._moved.set()
            await asyncio.sleep(REFRESH_SECONDS)

    async def _look(self) -> None:
        """Learn from a server that is connected, or else from the seeds. Raises StoreError.

        One that is cut off from the others, and says so, is believed last.
        """
        links = [link for link in self._links.values() if link.connected]
        states = await asyncio.gather(*map(_is_well, links))
        for link in [*compress(links, states), *links]:
            with contextlib.suppress(StoreError):
                await self._learn(link)
                return
        await self._ask_seeds()


async def _is_well(link: Link) -> bool:
    """Tell whether a server sees enough of its cluster to know who has which slots."""
    with contextlib.suppress(StoreError):
        return b"cluster_state:ok" in await link.call("CLUSTER", "INFO")
    return False


def _known(host: bytes | None) -> bytes | None:
    """Return a server's name; a `?` stands for none."""
    return None if host == b"?" else host


def _nothing() -> None:
    """Do nothing."""


def _address(text: str) -> Address:
    host, _, port = text.rpartition(":")
    return host, int(port) if port.isdigit() else 0
