"""`sluice chat` says what a model answers as it comes, once or in a conversation."""

import json
import os
import pty
import signal
import subprocess
import sys
import time
from collections.abc import Iterator

import pytest

from tests.integration.conftest import unused_port
from tests.support.config import KEY, config, digest
from tests.support.gateway import PASSED_ON, ROOT, Gateway, running
from tests.support.threaded import UpstreamThread
from tests.support.upstream import Exchange, delta

SECONDS = 30


async def echoes(exchange: Exchange) -> None:
    """Answer with what was said last, and with how many messages there were."""
    body = exchange.request.json
    said = body["messages"][-1]["content"]
    if said == "refuse":
        await exchange.reply({"error": {"message": "no \x1b[2J thanks"}}, status=400)
        return
    await exchange.start_stream()
    for text in (f"{len(body['messages'])}: ", said, "\x1b[2J!"):
        await exchange.event(delta(text))
    if said == "break":
        exchange.abort()
        return
    await exchange.event(delta(None, "stop"))
    await exchange.event("[DONE]")
    await exchange.end_stream()


@pytest.fixture(scope="module")
def gateway() -> Iterator[Gateway]:
    with UpstreamThread(behaviour=echoes) as upstream:
        key = {"name": "k", "tenant": "acme", "sha256": digest(KEY)}
        text = json.loads(config(upstream.url, auth={"keys": [key]}))
        text["server"] = {**text.get("server", {}), "address": f"127.0.0.1:{unused_port()}"}
        with running(json.dumps(text), host=None, port=None) as started:
            yield started


def command(gateway: Gateway, *words: str) -> list[str]:
    given = ["--config", str(gateway.config_file)]
    return [sys.executable, "-m", "workers", "chat", *given, *words]


def environ(key: str = KEY) -> dict[str, str]:
    passed = {name: os.environ[name] for name in PASSED_ON if name in os.environ}
    return {**passed, "SLUICE_API_KEY": key}


def chat(
    gateway: Gateway, *words: str, key: str = KEY, stdin: str = ""
) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        command(gateway, *words),
        cwd=ROOT,
        env=environ(key),
        input=stdin,
        capture_output=True,
        text=True,
        timeout=SECONDS,
    )


def test_one_prompt_has_one_answer(gateway: Gateway) -> None:
    done = chat(gateway, "hello", "there", "--model", "m")
    assert (done.returncode, done.stdout, done.stderr) == (0, "1: hello there\ufffd[2J!\n", "")
    done = chat(gateway, "--system", "be brief", stdin="from\na pipe\n")
    assert (done.returncode, done.stdout) == (0, "2: from\na pipe\n\ufffd[2J!\n")
    assert chat(gateway, "--url", f"{gateway.url}/v1", "x").stdout == "1: x\ufffd[2J!\n"


@pytest.mark.parametrize(
    ("words", "key", "said"),
    [
        (("refuse", "--model", "m"), KEY, "no \ufffd[2J thanks"),
        (("x", "--model", "no-such"), KEY, "no-such"),
        (("x",), "sk-wrong", "API key"),
        (("x", "--url", f"http://127.0.0.1:{unused_port()}"), KEY, "Is the gateway running?"),
        (("x", "--url", "http://[nonsense"), KEY, "nonsense"),
    ],
)
def test_what_fails_is_said(gateway: Gateway, words: tuple[str, ...], key: str, said: str) -> None:
    done = chat(gateway, *words, key=key)
    assert (done.returncode, done.stdout.strip()) == (1, "")
    assert said in done.stderr
    assert "Traceback" not in done.stderr
    assert KEY not in done.stderr


def test_an_answer_that_breaks_off_is_no_answer(gateway: Gateway) -> None:
    done = chat(gateway, "break", "--model", "m")
    assert done.returncode == 1
    assert done.stdout.startswith("1: break")
    assert done.stderr.startswith("sluice: ")


def test_nothing_is_not_said(gateway: Gateway) -> None:
    assert chat(gateway, stdin=" \n").returncode == 2


@pytest.mark.parametrize(
    ("words", "key", "said"),
    [
        (("x", "--url", "localhost:8080"), KEY, "--url localhost:8080"),
        (("x",), "sk-a\nb", "SLUICE_API_KEY"),
    ],
)
def test_what_cannot_be_asked_is_named(
    gateway: Gateway, words: tuple[str, ...], key: str, said: str
) -> None:
    done = chat(gateway, *words, key=key)
    assert (done.returncode, done.stdout) == (2, "")
    assert said in done.stderr
    assert len(done.stderr.splitlines()) == 1


def test_input_that_is_no_text_is_said_as_far_as_it_is(gateway: Gateway) -> None:
    done = subprocess.run(
        command(gateway, "--model", "m"),
        cwd=ROOT,
        env=environ(),
        input=b"so \xff so",
        capture_output=True,
        timeout=SECONDS,
    )
    assert done.returncode == 0
    assert done.stdout.decode().startswith("1: so \ufffd so")


@pytest.mark.parametrize(
    ("listed", "chosen"),
    [(["dall-e-3", "text-embedding-3-small", "gpt-x"], "gpt-x"), (["whisper-1"], "whisper-1")],
)
def test_the_first_model_that_may_chat_is_asked(
    gateway: Gateway, listed: list[str], chosen: str
) -> None:
    async def lists(exchange: Exchange) -> None:
        if exchange.request.method == "GET":
            data = [{"id": name, "object": "model"} for name in listed]
            await exchange.reply({"object": "list", "data": data})
        else:
            await exchange.reply({"error": {"message": "not now"}}, status=400)

    with UpstreamThread(behaviour=lists) as other:
        done = chat(gateway, "x", "--url", other.url)
    assert done.returncode == 1
    assert done.stderr == f"sluice: {chosen}: not now\n"


def test_ctrl_c_at_the_prompt_ends_it(gateway: Gateway) -> None:
    pid, ours = pty.fork()
    if not pid:
        signal.signal(signal.SIGINT, signal.default_int_handler)
        words = command(gateway, "--model", "m")
        os.chdir(ROOT)
        os.execve(words[0], words, environ())
    try:
        said = b""
        while not said.endswith(b"> "):
            said += os.read(ours, 4096)
        os.write(ours, b"\x03")
        deadline = time.monotonic() + SECONDS
        while not (found := os.waitpid(pid, os.WNOHANG))[0]:
            assert time.monotonic() < deadline, said
            time.sleep(0.02)
        assert os.waitstatus_to_exitcode(found[1]) == 130
        pid = 0
    finally:
        if pid:
            os.kill(pid, signal.SIGKILL)
            os.waitpid(pid, 0)
        os.close(ours)


def test_a_conversation_goes_on(gateway: Gateway) -> None:
    ours, theirs = pty.openpty()
    try:
        process = subprocess.Popen(
            command(gateway, "--model", "m"),
            cwd=ROOT,
            env=environ(),
            stdin=theirs,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        assert process.stdout
        assert process.stdout.readline().startswith("m; ")
        for said, answer in (("one", "1: one"), ("refuse", "no "), ("two", "3: two")):
            os.write(ours, f"{said}\n".encode())
            line = process.stdout.readline()
            while answer not in line:  # an answer that fails has a line, and then its reason
                assert line.strip() == ">"
                line = process.stdout.readline()
        os.write(ours, b"\n")
        assert process.wait(SECONDS) == 0
    finally:
        process.kill()
        process.wait()
        if process.stdout:
            process.stdout.close()
        os.close(ours)
        os.close(theirs)
