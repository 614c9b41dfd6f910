"""The `sluice` command."""

import argparse
import contextlib
import io
import os
import signal
import sys
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import quote

from gateway import __version__
from gateway.core.errors import ConfigError
from workers.kernel import catch_signals, open_standard_files

if TYPE_CHECKING:
    from gateway.config.load import Loaded
    from gateway.config.schema import Config
    from gateway.policy.pricing import PriceTable

INTERRUPTED = 128 + signal.SIGINT  # as shells have it


def main(argv: list[str] | None = None) -> int:
    """Run one command; return the exit code."""
    words = sys.argv[1:] if argv is None else argv
    wake = None
    if isinstance(sys.stdout, io.TextIOWrapper):  # as standard error does of itself
        sys.stdout.reconfigure(errors="backslashreplace")
    if words[:1] == ["serve"]:
        open_standard_files()
        # Before all that takes long: in a container, the first process has no default actions.
        wake = catch_signals()
    try:
        try:
            arguments = _parser().parse_args(words, argparse.Namespace(wake=wake))
            code: int = arguments.run(arguments)
        finally:
            if sys.stdout is not None:
                sys.stdout.flush()  # while somebody can say that it failed
    except ConfigError as error:
        _complain(str(error))
        return 2
    except BrokenPipeError:  # whoever reads has enough, such as `head`
        _print_no_more()
        return 1
    except OSError as error:  # such as a full disk, maybe that of standard output
        _print_no_more()
        said = error.strerror or str(error)
        _complain(f"{error.filename}: {said}" if error.filename else f"cannot go on: {said}")
        return 1
    except KeyboardInterrupt:
        return INTERRUPTED
    return code


def _complain(text: str) -> None:
    with contextlib.suppress(OSError):
        print(f"sluice: {text}", file=sys.stderr)


def _print_no_more() -> None:
    """Let what standard output still holds go nowhere: the interpreter writes it at its end."""
    if sys.stdout is not None:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _serve(arguments: argparse.Namespace) -> int:
    from workers.settings import Flags
    from workers.supervisor import Supervisor

    flags = Flags(arguments.config, arguments.host, arguments.port, arguments.workers)
    return Supervisor(flags, os.environ, arguments.wake).run()


def _check(arguments: argparse.Namespace) -> int:
    _verified(arguments)
    print(f"{arguments.config or 'the environment'}: valid")
    return 0


def _doctor(arguments: argparse.Namespace) -> int:
    from gateway.cli import doctor

    loaded, prices, state = _verified(arguments)
    url, _ = _store(arguments)
    return doctor.run(url, loaded.config, prices, state, offline=arguments.offline)


def _verified(arguments: argparse.Namespace) -> "tuple[Loaded, PriceTable, Path]":
    """Read and compile the configuration; return the prices and the state directory, too.

    Raises ConfigError.
    """
    from gateway.config.load import state_directory
    from workers import settings
    from workers.prices import load_prices

    loaded = settings.read(settings.Flags(arguments.config), os.environ)
    with loaded.placing():
        directory = state_directory(loaded.config, os.environ)
    with tempfile.TemporaryDirectory() as elsewhere:
        # The state directory, and what is in it, is the gateway's to make.
        prices = load_prices(directory, Path(elsewhere))
        settings.verify(loaded, prices)
    return loaded, prices, directory


def _redis_cli(arguments: argparse.Namespace) -> int:
    from gateway.cli.redis_cli import redis_cli

    return redis_cli(_store(arguments)[0], arguments.command)


def _keys(arguments: argparse.Namespace) -> int:
    from gateway.cli import keys

    return keys.run(*_store(arguments), arguments)


def _usage(arguments: argparse.Namespace) -> int:
    from gateway.cli import usage

    return usage.run(_store(arguments)[0], arguments)


def _tail(arguments: argparse.Namespace) -> int:
    from gateway.cli import tail

    return tail.run(_store(arguments)[0], arguments)


def _chat(arguments: argparse.Namespace) -> int:
    from gateway.cli import chat
    from gateway.config.load import load

    return chat.run(load(arguments.config, os.environ).config, arguments)


def _cache(arguments: argparse.Namespace) -> int:
    from gateway.cli import cache

    return cache.run(_store(arguments)[0], arguments)


def _import(arguments: argparse.Namespace) -> int:
    from gateway.cli import import_litellm

    return import_litellm.run(arguments)


def _store(arguments: argparse.Namespace) -> "tuple[str, Config]":
    """Return the URL of the store that a gateway with this configuration uses."""
    from gateway.config.load import load, state_directory
    from gateway.store.location import parse_url
    from workers.state import socket_path

    loaded = load(arguments.config, os.environ)
    config = loaded.config
    with loaded.placing():
        if config.redis.url:
            parse_url(config.redis.url)
            return config.redis.url, config
        socket = socket_path(state_directory(config, os.environ), "redis.sock")
    return f"unix://{quote(socket)}", config


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="sluice", description="An LLM gateway.")
    parser.add_argument("--version", action="version", version=f"sluice {__version__}")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    configured = argparse.ArgumentParser(add_help=False)
    configured.add_argument(
        "--config",
        metavar="FILE",
        default=os.environ.get("SLUICE_CONFIG") or None,
        help="sluice.yaml; without it the environment alone configures",
    )

    serve = commands.add_parser("serve", parents=[configured], help="run the gateway")
    serve.add_argument("--host", metavar="H", help="address to listen on")
    serve.add_argument("--port", metavar="P", type=int, help="port to listen on")
    serve.add_argument("--workers", metavar="N", help="number of worker processes, or auto")
    serve.set_defaults(run=_serve)

    check = commands.add_parser("check", parents=[configured], help="validate a configuration")
    check.set_defaults(run=_check)

    doctor = commands.add_parser(
        "doctor", parents=[configured], help="look at all that the gateway needs"
    )
    doctor.add_argument(
        "--offline", action="store_true", help="ask no provider; else each for its list of models"
    )
    doctor.set_defaults(run=_doctor)

    chat = commands.add_parser("chat", parents=[configured], help="talk to a model")
    chat.add_argument("prompt", nargs="*", help="what to say; without it, standard input")
    chat.add_argument("--model", metavar="M", help="default: the first that there is")
    chat.add_argument("--system", metavar="TEXT", help="instructions for the model")
    chat.add_argument("--url", metavar="URL", help="a gateway elsewhere")
    chat.set_defaults(run=_chat)

    from gateway.cli import cache, import_litellm, keys, tail, usage

    keys_parser = commands.add_parser("keys", parents=[configured], help="manage virtual keys")
    keys.add_parser(keys_parser)
    keys_parser.set_defaults(run=_keys)

    usage_parser = commands.add_parser("usage", parents=[configured], help="show what was used")
    usage.add_arguments(usage_parser)
    usage_parser.set_defaults(run=_usage)

    tail_parser = commands.add_parser("tail", parents=[configured], help="follow the requests")
    tail.add_arguments(tail_parser)
    tail_parser.set_defaults(run=_tail)

    cache_parser = commands.add_parser("cache", parents=[configured], help="show or purge answers")
    cache.add_parser(cache_parser)
    cache_parser.set_defaults(run=_cache)

    import_parser = commands.add_parser("import", help="translate another gateway's configuration")
    import_litellm.add_arguments(import_parser)
    import_parser.set_defaults(run=_import)

    redis_cli = commands.add_parser(
        "redis-cli", parents=[configured], help="talk to the gateway's store"
    )
    redis_cli.add_argument("command", nargs=argparse.REMAINDER, help="a Redis command")
    redis_cli.set_defaults(run=_redis_cli)
    return parser


if __name__ == "__main__":
    sys.exit(main())
