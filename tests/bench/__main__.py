"""`python -m tests.bench`: starts the upstream and every proxy, measures, prints the report.

Exits with 1 when Sluice could not be measured or any request failed; speed never decides that.
"""

import argparse
import contextlib
import os
import signal
import sys
import tempfile
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import replace
from functools import partial
from pathlib import Path

import msgspec

from . import load, machine, measure, nginx, report, servers
from .processes import Placement, Server, Unavailable

_QUICK = {"duration": 1.0, "rounds": 1, "idle_seconds": 2.0}


def main(arguments: Sequence[str] | None = None) -> int:
    options = _options(arguments)
    # An orderly way out on SIGTERM too, so that every child is stopped.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
    machine_facts = machine.this_machine(bundled=options.client == "bundled")
    placement = _placement(options.workers) if options.pin else Placement()
    if placement.load is not None:
        os.sched_setaffinity(0, placement.load)
    with tempfile.TemporaryDirectory(prefix="sluice-bench-") as directory:
        found = _run(options, placement, machine_facts, Path(directory))
    print(report.render(found))
    if options.json is not None:
        options.json.write_bytes(msgspec.json.format(msgspec.json.encode(found)) + b"\n")
    return 1 if report.SLUICE in found.skipped or report.errors(found) else 0


def _run(
    options: argparse.Namespace,
    placement: Placement,
    machine_facts: machine.Machine,
    directory: Path,
) -> report.Report:
    plan = measure.Plan(
        seconds=options.duration,
        rounds=options.rounds,
        connections=options.connections,
        streams=options.streams,
        chunks=options.chunks,
        bundled=options.client == "bundled",
    )
    wanted = {options.only} if options.only else {"idle", "unary", "stream", "hits"}
    with contextlib.ExitStack() as stack:
        upstream = stack.enter_context(
            servers.upstream(
                directory, gap_ms=options.gap_ms, chunks=plan.chunks, cores=placement.load
            )
        )
        proxies, skipped = _start(stack, options, placement, upstream, directory)
        every = [upstream, *proxies]
        _announce(f"idle: {options.idle_seconds:g} s")
        idle = measure.idle(proxies, options.idle_seconds) if "idle" in wanted else {}
        unary = measure.unary(every, plan, _announce) if "unary" in wanted else {}
        translating = [
            replace(one, name=report.TRANSLATED, translates=True)
            for one in proxies
            if one.name == report.SLUICE
        ]
        asked = [*every, *translating]
        stream = measure.streamed(asked, plan, _announce) if "stream" in wanted else {}
        hits: measure.Rounds = {}
        if "hits" in wanted:
            cached, why = _start_cached(stack, options, placement, upstream, directory)
            skipped |= why
            bare = [one for one in every if one.name in (report.DIRECT, report.NGINX)]
            hits = measure.unary([*bare, *cached], plan, _announce)
        rested = measure.idle(proxies, 1.0) if idle and (unary or stream) else {}
    return report.Report(
        machine_facts, plan, bool(placement.proxy), idle, unary, stream, hits, rested, skipped
    )


def _start(
    stack: contextlib.ExitStack,
    options: argparse.Namespace,
    placement: Placement,
    upstream: Server,
    directory: Path,
) -> tuple[list[Server], dict[str, str]]:
    """The proxies that start and answer as they should, and why the others do not take part."""
    cores, workers, port = placement.proxy, options.workers, upstream.port
    starts: dict[str, Callable[[], AbstractContextManager[Server]]] = {
        report.NGINX: lambda: nginx.running(
            port, directory / "nginx", workers=workers, cores=cores
        ),
        "aiohttp": lambda: servers.passthrough(port, directory, cores=cores),
        report.SLUICE: lambda: servers.sluice(port, directory, workers=workers, cores=cores),
    }
    return _started(stack, options, starts)


def _start_cached(
    stack: contextlib.ExitStack,
    options: argparse.Namespace,
    placement: Placement,
    upstream: Server,
    directory: Path,
) -> tuple[list[Server], dict[str, str]]:
    """Sluice with a cache, once for each place an answer may come from."""
    cores, workers, port = placement.proxy, options.workers, upstream.port

    def start(place: str) -> AbstractContextManager[Server]:
        return servers.sluice(port, directory, workers=workers, cores=cores, cached_in=place)

    starts = {f"{report.SLUICE}, hit in {place}": partial(start, place) for place in servers.CACHES}
    return _started(stack, options, starts)


def _started(
    stack: contextlib.ExitStack,
    options: argparse.Namespace,
    starts: Mapping[str, Callable[[], AbstractContextManager[Server]]],
) -> tuple[list[Server], dict[str, str]]:
    proxies, skipped = [], {}
    for name, start in starts.items():
        _announce(f"starting {name}")
        try:
            server = stack.enter_context(start())
        except Unavailable as reason:
            skipped[name] = str(reason)
            continue
        if fault := load.check(server, options.chunks):
            skipped[name] = f"wrong answer: {fault}"
        else:
            proxies.append(server)
    return proxies, skipped


def _placement(workers: int) -> Placement:
    """The last cores, one a worker, for the proxies; the others for load and upstream."""
    cores = sorted(os.sched_getaffinity(0))
    if len(cores) < 2:
        return Placement()
    first = max(1, len(cores) - workers)
    return Placement(load=frozenset(cores[:first]), proxy=frozenset(cores[first:]))


def _announce(text: str) -> None:
    print(f"... {text}", file=sys.stderr, flush=True)


def _options(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m tests.bench",
        description="CPU, latency and memory of Sluice against nginx and a bare aiohttp proxy.",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    add = parser.add_argument
    add("--duration", type=float, default=5.0, help="seconds of load a server and round")
    add("--rounds", type=int, default=3, help="rounds, servers taking turns in each")
    add("--connections", type=int, default=64, help="connections of the unary load")
    add("--streams", type=int, default=32, help="streams at a time")
    add("--chunks", type=int, default=100, help="chunks of a stream")
    add("--gap-ms", type=float, default=2.0, help="pause between two chunks, whole ms")
    add("--workers", type=int, default=1, help="worker processes of nginx and Sluice")
    add("--idle-seconds", type=float, default=10.0, help="how long to watch idle servers")
    add("--only", choices=("unary", "stream", "idle", "hits"), help="measure just this")
    add("--client", choices=("auto", "bundled"), default="auto", help="auto: wrk if installed")
    add("--pin", action=argparse.BooleanOptionalAction, default=False, help="separate cores")
    add("--quick", action="store_true", help="one short round: does it work at all")
    add("--json", type=Path, metavar="FILE", help="also write every single measurement")
    options = parser.parse_args(arguments)
    if options.quick:
        vars(options).update(_QUICK)
    return options


if __name__ == "__main__":
    sys.exit(main())
