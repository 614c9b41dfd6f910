"""Which models there are: those of the configuration, and those that providers say they have."""

import asyncio
import logging

from gateway.core.errors import UpstreamError
from gateway.pipeline.catalogue import Catalogue
from gateway.pipeline.served import Lister
from gateway.upstream.pool import Transport

logger = logging.getLogger("sluice.listing")

KEPT_SECONDS = 300.0
ASKED_AGAIN_SECONDS = 15.0  # after a failure
ANSWER_SECONDS = 5.0
MAX_MODELS = 1000  # of one provider


class Listing:
    """Asks each provider now and then, and only while somebody wants to know."""

    def __init__(self, catalogue: Catalogue, transport: Transport) -> None:
        self._catalogue, self._transport = catalogue, transport
        self._loop = asyncio.get_running_loop()
        self._listers = catalogue.listers()
        self._names: dict[str, tuple[str, ...]] = {}
        self._fresh_until: dict[str, float] = {}
        self._lock = asyncio.Lock()

    async def models(self) -> dict[str, str]:
        """Return all models that can be named, each with its owner."""
        async with self._lock:  # whoever comes meanwhile finds the answers
            now = self._loop.time()
            stale = [
                one for one in self._listers if self._fresh_until.get(one.target.provider, 0) <= now
            ]
            await asyncio.gather(*(self._ask(lister) for lister in stale))
        owners = {served.name: served.owner for served in self._catalogue.listed()}
        for provider, names in self._names.items():
            for name in names:
                owners.setdefault(name, provider)
        return owners

    async def _ask(self, lister: Lister) -> None:
        target, until = lister.target, self._loop.time() + ANSWER_SECONDS
        try:
            reply = await self._transport.send(
                target.origin, lister.request, None, target.deadlines, until
            )
            trouble = "" if reply.status == 200 else f"it answered {reply.status}"
        except UpstreamError as error:
            trouble = error.message
        if trouble:
            logger.warning("%s does not list its models: %s", target.provider, trouble)
            self._fresh_until[target.provider] = self._loop.time() + ASKED_AGAIN_SECONDS
            return
        models = lister.adapter.parse_listing(reply.body)[:MAX_MODELS]
        self._names[target.provider] = tuple(
            self._catalogue.public_name(target.provider, model) for model in models
        )
        self._fresh_until[target.provider] = self._loop.time() + KEPT_SECONDS
