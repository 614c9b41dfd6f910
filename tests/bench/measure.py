"""The rounds: which load goes to which server in which order, with CPU time read around each.

Servers take turns within every round, so that a slow spell of the machine meets all of them.
"""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

from . import cpu, load
from .client import Load
from .cpu import Role
from .processes import Server

# Long enough for work a proxy puts off (batched records, settlement) to be done and counted.
_SETTLE_S = 0.3


@dataclass(frozen=True)
class Plan:
    """How much load, of what kind, how often."""

    seconds: float
    rounds: int
    connections: int
    streams: int
    chunks: int
    bundled: bool

    @property
    def warm_s(self) -> float:
        return min(1.0, self.seconds / 2)

    @property
    def alone_s(self) -> float:
        return self.seconds / 2


@dataclass(frozen=True)
class Measurement:
    """One server in one round: its load, the same on one connection, CPU us a request by role."""

    load: Load
    alone: Load
    cpu_us: dict[Role, float]

    @property
    def gateway_us(self) -> float:
        """The proxy's own processes, without a store."""
        return self.cpu_us[Role.WORKER] + self.cpu_us[Role.SUPERVISOR]

    @property
    def total_us(self) -> float:
        return self.gateway_us + self.cpu_us[Role.STORE]


@dataclass(frozen=True)
class Idle:
    """A server nobody talks to: its share of one core (0.01 is 1 %) and memory by process."""

    core_share: dict[Role, float]
    workers: tuple[cpu.Memory, ...]
    others: dict[str, cpu.Memory]


Rounds = dict[str, list[Measurement]]
Announce = Callable[[str], None]


def unary(servers: Sequence[Server], plan: Plan, announce: Announce) -> Rounds:
    """Every server under full load, then on a single connection: its latency without a queue."""

    def run(server: Server, seconds: float) -> Load:
        return load.unary(
            server, connections=plan.connections, seconds=seconds, bundled=plan.bundled
        )

    def alone(server: Server) -> Load:
        return load.unary(server, connections=1, seconds=plan.alone_s, bundled=True)

    return _rounds(servers, plan, run, alone, lambda text: announce(f"unary {text}"))


def streamed(servers: Sequence[Server], plan: Plan, announce: Announce) -> Rounds:
    """Every server with a few paced streams at a time: not full, so that chunks are not merged."""

    def run(server: Server, seconds: float) -> Load:
        return load.streams(server, connections=plan.streams, seconds=seconds, chunks=plan.chunks)

    def alone(server: Server) -> Load:
        return load.streams(server, connections=1, seconds=plan.alone_s, chunks=plan.chunks)

    return _rounds(servers, plan, run, alone, lambda text: announce(f"stream {text}"))


def idle(servers: Sequence[Server], seconds: float) -> dict[str, Idle]:
    """All servers over the same quiet seconds."""
    before = {server.name: cpu.sample(server.root_pid) for server in servers}
    began = time.monotonic()
    time.sleep(seconds)
    passed = time.monotonic() - began
    found = {}
    for server in servers:
        spent = before[server.name].until(cpu.sample(server.root_pid))
        found[server.name] = _resting(server, {role: s / passed for role, s in spent.items()})
    return found


def _resting(server: Server, core_share: dict[Role, float]) -> Idle:
    family = cpu.roles(server.root_pid)
    workers = [pid for pid, role in family.items() if role is Role.WORKER]
    others = {role.value: cpu.memory(pid) for pid, role in family.items() if pid not in workers}
    return Idle(core_share, tuple(cpu.memory(pid) for pid in workers), others)


def _rounds(
    servers: Sequence[Server],
    plan: Plan,
    run: Callable[[Server, float], Load],
    alone: Callable[[Server], Load],
    announce: Announce,
) -> Rounds:
    found: Rounds = {server.name: [] for server in servers}
    for number in range(plan.rounds):
        for server in servers:
            announce(f"round {number + 1} of {plan.rounds}: {server.name}")
            run(server, plan.warm_s)
            result, spent = _with_cpu(server, partial(run, server, plan.seconds))
            per_request = {role: s * 1e6 / max(result.requests, 1) for role, s in spent.items()}
            found[server.name].append(Measurement(result, alone(server), per_request))
    return found


def _with_cpu(server: Server, run: Callable[[], Load]) -> tuple[Load, dict[Role, float]]:
    time.sleep(_SETTLE_S)
    before = cpu.sample(server.root_pid)
    result = run()
    time.sleep(_SETTLE_S)
    return result, before.until(cpu.sample(server.root_pid))
