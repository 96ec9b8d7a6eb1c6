"""Other things in the place of a file: devices, pipes, files of the kernel, files that are cut while they are read."""

from __future__ import annotations

import asyncio
import errno
import os
import socket
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from aiodockersave import Platform
from aiodockersave.core.errors import (
    ConfigurationError,
    ContentTooLargeError,
    DockerSaveError,
    SizeMismatchError,
)
from aiodockersave.sources import regular_file as _files
from aiodockersave.sources.credentials import DockerCredentials
from aiodockersave.sources.oci_layout import OciLayoutSource
from aiodockersave.sources.registry.certificates import tls_context
from aiodockersave.sources.regular_file import open_regular, read_file
from tests.support.images import make_image, make_layer, write_layout

AMD64 = Platform("linux", "amd64")
IMAGE = make_image(make_layer({"data": b"data\n" * 1000}))
LIMIT = 10.0  # seconds for what ends at once
linux = pytest.mark.skipif(sys.platform != "linux", reason="they are Linux's")


def link_to_pipe(path: Path) -> None:
    os.mkfifo(f"{path}.pipe")
    path.symlink_to(f"{path}.pipe")


def bind(path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as listening:
        here = os.open(path.parent, os.O_RDONLY)
        try:
            listening.bind(f"/proc/self/fd/{here}/{path.name}" if sys.platform == "linux" else str(path))
        finally:
            os.close(here)


NO_FILES: dict[str, Callable[[Path], object]] = {
    "a device without an end": lambda path: path.symlink_to("/dev/zero"),
    "a device with nothing in it": lambda path: path.symlink_to("/dev/null"),
    "a terminal": lambda path: path.symlink_to("/dev/tty"),
    "a pipe that nobody writes to": os.mkfifo,
    "a link to such a pipe": link_to_pipe,
    "a directory": lambda path: path.mkdir(),
    "a socket": bind,
}


def places(folder: Path) -> dict[str, Path]:
    blobs = folder / "blobs" / "sha256"
    return {
        "oci-layout": folder / "oci-layout",
        "index.json": folder / "index.json",
        "manifest": blobs / IMAGE.manifest.digest.encoded,
        "config": blobs / IMAGE.image_id.encoded,
        "layer": blobs / IMAGE.layers[0].descriptor.digest.encoded,
    }


async def read_all(folder: Path) -> None:
    source = OciLayoutSource(folder)
    async with asyncio.timeout(LIMIT):
        image = await source.resolve("latest", AMD64)
        for layer in image.manifest.layers:
            async with source.open_blob(layer) as chunks:
                async for _ in chunks:
                    pass


@pytest.mark.parametrize("kind", NO_FILES)
@pytest.mark.parametrize("place", places(Path()))
async def test_a_layout_refuses_irregular_files(place: str, kind: str, tmp_path: Path) -> None:
    folder = write_layout(tmp_path / "layout", {"latest": IMAGE})
    path = places(folder)[place]
    path.unlink()
    NO_FILES[kind](path)
    if kind == "a terminal" and not path.exists():
        pytest.skip("there is none")
    with pytest.raises(OSError, match="not a regular file") as caught:
        await read_all(folder)
    assert caught.value.filename == str(path)


@pytest.mark.parametrize("kind", NO_FILES)
async def test_credentials_and_certificates_refuse_irregular_files(kind: str, tmp_path: Path) -> None:
    path = tmp_path / "file"
    NO_FILES[kind](path)
    async with asyncio.timeout(LIMIT):
        with pytest.raises(ConfigurationError, match="not a regular file"):
            await DockerCredentials(authfile=path).get("registry.example", "app")
        with pytest.raises(ConfigurationError, match="not a regular file"):
            await tls_context("registry.example", ca_file=path)


def test_irregular_files_are_not_opened(tmp_path: Path) -> None:
    """The open alone acts on some devices: it rewinds a tape, or arms a watchdog."""
    os.mkfifo(tmp_path / "pipe")
    opened: list[object] = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "open", lambda *args: opened.append(args))
        with pytest.raises(OSError, match="not a regular file"):
            open_regular(str(tmp_path / "pipe"))
    assert opened == []


def test_a_file_replaced_by_a_pipe_is_refused_at_once(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "file").touch()
    regular = (tmp_path / "file").stat()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "stat", lambda _: regular)
        with pytest.raises(OSError, match="not a regular file"):
            open_regular(str(tmp_path / "pipe"))


# ── files that say of themselves what is not so ──


@linux
def test_a_kernel_file_that_states_no_size() -> None:
    assert Path("/proc/self/status").stat().st_size == 0
    assert b"Name:" in read_file("/proc/self/status", 1 << 20)
    with pytest.raises(ContentTooLargeError):
        read_file("/proc/self/status", 10)


@linux
def test_a_kernel_file_that_states_too_large_a_size() -> None:
    path = "/sys/kernel/mm/transparent_hugepage/enabled"
    if not Path(path).exists():
        pytest.skip("there is none")
    with pytest.raises(OSError, match=r"ends after \d+ bytes, though it says that it has 4096") as caught:
        read_file(path, 1 << 20)
    assert caught.value.filename == path


def test_a_file_that_would_block(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Some files of the kernel, such as its log, would block; they are not waited for."""
    (tmp_path / "file").write_bytes(b"data")

    def give_nothing(*_: object) -> bytes:
        raise BlockingIOError(errno.EAGAIN, "nothing is there")

    monkeypatch.setattr(os, "read", give_nothing)
    with pytest.raises(BlockingIOError) as caught:
        read_file(str(tmp_path / "file"), 100)
    assert caught.value.filename == str(tmp_path / "file")


@linux
@pytest.mark.parametrize("place", ["index.json", "manifest", "layer"])
async def test_a_part_of_a_layout_that_leads_to_the_kernels_files(place: str, tmp_path: Path) -> None:
    """The content of these files is not repeated in the message."""
    folder = write_layout(tmp_path / "layout", {"latest": IMAGE})
    path = places(folder)[place]
    path.unlink()
    path.symlink_to("/proc/self/environ")
    with pytest.raises(DockerSaveError) as caught:
        await read_all(folder)
    assert "PATH" not in str(caught.value)


@pytest.mark.parametrize("place", ["oci-layout", "index.json", "manifest", "config"])
async def test_a_document_that_is_cut_while_it_is_read(
    place: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = write_layout(tmp_path / "layout", {"latest": IMAGE})
    path = places(folder)[place]

    def cut_then_open(name: str) -> tuple[int, int]:
        found = open_regular(name)
        if name == str(path):
            os.truncate(path, 5)
        return found

    monkeypatch.setattr(_files, "open_regular", cut_then_open)
    with pytest.raises(OSError, match="ends after 5 bytes") as caught:
        await read_all(folder)
    assert caught.value.filename == str(path)


async def test_a_blob_with_holes_is_as_long_as_it_is(tmp_path: Path) -> None:
    folder = write_layout(tmp_path / "layout", {"latest": IMAGE})
    path = places(folder)["layer"]
    size = path.stat().st_size
    with path.open("wb") as file:
        file.truncate(size)
    await read_all(folder)  # of zeros: whoever stores it sees that the digest is another
    os.truncate(path, size - 1)
    with pytest.raises(SizeMismatchError):
        await read_all(folder)
