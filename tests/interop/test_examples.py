"""The examples that need real programs."""

from __future__ import annotations

import http.client
import os
import shutil
import socket
import subprocess
import sys
import tarfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.test_examples import EXAMPLES, environment, example

from .programs import Podman, Registry, push_layout, run

HELLO = EXAMPLES / "hello"
TIME_LIMIT = 30.0


@contextmanager
def serving(name: str, registry: str) -> Iterator[int]:
    """Run an example that serves HTTP; give its port once it answers."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    process = subprocess.Popen(
        [sys.executable, EXAMPLES / name, registry, str(port)],
        env={**os.environ, **environment()},
        stdout=subprocess.DEVNULL,
    )
    try:
        wait_for_port(process, port)
        yield port
    finally:
        process.terminate()
        process.wait(TIME_LIMIT)


def wait_for_port(process: subprocess.Popen[bytes], port: int) -> None:
    give_up = time.monotonic() + TIME_LIMIT
    while time.monotonic() < give_up and process.poll() is None:
        try:
            socket.create_connection(("127.0.0.1", port), timeout=1).close()
        except ConnectionRefusedError:
            time.sleep(0.02)
        else:
            return
    pytest.fail("the example does not listen")


@pytest.mark.interop("podman")
def test_pipe_to_podman(podman: Podman) -> None:
    wrapper = podman.folder / "load"
    argv = [podman.folder / name for name in ("storage", "run", "state")]
    wrapper.write_text(
        "#!/bin/sh\nexec podman --root {} --runroot {} --tmpdir {} --storage-driver vfs "
        "--cgroup-manager cgroupfs --events-backend none load\n".format(*argv)
    )
    wrapper.chmod(0o755)
    said = example("pipe_to_program.py", wrapper)
    assert "example.com/hello:1.0" in said
    with podman.files_of("example.com/hello:1.0") as files:
        assert (files / "hello.txt").exists()


@pytest.mark.interop("docker-registry", "skopeo", "podman")
def test_registry_to_response(docker_registry: Registry, podman: Podman) -> None:
    """A real registry's blobs go straight into an HTTP response, and podman loads what comes out."""
    push_layout(HELLO, "app:1.0", docker_registry, reference="latest")
    with serving("registry_to_response.py", docker_registry.url) as port:
        connection = http.client.HTTPConnection("127.0.0.1", port, timeout=TIME_LIMIT)
        connection.request("GET", "/app:1.0")
        body = connection.getresponse().read()
        connection.close()
    assert podman.load(body) == ["docker.io/library/app:1.0"]
    with podman.files_of("docker.io/library/app:1.0") as files:
        assert (files / "hello.txt").read_text().startswith("Hello")


def layer_of(layout: Path) -> list[str]:
    """Return the names in the only layer of a layout."""
    (layer,) = (path for path in layout.rglob("*") if path.is_file() and path.read_bytes()[:2] == b"\x1f\x8b")
    with tarfile.open(layer) as tar:
        return tar.getnames()


@pytest.mark.interop("gcc")
def test_make_hello(tmp_path: Path) -> None:
    """The maker makes what lies there, but for what a compiler makes of the program."""
    maker = shutil.copy(EXAMPLES / "make_hello.py", tmp_path)
    digest = run(sys.executable, maker).decode().splitlines()[-1]
    assert (tmp_path / "hello" / "blobs" / "sha256" / digest.removeprefix("sha256:")).exists()
    for layout in (tmp_path / "hello", HELLO):
        assert layer_of(layout) == ["hello", "hello.txt"]
