"""From a real registry into the programs that people have: images as they are made, by every way in.

Every archive loads into dockerd, containerd, podman and skopeo with the image ID and the diff IDs of the source, and with
``decompress`` it is the one that skopeo writes, byte for byte.
"""

from __future__ import annotations

import asyncio
import base64
import functools
import gzip
import json
import sys
from collections import Counter
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import trustme

from aiodockersave import (
    AuthenticationError,
    Digest,
    Event,
    ImageRequest,
    LayerFinished,
    LayerReused,
    Platform,
    PlatformNotFoundError,
    RegistryError,
    Report,
    SourceError,
    TransferError,
    UnsupportedImageError,
    save,
)
from aiodockersave.core.model import OCI_LAYER_GZIP, Descriptor, Layers
from aiodockersave.sources.credentials import Credentials, MappingCredentials, StaticCredentials
from aiodockersave.sources.registry import RegistrySource
from tests.support.faulty_registry import PASSWORD, USER, FaultyRegistry
from tests.support.images import (
    EXAMPLES,
    Image,
    Layer,
    archive_of,
    layer_tar,
    make_image,
    make_layer,
    noise,
    read_layout,
)
from tests.support.token_server import TokenServer, TokenSigner

from .daemons import Containerd, Dockerd
from .programs import (
    Loaded,
    Podman,
    ProgramError,
    Registry,
    htpasswd_auth,
    run,
    running_registry,
    skopeo,
    skopeo_loaded,
)
from .pushing import Entry, as_docker, attestation_of, push, push_index

pytestmark = pytest.mark.interop("docker-registry", "skopeo")

NAME, OTHER = "example.com/app:1.0", "example.com/app:2.0"
AMD64 = Platform("linux", "amd64")
REFUSED_ZSTD = "unexpected EOF|invalid tar header"
"""The answer of Docker 20.10 to a zstd layer, which it takes for a tar."""
HTPASSWD = "gordon:$2b$04$igPVqjKG.DnBaUJWlYZJ0uZunb9PI5zaQzh13r0DFI/7Q3N8jOZvi"
"""``USER`` and ``PASSWORD``, by ``htpasswd -B``."""


# ── images ──

BASE = make_layer({"etc/name": b"base\n", "lib/data": noise(1, 300_000)})
HELLO = read_layout(EXAMPLES / "hello", "latest")


def large_layer(number: int) -> Layer:
    """Make a layer of 42 MB, without spending its time on compression."""
    plain = layer_tar({f"large/{number}": noise(number, 42_000_000)})
    blob = gzip.compress(plain, compresslevel=1, mtime=0)
    return Layer(blob, plain, Descriptor(OCI_LAYER_GZIP, Digest.of(blob), len(blob)), Digest.of(plain))


Make = Callable[[], Image]
IMAGES: dict[str, Make] = {
    "hello": lambda: HELLO,
    "one-layer": lambda: make_image(BASE),
    "docker-manifest": lambda: as_docker(make_image(BASE, make_layer({"app": b"app\n" * 999}))),
    "plain-layer": lambda: make_image(BASE, make_layer({"app": noise(2, 50_000)}, None)),
    "gzip-members": lambda: make_image(make_layer({"app": noise(3, 100_000)}, members=300)),
    "layer-twice": lambda: make_image(BASE, make_layer({"etc/name": b"other\n"}), BASE),
}
MANY: dict[str, Make] = {
    "sixty-four-layers": lambda: make_image(*(make_layer({f"{n}": noise(n, 2000)}) for n in range(64))),
}
LARGE: dict[str, Make] = {
    "five-large-layers": lambda: make_image(*(large_layer(number) for number in range(5))),
}
ZSTD: dict[str, Make] = {
    "zstd": lambda: make_image(BASE, make_layer({"app": noise(4, 100_000)}, "zstd")),
    "zstd-frames": lambda: make_image(make_layer({"app": noise(5, 100_000)}, "zstd", members=20)),
}


@functools.cache
def image_of(name: str) -> Image:
    return (IMAGES | MANY | LARGE | ZSTD)[name]().tagged(NAME)


@pytest.fixture(scope="session")
def pushed(docker_registry: Registry) -> Callable[[str], str]:
    """Push an image of the tables above when it is first asked for; return its reference."""
    return functools.cache(lambda name: push(docker_registry, f"made/{name}", "1", image_of(name)))


# ── saving ──

both_modes = pytest.mark.parametrize("layers", ["keep", "decompress"])


async def save_one(reference: str, target: Path, *, layers: Layers = "keep", **options: Any) -> Report:
    """Save an image as ``NAME``; `options` are those of the source."""
    async with RegistrySource(**options) as source:
        request = ImageRequest(source, reference, [NAME])
        return await save([request], target, layers=layers, platform=AMD64, fsync=False)


def expected(image: Image) -> Loaded:
    return Loaded(str(image.image_id), [str(layer.diff_id) for layer in image.layers])


def skopeos_archive(reference: str, folder: Path) -> bytes:
    out = folder / "skopeo.tar"
    skopeo(
        *("--override-arch", "amd64"),
        *("copy", "--quiet", "--src-tls-verify=false"),
        f"docker://{reference}",
        f"docker-archive:{out}:{NAME}",
    )
    return out.read_bytes()


# ── every program loads it ──


@dataclass(frozen=True)
class Consumers:
    """The programs that archives are for."""

    dockerd: Dockerd
    containerd: Containerd
    podman: Podman

    def check(self, archive: Path, images: dict[str, Image], *, zstd: bool = False) -> None:
        """Load an archive into all of them; `zstd` where a layer is kept so, which Docker 20.10 refuses."""
        wanted = {name: expected(image) for name, image in images.items()}
        for consumer in (
            (self.containerd, self.podman) if zstd else (self.dockerd, self.containerd, self.podman)
        ):
            names = consumer.load(archive)
            assert {name: consumer.loaded(name) for name in names} == wanted, type(consumer).__name__
        if zstd:
            with pytest.raises(ProgramError, match=REFUSED_ZSTD):
                self.dockerd.load(archive)
        else:
            read = {name: skopeo_loaded(f"docker-archive:{archive}:{name}") for name in images}
            assert read == wanted, "skopeo"


@pytest.fixture
def consumers(dockerd: Dockerd, containerd: Containerd, podman: Podman) -> Consumers:
    return Consumers(dockerd, containerd, podman)


@both_modes
@pytest.mark.parametrize("name", IMAGES)
async def test_loads_everywhere(
    pushed: Callable[[str], str], consumers: Consumers, tmp_path: Path, name: str, layers: Layers
) -> None:
    await check_image(pushed, consumers, tmp_path, name, layers)


@both_modes
@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.parametrize("name", [*MANY, *LARGE])
async def test_large_ones_load_everywhere(
    pushed: Callable[[str], str], consumers: Consumers, tmp_path: Path, name: str, layers: Layers
) -> None:
    await check_image(pushed, consumers, tmp_path, name, layers)


async def check_image(
    pushed: Callable[[str], str], consumers: Consumers, folder: Path, name: str, layers: Layers
) -> None:
    archive, reference = folder / "app.tar", pushed(name)
    await save_one(reference, archive, layers=layers)
    consumers.check(archive, {NAME: image_of(name)})
    if layers == "decompress":
        assert archive.read_bytes() == skopeos_archive(reference, folder)


@both_modes
@pytest.mark.parametrize("name", ZSTD)
async def test_zstd(
    pushed: Callable[[str], str], consumers: Consumers, tmp_path: Path, name: str, layers: Layers
) -> None:
    """Debian's skopeo copies no zstd, so the bytes are compared with what is written from memory."""
    archive = tmp_path / "app.tar"
    await save_one(pushed(name), archive, layers=layers)
    assert archive.read_bytes() == await archive_of([image_of(name)], layers=layers)
    consumers.check(archive, {NAME: image_of(name)}, zstd=layers == "keep")


@pytest.mark.parametrize("name", MANY)
async def test_many_layers_in_order(pushed: Callable[[str], str], tmp_path: Path, name: str) -> None:
    archive, reference = tmp_path / "app.tar", pushed(name)
    await save_one(reference, archive, layers="decompress")
    assert archive.read_bytes() == skopeos_archive(reference, tmp_path)


# ── several images ──


@both_modes
async def test_shared_layers_are_fetched_once(
    docker_registry: Registry, consumers: Consumers, tmp_path: Path, layers: Layers
) -> None:
    one, two = make_image(BASE, comment=f"one, {layers}"), make_image(BASE, BASE, comment=f"two, {layers}")
    repository = f"shared/{layers}"
    references = {
        push(docker_registry, repository, "1", one): NAME,
        push(docker_registry, repository, "2", two): OTHER,
    }
    events: list[Event] = []
    archive = tmp_path / "both.tar"
    async with RegistrySource() as source:
        requests = [ImageRequest(source, reference, [name]) for reference, name in references.items()]
        await save(requests, archive, layers=layers, fsync=False, progress=events.append)
    counts = Counter(type(event) for event in events)
    assert (counts[LayerFinished], counts[LayerReused]) == (1, 2)
    fetched = f'"GET /v2/{repository}/blobs/{BASE.descriptor.digest} HTTP'
    assert docker_registry.log.read_text().count(fetched) == 1, "by the registry's own account"
    consumers.check(archive, {NAME: one, OTHER: two})


# ── platforms ──

PLATFORMS: dict[str, dict[str, str]] = {
    "linux/amd64": {"architecture": "amd64"},
    "linux/arm64": {"architecture": "arm64", "variant": "v8"},
    "linux/arm/v7": {"architecture": "arm", "variant": "v7"},
}


def image_for(name: str) -> Image:
    attributes: dict[str, Any] = PLATFORMS[name]
    return make_image(BASE, make_layer({"platform": name.encode()}), **attributes)


BY_PLATFORM = {name: image_for(name) for name in PLATFORMS}
ATTESTATION = attestation_of(BY_PLATFORM["linux/amd64"])


@pytest.fixture(scope="session")
def index(docker_registry: Registry) -> str:
    """An index of three platforms and an attestation, which comes first."""
    attestation = Entry(ATTESTATION, {"os": "unknown", "architecture": "unknown"}, BY_PLATFORM["linux/amd64"])
    entries = [Entry(BY_PLATFORM[name], {"os": "linux"} | platform) for name, platform in PLATFORMS.items()]
    return push_index(docker_registry, "made/index", "1", attestation, *entries)


@pytest.mark.parametrize("platform", PLATFORMS)
async def test_platform(index: str, tmp_path: Path, platform: str) -> None:
    archive = tmp_path / "app.tar"
    async with RegistrySource() as source:
        await save(
            [ImageRequest(source, index, [NAME])], archive, platform=Platform.parse(platform), fsync=False
        )
    assert archive.read_bytes() == await archive_of([BY_PLATFORM[platform].tagged(NAME)])


@both_modes
async def test_platform_loads_everywhere(
    index: str, consumers: Consumers, tmp_path: Path, layers: Layers
) -> None:
    archive = tmp_path / "app.tar"
    await save_one(index, archive, layers=layers)
    consumers.check(archive, {NAME: BY_PLATFORM["linux/amd64"]})
    if layers == "decompress":
        assert archive.read_bytes() == skopeos_archive(index, tmp_path)


async def test_no_such_platform(index: str, tmp_path: Path) -> None:
    async with RegistrySource() as source:
        with pytest.raises(PlatformNotFoundError) as caught:
            await source.resolve(index, Platform("linux", "s390x"))
    assert [str(platform) for platform in caught.value.available] == [
        "linux/amd64",
        "linux/arm64",
        "linux/arm/v7",
    ]


async def test_an_attestation_is_no_image(docker_registry: Registry, index: str) -> None:
    async with RegistrySource() as source:
        with pytest.raises(UnsupportedImageError):
            await source.resolve(f"{index.rpartition(':')[0]}@{ATTESTATION.manifest.digest}", AMD64)


# ── ways in ──


@pytest.fixture(scope="session")
def hello(docker_registry: Registry) -> str:
    """The path and tag of the example, in the data that all registries below have."""
    return push(docker_registry, "made/hello", "1", HELLO).partition("/")[2]


@pytest.fixture
async def hello_archive() -> bytes:
    return await archive_of([HELLO.tagged(NAME)])


@dataclass(frozen=True)
class Authority:
    """A CA that nobody knows, and a certificate of it for the loopback address."""

    ca_file: Path
    certificate: Path


@pytest.fixture(scope="session")
def authority(tmp_path_factory: pytest.TempPathFactory) -> Authority:
    folder, ca = tmp_path_factory.mktemp("tls"), trustme.CA()
    authority = Authority(folder / "ca.pem", folder / "registry.pem")
    ca.cert_pem.write_to_path(str(authority.ca_file))
    ca.issue_cert("127.0.0.1").private_key_and_cert_chain_pem.write_to_path(str(authority.certificate))
    return authority


Open = Callable[..., Any]


@pytest.fixture
def opened(docker_registry: Registry, tmp_path: Path) -> Open:
    """Run another registry with the same images, for as long as a block runs."""

    @contextmanager
    def open_registry(**options: Any) -> Iterator[Registry]:
        folder = tmp_path / "registry"
        folder.mkdir()
        with running_registry(folder, data=docker_registry.data, **options) as registry:
            yield registry

    return open_registry


async def test_htpasswd(opened: Open, hello: str, hello_archive: bytes, tmp_path: Path) -> None:
    with opened(auth=htpasswd_auth(tmp_path, HTPASSWD)) as registry:
        credentials = MappingCredentials({registry.address: Credentials(USER, PASSWORD)})
        await save_one(f"{registry.address}/{hello}", tmp_path / "app.tar", credentials=credentials)
    assert (tmp_path / "app.tar").read_bytes() == hello_archive


@pytest.mark.parametrize("password", [None, "wrong horse"])
async def test_htpasswd_refuses(opened: Open, hello: str, tmp_path: Path, password: str | None) -> None:
    credentials = StaticCredentials(USER, password) if password else MappingCredentials({})
    with (
        opened(auth=htpasswd_auth(tmp_path, HTPASSWD)) as registry,
        pytest.raises(AuthenticationError) as caught,
    ):
        await save_one(f"{registry.address}/{hello}", tmp_path / "app.tar", credentials=credentials)
    assert registry.address in str(caught.value)
    assert "horse" not in str(caught.value)
    assert not (tmp_path / "app.tar").exists()


async def test_tls(
    opened: Open, hello: str, hello_archive: bytes, tmp_path: Path, authority: Authority
) -> None:
    with opened(certificate=authority.certificate) as registry:
        await save_one(f"{registry.address}/{hello}", tmp_path / "app.tar", ca_file=authority.ca_file)
    assert (tmp_path / "app.tar").read_bytes() == hello_archive


async def test_tls_with_htpasswd(
    opened: Open, hello: str, hello_archive: bytes, tmp_path: Path, authority: Authority
) -> None:
    auth = htpasswd_auth(tmp_path, HTPASSWD)
    with opened(certificate=authority.certificate, auth=auth) as registry:
        await save_one(
            f"{registry.address}/{hello}",
            tmp_path / "app.tar",
            ca_file=authority.ca_file,
            credentials=StaticCredentials(USER, PASSWORD),
        )
    assert (tmp_path / "app.tar").read_bytes() == hello_archive


async def test_tls_of_an_unknown_authority(
    opened: Open, hello: str, tmp_path: Path, authority: Authority
) -> None:
    """A certificate that is not trusted is no reason to try without TLS."""
    trustme.CA().cert_pem.write_to_path(str(tmp_path / "other.pem"))
    with opened(certificate=authority.certificate) as registry:
        for ca_file in (None, tmp_path / "other.pem"):
            with pytest.raises((RegistryError, TransferError), match="certificate"):
                await save_one(f"{registry.address}/{hello}", tmp_path / "app.tar", ca_file=ca_file)
        assert '"GET /v2' not in registry.log.read_text()


async def test_plain_http_is_not_tried_where_a_ca_is_given(
    docker_registry: Registry, hello: str, tmp_path: Path, authority: Authority
) -> None:
    with pytest.raises(SourceError):
        await save_one(f"{docker_registry.address}/{hello}", tmp_path / "app.tar", ca_file=authority.ca_file)


# ── tokens ──


@pytest.fixture
async def token_server() -> AsyncIterator[TokenServer]:
    async with TokenServer(
        TokenSigner(trustme.CA()), users={USER: PASSWORD}, refresh_tokens={"kept": USER}
    ) as server:
        yield server


@pytest.mark.parametrize(
    ("credentials", "method"),
    [
        (Credentials(USER, PASSWORD), "GET"),
        (Credentials("", "", identity_token="kept"), "POST"),
    ],
    ids=["password", "identity token"],
)
async def test_token(
    token_server: TokenServer,
    opened: Open,
    hello: str,
    hello_archive: bytes,
    tmp_path: Path,
    credentials: Credentials,
    method: str,
) -> None:
    with opened(auth=token_server.registry_auth(tmp_path)) as registry:
        store = MappingCredentials({registry.address: credentials})
        await save_one(f"{registry.address}/{hello}", tmp_path / "app.tar", credentials=store)
    assert (tmp_path / "app.tar").read_bytes() == hello_archive
    (ask,) = token_server.asks  # one token is good for all that follows
    assert (ask.method, ask.user, ask.scopes) == (method, USER, ["repository:made/hello:pull"])


async def test_anonymous_token(
    token_server: TokenServer, opened: Open, hello: str, hello_archive: bytes, tmp_path: Path
) -> None:
    token_server.anonymous = True
    with opened(auth=token_server.registry_auth(tmp_path)) as registry:
        await save_one(
            f"{registry.address}/{hello}", tmp_path / "app.tar", credentials=MappingCredentials({})
        )
    assert (tmp_path / "app.tar").read_bytes() == hello_archive
    assert [ask.user for ask in token_server.asks] == [None]


@pytest.mark.parametrize("password", [None, "wrong horse"])
async def test_token_refused(
    token_server: TokenServer, opened: Open, hello: str, tmp_path: Path, password: str | None
) -> None:
    credentials = StaticCredentials(USER, password) if password else MappingCredentials({})
    with opened(auth=token_server.registry_auth(tmp_path)) as registry, pytest.raises(AuthenticationError):
        await save_one(f"{registry.address}/{hello}", tmp_path / "app.tar", credentials=credentials)


# ── the command ──


def command(*args: str | Path, **env: str) -> str:
    """Run the command; return what it says on standard output."""
    return run(sys.executable, "-m", "aiodockersave", *args, env=env).decode()


def test_command(docker_registry: Registry, hello: str, consumers: Consumers, tmp_path: Path) -> None:
    """On a loopback address TLS is tried first; the name in the archive is the reference."""
    archive, reference = tmp_path / "app.tar", f"{docker_registry.address}/{hello}"
    command("save", reference, "--platform", "linux/amd64", "-o", archive)
    consumers.check(archive, {reference: HELLO})


def test_command_with_everything(
    opened: Open, hello: str, hello_archive: bytes, tmp_path: Path, authority: Authority
) -> None:
    """TLS, an authority of its own, and a password that podman has kept."""
    archive, authfile = tmp_path / "app.tar", tmp_path / "auth.json"
    with opened(certificate=authority.certificate, auth=htpasswd_auth(tmp_path, HTPASSWD)) as registry:
        login = base64.b64encode(f"{USER}:{PASSWORD}".encode()).decode()
        authfile.write_text(json.dumps({"auths": {registry.address: {"auth": login}}}))
        options: list[str | Path] = [
            "--ca-file",
            authority.ca_file,
            "--authfile",
            authfile,
            "--platform",
            "linux/amd64",
        ]
        command("save", *options, f"{registry.address}/{hello}={NAME}", "-o", archive)
        planned = json.loads(command("plan", *options, f"{registry.address}/{hello}={NAME}", "--json"))
    assert archive.read_bytes() == hello_archive
    assert planned["size"] == len(hello_archive)


@pytest.mark.parametrize("login", [None, "wrong horse"])
def test_command_that_may_not(opened: Open, hello: str, tmp_path: Path, login: str | None) -> None:
    """One line that says who refuses; nothing under the target's name; no password."""
    authfile = tmp_path / "auth.json"
    with opened(auth=htpasswd_auth(tmp_path, HTPASSWD)) as registry:
        auth = base64.b64encode(f"{USER}:{login}".encode()).decode()
        authfile.write_text(json.dumps({"auths": {registry.address: {"auth": auth}} if login else {}}))
        with pytest.raises(ProgramError, match="exit code 5") as caught:
            command("save", "--authfile", authfile, f"{registry.address}/{hello}", "-o", tmp_path / "app.tar")
    (line,) = caught.value.output.decode().splitlines()
    assert registry.address in line
    assert "horse" not in line
    assert not (tmp_path / "app.tar").exists()


# ── the fake of the other tests ──


@pytest.mark.parametrize("auth", ["none", "basic", "bearer"])
async def test_skopeo_reads_the_faulty_registry(tmp_path: Path, auth: Any) -> None:
    """Without faults it is a registry like any other."""
    image = image_of("gzip-members")
    login = [] if auth == "none" else ["--src-creds", f"{USER}:{PASSWORD}"]
    out = tmp_path / "app.tar"
    async with FaultyRegistry({"team/app:1": image}, auth=auth) as registry:
        source = f"docker://{registry.address}/team/app:1"
        copy = ["copy", "--quiet", "--src-tls-verify=false", *login, source, f"docker-archive:{out}:{NAME}"]
        await asyncio.to_thread(skopeo, *copy)
    assert out.read_bytes() == await archive_of([image], layers="decompress")
