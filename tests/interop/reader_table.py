"""Makes the table of ``docs/formats.md``: real readers, and what they make of our archives; run by hand as root.

::

    python -m tests.interop.reader_table [FOLDER]

FOLDER has other versions of the programs, below /tmp, each run by a script of its name: they are tried beside the machine's.
A set of images counts as read where each image has its names, and its diff IDs are those of the config: so the reader has
read all of its layers.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import re
import shutil
import sys
import tarfile
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from aiodockersave import Descriptor, Digest, Reference
from aiodockersave.core.model import OCI_LAYER_ZSTD
from tests.support.images import (
    Image,
    Layer,
    archive_of,
    compress,
    make_image,
    make_layer,
    planned_archive_of,
)

from .daemons import Containerd, Dockerd, running_containerd, running_dockerd
from .programs import Podman, ProgramError, run, skopeo_loaded

Found = dict[str, list[str]]
"""Diff IDs by name; an empty name for an image without one."""
Read = Callable[[Path, list[Image]], Found]


# ── images ──


def of_pzstd(text: bytes) -> Layer:
    """Return a layer as pzstd writes it: before each frame a skippable one that says the frame's size."""
    plain = make_layer({"text": text}, None).blob
    frame = compress(plain, "zstd")
    blob = b"\x50\x2a\x4d\x18" + (4).to_bytes(4, "little") + len(frame).to_bytes(4, "little") + frame
    layer = make_layer(plain, "zstd")
    return Layer(blob, plain, Descriptor(OCI_LAYER_ZSTD, Digest.of(blob), len(blob)), layer.diff_id)


BASE, APP = make_layer({"etc/name": b"base\n"}), make_layer({"app": b"app\n"})
SETS: dict[str, list[Image]] = {
    "one image": [make_image(BASE, APP, repo_tags=["one:1"])],
    "two images": [make_image(BASE, APP, repo_tags=["two:1"]), make_image(BASE, repo_tags=["example.com/two:2"])],
    "two names": [make_image(BASE, repo_tags=["user/a:1", "example.com/b:2"])],
    "no name": [make_image(BASE, APP)],
    "repeated layer": [make_image(BASE, APP, BASE, repo_tags=["example.com/repeated:1"])],
    "zstd": [make_image(BASE, make_layer({"app": b"zstd\n"}, "zstd"), repo_tags=["example.com/zstd:1"])],
    "pzstd": [make_image(BASE, of_pzstd(b"pzstd\n"), repo_tags=["example.com/pzstd:1"])],
}  # fmt: skip
FORMS: dict[str, dict[str, Any]] = {
    "`docker`": {},
    "`docker`, decompressed": {"layers": "decompress"},
    "`oci`": {"format": "oci"},
}


def archive(images: list[Image], options: dict[str, Any]) -> bytes:
    if options.get("format") == "oci":
        return planned_archive_of(images, **options)
    return asyncio.run(archive_of(images, **options))


# ── readers ──


def diff_ids_of(images: list[Image]) -> Found:
    return {
        name: [str(layer.diff_id) for layer in image.layers]
        for image in images
        for name in image.repo_tags or [""]
    }


def skopeo(path: Path, images: list[Image]) -> Found:
    return {
        name: skopeo_loaded(f"docker-archive:{path}:{name or f'@{number}'}").diff_ids
        for number, image in enumerate(images)
        for name in image.repo_tags or [""]
    }


def loaded_by(daemon: Podman | Dockerd) -> Read:
    def read(path: Path, _: list[Image]) -> Found:
        daemon.remove_all()
        names = daemon.load(path)
        return {"" if name.startswith("sha256:") else name: daemon.loaded(name).diff_ids for name in names}

    return read


def imported_by(daemon: Containerd) -> Read:
    # From 2.0 on ctr unpacks by the snapshotter that it is told of only with this.
    local = ["--local"] if b"--local" in daemon("images", "import", "--help") else []

    def read(path: Path, _: list[Image]) -> Found:
        daemon.remove_all()
        daemon("images", "import", *local, "--snapshotter", "native", path)  # which unpacks every layer
        names = daemon("images", "ls", "--quiet").decode().split()
        return {name: daemon.loaded(name).diff_ids for name in names}

    return read


def crane(path: Path, images: list[Image]) -> Found:
    run("crane", "validate", "--tarball", path)  # it names nothing, but compares every layer
    return diff_ids_of(images)


def unpacked_by(program: str) -> Read:
    def read(path: Path, images: list[Image]) -> Found:
        with tempfile.TemporaryDirectory() as folder:
            run(program, "-xf", path, "-C", folder)
        return diff_ids_of(images)

    return read


def python_tarfile(path: Path, images: list[Image]) -> Found:
    with tarfile.open(path) as tar, tempfile.TemporaryDirectory() as folder:
        tar.extractall(folder, filter="data")
    return diff_ids_of(images)


def version_of(program: str) -> str:
    found = re.search(r"\d+\.\d+[.\d]*", run(program, "--version").decode())
    return f"{program} {found[0]}" if found else program


def readers(place: str, folder: Path, stack: contextlib.ExitStack) -> Iterator[tuple[str, Read]]:
    """Yield the readers among the programs in a place, a search path."""

    def has(program: str) -> bool:
        return shutil.which(program, path=place) is not None

    if has("skopeo"):
        yield version_of("skopeo"), skopeo
    if has("podman"):
        yield version_of("podman"), loaded_by(Podman(folder / "podman"))
    if has("crane"):
        yield "`crane validate`", crane
    if has("containerd") and has("dockerd"):
        for name in ("c", "g", "s"):
            (folder / name).mkdir()
        daemon = stack.enter_context(running_containerd(folder / "c"))
        yield version_of("containerd"), imported_by(daemon)
        dockerd = version_of("dockerd").replace("dockerd", "Docker")
        yield dockerd, loaded_by(stack.enter_context(running_dockerd(folder / "g", daemon)))
        if int(dockerd.split()[1].partition(".")[0]) >= 24:
            with_store = running_dockerd(folder / "s", daemon, store="containerd")
            yield f"{dockerd}, containerd store", loaded_by(stack.enter_context(with_store))
    for name in ("tar", "bsdtar"):
        if has(name):
            yield version_of(name), unpacked_by(name)


# ── the table ──


def verdict(read: Read, path: Path, images: list[Image]) -> str:
    """Return nothing where a reader has read a set as it is, and else in a word what it did."""
    wanted = {
        name: [str(each.diff_id) for each in image.layers]
        for image in images
        for name in [str(Reference.parse(tag)) for tag in image.repo_tags] or [""]
    }
    try:
        found = read(path, images)
    except ProgramError:
        return "refused"
    whole = {str(Reference.parse(name)) if name else "": layers for name, layers in found.items()}
    if whole == wanted:
        return ""
    if not whole:
        return "nothing is imported"
    if sorted(whole.values()) == sorted(wanted.values()):
        return (
            "named " + ", ".join(sorted(set(whole) - set(wanted))) if set(whole) - {""} else "without a name"
        )
    return "other layers"


def cells(read: Read, folder: Path) -> list[str]:
    row = []
    for number, options in enumerate(FORMS.values()):
        faults: dict[str, list[str]] = {}
        for name, images in SETS.items():
            path = folder / f"{number}-{name.replace(' ', '-')}.tar"
            path.write_bytes(archive(images, options))
            if found := verdict(read, path, images):
                faults.setdefault(found, []).append(name)
        row.append("; ".join(f"{', '.join(names)}: {what}" for what, names in faults.items()) or "all")
    return row


def write(*columns: str) -> None:
    sys.stdout.write(f"| {' | '.join(columns)} |\n")
    sys.stdout.flush()


def write_rows(readers: Iterator[tuple[str, Read]], folder: Path) -> None:
    for reader, read in readers:
        write(reader, *cells(read, folder))


def main() -> None:
    """Write the table."""
    os.environ["PODMAN_IGNORE_CGROUPSV1_WARNING"] = "1"
    machine = os.environ["PATH"]
    write("reader", *FORMS)
    write("---", *["---"] * len(FORMS))
    os.chdir("/tmp")  # both sides of a chroot have it
    for place in [machine, *sys.argv[1:]]:
        os.environ["PATH"] = place if place == machine else f"{place}:{machine}"
        with (
            tempfile.TemporaryDirectory(dir="/tmp", prefix="r", ignore_cleanup_errors=True) as name,
            contextlib.ExitStack() as stack,
        ):
            write_rows(readers(place, Path(name), stack), Path(name))
            if place == machine:
                write_rows(iter([(f"Python {sys.version.split()[0]}, tarfile", python_tarfile)]), Path(name))


if __name__ == "__main__":
    main()
