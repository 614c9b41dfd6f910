"""What a request needs from the worker around it. Built once in `gateway.app`."""

import asyncio
from collections.abc import Callable
from typing import TYPE_CHECKING

import msgspec

from gateway.config.schema import Config
from gateway.core.record import RequestRecord
from gateway.pipeline.catalogue import Catalogue
from gateway.pipeline.copies import Copies
from gateway.pipeline.keyring import Keyring
from gateway.pipeline.served import Route
from gateway.policy.overload import Gate
from gateway.policy.retry import Rules
from gateway.store.admission import Admission
from gateway.upstream.pool import Transport

if TYPE_CHECKING:
    from gateway.pipeline.cached import Cache


class Services(msgspec.Struct, frozen=True):
    """The worker's own parts.

    `emit` takes each finished request's record; `append` those that hold no lease, whose entry in
    `sluice:requests` no settlement writes; `ejected` learns of targets that are left alone.
    `copies` runs what goes to shadows; `gate` bounds what is served at once.
    """

    loop: asyncio.AbstractEventLoop
    config: Config
    keyring: Keyring
    catalogue: Catalogue
    admission: Admission
    transport: Transport
    retries: Rules
    emit: Callable[[RequestRecord], None]
    append: Callable[[RequestRecord], None]
    ejected: Callable[[Route], None]
    copies: Copies
    gate: Gate
    cache: "Cache | None" = None
