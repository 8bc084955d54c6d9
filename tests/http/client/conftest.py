"""Both event loops, a scripted network, certificates."""

from __future__ import annotations

import asyncio
import contextlib
import socket
from collections.abc import AsyncIterator, Callable, Iterable, Mapping

import pytest
import uvloop
from tests.http.client.certificates import Certificates
from tests.http.client.scripted_server import Network


def pytest_asyncio_loop_factories() -> Mapping[str, Callable[[], asyncio.AbstractEventLoop]]:
    """Transports differ between loops."""
    return {"uvloop": uvloop.new_event_loop, "asyncio": asyncio.new_event_loop}


@pytest.fixture
async def network() -> AsyncIterator[Network]:
    network = Network()
    asyncio.get_running_loop().set_exception_handler(lambda _, context: network.faults.append(context))
    yield network
    await network.close()


@pytest.fixture
def deaf_port() -> Iterable[int]:
    """A port whose backlog is full: connecting to it never ends."""
    with contextlib.ExitStack() as stack:
        server = stack.enter_context(socket.socket())
        server.bind(("127.0.0.1", 0))
        server.listen(0)
        for _ in range(4):
            filler = stack.enter_context(socket.socket())
            filler.setblocking(False)
            with contextlib.suppress(BlockingIOError):
                filler.connect(server.getsockname())
        yield server.getsockname()[1]


@pytest.fixture(scope="module")
def certificates(tmp_path_factory: pytest.TempPathFactory) -> Certificates:
    return Certificates(tmp_path_factory.mktemp("certificates"))
