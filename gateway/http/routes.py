"""The plain routes: models, health, metrics; errors in OpenAI's shape whatever goes wrong."""

import asyncio
import logging
from collections.abc import Awaitable, Callable
from datetime import UTC, datetime
from math import ceil

import msgspec
from aiohttp import web

from gateway import __version__
from gateway.core.errors import ApiError, StoreError
from gateway.core.ids import request_id
from gateway.core.operations import PATHS
from gateway.formats import messages_reply, openai
from gateway.http.admin import AdminRoutes
from gateway.http.hot import secret_of
from gateway.http.passthrough import OUR_HEADERS, REQUEST_ID, PassthroughRoutes
from gateway.http.protocol import SERVER
from gateway.observe.exposition import Expositions
from gateway.observe.recorder import Recorder
from gateway.pipeline.listing import Listing
from gateway.pipeline.services import Services
from gateway.policy.access import may_use

logger = logging.getLogger("sluice.http")

MANY_MATCHES = 2000  # of names with patterns: 2 ms

Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]


class Readiness(msgspec.Struct):
    """What `/health/ready` answers from; the worker changes it."""

    draining: bool = False
    store_connected: Callable[[], bool] = lambda: True
    degrades: bool = False

    def trouble(self) -> str | None:
        """Return why no traffic should come; None when it should."""
        if self.draining:
            return "draining"
        return None if self.degrades or self.store_connected() else "store unreachable"


class PlainRoutes:
    """Handlers off the hot path."""

    def __init__(
        self, services: Services, recorder: Recorder, readiness: Readiness, admin: AdminRoutes
    ) -> None:
        self._services, self._readiness, self._admin = services, readiness, admin
        self._expositions = Expositions(recorder.sum)
        self._started = int(services.admission.now())
        self._listing = Listing(services.catalogue, services.transport)
        self._passthrough = PassthroughRoutes(services)

    def application(self) -> web.Application:
        """Return the application; hot routes are listed only to answer other methods with 405."""
        app = web.Application(middlewares=[_errors_as_json])
        app.router.add_get("/health", self.health)
        app.router.add_get("/health/ready", self.ready)
        app.router.add_get("/health/live", self.live)
        if self._services.config.metrics.enabled:
            app.router.add_get("/metrics", self.metrics)
        app.router.add_get("/v1/models", self.models)
        app.router.add_get("/v1/models/{model:.+}", self.model)
        app.router.add_routes(self._admin.routes())
        app.router.add_routes(self._passthrough.routes())
        app.on_cleanup.append(self._close)
        for path in PATHS:
            app.router.add_post(path, _unreachable)
        return app

    async def _close(self, app: web.Application) -> None:
        await self._passthrough.aclose()

    async def live(self, request: web.Request) -> web.Response:
        """Answer as long as the event loop turns."""
        await self._guard_health(request)
        return _json({"status": "ok"})

    async def ready(self, request: web.Request) -> web.Response:
        """Answer 503 while no traffic should come."""
        await self._guard_health(request)
        trouble = self._readiness.trouble()
        if trouble is not None:
            return _json({"status": "unavailable", "reason": trouble}, status=503)
        return _json({"status": "ok" if self._readiness.store_connected() else "degraded"})

    async def health(self, request: web.Request) -> web.Response:
        """Say how this worker is."""
        await self._guard_health(request)
        trouble = self._readiness.trouble()
        return _json(
            {
                "status": "ok" if trouble is None else trouble,
                "version": __version__,
                "store": "connected" if self._readiness.store_connected() else "unreachable",
                "in_flight": self._services.admission.open_leases,
            },
            status=200 if trouble is None else 503,
        )

    async def metrics(self, request: web.Request) -> web.Response:
        """Show the sum over all workers."""
        body = await self._expositions.get()
        kind = "text/plain; version=0.0.4; charset=utf-8"
        return web.Response(body=body, headers={"Content-Type": kind})

    async def models(self, request: web.Request) -> web.Response:
        """List what the key may use."""
        principal = await self._services.keyring.authenticate(secret_of(request.headers))
        models = await self._listing.models()

        def written() -> bytes:
            allowed = [name for name in models if may_use(principal, name)]
            if _by_anthropic(request):
                return msgspec.json.encode(_anthropic_list(allowed, self._started))
            listed = [self._model_object(name, models[name]) for name in allowed]
            return msgspec.json.encode({"object": "list", "data": listed})

        many = len(models) * len(principal.models) > MANY_MATCHES
        body = await asyncio.to_thread(written) if many else written()
        return web.Response(body=body, content_type="application/json")

    async def model(self, request: web.Request) -> web.Response:
        """Show one model."""
        principal = await self._services.keyring.authenticate(secret_of(request.headers))
        name = request.match_info["model"]
        served = self._services.catalogue.resolve(name)
        if served is None or not may_use(principal, name):
            raise ApiError(
                "model_not_found", f"The model '{name[:256]}' does not exist here.", param="model"
            )
        if _by_anthropic(request):
            return _json(_anthropic_model(served.name, self._started))
        return _json(self._model_object(served.name, served.owner))

    def _model_object(self, name: str, owner: str) -> dict[str, str | int]:
        return {"id": name, "object": "model", "created": self._started, "owned_by": owner}

    async def _guard_health(self, request: web.Request) -> None:
        if self._services.config.auth.health_check:
            await self._services.keyring.authenticate(secret_of(request.headers))


@web.middleware
async def _errors_as_json(request: web.Request, handler: Handler) -> web.StreamResponse:
    call_id = request[REQUEST_ID] = request_id()
    try:
        response = await handler(request)
    except ApiError as error:
        response = _error(error, request, call_id)
    except StoreError:
        message = "The store that keys are in cannot be reached."
        response = _error(ApiError("store_unavailable", message, retry_after=1), request, call_id)
    except web.HTTPNotFound:
        response = _error(
            ApiError("not_found", f"There is no {request.path[:256]} here."), request, call_id
        )
    except web.HTTPMethodNotAllowed as error:
        allowed = ", ".join(sorted(error.allowed_methods))
        message = f"{request.method[:16]} is not allowed here; allowed: {allowed}."
        response = _error(ApiError("method_not_allowed", message), request, call_id)
        response.headers["Allow"] = allowed
    except web.HTTPException:
        response = _error(
            ApiError("invalid_http", "The request cannot be served."), request, call_id
        )
    except Exception:
        logger.exception("%s %s failed", request.method, request.path)
        response = _error(
            ApiError("internal_error", "The gateway failed. See its log."), request, call_id
        )
    response.headers["x-request-id"] = call_id
    if _by_anthropic(request):
        response.headers["request-id"] = call_id
    if request.path.startswith("/admin"):
        response.headers["Cache-Control"] = "no-store"
    response.headers["Server"] = SERVER
    return response


async def _unreachable(request: web.Request) -> web.Response:
    """Refuse a hot path that only the router recognised, being percent-encoded."""
    raise ApiError("not_found", f"Write the path plainly: {request.path}.")


def _anthropic_list(names: list[str], created: int) -> dict[str, object]:
    """Return a list of models as Anthropic's API writes it: all of them on one page."""
    return {
        "data": [_anthropic_model(name, created) for name in names],
        "has_more": False,
        "first_id": names[0] if names else None,
        "last_id": names[-1] if names else None,
    }


def _anthropic_model(name: str, created: int) -> dict[str, object]:
    moment = datetime.fromtimestamp(created, UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
    return {"type": "model", "id": name, "display_name": name, "created_at": moment}


def _json(content: object, status: int = 200) -> web.Response:
    body = msgspec.json.encode(content)
    return web.Response(body=body, status=status, content_type="application/json")


def _by_anthropic(request: web.Request) -> bool:
    """Tell whether the client speaks Anthropic's dialect."""
    return "anthropic-version" in request.headers


def _error(error: ApiError, request: web.Request, call_id: str) -> web.Response:
    body = openai.error_body(error)
    if _by_anthropic(request):
        body = messages_reply.error_body(error, call_id)
    response = web.Response(body=body, status=error.status, content_type="application/json")
    if error.retry_after is not None:
        response.headers["retry-after"] = str(max(1, ceil(error.retry_after)))
    if error.retryable is False:
        response.headers["x-should-retry"] = "false"
    response.headers.update(request.get(OUR_HEADERS, {}))
    return response
