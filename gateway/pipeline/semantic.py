"""Finds answers to questions that mean nearly the same. Optional: needs `sluicegate[semantic]`.

Embeddings come from a model that is served here, or from one that comes in a wheel; neither they
nor the search hold up the event loop. Imported where the semantic cache is configured.
"""

import asyncio
import logging
from pathlib import Path
from time import monotonic
from typing import Any, Protocol

import msgspec
import numpy as np

from gateway.config.caching import LOCAL_EMBEDDER
from gateway.config.caching import Semantic as Settings
from gateway.core.ids import request_id
from gateway.core.operations import Operation
from gateway.formats.body import decode
from gateway.pipeline.cached import Serve
from gateway.pipeline.call import Call
from gateway.pipeline.elsewhere import Elsewhere
from gateway.pipeline.planning import Plan
from gateway.pipeline.services import Services
from gateway.policy.access import Principal
from gateway.store.answers import Place
from gateway.store.client import Client
from gateway.store.vectors import Index, MemoryIndex, Near, RedisIndex

logger = logging.getLogger("sluice.cache")

EMBED_SECONDS = 3.0
MAX_CHARS = 20_000  # of a question; what is longer is hardly asked twice in other words
TENANT = "~semantic"  # has what embeddings cost


class Embedder(Protocol):
    """Turns text into a vector of length 1; None where it cannot."""

    async def embed(self, services: Services, text: str) -> Any:
        """Return a float32 array."""
        ...


class LocalEmbedder:
    """WordLlama's model, which comes in its wheel: nothing is fetched."""

    def __init__(self) -> None:
        self._model: Any = None
        self._lock = asyncio.Lock()

    async def embed(self, services: Services, text: str) -> Any:
        """Return a float32 array, made in a thread."""
        async with self._lock:
            return await asyncio.to_thread(self._embed, text)

    def _embed(self, text: str) -> Any:
        if self._model is None:
            self._model = _load()
        return self._model.embed([text], norm=True)[0]


def _load() -> Any:
    import wordllama

    home = Path(wordllama.__file__).parent
    return wordllama.WordLlama.load(cache_dir=home, disable_download=True)


class _Reply(msgspec.Struct):
    data: list["_Vector"]


class _Vector(msgspec.Struct):
    embedding: list[float]


class _Listener(Elsewhere):
    """Keeps the reply to a request of our own."""

    def __init__(self) -> None:
        self.body = asyncio.get_running_loop().create_future()

    def reply(self, status: int, content_type: str, headers: bytes, body: bytes) -> None:
        """Keep it."""
        if not self.body.done():
            self.body.set_result(body if status == 200 else b"")


class ServedEmbedder:
    """A model that the gateway serves; what it costs is counted under a tenant of its own."""

    def __init__(self, model: str, serve: Serve) -> None:
        self._model, self._serve = model, serve

    async def embed(self, services: Services, text: str) -> Any:
        """Return a float32 array."""
        body = msgspec.json.encode({"model": self._model, "input": text})
        listener = _Listener()
        call = Call(request_id(), Operation.EMBEDDINGS, b"", None, listener, monotonic())
        call.request = decode(Operation.EMBEDDINGS, body)
        call.model = services.catalogue.resolve(self._model)
        call.principal = Principal("semantic", TENANT, ("*",), ())
        try:
            async with asyncio.timeout(EMBED_SECONDS):
                await self._serve(services, call)
                body = await listener.body  # which leaves after its settlement
        except TimeoutError:
            return None
        try:
            found = msgspec.json.decode(body, type=_Reply).data[0]
            vector = np.asarray(found.embedding, dtype=np.float32)
        except (msgspec.DecodeError, IndexError):
            return None
        length = float(np.linalg.norm(vector))
        return vector / length if length else None


class Semantic:
    """Questions that were answered, by their meaning."""

    def __init__(self, embedder: Embedder, index: Index) -> None:
        self._embedder, self._index = embedder, index

    async def find(self, services: Services, plan: Plan) -> Near | None:
        """Return the nearest question that was answered, if it is near enough."""
        question = plan.question
        if question is None or len(question.text) > MAX_CHARS:
            return None
        try:
            if question.vector is None:
                question.vector = await self._embedder.embed(services, question.text)
            if question.vector is None:
                return None
            near = await self._index.nearest(question.scope, question.vector)
        except Exception:
            logger.exception("no question was found by its meaning")
            return None
        return near if near is not None and near.likeness >= plan.rules.semantic else None

    def drop(self, plan: Plan, place: Place) -> None:
        """Forget a question whose answer is gone."""
        question = plan.question
        if question is not None and question.vector is not None:
            self._index.drop(question.scope, question.vector, place)

    async def add(self, plan: Plan, place: Place, seconds: float) -> None:
        """Remember a question whose answer is kept for so long."""
        question = plan.question
        if question is None or question.vector is None:
            return
        await self._index.add(question.scope, question.vector, place, seconds)

    def empty(self) -> None:
        """Forget what this worker remembers."""
        self._index.empty()


async def semantic_of(settings: Settings, client: Client, serve: Serve) -> Semantic:
    """Return what a configuration asks for, with Redis's search where it has one."""
    own = settings.model == LOCAL_EMBEDDER
    embedder = LocalEmbedder() if own else ServedEmbedder(settings.model, serve)
    if await RedisIndex.offered(client):
        return Semantic(embedder, RedisIndex(client))
    return Semantic(embedder, MemoryIndex(settings.entries, asyncio.get_running_loop().time))
