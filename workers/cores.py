"""How many workers fit this machine: its cores, or the container's share of them."""

import math
import os
from pathlib import Path

from gateway.config.schema import MAX_WORKERS

CGROUP = Path("/sys/fs/cgroup")


OWN_CGROUP = Path("/proc/self/cgroup")


def worker_count(configured: str | int) -> int:
    """Return the configured number, or one a core that this process may really use."""
    if isinstance(configured, int):
        return configured
    quotas = [cpu_quota(folder) for folder in own_cgroups(CGROUP, OWN_CGROUP)]
    limits = [math.ceil(quota) for quota in quotas if quota is not None]
    return max(1, min([_cores(), *limits, MAX_WORKERS]))


def own_cgroups(root: Path, own: Path) -> list[Path]:
    """Return this process's cgroup and all above it: each may hold a limit (a systemd unit's)."""
    try:
        lines = own.read_text().splitlines()
    except OSError:
        return [root]
    path = next((line.split(":", 2)[2] for line in lines if line.startswith("0::")), "/")
    below = root / path.lstrip("/")
    return [root, *(folder for folder in (below, *below.parents) if root in folder.parents)]


def cpu_quota(cgroup: Path) -> float | None:
    """Read the CPU limit of a cgroup, version 2 or 1, in cores; None where there is none."""
    try:
        quota, period = (cgroup / "cpu.max").read_text().split()[:2]
    except (OSError, ValueError):
        try:
            quota = (cgroup / "cpu" / "cpu.cfs_quota_us").read_text().strip()
            period = (cgroup / "cpu" / "cpu.cfs_period_us").read_text().strip()
        except OSError:
            return None
    if not quota.isdecimal() or not period.isdecimal() or int(period) == 0:
        return None  # "max", or -1: no limit
    return int(quota) / int(period)


def _cores() -> int:
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1
