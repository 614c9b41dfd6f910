"""An upstream with a thread and an event loop of its own, for tests that share one gateway."""

import asyncio
import threading
from types import TracebackType
from typing import Any, Self

from tests.support.upstream import Behaviour, Received, Upstream, like_openai

START_SECONDS = 10.0


class UpstreamThread:
    """Runs an `Upstream` from enter to exit; its behaviour can be changed from any thread."""

    def __init__(self, **options: Any) -> None:
        self.upstream = Upstream(**options)
        self._started = threading.Event()
        self._thread = threading.Thread(target=self._run, name="upstream")
        self._loop: asyncio.AbstractEventLoop
        self._stop: asyncio.Event

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

    def __enter__(self) -> Self:
        self._thread.start()
        assert self._started.wait(START_SECONDS), "the upstream does not start"
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None
    ) -> None:
        self._loop.call_soon_threadsafe(self._stop.set)
        self._thread.join(START_SECONDS)
        assert not self._thread.is_alive(), "the upstream does not stop"

    def _run(self) -> None:
        asyncio.run(self._serve())

    async def _serve(self) -> None:
        self._loop, self._stop = asyncio.get_running_loop(), asyncio.Event()
        async with self.upstream:
            self._started.set()
            await self._stop.wait()
