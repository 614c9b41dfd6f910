"""Finds answers to questions that mean nearly the same. Optional: needs `sluicegate[semantic]`.

Embeddings come from a model that is served here, or from one that comes in a wheel; neither they
nor the search hold up the event loop. Imported where the semantic cache is configured.
"""

import asyncio
import hashlib
import logging
from math import inf
from pathlib import Path
from time import monotonic
from typing import Any, NamedTuple, Protocol

import msgspec
import numpy as np

from gateway.config.caching import LOCAL_EMBEDDER
from gateway.config.caching import Semantic as Settings
from gateway.core.errors import ApiError, StoreError
from gateway.core.ids import request_id
from gateway.core.operations import Operation
from gateway.formats.body import decode
from gateway.pipeline.admit import output_of
from gateway.pipeline.allowance import SLICE_TOKENS, needs_price, price_of
from gateway.pipeline.cached import Serve
from gateway.pipeline.call import Call
from gateway.pipeline.elsewhere import Elsewhere
from gateway.pipeline.planning import Plan, Question
from gateway.pipeline.services import Services
from gateway.policy.access import Principal
from gateway.policy.limits import Limit, grants, has_budget
from gateway.store.answers import Place
from gateway.store.cache import RedisTier
from gateway.store.client import Client
from gateway.store.vectors import Index, MemoryIndex, Near, RedisIndex

logger = logging.getLogger("sluice.cache")

EMBED_SECONDS = 1.0
ADD_SECONDS = 0.5
PART_OF_DEADLINE = 0.25  # of the time that a request has left, for finding one that is alike
REST_SECONDS = 10.0  # of a model that gave no embedding
TEXTS_OWN = frozenset((400, 413, 422))  # statuses that say nothing about other texts
# The small model's meaning is the mean of a text's words: what two have in common drowns the rest.
MAX_LOCAL_CHARS = 200
MAX_CHARS = 20_000  # of a question; what is longer is hardly asked twice in other words
TENANT = "~semantic"  # has what embeddings cost

_pack = msgspec.msgpack.Encoder().encode


class Meaning(NamedTuple):
    """A float32 vector of length 1, and the model that made it: only its own are compared."""

    vector: Any
    model: str


class NoEmbedding(Exception):
    """The model gave none, and may give none for other texts either."""


class Embedder(Protocol):
    """Turns text into its meaning. `costs`: money; `most_chars`: of texts that it tells apart."""

    costs: bool
    most_chars: int

    async def embed(self, services: Services, text: str) -> Meaning | None:
        """Return the meaning; None where this text has none. Raises NoEmbedding."""
        ...


class LocalEmbedder:
    """WordLlama's model, which comes in its wheel: nothing is fetched."""

    costs, most_chars = False, MAX_LOCAL_CHARS

    def __init__(self) -> None:
        self._model: Any = None
        self._lock = asyncio.Lock()

    async def embed(self, services: Services, text: str) -> Meaning | None:
        """Return the meaning, made in a thread."""
        async with self._lock:
            return await asyncio.to_thread(self._embed, text)

    def load(self) -> None:
        """Read the model, which takes a second; it may be called again."""
        if self._model is None:
            self._model = _load()

    def _embed(self, text: str) -> Meaning | None:
        self.load()
        return _meaning(self._model.embed([text])[0], LOCAL_EMBEDDER)


def _meaning(numbers: Any, model: str) -> Meaning | None:
    vector = np.asarray(numbers, dtype=np.float64)
    length = float(np.linalg.norm(vector))
    return Meaning((vector / length).astype(np.float32), model) if 0 < length < inf else None


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
        self.told: asyncio.Future[tuple[int, bytes]] = asyncio.get_running_loop().create_future()

    def reply(self, status: int, content_type: str, headers: bytes, body: bytes) -> None:
        """Keep it."""
        if not self.told.done():
            self.told.set_result((status, body))


class ServedEmbedder:
    """A model that the gateway serves; what it costs is counted under a tenant of its own."""

    costs, most_chars = True, MAX_CHARS

    def __init__(self, model: str, serve: Serve) -> None:
        self._model, self._serve = model, serve

    async def embed(self, services: Services, text: str) -> Meaning | None:
        """Return the meaning, by whichever of the model's targets has answered."""
        body = msgspec.json.encode({"model": self._model, "input": text})
        listener = _Listener()
        call = Call(request_id(), Operation.EMBEDDINGS, b"", None, listener, monotonic())
        call.request = decode(Operation.EMBEDDINGS, body)
        call.model = services.catalogue.resolve(self._model)
        call.principal = Principal("semantic", TENANT, ("*",), ())
        try:
            async with asyncio.timeout(EMBED_SECONDS):
                await self._serve(services, call)
                status, body = await listener.told  # which leaves after its settlement
        except TimeoutError:
            raise NoEmbedding(f"none came within {EMBED_SECONDS:g} s") from None
        if status in TEXTS_OWN:
            return None
        if status != 200:
            raise NoEmbedding(f"{self._model} answered {status}")
        try:
            found = msgspec.json.decode(body, type=_Reply).data[0]
        except (msgspec.DecodeError, IndexError):
            raise NoEmbedding(f"{self._model} answered something else") from None
        return _meaning(found.embedding, call.route.name if call.route is not None else "")


class Semantic:
    """Questions that were answered, by their meaning. Nothing here raises but when cancelled.

    Those who ask the same at once share one embedding, which belongs to none of them.
    """

    def __init__(self, embedder: Embedder, index: Index) -> None:
        self._embedder, self._index = embedder, index
        self._loop = asyncio.get_running_loop()
        self._embedding: dict[str, asyncio.Task[Meaning | None]] = {}
        self._rests_until = 0.0

    async def aclose(self) -> None:
        """End what is under way. Idempotent."""
        tasks = tuple(self._embedding.values())
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    async def find(self, services: Services, call: Call, plan: Plan, until: float) -> Near | None:
        """Return the nearest question that was answered, if it is near enough.

        Most of the time until the request's deadline is left for asking a provider.
        """
        question = plan.question
        if question is None:
            return None
        seconds = min(EMBED_SECONDS, (until - monotonic()) * PART_OF_DEADLINE)
        try:
            async with asyncio.timeout(seconds):
                meaning = await self._find_meaning(services, call, question)
                if meaning is None:
                    return None
                near = await self._index.nearest(_scope(question, meaning), meaning.vector)
        except TimeoutError:
            return None
        except Exception:
            logger.exception("no question was found by its meaning")
            return None
        return near if near is not None and near.likeness >= plan.rules.semantic else None

    async def _find_meaning(
        self, services: Services, call: Call, question: Question
    ) -> Meaning | None:
        """Return a question's meaning, and remember it."""
        if question.meaning is None and len(question.text) <= self._embedder.most_chars:
            question.meaning = await self._meaning_of(services, call, question.text)
        found: Meaning | None = question.meaning
        return found

    async def _meaning_of(self, services: Services, call: Call, text: str) -> Meaning | None:
        task = self._embedding.get(text)
        if task is None:
            if self._loop.time() < self._rests_until:
                return None
            if self._embedder.costs and not await _has_room(services, call):
                return None
            task = self._embedding.get(text) or self._embed_soon(services, text)
        return await asyncio.shield(task)

    def _embed_soon(self, services: Services, text: str) -> asyncio.Task[Meaning | None]:
        task = self._loop.create_task(self._embed(services, text), name="embedding")
        self._embedding[text] = task
        task.add_done_callback(lambda _: self._embedding.pop(text, None))
        return task

    async def _embed(self, services: Services, text: str) -> Meaning | None:
        try:
            return await self._embedder.embed(services, text)
        except Exception as error:
            if self._loop.time() >= self._rests_until:  # the first of several
                message = "no embedding (%s): no questions are compared for %d s"
                known = isinstance(error, NoEmbedding)
                logger.warning(message, error, REST_SECONDS, exc_info=None if known else error)
            self._rests_until = self._loop.time() + REST_SECONDS
            return None

    def drop(self, plan: Plan, place: Place) -> None:
        """Forget a question whose answer is gone."""
        question = plan.question
        if question is not None and question.meaning is not None:
            self._index.drop(_scope(question, question.meaning), question.meaning.vector, place)

    async def add(
        self, services: Services, call: Call, plan: Plan, place: Place, seconds: float
    ) -> None:
        """Remember a question whose answer is kept for so long.

        Its meaning is found now where none was looked for: its client takes nothing that is kept.
        """
        question = plan.question
        if question is None:
            return
        try:
            if not plan.wishes.reads:
                async with asyncio.timeout(EMBED_SECONDS):
                    await self._find_meaning(services, call, question)
            if question.meaning is None:
                return
            scope = _scope(question, question.meaning)
            async with asyncio.timeout(ADD_SECONDS):
                await self._index.add(scope, question.meaning.vector, place, seconds)
        except TimeoutError:
            return
        except Exception:
            logger.exception("a question is not remembered")

    def empty(self) -> None:
        """Forget what this worker remembers."""
        self._index.empty()


def _scope(question: Question, meaning: Meaning) -> bytes:
    """Return what questions must have in common to be compared, in one model's vectors."""
    whole = _pack((question.scope, meaning.model, meaning.vector.size))
    return hashlib.blake2b(whole, person=b"sluice-question").digest()


async def _has_room(services: Services, call: Call) -> bool:
    """Tell whether a request would be admitted, as far as can be told without taking anything."""
    principal, request, admission = call.principal, call.request, services.admission
    assert principal is not None
    assert request is not None
    assert call.model is not None
    limits = principal.limits_for(request.model, call.model.full_names)
    if not limits or admission.does_without(principal.tenant):
        return True
    now = admission.now()
    try:
        wanted = grants(limits, *_needs(services, call, limits), now)
        levels = (await admission.peek(principal.tenant, grants(limits, 0, 0, now))).levels
    except ApiError:  # nobody knows the price
        return False
    except StoreError:
        return True
    standing = zip(wanted, levels, strict=True)
    return all(grant.limit.shadow or level >= grant.amount for grant, level in standing)


def _needs(services: Services, call: Call, limits: tuple[Limit, ...]) -> tuple[int, int]:
    """Return the tokens and micro-dollars that `admit` would reserve. Raises ApiError."""
    request, served = call.request, call.model
    assert request is not None
    assert served is not None
    output = output_of(request, served)
    first = min(output, SLICE_TOKENS) if request.stream else output
    prompt = request.prompt_estimate
    if not has_budget(limits):
        return prompt + output, 0
    needed = needs_price(services, limits)
    return prompt + output, price_of(served, request, prompt, first, needed=needed)


async def semantic_of(
    settings: Settings, client: Client, serve: Serve, redis: RedisTier | None
) -> Semantic:
    """Return what a configuration asks for.

    Questions are found by Redis's search where it has one and answers are kept there.
    """
    embedder: Embedder
    if settings.model == LOCAL_EMBEDDER:
        embedder = LocalEmbedder()
        try:
            await asyncio.to_thread(embedder.load)  # or the first ones to ask would not wait for it
        except Exception:
            logger.exception("the embedding model cannot be read")
    else:
        embedder = ServedEmbedder(settings.model, serve)
    found = await RedisIndex.offered(client, redis.take) if redis is not None else None
    index = found or MemoryIndex(settings.entries, asyncio.get_running_loop().time)
    return Semantic(embedder, index)
