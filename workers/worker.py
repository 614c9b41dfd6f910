"""One worker process: an event loop, the gateway, its listeners, and a channel to the supervisor.

The channel carries single bytes. The supervisor asks PING and the loop itself answers PONG, and
WORN where a fresh worker should take its place; it says LAME, DRAIN, RETIRE or FORGET; the worker
says READY. Its end means the supervisor is gone: drain, exit.
"""

import asyncio
import contextlib
import faulthandler
import gc
import logging
import mmap
import os
import signal
import socket
import sys
import traceback
from pathlib import Path
from typing import NoReturn

import msgspec
import uvloop

from gateway.app import Gateway, Resources
from gateway.check import tls_context
from gateway.config.schema import Config
from gateway.core.errors import SluiceError
from gateway.http.tls import TlsListener
from gateway.observe.log import LineWriter, route_logging
from gateway.observe.scoreboard import Scoreboard
from gateway.policy.pricing import PriceTable
from gateway.store.location import Location
from workers import credentials
from workers.report import report

PING, PONG, READY, WORN = b"p", b"P", b"R", b"W"
LAME, DRAIN, RETIRE = b"l", b"d", b"t"
FORGET = b"f"  # keys that are not in the configuration any more

# When another worker takes the place of one, its idle connections stay open this long: a client
# that is about to send on one must not find it closed.
RETIRE_LINGER_SECONDS = 10.0
# When the gateway stops, only for what is on the wire already.
STOP_LINGER_SECONDS = 0.2
BACKLOG = 2048
MAX_TRACE_CHARS = 4000
# What runs in a thread, a long translation, leaves the event loop its turn after so long.
SWITCH_SECONDS = 0.001

logger = logging.getLogger("sluice.worker")


class Assignment(msgspec.Struct, frozen=True):
    """What a worker is forked with. `workers` and what follows are those of `gateway.app`."""

    config: Config
    location: Location
    prices: PriceTable
    scoreboard: Scoreboard
    segment: int
    slot: int
    generation: int
    sockets: list[socket.socket]
    channel: socket.socket
    demo_directory: str
    state: Path
    levels: mmap.mmap
    workers: int
    follows: bool
    replaces: bool


def run(assignment: Assignment) -> NoReturn:
    """Be a worker until told to end; never returns into the supervisor's code."""
    code = 1
    try:
        _reset_signals()
        faulthandler.enable()  # SIGABRT, the supervisor's word for hung, dumps every stack
        sys.setswitchinterval(SWITCH_SECONDS)
        gc.set_threshold(10_000, 50, 100)  # requests free by reference count; cycles are rare
        with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
            code = runner.run(_Worker(assignment).live())
    except SluiceError as error:
        report(f"worker {assignment.slot}: {error}")
    except BaseException:
        # Not by the log, whose writer may be closed by now, or never have begun.
        trace = traceback.format_exc()[-MAX_TRACE_CHARS:]
        report(f"worker {assignment.slot} failed\n{trace}")
    finally:
        os._exit(code)


def retiring_grace(config: Config) -> float:
    """Return how long a worker may take whose place another has: until its requests are done."""
    server = config.server
    return max(server.drain.grace, server.timeouts.total + RETIRE_LINGER_SECONDS)


def _reset_signals() -> None:
    signal.set_wakeup_fd(-1)
    for signum in (signal.SIGINT, signal.SIGHUP, signal.SIGTERM):
        signal.signal(signum, signal.SIG_IGN)  # the supervisor's to act on
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)


class _Worker:
    def __init__(self, assignment: Assignment) -> None:
        self._assignment = assignment
        self._ending: asyncio.Future[float] | None = None
        self._gateway: Gateway | None = None
        self._retired = False

    async def live(self) -> int:
        """Start, serve until the channel says otherwise, drain, close."""
        given, loop = self._assignment, asyncio.get_running_loop()
        self._ending = loop.create_future()
        writer = LineWriter(sys.stdout.fileno(), given.state / "log.lock")
        route_logging(writer, given.config.log.level)
        given.channel.setblocking(False)
        loop.add_reader(given.channel.fileno(), self._on_channel)
        loop.add_signal_handler(signal.SIGTERM, self._end, STOP_LINGER_SECONDS)
        name = f"sluice-{given.slot}"
        demo = os.path.join(given.demo_directory, f"demo-{os.getpid()}.sock")
        self._gateway = Gateway(
            given.config,
            Resources(
                location=given.location,
                prices=given.prices,
                scoreboard=given.scoreboard,
                segment=given.segment,
                writer=writer,
                demo_socket=demo,
                name=name,
                state=given.state,
                levels=given.levels,
                slot=given.slot,
                workers=given.workers,
                follows=given.follows,
                replaces=given.replaces,
            ),
        )
        try:
            servers = await self._listen(self._gateway)
            self._say(READY)
            linger = await self._ending
            for server in servers:
                server.close()
            grace = given.config.server.drain.grace
            if self._retired:
                grace = retiring_grace(given.config)
            await self._gateway.drain(grace, linger)
        finally:
            await self._gateway.aclose()
            writer.close()
        return 0

    async def _listen(self, gateway: Gateway) -> list[asyncio.Server] | list[TlsListener]:
        given, loop = self._assignment, asyncio.get_running_loop()
        server = await gateway.start()
        tls = given.config.server.tls
        if tls is None:
            return [
                await loop.create_server(server, sock=sock, backlog=BACKLOG)
                for sock in given.sockets
            ]
        context = tls_context(tls)
        listeners = [TlsListener(server, sock, context) for sock in given.sockets]
        for listener in listeners:
            listener.start(BACKLOG)
        return listeners

    def _on_channel(self) -> None:
        try:
            said = self._assignment.channel.recv(64)
        except BlockingIOError:
            return
        except OSError:
            said = b""
        if not said:
            asyncio.get_running_loop().remove_reader(self._assignment.channel.fileno())
            logger.warning("the supervisor is gone: draining")
            self._end(STOP_LINGER_SECONDS)
            return
        if PING in said:
            self._say(PONG)
            if self._gateway is not None and self._gateway.worn:
                self._say(WORN)
        if LAME in said and self._gateway is not None:
            self._gateway.lame_duck()
        if DRAIN in said:
            self._end(STOP_LINGER_SECONDS)
            if self._gateway is not None:  # one that was replaced has no more time than others now
                self._gateway.hurry(self._assignment.config.server.drain.grace)
        if FORGET in said:
            self._forget()
        if RETIRE in said:
            self._retired = True
            self._end(RETIRE_LINGER_SECONDS)

    def _forget(self) -> None:
        try:
            good = credentials.read(self._assignment.state)
        except (OSError, ValueError) as error:
            logger.warning("keys that were taken away go on until this worker ends: %s", error)
            return
        if self._gateway is not None:
            self._gateway.accept_only(good.keys, good.admin, anonymous=good.anonymous)

    def _say(self, word: bytes) -> None:
        with contextlib.suppress(OSError):  # gone: its end is read next
            self._assignment.channel.send(word)

    def _end(self, linger: float) -> None:
        if self._ending is not None and not self._ending.done():
            self._ending.set_result(linger)
