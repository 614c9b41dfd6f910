"""The supervisor: forks workers, keeps them alive, replaces them on reload, ends them in order.

Synchronous and single-threaded, so that it may fork at any time. It serves nothing itself: it owns
the listeners, the store's keeper and the shared scoreboard, and waits.
"""

import contextlib
import gc
import os
import select
import signal
import socket
import time
from collections.abc import Mapping
from typing import NoReturn

from gateway.config.load import state_directory
from gateway.config.schema import Config
from gateway.core.errors import ConfigError
from gateway.observe.scoreboard import RETIRED
from gateway.policy.tokens import preload
from gateway.store.levels import shared_memory
from gateway.store.location import Location, parse_url
from workers import credentials, settings
from workers.backoff import MOST_SECONDS, Backoff
from workers.kernel import how_it_ended, raise_file_limit
from workers.plan import Plan
from workers.prices import load_prices
from workers.process import Phase, Process, Turns
from workers.report import report
from workers.settings import Flags
from workers.state import StateDirectory
from workers.store_server import EmbeddedStore
from workers.systemd import Notifier
from workers.worker import (
    DRAIN,
    FORGET,
    LAME,
    READY,
    RETIRE,
    WORN,
    Assignment,
    retiring_grace,
    run,
)

EXIT_SLACK_SECONDS = 5.0  # beyond the grace, for closing
MAX_DRAINING_GENERATIONS = 3


class Supervisor:
    """Runs the gateway until it is told to stop; `run` returns the exit code.

    `wake`: the pipe in which signals are numbers, for this process to read and to close.
    """

    def __init__(self, flags: Flags, environ: Mapping[str, str], wake: tuple[int, int]) -> None:
        self._flags, self._environ, self._wake = flags, environ, wake
        self._notifier = Notifier(environ)
        loaded = settings.read(flags, environ)
        with loaded.placing():
            self._plan = Plan.first(loaded)  # the newest generation's
            self._served = self._plan  # that of the one that serves
            self._state = StateDirectory(state_directory(self._config, environ))
            self._prices = load_prices(self._state.path)
            self._scoreboard = self._plan.scoreboard()
        settings.verify(loaded, self._prices)
        self._store: EmbeddedStore | None = None
        self._levels = shared_memory(self._scoreboard.segments)
        self._segments = set(range(RETIRED + 1, self._scoreboard.segments))  # nobody's
        self._workers: dict[int, Process] = {}
        self._generation = 0
        self._serving = 0  # the generation that serves; the newest one may be starting
        self._due: dict[int, float] = {}  # slot -> when to fork its next worker
        self._backoffs: dict[int, Backoff] = {}  # by slot
        self._recycle_due = 0.0
        self._reload_asked = self._reload_waits = self._booted = False
        self._stopping_at: float | None = None
        self._failed = False
        self._next_watchdog = 0.0
        self._turns = Turns(time.monotonic())

    @property
    def _config(self) -> Config:
        return self._plan.config

    # -- life --------------------------------------------------------------------------------

    def run(self) -> int:
        """Serve until told to stop; return the exit code. Raises ConfigError before serving."""
        wake_read, wake_write = self._wake
        raise_file_limit()
        location = self._open_store()
        try:
            with self._plan.loaded.placing():
                self._plan = self._served = self._plan.ready()
                self._plan.listeners.listen()
            preload()
            gc.collect()
            gc.freeze()  # what is shared stays shared: no collection in a worker touches it
            self._location = location
            self._begin_generation()
            while not self._finished():
                self._wait(wake_read)
                self._reap()
                self._advance(time.monotonic())
        finally:
            for process in self._workers.values():
                process.kill(signal.SIGKILL)
            self._close_listeners()
            if self._store is not None:
                self._store.stop()
            os.close(wake_write)
        return 1 if self._failed else 0

    def _open_store(self) -> Location:
        if self._config.redis.url:
            return parse_url(self._config.redis.url)
        self._store = EmbeddedStore(self._state, self._config.redis.memory_mb)
        self._store.start()
        return self._store.location

    def _finished(self) -> bool:
        return self._stopping_at is not None and not self._workers

    # -- one turn ----------------------------------------------------------------------------

    def _wait(self, wake_read: int) -> None:
        channels = {p.channel.fileno(): p for p in self._workers.values()}
        # Signals and channels wake it at once; otherwise it looks after pings and deadlines.
        due = [at - time.monotonic() for at in self._due.values()]
        waiting = select.poll()
        for fd in (wake_read, *channels):
            waiting.register(fd, select.POLLIN)
        for fd, _ in waiting.poll(1000 * max(0.0, min([0.5, *due]))):
            if fd == wake_read:
                for signum in os.read(wake_read, 4096):
                    self._on_signal(signal.Signals(signum))
            else:
                self._on_word(channels[fd])

    def _on_signal(self, signum: signal.Signals) -> None:
        if signum is signal.SIGHUP:
            self._reload_asked = True
        elif signum in (signal.SIGTERM, signal.SIGINT):
            if self._stopping_at is None:
                grace = self._config.server.drain.grace
                report(f"stopping: what is open has {grace:g} s; a second signal ends it now")
                self._stop()
            else:
                for process in self._workers.values():  # asked twice: now
                    process.kill(signal.SIGKILL)

    def _on_word(self, process: Process) -> None:
        try:
            said = process.channel.recv(256)
        except OSError:
            return
        if not said:
            return  # it died: SIGCHLD tells
        process.heard()
        if READY in said and process.phase is Phase.STARTING:
            process.phase = Phase.READY
            worn, process.replaces = process.replaces, None
            if worn is None:
                self._on_ready()
            elif worn.phase is Phase.READY:
                self._end_worker(worn, RETIRE)
        if WORN in said and self._may_recycle(process):
            self._fork(process.slot, process.generation, process)

    def _advance(self, now: float) -> None:
        """Do what time brings: pings, deadlines, backoffs, a reload, the lame duck's end."""
        late = self._turns.late(now)
        for process in self._workers.values():
            process.excuse(late)
            if (trouble := process.tick(now)) is not None:
                report(f"worker {process.slot} (pid {process.pid}) {trouble}: aborting it")
        for slot, at in list(self._due.items()):
            if now >= at and self._stopping_at is None:
                del self._due[slot]
                self._fork(slot, self._serving)
        if self._store is not None:
            self._store.tend(now)
        if self._stopping_at is not None and now >= self._stopping_at:
            self._drain_all(now)
        if self._reload_asked and self._stopping_at is None:
            self._reload_when_possible()
        every = self._notifier.watchdog_seconds
        if every is not None and now >= self._next_watchdog:
            self._next_watchdog = now + every
            self._notifier.watchdog()

    # -- generations -------------------------------------------------------------------------

    def _begin_generation(self) -> None:
        self._generation += 1
        if not self._booted:
            self._serving = self._generation
        generation = self._generation
        for slot in range(self._plan.slots):
            if self._stopping_at is None and self._generation == generation:
                self._fork(slot, generation)

    def _may_recycle(self, process: Process) -> bool:
        """One worker at a time, and not while a reload replaces all of them."""
        phases = [one.phase for one in self._of(self._serving)]
        return (
            process.phase is Phase.READY
            and time.monotonic() >= self._recycle_due
            and {*phases} <= {Phase.READY, Phase.DRAINING}
            and phases.count(Phase.DRAINING) < self._served.slots
            and process.generation == self._serving == self._generation
            and self._stopping_at is None
            and not self._due
            and bool(self._segments)
        )

    def _fork(self, slot: int, generation: int, replaces: Process | None = None) -> None:
        plan = self._plan if generation == self._generation else self._served
        segment = min(self._segments, default=RETIRED)
        process = Process(slot, generation, segment, plan.config, replaces)
        self._segments.discard(process.segment)

        def child(channel: socket.socket) -> NoReturn:
            for other in self._workers.values():
                other.channel.close()
            own = plan.sockets_of(slot)
            for sock in (*self._plan.listeners.sockets, *self._served.listeners.sockets):
                if sock not in own:  # nobody would be refused there, nor answered
                    sock.close()
            run(
                Assignment(
                    config=plan.config,
                    location=self._location,
                    prices=self._prices,
                    scoreboard=self._scoreboard,
                    segment=process.segment,
                    slot=slot,
                    generation=generation,
                    sockets=own,
                    channel=channel,
                    demo_directory=os.path.dirname(self._state.socket_path("demo-0000000.sock")),
                    state=self._state.path,
                    levels=self._levels,
                    workers=plan.slots,
                    follows=self._booted,
                    replaces=self._booted and generation == self._serving,
                )
            )

        try:
            if process.segment == RETIRED:
                raise OSError("too many older ones have yet to end")
            process.fork(child)
        except OSError as error:  # no more processes, or no memory for one
            self._segments |= {process.segment} - {RETIRED}
            self._cannot_fork(process, error.strerror or str(error))
        else:
            self._workers[process.pid] = process

    def _cannot_fork(self, process: Process, why: str) -> None:
        """Give up at the start; later try again, while the other workers go on."""
        report(f"cannot start worker {process.slot}: {why.lower()}")
        if not self._booted:
            self._failed = True
            report("the first start failed")
            self._stop()
        elif process.replaces is not None:
            self._recycle_due = time.monotonic() + MOST_SECONDS
        elif process.generation == self._serving:
            self._due[process.slot] = time.monotonic() + MOST_SECONDS
        else:
            self._abandon_generation()

    def _of(self, generation: int) -> list[Process]:
        return [p for p in self._workers.values() if p.generation == generation]

    def _on_ready(self) -> None:
        newest = self._of(self._generation)
        whole = len(newest) == self._plan.slots and all(p.phase is Phase.READY for p in newest)
        if not whole or (self._booted and self._serving == self._generation):
            return
        if self._booted:
            told = self._tell_credentials()
            for process in self._workers.values():
                if process.generation != self._generation and process.phase is not Phase.HUNG:
                    if told:
                        process.say(FORGET)
                    self._end_worker(process, RETIRE)
            if self._served.listeners is not self._plan.listeners:
                self._served.listeners.close()
            self._due.clear()  # they were of the old generation
        self._serving, self._served, self._booted = self._generation, self._plan, True
        self._announce()

    def _tell_credentials(self) -> bool:
        """Write down which keys are good now; tell whether that worked."""
        try:
            credentials.write(self._state.path, self._plan.config)
        except OSError as error:
            why = (error.strerror or "").lower()
            report(f"keys that were taken away go on until the old workers end: {why}")
            return False
        return True

    def _announce(self) -> None:
        tls = "https" if self._config.server.tls else "http"
        store = "embedded store" if self._store else "redis"
        place = f"{tls}://{self._plan.listeners.url_host}"
        status = f"serving on {place} ({self._plan.slots} workers, {store}, {self._plan.guard})"
        report(status)
        self._notifier.ready(status)

    def _reload_when_possible(self) -> None:
        """Reload, unless one is under way or too many old workers have yet to end."""
        draining = {p.generation for p in self._workers.values() if p.phase is Phase.DRAINING}
        if not self._booted or self._serving != self._generation:
            why = "what is under way is done"
        elif len(draining) >= MAX_DRAINING_GENERATIONS or self._room < self._served.slots:
            why = "old workers have ended"
        else:
            self._reload_asked = self._reload_waits = False
            self._reload()
            return
        if not self._reload_waits:
            self._reload_waits = True
            report(f"a reload waits until {why}")

    @property
    def _room(self) -> int:
        """Return how many workers more there may be, besides those that are due again."""
        return len(self._segments) - len(self._due)

    def _reload(self) -> None:
        self._notifier.reloading()
        try:
            loaded = settings.read(self._flags, self._environ)
            settings.verify(loaded, self._prices)
            settings.refuse_what_cannot_change(self._config, loaded)
            with loaded.placing():
                self._plan = self._served.next(loaded, self._room)
        except Exception as error:  # whatever it is: the old one can go on
            why = str(error) if isinstance(error, ConfigError) else type(error).__name__
            report(f"reload refused, the old configuration goes on: {why}")
            self._announce()
            return
        gc.collect()
        gc.freeze()
        self._begin_generation()

    def _abandon_generation(self) -> None:
        """A worker of the new generation did not start: keep the old one.

        What others of the new one serve already they finish.
        """
        report("reload failed, the old workers go on")
        for process in self._of(self._generation):
            if process.phase is Phase.READY:
                self._end_worker(process, RETIRE)
            else:
                process.kill(signal.SIGKILL)
        self._plan.give_up(self._served)
        self._plan = self._served
        self._generation += 1  # its workers' ends are nobody's loss
        for process in self._of(self._serving):
            process.generation = self._generation
        self._serving = self._generation
        well = {p.slot for p in self._of(self._serving) if p.phase is not Phase.DRAINING}
        for slot in set(range(self._served.slots)) - well:
            self._due[slot] = time.monotonic()
        self._announce()

    def _close_listeners(self) -> None:
        self._plan.listeners.close()
        self._served.listeners.close()

    # -- ends --------------------------------------------------------------------------------

    def _reap(self) -> None:
        while True:
            try:
                pid, status = os.waitpid(-1, os.WNOHANG)
            except ChildProcessError:
                return
            if pid == 0:
                return
            if self._store is not None and pid == self._store.keeper_pid:
                self._on_store_end()
            elif (process := self._workers.pop(pid, None)) is not None:
                self._on_worker_end(process, status)

    def _on_worker_end(self, process: Process, status: int) -> None:
        process.channel.close()
        self._scoreboard.retire(process.segment, self._served.config.models)
        self._segments.add(process.segment)
        path = self._state.socket_path("demo-0000000.sock").replace("0000000", str(process.pid))
        with contextlib.suppress(OSError):  # it is gone, or this disk takes no change any more
            os.unlink(path)
        if process.phase is Phase.DRAINING or self._stopping_at is not None:
            return
        how = how_it_ended(status)
        report(f"worker {process.slot} (pid {process.pid}) {how}")
        if not self._booted:
            self._failed = True
            report("the first start failed")
            self._stop()
        elif any(other.replaces is process for other in self._workers.values()):
            return  # its successor is on its way
        elif process.replaces is not None and process.replaces.phase is Phase.READY:
            # The one that it was to replace goes on, for a while before the next try.
            self._recycle_due = time.monotonic() + MOST_SECONDS
        elif process.generation == self._serving:
            self._replace(process)
        elif process.generation == self._generation:
            self._abandon_generation()

    def _replace(self, process: Process) -> None:
        now = time.monotonic()
        backoff = self._backoffs.setdefault(process.slot, Backoff())
        self._due[process.slot] = now + backoff.after(now - process.started_at)

    def _on_store_end(self) -> None:
        assert self._store is not None
        self._store.keeper_pid = 0
        if self._stopping_at is None or self._workers:
            self._store.start_again()

    def _stop(self) -> None:
        self._notifier.stopping()
        self._due.clear()
        self._reload_asked = self._reload_waits = False
        self._stopping_at = time.monotonic() + self._config.server.drain.lame_duck
        for process in self._workers.values():
            process.say(LAME)

    def _drain_all(self, now: float) -> None:
        self._close_listeners()
        for process in self._workers.values():
            if process.phase is Phase.STARTING:
                process.kill(signal.SIGKILL)
            elif process.phase is Phase.READY:
                self._end_worker(process, DRAIN)
            elif process.phase is Phase.DRAINING and process.deadline > now:
                process.say(DRAIN)
                # One that was replaced had more time than there is now.
                end = self._stopping_at or now
                grace = process.config.server.drain.grace + EXIT_SLACK_SECONDS
                process.deadline = min(process.deadline, end + grace)

    def _end_worker(self, process: Process, word: bytes) -> None:
        process.say(word)
        if process.phase is not Phase.DRAINING:
            process.phase = Phase.DRAINING
            grace = process.config.server.drain.grace
            if word == RETIRE:
                grace = retiring_grace(process.config)
            process.deadline = time.monotonic() + grace + EXIT_SLACK_SECONDS
