"""Turns measurements into Markdown tables: medians over the rounds. No I/O."""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from statistics import median

from . import nginx
from .client import Quantiles
from .cpu import Role
from .machine import Machine
from .measure import Idle, Measurement, Plan, Rounds

DIRECT, NGINX, SLUICE = "direct", "nginx", "sluice"
TRANSLATED = "sluice, translating"
_NONE = "-"
# What Sluice aims at, against nginx in the same run; CPU is that of the gateway's own processes.
_UNARY_AIM, _STREAM_AIM = 5.0, 1.5
_TRANSLATED_AIM = 2.5  # times what a stream in its own dialect costs
_HIT_AIMS = {f"{SLUICE}, hit in memory": 3.2, f"{SLUICE}, hit in Redis": 4.5}
_IDLE_CORE_AIM = 0.005
_UNIQUE_MEMORY_AIM = 25e6

Cells = Sequence[str]


@dataclass(frozen=True)
class Report:
    """Everything one run of the benchmark found; also the shape of the JSON file."""

    machine: Machine
    plan: Plan
    pinned: bool
    idle: dict[str, Idle]
    unary: Rounds
    stream: Rounds
    hits: Rounds
    rested: dict[str, Idle]
    skipped: dict[str, str]


def render(report: Report) -> str:
    parts = [_machine(report)]
    if report.unary:
        parts.append(_unary(report, report.unary, "Unary"))
    if report.stream:
        parts.append(_stream(report))
    if report.hits:
        parts.append(_unary(report, report.hits, "Answers from the cache"))
    if report.idle:
        parts.append(_idle(report))
    parts += [_aims(report), _notes(report)]
    return "\n\n".join(part for part in parts if part)


def errors(report: Report) -> list[str]:
    """Every kind of failed request, with the server, the load and how often."""
    return [
        f"{name} ({kind}): {count} x {what}"
        for kind, rounds in (
            ("unary", report.unary),
            ("stream", report.stream),
            ("hits", report.hits),
        )
        for name, measured in rounds.items()
        for each in measured
        for what, count in (*each.load.errors.items(), *each.alone.errors.items())
    ]


def _machine(report: Report) -> str:
    machine = report.machine
    libraries = ", ".join(f"{name} {version}" for name, version in machine.libraries.items())
    pinned = "proxies and load on cores of their own" if report.pinned else "nothing pinned"
    return (
        f"{machine.cpu}, {machine.cores} cores, {machine.system}, {pinned}\n"
        f"Python {machine.python}, {libraries}; nginx {machine.nginx}"
    )


def _unary(report: Report, rounds: Rounds, title: str) -> str:
    plan = report.plan
    heading = (
        f"## {title}: {plan.connections} connections ({report.machine.unary_client}), "
        f"median of {plan.rounds} x {plan.seconds:g} s"
    )
    columns = ["proxy", "requests/s", "p50 ms", "p99 ms", "added p50 us", "added p99 us"]
    rows = [
        (
            name,
            f"{_median(measured, lambda m: m.load.per_second):,.0f}",
            f"{_median(measured, lambda m: m.load.whole.p50 * 1e3):.2f}",
            f"{_median(measured, lambda m: m.load.whole.p99 * 1e3):.2f}",
            *_added(measured, rounds[DIRECT], lambda m: m.alone.whole),
            *_cpu(name, rounds),
        )
        for name, measured in rounds.items()
    ]
    return f"{heading}\n\n{_table([*columns, *_cpu_columns('request')], rows)}{_split(rounds)}"


def _stream(report: Report) -> str:
    plan, rounds = report.plan, report.stream
    heading = (
        f"## Stream of {plan.chunks} chunks: {plan.streams} at a time, "
        f"median of {plan.rounds} x {plan.seconds:g} s"
    )
    columns = ["proxy", "streams/s", "first byte p50 ms", "p99 ms", "added p50 us"]
    rows = [
        (
            name,
            f"{_median(measured, lambda m: m.load.per_second):,.0f}",
            f"{_median(measured, lambda m: m.load.first.p50 * 1e3 if m.load.first else 0):.2f}",
            f"{_median(measured, lambda m: m.load.first.p99 * 1e3 if m.load.first else 0):.2f}",
            *_added(measured, rounds[DIRECT], lambda m: m.alone.first)[:1],
            *_cpu(name, rounds),
            f"{_median(measured, lambda m: m.load.reads or 0):.0f}",
        )
        for name, measured in rounds.items()
    ]
    columns += [*_cpu_columns("stream"), "reads"]
    return f"{heading}\n\n{_table(columns, rows)}{_split(rounds)}"


def _idle(report: Report) -> str:
    columns = ["proxy", "idle CPU %", "store CPU %", "worker RSS MB", "worker USS MB"]
    columns += ["worker USS MB after load", "supervisor USS MB", "store USS MB"]
    rows = []
    for name, found in report.idle.items():
        store = found.core_share[Role.STORE] * 100
        rested = report.rested.get(name)
        rows.append(
            (
                name,
                f"{_gateway_share(found) * 100:.3f}",
                f"{store:.3f}" if Role.STORE in found.others else _NONE,
                _megabytes([worker.rss for worker in found.workers]),
                _megabytes([worker.uss for worker in found.workers]),
                _megabytes([worker.uss for worker in rested.workers] if rested else []),
                *(
                    _megabytes([m.uss for role, m in found.others.items() if role == wanted])
                    for wanted in (Role.SUPERVISOR, Role.STORE)
                ),
            )
        )
    return f"## Idle (median worker)\n\n{_table(columns, rows)}"


def _aims(report: Report) -> str:
    rows = []
    for rounds, aim, unit in (
        (report.unary, _UNARY_AIM, "request"),
        (report.stream, _STREAM_AIM, f"stream of {report.plan.chunks} chunks"),
    ):
        if ratios := _ratios(SLUICE, rounds, lambda m: m.gateway_us):
            rows.append(_aim(f"CPU a {unit}, times nginx", median(ratios), aim, "x"))
    for name, aim in _HIT_AIMS.items():
        if ratios := _ratios(name, report.hits, lambda m: m.gateway_us):
            rows.append(_aim(f"CPU a request, times nginx ({name})", median(ratios), aim, "x"))
    if {SLUICE, TRANSLATED} <= report.stream.keys():
        plain = median([m.gateway_us for m in report.stream[SLUICE]])
        translated = median([m.gateway_us for m in report.stream[TRANSLATED]])
        ratio = translated / plain
        rows.append(_aim("CPU a translated stream, times relayed", ratio, _TRANSLATED_AIM, "x"))
    if found := report.idle.get(SLUICE):
        share = _gateway_share(found) + found.core_share[Role.STORE]
        rows.append(_aim("idle CPU with store, % of a core", share * 100, _IDLE_CORE_AIM * 100, ""))
        unique = max(worker.uss for worker in found.workers)
        rows.append(_aim("unique memory, MB", unique / 1e6, _UNIQUE_MEMORY_AIM / 1e6, ""))
    return f"## Sluice's aims\n\n{_table(['what', 'seen', 'at most', ''], rows)}" if rows else ""


def _aim(what: str, seen: float, most: float, unit: str) -> Cells:
    return what, f"{seen:.2f}{unit}", f"{most:g}{unit}", "met" if seen <= most else "MISSED"


def _notes(report: Report) -> str:
    lines = [f"Skipped {name}: {reason}" for name, reason in report.skipped.items()]
    if nginx.WHEEL in report.machine.nginx:
        lines.append("The wheel's nginx costs about 1.6 times a distribution's: ratios flatter.")
    lines += [f"FAILED REQUESTS {line}" for line in errors(report)]
    return "\n".join(lines)


def _cpu_columns(unit: str) -> Cells:
    return f"CPU us/{unit}", "x nginx", "with store", "x nginx"


def _cpu(name: str, rounds: Rounds) -> Cells:
    """CPU and its ratio to nginx, without and with the store. Ratios are taken round by round."""
    if name == DIRECT:
        return (_NONE,) * 4
    cells: list[str] = []
    for cost in (_gateway_us, _total_us):
        ratios = _ratios(name, rounds, cost)
        cells.append(f"{_median(rounds[name], cost):,.1f}")
        cells.append(f"{median(ratios):.2f}" if ratios else _NONE)
    return cells


def _gateway_us(measured: Measurement) -> float:
    return measured.gateway_us


def _total_us(measured: Measurement) -> float:
    return measured.total_us


def _ratios(name: str, rounds: Rounds, cost: Callable[[Measurement], float]) -> list[float]:
    pairs = zip(rounds.get(name, []), rounds.get(NGINX, []), strict=False)
    return [cost(mine) / bare.gateway_us for mine, bare in pairs if bare.gateway_us]


def _split(rounds: Rounds) -> str:
    """Where Sluice's CPU goes."""
    if not (measured := rounds.get(SLUICE)):
        return ""
    parts = [f"{role.value} {median(m.cpu_us[role] for m in measured):,.1f}" for role in Role]
    return f"\n\nsluice, CPU us: {', '.join(parts)}"


def _added(
    measured: list[Measurement],
    direct: list[Measurement],
    latency: Callable[[Measurement], Quantiles | None],
) -> Cells:
    """One client's latency over that of going direct, in microseconds, round by round."""
    if measured is direct:
        return _NONE, _NONE
    pairs = [
        (mine, base)
        for m, d in zip(measured, direct, strict=True)
        if (mine := latency(m)) and (base := latency(d))
    ]
    if not pairs:
        return _NONE, _NONE
    p50 = median((mine.p50 - base.p50) * 1e6 for mine, base in pairs)
    p99 = median((mine.p99 - base.p99) * 1e6 for mine, base in pairs)
    return f"{p50:,.0f}", f"{p99:,.0f}"


def _gateway_share(found: Idle) -> float:
    return found.core_share[Role.WORKER] + found.core_share[Role.SUPERVISOR]


def _median(measured: list[Measurement], value: Callable[[Measurement], float]) -> float:
    return median(value(each) for each in measured)


def _megabytes(sizes: list[int]) -> str:
    return f"{median(sizes) / 1e6:.1f}" if sizes else _NONE


def _table(columns: Cells, rows: Iterable[Cells]) -> str:
    lines = [columns, *rows]
    widths = [max(len(line[index]) for line in lines) for index in range(len(columns))]
    rendered = ["| " + " | ".join(_aligned(line, widths)) + " |" for line in lines]
    rule = "| " + " | ".join("-" * width for width in widths) + " |"
    return "\n".join([rendered[0], rule, *rendered[1:]])


def _aligned(line: Cells, widths: list[int]) -> list[str]:
    first, *others = zip(line, widths, strict=True)
    return [first[0].ljust(first[1]), *(text.rjust(width) for text, width in others)]
