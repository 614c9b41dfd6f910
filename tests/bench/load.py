"""Chooses and runs the load client: wrk for unary requests where installed, else our own."""

import json
import shutil
import subprocess
import tempfile
from pathlib import Path

from . import client, traffic
from .client import Load, Quantiles
from .processes import HOST, Server

_MICROSECOND = 1e-6
_WRK_TIMEOUT_S = 30.0

_WRK_SCRIPT = """\
wrk.method = "POST"
wrk.body = [==[{body}]==]
{headers}
{questions}
function done(summary, latency, requests)
  local e = summary.errors
  io.write(string.format(
    '\\nRESULT {{"requests":%d,"us":%d,"p50":%f,"p99":%f,' ..
    '"status":%d,"connect":%d,"read":%d,"write":%d,"timeout":%d}}\\n',
    summary.requests, summary.duration, latency:percentile(50), latency:percentile(99),
    e.status, e.connect, e.read, e.write, e.timeout))
end
"""

# So many questions in turn, where answers are kept: one alone would be looked up once for many.
_QUESTIONS = """\
local questions, turn = {{}}, 0
function init(args)
  for n = 1, {count} do
    questions[n] = wrk.format(nil, nil, nil, (wrk.body:gsub("river", "river " .. n)))
  end
end
function request()
  turn = turn % {count} + 1
  return questions[turn]
end
"""
_QUESTION_COUNT = 256


def wrk() -> str | None:
    """The path of wrk, None where it is not installed."""
    return shutil.which("wrk")


def unary(server: Server, *, connections: int, seconds: float, bundled: bool) -> Load:
    """As many requests as the server answers."""
    program = None if bundled else wrk()
    if program is not None:
        return _wrk(program, server, connections, seconds)
    request = traffic.chat_request(server.authority, stream=False)
    return client.load(
        server.port, request, traffic.unary_fault, connections=connections, seconds=seconds
    )


def streams(server: Server, *, connections: int, seconds: float, chunks: int) -> Load:
    """Streams back to back on each connection, each checked to be complete."""
    if server.translates:
        request = traffic.messages_request(server.authority)
        return client.load(
            server.port,
            request,
            traffic.messages_fault,
            connections=connections,
            seconds=seconds,
        )
    request = traffic.chat_request(server.authority, stream=True)
    return client.load(
        server.port,
        request,
        lambda body: traffic.stream_fault(body, chunks),
        connections=connections,
        seconds=seconds,
    )


def check(server: Server, chunks: int) -> str | None:
    """Ask once each way before measuring: what is wrong with the answers."""
    request = traffic.chat_request(server.authority, stream=False)
    if fault := client.once(server.port, request, traffic.unary_fault):
        return fault
    if server.caches:  # a stream that is replayed has other chunks
        return None
    request = traffic.chat_request(server.authority, stream=True)
    return client.once(server.port, request, lambda body: traffic.stream_fault(body, chunks))


def _wrk(program: str, server: Server, connections: int, seconds: float) -> Load:
    headers = "\n".join(f'wrk.headers["{name}"] = "{v}"' for name, v in traffic.HEADERS.items())
    body = traffic.chat_body(stream=False).decode()
    duration = max(1, round(seconds))  # wrk takes whole seconds only
    with tempfile.TemporaryDirectory(prefix="sluice-bench-wrk-") as directory:
        script = Path(directory) / "request.lua"
        questions = _QUESTIONS.format(count=_QUESTION_COUNT) if server.caches else ""
        script.write_text(_WRK_SCRIPT.format(body=body, headers=headers, questions=questions))
        command = [program, "-t1", f"-c{connections}", f"-d{duration}s", "--timeout", "10s"]
        command += ["-s", str(script), f"http://{HOST}:{server.port}{traffic.CHAT_PATH}"]
        shown = subprocess.run(
            command, capture_output=True, text=True, timeout=duration + _WRK_TIMEOUT_S
        )
    _, found, result = shown.stdout.partition("\nRESULT ")
    if not found:
        raise RuntimeError(f"wrk failed: {shown.stderr or shown.stdout}")
    return _from_wrk(json.loads(result.splitlines()[0]))


def _from_wrk(result: dict[str, float]) -> Load:
    kinds = ("status", "connect", "read", "write", "timeout")
    errors = {f"wrk: {kind}": int(result[kind]) for kind in kinds if result[kind]}
    return Load(
        # wrk counts refused answers too; they are errors here.
        requests=int(result["requests"] - result["status"]),
        seconds=result["us"] * _MICROSECOND,
        whole=Quantiles(result["p50"] * _MICROSECOND, result["p99"] * _MICROSECOND),
        first=None,
        reads=None,
        errors=errors,
    )
