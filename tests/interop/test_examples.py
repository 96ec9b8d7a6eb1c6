"""The examples that need real programs."""

from __future__ import annotations

import asyncio
import contextlib
import http.client
import importlib.util
import os
import random
import re
import shutil
import ssl
import sys
import tarfile
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import aiohttp
import pytest
import trustme

from aiodockersave import Digest, ImageSpec, Plan, Platform, Reference, Source, plan_archive, stream_plan
from aiodockersave.sources import default_platform
from tests.support.blobs import FakeSource
from tests.support.images import Image, archive_of, make_image, make_layer, read_layout
from tests.test_examples import EXAMPLES, LIMIT, example, serving, until

from .daemons import Dockerd
from .programs import Loaded, Podman, ProgramError, Registry, push_layout, run, running_registry
from .pushing import Entry, attestation_of, push, push_index

HELLO = EXAMPLES / "hello"
linux = pytest.mark.skipif(not Path("/proc/net/tcp").exists(), reason="connections are looked up in /proc")


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


# ── into a daemon's API ──

LOADED = make_image(
    make_layer({"data": random.Random(5).randbytes(3_000_000)}, None), repo_tags=["example.com/data:1.0"]
)


def plan_of(image: Image) -> Plan:
    return plan_archive([ImageSpec(image.config, image.manifest, image.repo_tags)])


def test_docker_load(dockerd: Dockerd) -> None:
    said = example("docker_load.py", dockerd.socket)
    image = read_layout(HELLO, "latest")
    assert said.splitlines()[-1] == "Loaded image: example.com/hello:1.0"
    diff_ids = [str(layer.diff_id) for layer in image.layers]
    assert dockerd.loaded("example.com/hello:1.0") == Loaded(str(image.image_id), diff_ids)


def test_docker_load_without_docker(tmp_path: Path) -> None:
    with pytest.raises(ProgramError, match=r"exit code 1\nnot loaded: ") as caught:
        example("docker_load.py", tmp_path / "docker.sock")
    assert len(caught.value.output.splitlines()) == 1


class SourceFaultError(Exception):
    """The source fails, as it was told."""


def source_of(image: Image, **options: Any) -> FakeSource:
    return FakeSource([image], chunk_size=64 << 10, **options)


def failing_source() -> FakeSource:
    """Return a source that fails in the middle of the blob."""
    (layer,) = LOADED.layers
    digest = layer.descriptor.digest
    return source_of(
        LOADED, spoil={digest: lambda blob: blob[:2_000_000]}, faults={digest: SourceFaultError()}
    )


async def test_docker_load_from_a_source_that_fails(dockerd: Dockerd) -> None:
    source, module = failing_source(), load_example("docker_load.py")
    with pytest.raises(aiohttp.ClientError) as caught:
        await module.load(str(dockerd.socket), plan_of(LOADED), source)
    assert isinstance(caught.value.__cause__, SourceFaultError)
    assert source.open_now == 0
    assert asyncio.all_tasks() == {asyncio.current_task()}
    assert dockerd.ask("GET", "/images/json") == b"[]\n"
    said: list[str] = []
    await module.load(str(dockerd.socket), plan_of(LOADED), source_of(LOADED), said.append)
    assert said == ["Loaded image: example.com/data:1.0"]


async def test_what_the_daemon_answers_to_a_body_that_breaks_off(dockerd: Dockerd) -> None:
    """An error, which the client above has no way to hear: its connection is gone."""
    plan = plan_of(LOADED)
    reader, writer = await asyncio.open_unix_connection(dockerd.socket)
    with contextlib.closing(writer):
        writer.write(f"POST /images/load HTTP/1.1\r\nHost: x\r\nContent-Length: {plan.size}\r\n\r\n".encode())
        async with asyncio.timeout(LIMIT), stream_plan(plan, failing_source().open_blob) as chunks:
            with pytest.raises(SourceFaultError):
                async for chunk in chunks:
                    writer.write(chunk)
                    await writer.drain()
            writer.write_eof()
            answer = await reader.read()
    assert b"unexpected EOF" in answer
    assert dockerd.ask("GET", "/images/json") == b"[]\n"


async def test_docker_load_of_what_the_daemon_refuses(dockerd: Dockerd) -> None:
    """It says so in a body that began with status 200."""
    config = make_image(make_layer({"other": b""})).config
    image = make_image(*LOADED.layers, config_bytes=config, repo_tags=LOADED.repo_tags)
    source, module = source_of(image), load_example("docker_load.py")
    with pytest.raises(module.LoadError, match="invalid diffID"):
        await module.load(str(dockerd.socket), plan_of(image), source)
    assert source.open_now == 0
    assert asyncio.all_tasks() == {asyncio.current_task()}


# ── from a registry to a file ──

OTHER = Platform("linux", "s390x")


@dataclass(frozen=True)
class App:
    """An image for two platforms in a registry, with an attestation.

    Attributes:
        path: Repository and tag.
        own: The image for this machine.
        other: The image for `OTHER`.
        digest: Of the manifest for `OTHER`.
    """

    path: str
    own: Image
    other: Image

    @property
    def digest(self) -> Digest:
        return self.other.manifest.digest


def make_app(registry: Registry, repository: str) -> App:
    """Push an image of two layers, which no other repository has."""
    images = {}
    for platform in (default_platform(), OTHER):
        text = f"{repository} for {platform}"
        attributes: dict[str, Any] = attributes_of(platform)
        layers = make_layer({"data": random.Random(text).randbytes(300_000)}), make_layer({"app": b"app\n"})
        images[platform] = make_image(*layers, comment=text, **attributes)
    own, other = images.values()
    push_index(
        registry,
        repository,
        "1.0",
        Entry(other, {"os": "linux", **attributes_of(OTHER)}),
        Entry(attestation_of(own), {"os": "unknown", "architecture": "unknown"}, own),
        Entry(own, {"os": "linux", **attributes_of(default_platform())}),
    )
    return App(f"{repository}:1.0", own, other)


def attributes_of(platform: Platform) -> dict[str, str]:
    variant = {"variant": platform.variant} if platform.variant else {}
    return {"architecture": platform.architecture, **variant}


@pytest.fixture(scope="session")
def app(docker_registry: Registry) -> App:
    return make_app(docker_registry, "examples/app")


@pytest.mark.interop("docker-registry")
async def test_save_from_registry(docker_registry: Registry, app: App, tmp_path: Path) -> None:
    name, archive = f"{docker_registry.address}/{app.path}", tmp_path / "app.tar"
    *layers, summary = example("save_from_registry.py", name, archive).splitlines()
    assert archive.read_bytes() == await archive_of([app.own.tagged(name)])
    # Two are received at once: which is in first is not said.
    assert {line.split()[1] for line in layers} == {str(layer.descriptor.digest) for layer in app.own.layers}
    assert len(layers) == len(app.own.layers)
    assert layers[-1].startswith("100%")
    assert summary.endswith(f"{archive.stat().st_size} bytes, {Digest.of(archive.read_bytes())}")


@pytest.mark.interop("docker-registry")
async def test_save_from_registry_for_a_platform(docker_registry: Registry, app: App, tmp_path: Path) -> None:
    name, archive = f"{docker_registry.address}/{app.path}", tmp_path / "app.tar"
    example("save_from_registry.py", name, archive, str(OTHER))
    assert archive.read_bytes() == await archive_of([app.other.tagged(name)])


@pytest.mark.interop("docker-registry")
def test_save_from_registry_what_is_not_there(docker_registry: Registry, app: App, tmp_path: Path) -> None:
    archive = tmp_path / "app.tar"
    archive.write_bytes(b"old")
    with pytest.raises(
        ProgramError, match=r"exit code 1\nno image for platform linux/riscv64; there are: "
    ) as caught:
        example("save_from_registry.py", f"{docker_registry.address}/{app.path}", archive, "linux/riscv64")
    assert len(caught.value.output.splitlines()) == 1
    assert archive.read_bytes() == b"old"


# ── from a registry to clients ──


@pytest.mark.interop("docker-registry", "skopeo", "podman")
def test_registry_to_response(docker_registry: Registry, podman: Podman) -> None:
    """A real registry's blobs go straight into an HTTP response, and podman loads what comes out."""
    push_layout(HELLO, "app:1.0", docker_registry, reference="latest")
    with serving("registry_to_response.py", docker_registry.url) as server:
        body = server.get("/app:1.0")
    assert podman.load(body) == ["docker.io/library/app:1.0"]
    with podman.files_of("docker.io/library/app:1.0") as files:
        assert (files / "hello.txt").read_text().startswith("Hello")


def connections(pid: int, address: str) -> int:
    """Count the open connections of a process to an IPv4 address of this machine (Linux)."""
    sockets = set()
    for descriptor in Path(f"/proc/{pid}/fd").iterdir():
        with contextlib.suppress(OSError):  # closed meanwhile
            sockets.add(str(descriptor.readlink()))
    port = f":{int(address.rpartition(':')[2]):04X}"
    rows = [row.split() for row in Path("/proc/net/tcp").read_text().splitlines()[1:]]
    return sum(row[2].endswith(port) and f"socket:[{row[9]}]" in sockets for row in rows)


@linux
@pytest.mark.interop("docker-registry")
async def test_stream_to_client_that_leaves(docker_registry: Registry) -> None:
    """The client takes a little and goes: its transfer ends, and the next one is served."""
    layer = make_layer({"data": random.Random(12).randbytes(40_000_000)}, None)  # more than buffers hold
    image = make_image(layer)
    name = push(docker_registry, "examples/large", "1.0", image)
    expected = await archive_of([image.tagged(name)])
    with serving("stream_to_client.py", docker_registry.address) as server:
        with contextlib.closing(
            http.client.HTTPConnection("127.0.0.1", server.port, timeout=LIMIT)
        ) as client:
            client.request("GET", "/examples/large:1.0")
            with client.getresponse() as response:
                assert response.length == len(expected), "the size is known ahead"
                assert response.read(100_000) == expected[:100_000]
                assert connections(server.pid, docker_registry.address) == 1
        await until(lambda: connections(server.pid, docker_registry.address) == 0)
        assert server.get("/examples/large:1.0") == expected


# ── clients of other people ──


@dataclass(frozen=True)
class Client:
    """An example of a source that is made of somebody else's client.

    Attributes:
        example: Its file.
        module: What has to be installed.
        open_source: Opens its source for a repository, with a session whose connections verify TLS.
    """

    example: str
    module: str
    open_source: Callable[
        [Any, str, ssl.SSLContext], AbstractAsyncContextManager[tuple[Source, aiohttp.ClientSession]]
    ]


def load_example(name: str) -> Any:
    spec = importlib.util.spec_from_file_location(name.removesuffix(".py"), EXAMPLES / name)
    assert spec
    assert spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@asynccontextmanager
async def open_aioregistry(
    module: Any, name: str, tls: ssl.SSLContext
) -> AsyncIterator[tuple[Source, aiohttp.ClientSession]]:
    async with aiohttp.ClientSession() as session:
        client = module.AsyncRegistryClient(session=session, ssl_context=tls)
        yield module.AioregistrySource(client, Reference.parse(name)), session


@asynccontextmanager
async def open_gardener(
    module: Any, name: str, tls: ssl.SSLContext
) -> AsyncIterator[tuple[Source, aiohttp.ClientSession]]:
    async with aiohttp.ClientSession(connector=aiohttp.TCPConnector(ssl=tls)) as session:
        yield module.GardenerSource(module.Client(session=session), name), session


CLIENTS = (
    Client("aioregistry_source.py", "aioregistry", open_aioregistry),
    Client("gardener_oci_source.py", "oci.client_async", open_gardener),
)


@pytest.fixture(params=CLIENTS, ids=lambda client: client.module)
def client(request: pytest.FixtureRequest) -> Client:
    client: Client = request.param
    pytest.importorskip(client.module)
    return client


@dataclass(frozen=True)
class Secure:
    """A registry behind TLS, with the same images as `docker_registry`."""

    registry: Registry
    ca_file: Path


@pytest.fixture(scope="session")
def secure(docker_registry: Registry, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Secure]:
    folder, ca = tmp_path_factory.mktemp("secure"), trustme.CA()
    ca_file, certificate = folder / "ca.pem", folder / "registry.pem"
    ca.cert_pem.write_to_path(str(ca_file))
    ca.issue_cert("127.0.0.1").private_key_and_cert_chain_pem.write_to_path(str(certificate))
    with running_registry(folder, data=docker_registry.data, certificate=certificate) as registry:
        yield Secure(registry, ca_file)


@pytest.mark.interop("docker-registry")
async def test_client_by_tag(client: Client, secure: Secure, app: App, tmp_path: Path) -> None:
    name, archive = f"{secure.registry.address}/{app.path}", tmp_path / "app.tar"
    said = example(client.example, name, archive, secure.ca_file)
    assert archive.read_bytes() == await archive_of([app.own.tagged(name)])
    assert f"{archive.stat().st_size} bytes" in said


@pytest.mark.interop("docker-registry")
async def test_client_by_digest(client: Client, secure: Secure, app: App, tmp_path: Path) -> None:
    name, archive = f"{secure.registry.address}/{app.path}@{app.digest}", tmp_path / "app.tar"
    example(client.example, name, archive, secure.ca_file)
    assert archive.read_bytes() == await archive_of([app.other])


@pytest.mark.interop("docker-registry")
def test_client_verifies_the_certificate(client: Client, secure: Secure, app: App, tmp_path: Path) -> None:
    asked = secure.registry.log.read_text().count("GET /v2")
    with pytest.raises(ProgramError, match="CERTIFICATE_VERIFY_FAILED"):
        example(client.example, f"{secure.registry.address}/{app.path}", tmp_path / "app.tar")
    assert secure.registry.log.read_text().count("GET /v2") == asked
    assert list(tmp_path.iterdir()) == []


def spoil(registry: Registry, digest: Digest) -> None:
    """Change the last character of what a registry has under a digest that stands in the content."""
    path = registry.data / "docker/registry/v2/blobs/sha256" / digest.encoded[:2] / digest.encoded / "data"
    data = bytearray(path.read_bytes())
    found = re.search(rb"sha256:[0-9a-f]{64}", data)
    position = found.end() - 1 if found else len(data) // 2
    data[position] = ord("1") if data[position] == ord("0") else ord("0")
    path.write_bytes(data)


@pytest.mark.interop("docker-registry")
@pytest.mark.parametrize("what", ["manifest", "config", "blob"])
def test_client_that_is_given_wrong_bytes(
    client: Client, secure: Secure, docker_registry: Registry, tmp_path: Path, what: str
) -> None:
    app = make_app(docker_registry, f"examples/spoilt-{client.module.partition('.')[0]}-{what}")
    digests = {
        "manifest": app.own.manifest.digest,
        "config": app.own.image_id,
        "blob": app.own.layers[0].descriptor.digest,
    }
    spoil(docker_registry, digests[what])
    with pytest.raises(
        ProgramError, match=f"DigestMismatchError: {what} is not what was promised: expected {digests[what]}"
    ):
        example(client.example, f"{secure.registry.address}/{app.path}", tmp_path / "app.tar", secure.ca_file)
    assert list(tmp_path.iterdir()) == []


@linux
@pytest.mark.interop("docker-registry")
@pytest.mark.parametrize("chunks", [0, 1])
async def test_client_keeps_no_connection_of_a_blob_that_is_left(
    client: Client, secure: Secure, app: App, chunks: int
) -> None:
    tls = ssl.create_default_context(cafile=secure.ca_file)
    repository = f"{secure.registry.address}/{app.path.partition(':')[0]}"
    async with client.open_source(load_example(client.example), repository, tls) as (source, session):
        async with source.open_blob(app.own.layers[0].descriptor) as blob:
            for _ in range(chunks):
                assert await anext(blob)
        assert session.connector
        assert not session.connector._acquired
    # TLS takes leave.
    await until(lambda: connections(os.getpid(), secure.registry.address) == 0)
