"""CPU time and memory of a process tree, read from Linux's /proc and split by role.

CPU time is the larger of two readings: /proc/PID/stat counts ended threads but in ticks of 10 ms,
schedstat nanoseconds but living threads only. Children already reaped count for their parent.
"""

import os
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path

_TICK_S = 1 / os.sysconf("SC_CLK_TCK")
_PROC = Path("/proc")
_STORE_NAMES = (b"valkey-server", b"redis-server")
# Fields of /proc/PID/stat after the command name, counted from 0 (proc(5) counts from 3).
_PPID, _UTIME, _STIME, _CUTIME, _CSTIME, _STARTTIME = 1, 11, 12, 13, 14, 19


class Role(StrEnum):
    WORKER = "worker"
    SUPERVISOR = "supervisor"
    STORE = "store"


@dataclass(frozen=True)
class Memory:
    """Resident and unique (private) bytes of one process."""

    rss: int
    uss: int


@dataclass(frozen=True)
class Sample:
    """CPU seconds so far by role, and the workers that were alive."""

    seconds: dict[Role, float]
    workers: frozenset[int]

    def until(self, later: "Sample") -> dict[Role, float]:
        """CPU seconds spent since by role; RuntimeError when a worker died meanwhile."""
        if lost := self.workers - later.workers:
            raise RuntimeError(f"worker {sorted(lost)} ended during the measurement")
        return {role: later.seconds[role] - self.seconds[role] for role in Role}


def roles(root: int) -> dict[int, Role]:
    """Every process under root with its role; a root without workers is a worker itself."""
    children = _children()
    found = _descend(root, children, Role.SUPERVISOR)
    if Role.WORKER not in found.values():
        found[root] = Role.WORKER
    return found


def sample(root: int) -> Sample:
    seconds = dict.fromkeys(Role, 0.0)
    family = roles(root)
    for pid, role in family.items():
        seconds[role] += _cpu_seconds(pid)
    workers = frozenset(pid for pid, role in family.items() if role is Role.WORKER)
    return Sample(seconds, workers)


def memory(pid: int) -> Memory:
    """From smaps_rollup: unique is what would be freed if this process alone ended."""
    kilobytes: dict[str, int] = {}
    for line in (_PROC / str(pid) / "smaps_rollup").read_text().splitlines()[1:]:
        name, _, value = line.partition(":")
        kilobytes[name] = int(value.split()[0])
    unique = kilobytes["Private_Clean"] + kilobytes["Private_Dirty"]
    return Memory(rss=kilobytes["Rss"] * 1024, uss=unique * 1024)


def identities(root: int) -> dict[int, str]:
    """The processes under root with their start times, as pids are used again."""
    found = {pid: _stat(pid) for pid in roles(root)}
    return {pid: fields[_STARTTIME] for pid, fields in found.items() if fields}


def survivors(family: dict[int, str]) -> list[int]:
    """Those of the family, and of their children since, that still run."""
    alive = [pid for pid, born in family.items() if (f := _stat(pid)) and f[_STARTTIME] == born]
    return sorted({child for pid in alive for child in roles(pid)})


def _descend(pid: int, children: dict[int, list[int]], role: Role) -> dict[int, Role]:
    found = {pid: role}
    for child in children.get(pid, []):
        store = role is Role.STORE or _is_store(child)
        found |= _descend(child, children, Role.STORE if store else Role.WORKER)
    return found


def _is_store(pid: int) -> bool:
    try:
        command = (_PROC / str(pid) / "cmdline").read_bytes()
    except OSError:
        return False
    return any(name in command for name in _STORE_NAMES)


def _children() -> dict[int, list[int]]:
    found: dict[int, list[int]] = {}
    for entry in _PROC.iterdir():
        if entry.name.isdigit() and (fields := _stat(int(entry.name))):
            found.setdefault(int(fields[_PPID]), []).append(int(entry.name))
    return found


def _stat(pid: int) -> list[str]:
    """The fields after the command name, which may hold spaces; none when it is gone."""
    try:
        return (_PROC / str(pid) / "stat").read_text().rpartition(")")[2].split()
    except OSError:
        return []


def _cpu_seconds(pid: int) -> float:
    fields = _stat(pid)
    if not fields:
        return 0.0
    ticks = [int(fields[index]) for index in (_UTIME, _STIME, _CUTIME, _CSTIME)]
    own_s, reaped_s = sum(ticks[:2]) * _TICK_S, sum(ticks[2:]) * _TICK_S
    return max(own_s, _thread_seconds(pid)) + reaped_s


def _thread_seconds(pid: int) -> float:
    nanoseconds = 0
    for task in (_PROC / str(pid) / "task").glob("*/schedstat"):
        try:
            nanoseconds += int(task.read_text().split()[0])
        except (OSError, IndexError):
            continue  # the thread ended, or the kernel keeps no schedstat
    return nanoseconds / 1e9
