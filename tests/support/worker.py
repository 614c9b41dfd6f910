"""One worker's gateway in the test's own process, with a store of its own."""

import asyncio
import contextlib
import os
from collections.abc import AsyncIterator
from pathlib import Path

from gateway.app import Gateway, Resources
from gateway.config.load import load
from gateway.observe.log import LineWriter
from gateway.observe.scoreboard import Scoreboard
from gateway.store.levels import shared_memory
from gateway.store.location import Location
from tests.support.store import store_server
from workers.prices import load_prices


@contextlib.asynccontextmanager
async def working(directory: Path, config: str) -> AsyncIterator[int]:
    """Its port, for the length of a block; `config` is YAML text."""
    file = directory / "sluice.yaml"
    file.write_text(config)
    with contextlib.ExitStack() as stack:
        store = stack.enter_context(store_server(directory))
        nowhere = os.open(os.devnull, os.O_WRONLY)
        stack.callback(os.close, nowhere)
        writer = LineWriter(nowhere)
        stack.callback(writer.close)
        resources = Resources(
            location=Location(unix_path=store.socket),
            prices=load_prices(directory),
            scoreboard=Scoreboard(2),
            segment=1,
            writer=writer,
            demo_socket=str(directory / "demo.sock"),
            name="sluice-0",
            state=directory,
            levels=shared_memory(2),
        )
        gateway = Gateway(load(str(file), {}).config, resources)
        try:
            server = await gateway.start()
            listener = await asyncio.get_running_loop().create_server(server, "127.0.0.1", 0)
            try:
                yield listener.sockets[0].getsockname()[1]
            finally:
                listener.close()
        finally:
            await gateway.aclose()
