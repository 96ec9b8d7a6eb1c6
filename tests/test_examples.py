"""Each file in ``examples/`` runs as it is, and does what its first comment says."""

from __future__ import annotations

import asyncio
import contextlib
import http.client
import os
import random
import re
import subprocess
import sys
import tarfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import pytest

from tests.support.images import archive_of, make_image, make_layer

from .interop.programs import run
from .support.faulty_registry import Fault, FaultyRegistry, drop, endless, flip, refuse
from .support.ports import free_port

EXAMPLES = Path(__file__).parent.parent / "examples"
LIMIT = 60.0  # seconds for anything that is waited for


def example(name: str, *arguments: str | Path) -> str:
    """Run an example and return its standard output."""
    return run(sys.executable, EXAMPLES / name, *arguments, env=environment()).decode()


def environment() -> dict[str, str]:
    return {"PYTHONPATH": str(EXAMPLES.parent), "PYTHONWARNINGS": "error"}


def members(archive: Path) -> list[str]:
    with tarfile.open(archive) as tar:
        return tar.getnames()


def test_every_example_is_run_here() -> None:
    here = Path(__file__)
    text = "".join((here.parent / room / here.name).read_text() for room in (".", "interop", "web"))
    missing = [path.name for path in EXAMPLES.glob("*.py") if f'"{path.name}"' not in text]
    assert missing == []


# ── examples that end by themselves ──


WITH_ARGUMENTS = [path for path in EXAMPLES.glob("*.py") if "sys.exit(__doc__)" in path.read_text()]


@pytest.mark.parametrize("path", WITH_ARGUMENTS, ids=lambda path: path.stem)
def test_an_example_without_its_arguments_shows_how_to_run_it(path: Path) -> None:
    result = subprocess.run(
        [sys.executable, path],
        env=os.environ | environment(),
        capture_output=True,
        text=True,
        timeout=LIMIT,
        check=False,
    )
    assert (result.returncode, result.stdout) == (1, "")
    assert f"python examples/{path.name} " in result.stderr
    assert "Traceback" not in result.stderr


def test_write_file(tmp_path: Path) -> None:
    archive = tmp_path / "greeting.tar"
    said = example("write_file.py", archive)
    assert members(archive) == re.findall(r"^ *\d+ +\d+ (.+)$", said, re.MULTILINE)
    assert said.splitlines()[-1].split() == [str(archive.stat().st_size), str(archive)]


def test_cancel_and_go_on(tmp_path: Path) -> None:
    archive = tmp_path / "patient.tar"
    first, second, summary = example("cancel_and_go_on.py", archive).splitlines()
    assert first.endswith("False")
    assert second.endswith("True")
    assert f"{archive.stat().st_size} bytes, {len(members(archive))} members" in summary


def test_pipe_to_program_lists_the_archive() -> None:
    said = example("pipe_to_program.py")
    assert "manifest.json" in said


def test_pipe_to_program_that_leaves_early() -> None:
    """The reader's exit is no traceback."""
    said = example("pipe_to_program.py", "head", "-c", "100")
    assert len(said) == 100


# ── examples that serve ──


@dataclass(frozen=True)
class Server:
    """An example that serves HTTP on a loopback address."""

    pid: int
    port: int

    def ask(self, path: str) -> tuple[int, bytes]:
        """Return the status and the whole body of an answer.

        Raises:
            http.client.IncompleteRead: It broke off.
        """
        with contextlib.closing(http.client.HTTPConnection("127.0.0.1", self.port, timeout=LIMIT)) as asking:
            asking.request("GET", path)
            response = asking.getresponse()
            return response.status, response.read()

    def get(self, path: str) -> bytes:
        """Return the whole body of an answer that must be good."""
        status, body = self.ask(path)
        assert status == 200, body
        return body


@contextlib.contextmanager
def serving(name: str, *arguments: str) -> Iterator[Server]:
    """Run an example that serves images, of a registry for example; it is given once it answers."""
    port = free_port()
    with subprocess.Popen(
        [sys.executable, EXAMPLES / name, *arguments, str(port)],
        env={**os.environ, **environment()},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    ) as process:
        try:
            server = Server(process.pid, port)
            _wait_until_it_answers(process, server)
            yield server
            process.terminate()
            process.wait(LIMIT)
        finally:
            process.kill()


def _wait_until_it_answers(process: subprocess.Popen[bytes], server: Server) -> None:
    # A connection alone says nothing: one to a free port may be made with itself.
    give_up = time.monotonic() + LIMIT
    while time.monotonic() < give_up and process.poll() is None:
        with contextlib.suppress(OSError, http.client.HTTPException):
            server.ask("/")
            return
        time.sleep(0.02)
    pytest.fail("the example does not answer")


APP = make_image(make_layer({"data": random.Random(8).randbytes(4_000_000)}, None))


async def until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(LIMIT):
        while not condition():
            await asyncio.sleep(0.01)


async def test_stream_to_client_that_leaves_a_slow_registry() -> None:
    """Nothing is sent while the registry says nothing, and that the client has left is noticed all the same."""
    stall = drop(0.9, "stall").often(1)
    async with FaultyRegistry({"team/app:1.0": APP}, [stall]) as registry:
        with serving("stream_to_client.py", registry.address) as server:
            path = "/team/app:1.0"
            reader, writer = await asyncio.open_connection("127.0.0.1", server.port)
            with contextlib.closing(writer):
                writer.write(f"GET {path} HTTP/1.1\r\nHost: here\r\n\r\n".encode())
                async with asyncio.timeout(LIMIT):
                    await reader.readuntil(b"\r\n\r\n")
                    await reader.readexactly(1_000_000)  # the writer holds back some of the 3.6 MB that come
                assert registry.connections == 1
            await until(lambda: registry.connections == 0)
            body = await asyncio.to_thread(server.get, path)
    assert body == await archive_of([APP.tagged(f"{registry.address}/team/app:1.0")])


async def test_stream_to_client_is_cut_where_a_byte_is_wrong() -> None:
    async with FaultyRegistry({"team/app:1.0": APP}, [flip(0.9).often(1)]) as registry:
        with serving("stream_to_client.py", registry.address) as server:
            with pytest.raises(http.client.IncompleteRead):
                await asyncio.to_thread(server.get, "/team/app:1.0")
            await asyncio.to_thread(server.get, "/team/app:1.0")  # the next client is served


REFUSALS: dict[str, tuple[list[Fault], str, int, str]] = {
    "no such tag": ([], "/team/app:2.0", 404, "team/app:2.0 not found"),
    "no name": ([], "/team//app:1.0", 404, "invalid reference"),
    "denied": ([refuse(403).of("manifest")], "/team/app:1.0", 502, "status 403"),
}


@pytest.mark.parametrize(("faults", "path", "status", "text"), REFUSALS.values(), ids=REFUSALS)
async def test_stream_to_client_says_what_it_cannot(
    faults: list[Fault], path: str, status: int, text: str
) -> None:
    async with FaultyRegistry({"team/app:1.0": APP}, faults) as registry:
        with serving("stream_to_client.py", registry.address) as server:
            answer = await asyncio.to_thread(server.ask, path)
    assert answer[0] == status
    assert text in answer[1].decode()


LEADING_AWAY = [
    "/a/../../admin/x:1",
    "/../../x:1",
    "/a/%2e%2e/%2e%2e/x:1",
    "/./x:1",
    "/a//b:1",
    "/a/..:1",
    "/-a:1",
    "/a:..",
    "/a:.b",
]


@pytest.mark.parametrize("path", LEADING_AWAY)
async def test_registry_to_response_stays_where_images_are(path: str) -> None:
    async with FaultyRegistry({"team/app:1.0": APP}) as registry:
        with serving("registry_to_response.py", f"http://{registry.address}") as server:
            reader, writer = await asyncio.open_connection("127.0.0.1", server.port)
            with contextlib.closing(writer):
                # By hand, since a client would tidy the path.
                writer.write(f"GET {path} HTTP/1.1\r\nHost: here\r\nConnection: close\r\n\r\n".encode())
                async with asyncio.timeout(LIMIT):
                    status = (await reader.read()).split(b" ", 2)[1]
            body = await asyncio.to_thread(server.get, "/team/app:1.0")
        assert status == b"404"
        assert {ask.path.rpartition("/")[0] for ask in registry.asks} <= {
            "/v2/team/app/manifests",
            "/v2/team/app/blobs",
        }
    assert body == await archive_of([APP.tagged("team/app:1.0")])


@pytest.mark.parametrize("kind", ["manifest", "config"])
async def test_registry_to_response_does_not_read_without_end(kind: Literal["manifest", "config"]) -> None:
    async with FaultyRegistry({"team/app:1.0": APP}, [endless().of(kind)]) as registry:
        with serving("registry_to_response.py", f"http://{registry.address}") as server:
            status, _ = await asyncio.to_thread(server.ask, "/team/app:1.0")
    assert status == 502


async def test_registry_to_response_says_what_it_cannot() -> None:
    async with FaultyRegistry({"team/app:1.0": APP}, [refuse(403).of("manifest")]) as registry:
        with serving("registry_to_response.py", f"http://{registry.address}") as server:
            status, body = await asyncio.to_thread(server.ask, "/team/app:1.0")
    assert status == 502
    assert body == b"the registry does not give this image"
