"""An upstream with a thread and an event loop of its own, for tests that share one gateway."""

import asyncio
import threading
from abc import ABC, abstractmethod
from types import TracebackType
from typing import Any, Self

from tests.support.upstream import Behaviour, Received, Upstream, like_openai

START_SECONDS = 10.0


class InThread(ABC):
    """Runs `serve` in a thread with an event loop of its own, from enter to exit."""

    def __init__(self, name: str) -> None:
        self.started = threading.Event()
        self.stop: asyncio.Event
        self._loop: asyncio.AbstractEventLoop
        self._thread = threading.Thread(target=self._run, name=name)

    @abstractmethod
    async def serve(self) -> None:
        """Set `started` when all is up, and wait for `stop`."""

    def __enter__(self) -> Self:
        self._thread.start()
        assert self.started.wait(START_SECONDS), f"{self._thread.name}: does not start"
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None
    ) -> None:
        self._loop.call_soon_threadsafe(self.stop.set)
        self._thread.join(START_SECONDS)
        assert not self._thread.is_alive(), f"{self._thread.name}: does not stop"

    def _run(self) -> None:
        asyncio.run(self._live())

    async def _live(self) -> None:
        self._loop, self.stop = asyncio.get_running_loop(), asyncio.Event()
        await self.serve()


class UpstreamThread(InThread):
    """Runs an `Upstream`; its behaviour can be changed from any thread."""

    def __init__(self, **options: Any) -> None:
        super().__init__("upstream")
        self.upstream = Upstream(**options)

    @property
    def url(self) -> str:
        """The base URL to configure."""
        return self.upstream.url

    @property
    def received(self) -> list[Received]:
        """The requests since the last `reset`."""
        return self.upstream.received

    def reset(self, behaviour: Behaviour = like_openai) -> None:
        """Forget what was received, and behave so from now on."""
        self.upstream.received = []
        self.upstream.behaviour = behaviour

    async def serve(self) -> None:
        """Be the upstream."""
        async with self.upstream:
            self.started.set()
            await self.stop.wait()
