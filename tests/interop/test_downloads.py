"""Downloads by everybody's clients, cut off again and again: what they have in the end is what ``save`` writes.

The image has more than 300 MB of noise, which nothing can compress.
"""

from __future__ import annotations

import gzip
import hashlib
import io
import itertools
import random
import shlex
import shutil
import subprocess
import sys
import tarfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO

import pytest

from aiodockersave import Digest
from aiodockersave.core.model import OCI_CONFIG, OCI_LAYER, OCI_LAYER_GZIP, OCI_MANIFEST
from tests.support.images import EXAMPLES, make_config, to_json

from .chromium import running_chromium
from .daemons import Dockerd
from .download_server import FILENAME, Facts, running_server
from .programs import Loaded, Registry, push_layout, run

NAME = "example.com/noise:1.0"
MIB = 1 << 20
LAYERS = ((180 * MIB, OCI_LAYER), (3 * MIB, OCI_LAYER_GZIP), (120 * MIB, OCI_LAYER))
TIME_LIMIT = 200.0  # seconds for one client


# ── the image ──


@dataclass(frozen=True)
class Large:
    """A large image, and what ``save`` makes of it.

    Attributes:
        layout: Where it lies, an OCI layout.
        size: Bytes of the archive.
        sha256: Of the archive.
        loaded: What a daemon must make of it.
    """

    layout: Path
    size: int
    sha256: str
    loaded: Loaded

    @property
    def reference(self) -> str:
        """As the command takes it."""
        return f"oci:{self.layout}"


class _Hashing:
    """A file that knows the SHA-256 and the size of what is written into it."""

    def __init__(self, file: IO[bytes]) -> None:
        self._file = file
        self._sha256 = hashlib.sha256()
        self.size = 0

    def write(self, data: bytes) -> int:
        self._file.write(data)
        self._sha256.update(data)
        self.size += len(data)
        return len(data)

    @property
    def digest(self) -> str:
        return f"sha256:{self._sha256.hexdigest()}"


def write_noise(sink: _Hashing | gzip.GzipFile, size: int, seed: int) -> None:
    """Write a tar of one file, piece by piece."""
    noise, info = random.Random(seed), tarfile.TarInfo(f"noise-{seed}")
    info.size = size
    sink.write(info.tobuf())
    for _ in range(size // MIB):
        sink.write(noise.randbytes(MIB))
    sink.write(bytes(1024))


def write_layer(blobs: Path, size: int, media_type: str, seed: int) -> tuple[dict[str, object], str]:
    """Write a layer; return its descriptor and its diff ID."""
    path = blobs / "unfinished"
    with path.open("wb") as file:
        stored = plain = _Hashing(file)
        if media_type == OCI_LAYER:
            write_noise(stored, size, seed)
        else:
            plain = _Hashing(io.BytesIO())
            with gzip.GzipFile(fileobj=stored, mode="wb", compresslevel=1, mtime=0) as compressed:  # type: ignore[call-overload]
                write_noise(compressed, size, seed)
            write_noise(plain, size, seed)
    path.rename(blobs / stored.digest.partition(":")[2])
    return {"mediaType": media_type, "digest": stored.digest, "size": stored.size}, plain.digest


def write_layout(folder: Path) -> Loaded:
    """Write an OCI layout of the image."""
    blobs = folder / "blobs" / "sha256"
    blobs.mkdir(parents=True)
    layers = [write_layer(blobs, *layer, seed) for seed, layer in enumerate(LAYERS)]

    def add(raw: bytes, media_type: str) -> dict[str, object]:
        digest = Digest.of(raw)
        (blobs / digest.encoded).write_bytes(raw)
        return {"mediaType": media_type, "digest": str(digest), "size": len(raw)}

    diff_ids = [diff_id for _, diff_id in layers]
    config = add(make_config([Digest.parse(diff_id) for diff_id in diff_ids]), OCI_CONFIG)
    descriptors = [descriptor for descriptor, _ in layers]
    manifest = {"schemaVersion": 2, "mediaType": OCI_MANIFEST, "config": config, "layers": descriptors}
    index = {"schemaVersion": 2, "manifests": [add(to_json(manifest), OCI_MANIFEST)]}
    (folder / "index.json").write_bytes(to_json(index))
    (folder / "oci-layout").write_text('{"imageLayoutVersion":"1.0.0"}')
    return Loaded(str(config["digest"]), diff_ids)


@pytest.fixture(scope="session")
def large(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Large]:
    folder = tmp_path_factory.mktemp("large")
    try:
        loaded = write_layout(folder / "layout")
        archive = folder / "saved.tar"
        save = (sys.executable, "-m", "aiodockersave", "save", "--quiet", "--no-fsync")
        run(*save, f"oci:{folder / 'layout'}={NAME}", "-o", archive)
        size, sha256 = archive.stat().st_size, sha256_of(archive)
        archive.unlink()
        assert size > 300_000_000
        yield Large(folder / "layout", size, sha256, loaded)
    finally:
        shutil.rmtree(folder)


def sha256_of(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def check(path: Path, large: Large) -> None:
    """Check a download, and remove it."""
    assert (path.stat().st_size, sha256_of(path)) == (large.size, large.sha256)
    path.unlink()


# ── what is cut off goes on ──


def repeat_until_complete(argv: list[str], interrupted: set[int], *, at_most: int) -> int:
    """Run a client until it says that all is there; return how often it was interrupted."""
    for number in range(at_most):
        result = subprocess.run(argv, timeout=TIME_LIMIT, check=False, capture_output=True)
        if result.returncode == 0:
            return number
        assert result.returncode in interrupted, result.stderr.decode()
    raise AssertionError(f"not complete after {at_most} attempts")


def check_upstream(facts: Facts, large: Large) -> None:
    """Check that a client that has left costs no more than what was on its way: some buffers."""
    assert facts.upstream <= large.size + facts.cuts * 8 * MIB


@pytest.mark.interop("curl")
def test_curl_that_is_cut_off_thirty_times(large: Large, tmp_path: Path) -> None:
    target = tmp_path / "app.tar"
    # On average the 30 parts are 80 % of the archive, some of them a few bytes of the head.
    options = ["--cuts", "30", "--longest", str(large.size * 2 * 8 // 300), "--seed", "5", "--resets"]
    with running_server(large.reference, NAME, *options) as server:
        argv = ["curl", "--silent", "--show-error", "--fail", "-C", "-", "-o", str(target), server.url]
        # It got fewer bytes than were promised; nothing at all; or the connection broke.
        assert repeat_until_complete(argv, {18, 52, 56}, at_most=40) == 30
        facts = server.facts()
    assert facts.cuts == 30
    assert sum(each["range"] is not None for each in facts.requests) >= 25
    check_upstream(facts, large)
    check(target, large)


@pytest.mark.interop("wget")
def test_wget_that_is_cut_off(large: Large, tmp_path: Path) -> None:
    target = tmp_path / "app.tar"
    options = ["--cuts", "6", "--longest", str(large.size // 4), "--seed", "2", "--resets"]
    with running_server(large.reference, NAME, *options) as server:
        argv = ["wget", "--no-config", "--quiet", "--tries=1", "-c", "-O", str(target), server.url]
        assert repeat_until_complete(argv, {4}, at_most=10) == 6  # 4: a failure of the network
        facts = server.facts()
    check_upstream(facts, large)
    check(target, large)


@pytest.mark.interop("aria2c")
def test_aria2c_with_eight_connections_that_are_cut_off(large: Large, tmp_path: Path) -> None:
    target = tmp_path / "app.tar"
    options = ["--cuts", "8", "--longest", str(large.size // 10), "--seed", "3", "--resets"]
    with running_server(large.reference, NAME, *options) as server:
        run(
            *("aria2c", "--no-conf", "--quiet", "--file-allocation=none", "--max-tries=0"),
            *("--max-connection-per-server=8", "--split=8", "--min-split-size=1M"),
            *("--dir", tmp_path, "--out", target.name, server.url),
            time_limit=TIME_LIMIT,
        )
        facts = server.facts()
    assert facts.cuts >= 8  # eight, and those that were open by then
    assert len({each["range"] for each in facts.requests}) >= 8
    check(target, large)


@pytest.mark.interop("chromium")
async def test_a_browser_resumes_by_itself(large: Large, tmp_path: Path) -> None:
    """Chromium goes on where a connection ended, with the ETag in ``If-Range``, as nobody need tell it."""
    options = ["--cuts", "3", "--longest", str(large.size // 3), "--seed", "4"]
    with running_server(large.reference, NAME, *options) as server:
        async with running_chromium() as chromium:
            target = await chromium.download(server.url, tmp_path / "downloads")
        facts = server.facts()
    assert target.name == FILENAME
    assert facts.cuts == 3
    resumed = [each for each in facts.requests if each["range"]]
    assert [each["status"] for each in resumed] == [206] * 3
    assert len({each["if_range"] for each in resumed} - {None}) == 1
    check(target, large)


# ── into a daemon ──

# What goes through the pipe is hashed on the way; all of it is one group of processes, which ends together.
PIPE = """
set -e -o pipefail
mkfifo copy
sha256sum < copy > sum &
{} | tee copy | docker --host unix://{} load
wait
"""


def by_curl(_: Large, url: str) -> list[str]:
    return ["curl", "--silent", "--fail", url]


def by_save(large: Large, _: str) -> list[str]:
    return [sys.executable, "-m", "aiodockersave", "save", "--quiet", f"{large.reference}={NAME}", "-o", "-"]


@pytest.mark.interop("curl", "docker", "bash")
@pytest.mark.parametrize("producer", [by_curl, by_save])
def test_docker_load_from_a_pipe(
    large: Large, dockerd: Dockerd, producer: Callable[[Large, str], list[str]], tmp_path: Path
) -> None:
    with running_server(large.reference, NAME) as server:
        script = PIPE.format(shlex.join(producer(large, server.url)), dockerd.socket)
        environment = {"PYTHONPATH": str(EXAMPLES.parent)}
        said = run("env", f"--chdir={tmp_path}", "bash", "-c", script, env=environment, time_limit=TIME_LIMIT)
    assert NAME in said.decode()
    assert (tmp_path / "sum").read_text().split()[0] == large.sha256
    assert dockerd.loaded(NAME) == large.loaded


# ── from two servers ──


@pytest.mark.interop("curl", "docker-registry", "skopeo")
def test_halves_from_two_servers(large: Large, docker_registry: Registry, tmp_path: Path) -> None:
    """One has the image from a layout, the other from a registry: their ranges fit together."""
    pushed = push_layout(large.layout, "noise:1.0", docker_registry)
    noise, target = random.Random(8), tmp_path / "app.tar"
    borders = [0, *sorted(noise.sample(range(1, large.size), 15)), large.size]
    with (
        running_server(large.reference, NAME) as one,
        running_server(pushed, NAME) as other,
        target.open("wb") as file,
    ):
        etags = {etag_of(server.url) for server in (one, other)}
        for number, (start, stop) in enumerate(itertools.pairwise(borders)):
            server = (one, other)[number % 2]
            argv = ["curl", "--silent", "--fail", "--range", f"{start}-{stop - 1}", server.url]
            subprocess.run(argv, stdout=file, check=True, timeout=TIME_LIMIT)
        asked = [server.facts() for server in (one, other)]
    assert len(etags) == 1
    assert [[each["status"] for each in facts.requests[1:]] for facts in asked] == [[206] * 8] * 2
    layers = sum(size for size, _ in LAYERS)
    assert sum(facts.upstream for facts in asked) <= layers + MIB  # each byte once, and some of tar and gzip
    check(target, large)


def etag_of(url: str) -> str:
    head = run("curl", "--silent", "--fail", "--head", url).decode()
    return next(line for line in head.splitlines() if line.lower().startswith("etag:"))
