"""The command's own peak memory, by its VmHWM, and what it writes besides its target.

First what a huge layer adds: nothing is received, nothing is stored. Then images from a registry into a file, while the
target's folder, the folder for temporary files and the process's descriptors are watched.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import stat
import tempfile
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from .figures import Figure, Settings, print_table
from .images import MB, stored_images
from .piece_registry import PieceImage, running_pieces, warm_up
from .processes import Observed, supports

LAYER_SIZE = 5 << 30  # bytes; a file of holes, so that it takes no room
BARS = {"keep": 100.0, "decompress": 140.0}
"""MiB of peak memory."""
POLL = 0.005  # seconds between two looks at files
_Id = tuple[int, int]  # device and inode


# ── without a registry ──


def make_layout(folder: Path, size: int) -> None:
    """Write an OCI layout of one image with one plain layer of ``size`` zeros."""
    blobs = folder / "blobs" / "sha256"
    blobs.mkdir(parents=True)
    (folder / "oci-layout").write_text('{"imageLayoutVersion":"1.0.0"}')
    digest = hashlib.sha256()
    piece = bytes(1 << 20)
    for _ in range(size >> 20):
        digest.update(piece)
    layer = blobs / digest.hexdigest()
    layer.touch()
    os.truncate(layer, size)

    def add(document: object) -> dict[str, object]:
        raw = json.dumps(document).encode()
        encoded = hashlib.sha256(raw).hexdigest()
        (blobs / encoded).write_bytes(raw)
        return {"digest": f"sha256:{encoded}", "size": len(raw)}

    oci = "application/vnd.oci.image"
    rootfs = {"type": "layers", "diff_ids": [f"sha256:{layer.name}"]}
    config = add({"architecture": "amd64", "os": "linux", "rootfs": rootfs})
    manifest = add(
        {
            "schemaVersion": 2,
            "mediaType": f"{oci}.manifest.v1+json",
            "config": {"mediaType": f"{oci}.config.v1+json", **config},
            "layers": [{"mediaType": f"{oci}.layer.v1.tar", "digest": f"sha256:{layer.name}", "size": size}],
        }
    )
    entry = {"mediaType": f"{oci}.manifest.v1+json", **manifest}
    (folder / "index.json").write_text(json.dumps({"schemaVersion": 2, "manifests": [entry]}))


def measure_growth() -> None:
    """Print what a layer of 5 GiB takes more than one of 1 MiB, into ``/dev/null``."""
    with tempfile.TemporaryDirectory() as folder:
        for name, size in (("small", 1 << 20), ("large", LAYER_SIZE)):
            make_layout(Path(folder, name), size)
        print(f"one layer of 1 MiB and of {LAYER_SIZE >> 30} GiB, into /dev/null")
        table = []
        for mode in BARS:
            small, large = (_peak(f"oci:{folder}/{name}", mode) for name in ("small", "large"))
            table.append((mode, small, large, large - small))
        print_table(("peak MiB", "small", "large", "more"), table)


def _peak(image: str, mode: str) -> float:
    with Observed(image, Path("/dev/null"), f"--layers={mode}") as run:
        run.finish()
        return run.peak / 2**20


# ── from a registry into a file ──


@dataclass
class Watch:
    """Looks at what a process writes, until it is gone.

    Attributes:
        sizes: The largest size of each file that was seen, in bytes.
        names: What they were called.
    """

    pid: int
    folders: tuple[Path, ...]
    sizes: dict[_Id, int] = field(default_factory=dict)
    names: dict[_Id, str] = field(default_factory=dict)

    def look(self) -> None:
        """Look once: at files in the folders, and at files that are open for writing, also nameless ones."""
        for folder in self.folders:
            for path in folder.rglob("*"):
                self._note(path, str(path))
        for descriptor in _entries(Path(f"/proc/{self.pid}/fd")):
            with contextlib.suppress(OSError):
                if descriptor.lstat().st_mode & stat.S_IWUSR:  # of the link: how the file was opened
                    self._note(descriptor, str(descriptor.readlink()))

    def _note(self, path: Path, name: str) -> None:
        with contextlib.suppress(OSError):
            found = path.stat()
            if stat.S_ISREG(found.st_mode):
                key = _id_of(found)
                self.sizes[key] = max(found.st_size, self.sizes.get(key, 0))
                self.names[key] = name

    def others(self, *known: _Id) -> dict[str, int]:
        """Return the bytes of every file that is none of these, by name."""
        return {self.names[key]: size for key, size in self.sizes.items() if key not in known and size}


def _id_of(found: os.stat_result) -> _Id:
    return found.st_dev, found.st_ino


def _entries(folder: Path) -> Iterator[Path]:
    with contextlib.suppress(OSError):  # the process has ended
        yield from list(folder.iterdir())


@dataclass(frozen=True)
class Measured:
    """One run: peak in MiB, bytes in files that are not the target, the largest such file's name."""

    peak: float
    temporary: int
    where: str


def measure_save(reference: str, mode: str, options: tuple[str, ...], parent: Path | None) -> Measured:
    """Run the command once and watch it."""
    with tempfile.TemporaryDirectory(dir=parent) as folder:
        output, temporary = Path(folder, "out", "image.tar"), Path(folder, "tmp")
        output.parent.mkdir()
        temporary.mkdir()
        argument = (f"--layers={mode}", "--no-fsync", *options)
        with Observed(reference, output, *argument, env={"TMPDIR": str(temporary)}) as run:
            watch = Watch(run.process.pid, (output.parent, temporary))
            ended = threading.Event()

            def keep_looking() -> None:
                while not ended.wait(POLL):
                    watch.look()

            looking = threading.Thread(target=keep_looking)
            looking.start()
            try:
                run.finish()
            finally:
                ended.set()
                looking.join()
            others = watch.others(_id_of(output.stat()), *(_id_of(os.fstat(file)) for file in run.files))
            return Measured(
                run.peak / 2**20, sum(others.values()), max(others, key=others.__getitem__, default="")
            )


def measure_saves(settings: Settings) -> list[Figure]:
    """Measure images of many layers and of one huge one, with and without many jobs."""
    figures, table = [], []
    with running_pieces() as pieces, stored_images("huge", scale=settings.scale) as (huge,):
        for mode, bar in BARS.items():
            many = PieceImage("tar" if mode == "keep" else "gzip", 64, int(4 * MB * settings.scale))
            warm_up(pieces, many)
            cases: list[tuple[str, str, tuple[str, ...]]] = [
                ("64 layers", many.reference(pieces), ()),
                ("one layer of 1.2 GB", huge.reference, ()),
            ]
            if supports("--jobs"):
                cases += [(f"{what}, 8 jobs", reference, ("--jobs=8",)) for what, reference, _ in cases]
            for what, reference, options in cases:
                found = measure_save(reference, mode, (*settings.save_options, *options), settings.folder)
                table.append((f"{mode}, {what}", found.peak, found.temporary, found.where))
                figures.append(Figure(f"{mode}, {what}: peak memory", found.peak, bar, " MiB"))
                figures.append(Figure(f"{mode}, {what}: bytes beside the target", found.temporary, 0))
    print_table(("", "peak MiB", "other bytes", "in"), table)
    if not supports("--jobs"):
        print("--jobs is not there: not measured with 8")
    return figures


def main(settings: Settings) -> list[Figure]:
    """Measure growth, then the saves."""
    measure_growth()
    return measure_saves(settings)
