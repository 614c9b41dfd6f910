"""Copies of requests on their way to shadows: so many at once, and nobody waits for them."""

import asyncio
from collections import Counter
from collections.abc import Callable, Coroutine


class Copies:
    """Owns their tasks. A copy too many is not made."""

    def __init__(self) -> None:
        self._tasks: set[asyncio.Task[None]] = set()
        self._running: Counter[str] = Counter()

    def spawn(self, model: str, most: int, run: Callable[[], Coroutine[None, None, None]]) -> None:
        """Run one, unless there are `most` of the model's already."""
        if self._running[model] >= most:
            return
        self._running[model] += 1
        task = asyncio.get_running_loop().create_task(run(), name="shadow")
        self._tasks.add(task)

        def done(ended: asyncio.Task[None]) -> None:
            self._tasks.discard(ended)
            self._running[model] -= 1

        task.add_done_callback(done)

    async def aclose(self) -> None:
        """Cancel what runs; it is settled as it stands. Idempotent."""
        for task in tuple(self._tasks):
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
