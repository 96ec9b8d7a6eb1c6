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
import json
import os
import re
import shutil
import subprocess
import sys
import tarfile
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
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

LIMIT = 120.0  # seconds for one program
Found = dict[str, list[str]]
"""Diff IDs by name; the ID, or nothing, for an image without one."""


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


class RefusedError(Exception):
    """A program failed."""


@dataclass(frozen=True)
class Programs:
    """The programs of one place: of the machine, or of a folder with others."""

    folder: Path | None

    def path(self, name: str) -> str | None:
        return shutil.which(name) if self.folder is None else shutil.which(str(self.folder / name))

    def run(self, *argv: object, data: bytes | None = None) -> str:
        path = self.path(str(argv[0]))
        assert path is not None
        done = subprocess.run(
            [path, *map(str, argv[1:])],
            input=data,
            capture_output=True,
            timeout=LIMIT,
            check=False,
            cwd="/tmp",  # both sides of a chroot have it
            env=os.environ | {"PODMAN_IGNORE_CGROUPSV1_WARNING": "1"},
        )
        if done.returncode:
            raise RefusedError((done.stdout + done.stderr).decode(errors="replace")[-2000:])
        return done.stdout.decode()

    def version(self, name: str) -> str:
        found = re.search(r"\d+\.\d+[.\d]*", self.run(name, "version" if name == "crane" else "--version"))
        return found[0] if found else "of no version"


Read = Callable[[Path, list[Image]], Found]


def skopeo(programs: Programs, folder: Path) -> Read:
    def read(path: Path, images: list[Image]) -> Found:
        found: Found = {}
        for number, image in enumerate(images):
            for name in image.repo_tags or [f"@{number}"]:
                place = folder / f"{path.stem}-{len(found)}"
                programs.run(
                    "skopeo",
                    "--insecure-policy",
                    "copy",
                    "-q",
                    f"docker-archive:{path}:{name}",
                    f"dir:{place}",
                )
                config = json.loads((place / "manifest.json").read_bytes())["config"]["digest"]
                document = json.loads((place / config.partition(":")[2]).read_bytes())
                found["" if name.startswith("@") else name] = document["rootfs"]["diff_ids"]
        return found

    return read


def podman(programs: Programs, folder: Path) -> Read:
    def run(*argv: object) -> str:
        places = ("--root", folder / "root", "--runroot", folder / "run", "--tmpdir", folder / "tmp")
        return programs.run("podman", *places, "--storage-driver", "vfs", "--events-backend", "none", *argv)

    def read(path: Path, _: list[Image]) -> Found:
        run("image", "rm", "--all", "--force")
        run("load", "-q", "-i", path)
        found: Found = {}
        for known in json.loads(run("images", "--format", "json", "--no-trunc")):
            layers = json.loads(run("image", "inspect", known["Id"]))[0]["RootFS"]["Layers"]
            found |= dict.fromkeys(known.get("Names") or [""], layers)
        return found

    return read


def docker(programs: Programs, socket: Path) -> Read:
    def run(*argv: object, data: bytes | None = None) -> str:
        return programs.run("docker", "-H", f"unix://{socket}", *argv, data=data)

    def read(path: Path, _: list[Image]) -> Found:
        for known in set(run("image", "ls", "-aq", "--no-trunc").split()):
            run("image", "rm", "-f", known)
        said = run("load", data=path.read_bytes())
        found: Found = {}
        for name in re.findall(r"Loaded image(?: ID)?: (\S+)", said):
            layers = json.loads(run("image", "inspect", name))[0]["RootFS"].get("Layers") or []
            found["" if name.startswith("sha256:") else name] = layers
        return found

    return read


def containerd(programs: Programs, socket: Path) -> Read:
    def run(*argv: object) -> str:
        return programs.run("ctr", "--address", socket, "-n", "table", *argv)

    def read(path: Path, _: list[Image]) -> Found:
        for known in run("images", "ls", "-q").split():
            run("images", "rm", "--sync", known)
        run("images", "import", "--snapshotter", "native", *local, path)
        found: Found = {}
        for line in run("images", "ls").splitlines()[1:]:
            fields = line.split()
            config = json.loads(run("content", "get", fields[2]))["config"]["digest"]
            found[fields[0]] = json.loads(run("content", "get", config))["rootfs"]["diff_ids"]
        return found

    local = ["--local"] if "--local" in run("images", "import", "--help") else []
    return read


def crane(programs: Programs, _: Path) -> Read:
    def read(path: Path, images: list[Image]) -> Found:
        programs.run("crane", "validate", "--tarball", path)
        # It names nothing, but reads and compares every layer.
        return {
            name: [str(each.diff_id) for each in image.layers]
            for image in images
            for name in image.repo_tags or [""]
        }

    return read


def tar_program(programs: Programs, name: str) -> Read:
    def read(path: Path, images: list[Image]) -> Found:
        with tempfile.TemporaryDirectory(dir="/tmp") as folder:
            programs.run(name, "-xf", path, "-C", folder)
            assert (Path(folder) / "manifest.json").exists()
        return {
            tag: [str(each.diff_id) for each in image.layers]
            for image in images
            for tag in image.repo_tags or [""]
        }

    return read


def python_tarfile(path: Path, images: list[Image]) -> Found:
    with tarfile.open(path) as tar, tempfile.TemporaryDirectory() as folder:
        tar.extractall(folder, filter="data")
    return {
        tag: [str(each.diff_id) for each in image.layers]
        for image in images
        for tag in image.repo_tags or [""]
    }


# ── daemons ──


@contextlib.contextmanager
def running(argv: Sequence[object], answers: Callable[[], object], log: Path) -> Iterator[None]:
    """Run a daemon until the block is left."""
    with (
        log.open("wb") as out,
        subprocess.Popen([*map(str, argv)], stdout=out, stderr=out, cwd="/tmp") as process,
    ):
        try:
            deadline = time.monotonic() + LIMIT
            while True:
                with contextlib.suppress(RefusedError):
                    answers()
                    break
                if process.poll() is not None or time.monotonic() > deadline:
                    raise RuntimeError(log.read_text()[-2000:])
                time.sleep(0.1)
            yield
        finally:
            process.terminate()
            process.wait(LIMIT)


@contextlib.contextmanager
def dockerd(programs: Programs, folder: Path, *, with_containerd_store: bool) -> Iterator[Path]:
    """Run dockerd with the store of its own, or with containerd's; give its socket."""
    folder.mkdir()
    settings = {"features": {"containerd-snapshotter": True}} if with_containerd_store else {}
    (folder / "daemon.json").write_text(json.dumps(settings))
    socket, path = folder / "docker.sock", programs.path("dockerd")
    argv = [
        path,
        "--config-file",
        folder / "daemon.json",
        "--data-root",
        folder / "data",
        "--exec-root",
        folder / "exec",
    ]
    argv += [
        "-H",
        f"unix://{socket}",
        "-p",
        folder / "pid",
        "--bridge=none",
        "--iptables=false",
        "--ip6tables=false",
    ]
    argv += ["--storage-driver", "native" if with_containerd_store else "vfs"]
    with running(argv, lambda: programs.run("docker", "-H", f"unix://{socket}", "version"), folder / "log"):
        yield socket


@contextlib.contextmanager
def running_containerd(programs: Programs, folder: Path) -> Iterator[Path]:
    """Run containerd; give its socket."""
    folder.mkdir()
    socket = folder / "containerd.sock"
    left_out = ["io.containerd.grpc.v1.cri", "io.containerd.internal.v1.opt"]
    (folder / "config.toml").write_text(
        f"version = 2\nroot = {json.dumps(str(folder / 'root'))}\nstate = {json.dumps(str(folder / 'state'))}\n"
        f"disabled_plugins = {json.dumps(left_out)}\n[grpc]\naddress = {json.dumps(str(socket))}\n"
    )
    argv: list[object] = [programs.path("containerd"), "--config", folder / "config.toml"]
    with running(argv, lambda: programs.run("ctr", "--address", socket, "version"), folder / "log"):
        yield socket


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
    except RefusedError:
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


def readers(programs: Programs, folder: Path, stack: contextlib.ExitStack) -> Iterator[tuple[str, Read]]:
    for name, make in (("skopeo", skopeo), ("podman", podman), ("crane", crane)):
        if programs.path(name):
            (folder / name).mkdir()
            yield f"{name} {programs.version(name)}", make(programs, folder / name)
    if programs.path("dockerd"):
        version = programs.version("dockerd")
        socket = stack.enter_context(dockerd(programs, folder / "g", with_containerd_store=False))
        yield f"Docker {version}", docker(programs, socket)
        if int(version.partition(".")[0]) >= 24:
            socket = stack.enter_context(dockerd(programs, folder / "c", with_containerd_store=True))
            yield f"Docker {version}, containerd store", docker(programs, socket)
    if programs.path("ctr"):
        socket = stack.enter_context(running_containerd(programs, folder / "ctrd"))
        yield f"containerd {programs.version('containerd')}", containerd(programs, socket)
    for name in ("tar", "bsdtar"):
        if programs.path(name):
            yield f"{name} {programs.version(name)}", tar_program(programs, name)
    if programs.folder is None:
        yield f"Python {sys.version.split()[0]}, tarfile", python_tarfile


def write(*columns: str) -> None:
    sys.stdout.write(f"| {' | '.join(columns)} |\n")
    sys.stdout.flush()


def main() -> None:
    """Write the table."""
    write("reader", *FORMS)
    write("---", *["---"] * len(FORMS))
    for place in [None, *map(Path, sys.argv[1:])]:
        with (
            tempfile.TemporaryDirectory(dir="/tmp", prefix="r", ignore_cleanup_errors=True) as name,
            contextlib.ExitStack() as stack,
        ):
            for reader, read in readers(Programs(place), Path(name), stack):
                write(reader, *cells(read, Path(name)))


if __name__ == "__main__":
    main()
