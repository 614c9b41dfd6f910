"""What a generation of workers is started on: a configuration, the sockets, how many they are."""

import socket

import msgspec

from gateway.config.address import is_loopback, parse_address
from gateway.config.load import Loaded
from gateway.config.schema import Config
from gateway.core.errors import ConfigError
from gateway.observe.scoreboard import Scoreboard
from workers.cores import worker_count
from workers.listeners import Listeners

# On the scoreboard: a generation, the one it replaces, one that drains, and then some.
GENERATIONS, SPARE_SEGMENTS = 3, 8
LEAST_SEGMENTS = 128  # so that a reload may ask for more workers than there were at the start


class Plan(msgspec.Struct, frozen=True):
    """One generation's. `bound`: how many of the listeners' sockets were made when it began."""

    loaded: Loaded
    listeners: Listeners
    slots: int
    bound: int = 0

    @classmethod
    def first(cls, loaded: Loaded) -> "Plan":
        """Return a start's, with nothing bound. Raises ConfigError."""
        listeners = Listeners(loaded.config.server.address or "")
        return cls(loaded, listeners, worker_count(loaded.config.server.workers))

    @property
    def config(self) -> Config:
        """Return the configuration."""
        return self.loaded.config

    @property
    def guard(self) -> str:
        """Say in a few words who may call."""
        if self.config.auth.enabled:
            return "keys required"
        host, _ = parse_address(self.config.server.address or "")
        if is_loopback(host):
            return "no keys: this machine only"
        return "no keys asked for: OPEN to other machines"

    def ready(self) -> "Plan":
        """Bind what it needs. Raises ConfigError, and then has bound nothing."""
        before = len(self.listeners.sockets)
        try:
            self.listeners.grow(self.slots)
        except BaseException:
            self.listeners.cut(before)
            raise
        return msgspec.structs.replace(self, bound=len(self.listeners.sockets))

    def next(self, loaded: Loaded, room: int) -> "Plan":
        """Return what a reload leads to, bound. Raises ConfigError.

        `room`: for how many workers, beside those that there are.
        """
        slots = worker_count(loaded.config.server.workers)
        if slots > room:
            message = f"there is room for {room} more workers; a restart makes some for {slots}"
            raise ConfigError(message, field="server.workers")
        listeners, address = self.listeners, loaded.config.server.address or ""
        if address != listeners.address:
            listeners = Listeners(address, beside=listeners)
        return Plan(loaded, listeners, slots).ready()

    def give_up(self, earlier: "Plan") -> None:
        """Close what an earlier one, which goes on, has no need of."""
        if self.listeners is earlier.listeners:
            self.listeners.cut(earlier.bound)
        else:
            self.listeners.close()

    def sockets_of(self, slot: int) -> list[socket.socket]:
        """Return what a worker serves."""
        return self.listeners.of_slot(slot, self.slots, self.bound)

    def scoreboard(self) -> Scoreboard:
        """Return one for all generations that follow. Raises ConfigError."""
        segments = max(LEAST_SEGMENTS, 1 + GENERATIONS * self.slots + SPARE_SEGMENTS)
        try:
            return Scoreboard(segments)
        except OSError as error:
            message = f"no memory for the counters of so many: {error.strerror}"
            raise ConfigError(message, field="server.workers") from None
