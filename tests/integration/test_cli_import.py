"""`sluice import litellm` as an operator runs it; what it writes serves the old proxy's clients."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support.admin import admin
from tests.support.config import chat
from tests.support.gateway import PASSED_ON, ROOT, running
from tests.support.threaded import UpstreamThread
from tests.support.upstream import MODEL
from tests.support.wire import ask, post
from workers.__main__ import main

MASTER_KEY = "sk-old-master-0123456789"
PROXY = """
model_list:
  - model_name: old-name
    litellm_params: {{model: openai/{model}, api_base: "{url}", api_key: os.environ/UPSTREAM_KEY}}
    model_info: {{input_cost_per_token: 1e-6, output_cost_per_token: 0.000004}}
  - model_name: broken
    litellm_params: {{model: openai/{model}, api_base: "http://127.0.0.1:9/v1", api_key: none}}
  - model_name: "house/*"
    litellm_params: {{model: "openai/*", api_base: "{url}", api_key: os.environ/UPSTREAM_KEY}}
router_settings:
  routing_strategy: lar1
  fallbacks: [{{broken: [old-name]}}]
  model_group_alias: {{older-name: old-name}}
general_settings:
  master_key: os.environ/LITELLM_MASTER_KEY
"""


def imported(
    directory: Path, text: str, terminal: str = "utf-8"
) -> subprocess.CompletedProcess[str]:
    """Run the command in a directory that has such a config.yaml."""
    (directory / "config.yaml").write_text(text, encoding="utf-8")
    environ = {name: os.environ[name] for name in PASSED_ON if name in os.environ}
    return subprocess.run(
        [sys.executable, "-m", "workers", "import", "litellm", "config.yaml"],
        cwd=directory,
        env=environ | {"PYTHONPATH": str(ROOT), "PYTHONIOENCODING": terminal},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        encoding="utf-8",
        timeout=60,
    )


async def test_the_old_proxys_clients_go_on(tmp_path: Path) -> None:
    environ = {"LITELLM_MASTER_KEY": MASTER_KEY, "UPSTREAM_KEY": "sk-upstream"}
    with UpstreamThread() as upstream:
        done = imported(tmp_path, PROXY.format(model=MODEL, url=upstream.url))
        assert done.returncode == 0, done.stderr
        silent, retries, note, caution, *summary = done.stderr.splitlines()
        place = "router_settings.routing_strategy: not carried over: "
        assert silent.startswith("config.yaml:10: router_settings.timeout: there is none")
        assert retries.startswith("config.yaml:10: router_settings.num_retries: there is none")
        assert note.startswith(f"config.yaml:11: {place}")
        assert caution.startswith("config.yaml:15: general_settings.master_key: ")
        assert summary == [
            "3 models, 2 providers; 4 things to know.",
            "It takes from the environment: LITELLM_MASTER_KEY, UPSTREAM_KEY",
            "Next: sluice check --config sluice.yaml",
        ]
        with running(done.stdout, environ=environ) as gateway:
            for name in ("old-name", "older-name", "broken", f"house/{MODEL}"):
                reply = await ask(gateway.port, post(chat(name), key=MASTER_KEY))
                assert reply.status == 200, (name, reply)
            assert [one.json["model"] for one in upstream.received] == [MODEL] * 4
            assert upstream.received[0].headers["authorization"] == "Bearer sk-upstream"
            records = gateway.records(4)
            assert [len(one["tries"]) for one in records] == [1, 1, 2, 1]
            assert [one["cost_microusd"] for one in records[:3]] == [27] * 3
            assert records[0]["key"] == "master"
            refused = await ask(gateway.port, post(chat("old-name"), key="sk-another-key"))
            unknown = await ask(gateway.port, post(chat("new-name"), key=MASTER_KEY))
            assert (refused.status, unknown.status) == (401, 404)
            assert (await admin(gateway, "GET", "/keys", key=MASTER_KEY)).status == 200


def test_what_is_printed_is_utf_8_in_any_terminal(tmp_path: Path) -> None:
    text = PROXY.format(model="日本", url="http://127.0.0.1:9/v1")
    done = imported(tmp_path, text, "latin-1")
    assert done.returncode == 0
    assert "日本" in done.stdout
    assert done.stdout == imported(tmp_path, text).stdout


def test_a_file_is_written_once_and_again_by_force(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    source, output = tmp_path / "config.yaml", tmp_path / "sluice.yaml"
    source.write_text(PROXY.format(model=MODEL, url="http://127.0.0.1:9/v1"))
    words = ["import", "litellm", str(source), "--output"]
    assert main([*words, str(output)]) == 0
    assert capsys.readouterr().out == ""
    written = output.read_text()
    assert output.stat().st_mode & 0o777 == 0o600
    assert written.startswith(f"# From {source} by `sluice import litellm`.\n")
    output.write_text("mine")
    assert (main([*words, str(output)]), output.read_text()) == (2, "mine")
    reason = "is there already; --force overwrites it"
    assert capsys.readouterr().err == f"sluice: {output}: {reason}\n"
    assert (main([*words, str(output), "--force"]), output.read_text()) == (0, written)
    nowhere = tmp_path / "none" / "sluice.yaml"
    assert main([*words, str(nowhere)]) == 2
    last = capsys.readouterr().err.splitlines()[-1]
    assert last == f"sluice: {nowhere}: cannot be written: No such file or directory"


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("model_list:\n  - model_name: *\n", ":2: not YAML: "),
        ("model_list: {}\nmodel_list: []\n", ":2: model_list: given twice"),
        ("- a\n", ":1: expected a mapping"),
        ("kind: ConfigMap\n", ":1: not a configuration of LiteLLM's"),
        ("litellm_settings: {}\nmodel_list: 5\n", ":2: model_list: expected a list"),
        (
            "model_list:\n  - {model_name: a, litellm_params: {model: petals/b}}",
            ":1: model_list: none of its deployments can be carried over",
        ),
        (b"\xff", ": is not UTF-8"),
        (None, ": cannot be read: No such file or directory"),
    ],
)
def test_what_cannot_be_read_is_an_error_with_its_place(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], text: str | bytes | None, said: str
) -> None:
    source, output = tmp_path / "config.yaml", tmp_path / "sluice.yaml"
    if text is not None:
        source.write_bytes(text if isinstance(text, bytes) else text.encode())
    assert main(["import", "litellm", str(source), "--output", str(output)]) == 2
    found = capsys.readouterr()
    assert found.out == ""
    assert found.err.splitlines()[-1].startswith(f"sluice: {source}{said}")
    assert not output.exists()
