"""The body of a request that is passed through: held where it must be read, streamed elsewhere."""

import asyncio
import re
from collections.abc import AsyncIterator

from aiohttp import web

from gateway.config.schema import Server
from gateway.core.errors import ApiError
from gateway.http.body import (
    MALFORMED,
    Body,
    declared_length,
    malformed,
    read_body,
    too_large,
    too_slow,
    waits_to_be_asked,
)
from gateway.http.hot import CONTINUE
from gateway.http.protocol import GatewayProtocol

_JSON = re.compile(r"[/+](?:x-)?json(?![a-z])", re.IGNORECASE)  # by all its names; not JSON lines


class Upload:
    """A request's body: JSON is held, to see what it asks; all else is passed on as it comes.

    `refused`: why it was not passed on to its end.
    """

    def __init__(self, request: web.Request, server: Server) -> None:
        self._request, self._message, self._server = request, request._message, server
        kinds = [kind.partition(";")[0] for kind in request.headers.getall("Content-Type", ())]
        self._json = any(map(_JSON.search, kinds))
        self.held: bytes | None = None
        self.refused: ApiError | None = None

    @property
    def unpacked(self) -> bool:
        """Tell whether the body's coding is undone."""
        return self._message.compression is not None

    @property
    def length(self) -> str | None:
        """Return the length of what is passed on, where that is known: not all take chunks."""
        if self.held is not None or self.unpacked or not self._request.can_read_body:
            return None
        return self._message.headers.get("Content-Length")

    @property
    def data(self) -> bytes | AsyncIterator[bytes] | None:
        """Return what to send."""
        if self.held is not None:
            return self.held
        return self._parts() if self._request.can_read_body else None

    async def hold(self) -> bytes | None:
        """Read a body if it is JSON; a client that waits to be asked for it is. Raises ApiError."""
        request, server = self._request, self._server
        waits = waits_to_be_asked(self._message)
        if not request.can_read_body:
            return None
        most = server.max_request_size if self._json else server.max_upload_size
        if declared_length(self._message) > most:
            raise too_large(most)
        if waits and request.transport is not None:
            request.transport.write(CONTINUE)
        if self._json:
            await self.gather()
        return self.held

    async def gather(self) -> None:
        """Hold the body, whatever it is. Raises ApiError."""
        request, server = self._request, self._server
        if self.held is None and request.can_read_body:
            most, seconds = server.max_request_size, server.request_timeout
            protocol = request.protocol
            assert isinstance(protocol, GatewayProtocol)
            self.held = await read_body(
                self._message, request.content, most, seconds, protocol.room
            )

    async def _parts(self) -> AsyncIterator[bytes]:
        """Pass a body on; why it cannot be is noted, as aiohttp tells every error its own way."""
        size, most, idle = 0, self._server.max_upload_size, self._server.request_timeout
        body = Body(self._message, self._request.content)
        try:
            while True:
                async with asyncio.timeout(idle):
                    part = await body.read()
                if not part:
                    return
                size += len(part)
                if size > most:
                    raise too_large(most)
                yield part
        except ApiError as error:
            self.refused = error
            raise
        except TimeoutError:
            self.refused = too_slow(idle)
            raise
        except MALFORMED:
            self.refused = malformed()
            raise
