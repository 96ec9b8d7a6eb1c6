"""The two images that are measured, in a docker-registry on loopback: made once, then kept.

``large``  304 MB compressed, 1,008 MB plain, five layers: the shape of a language's image (base, tools, compilers …)
``huge``   884 MB compressed, 1,258 MB plain, one layer: weights and archives, which hardly compress

They are kept in ``$AIODOCKERSAVE_BENCHMARKS``, or else in ``aiodockersave-benchmarks`` in the temporary directory.
"""

from __future__ import annotations

import contextlib
import json
import os
import tempfile
import time
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path

from aiodockersave import Digest
from aiodockersave.core.model import OCI_CONFIG, OCI_LAYER_GZIP, OCI_MANIFEST
from tests.interop.programs import Registry, push_layout, running_registry
from tests.support.images import make_config, to_json

from .synthetic import MadeLayer, Mix, make_layer

VERSION = 1  # of what is made: another number makes it anew
MB = 10**6


@dataclass(frozen=True)
class Shape:
    """The shape of an image: plain sizes of its layers in bytes, and their contents."""

    layers: tuple[int, ...]
    mix: Mix


SHAPES = {
    "large": Shape(
        (117 * MB, 48 * MB, 177 * MB, 588 * MB, 78 * MB),
        {"text": 0.22, "code": 0.33, "program": 0.437, "packed": 0.013},
    ),
    "huge": Shape(
        (1258 * MB,), {"text": 0.09, "code": 0.10, "program": 0.21, "weights": 0.25, "packed": 0.35}
    ),
}


@dataclass(frozen=True)
class Stored:
    """An image in the registry.

    Attributes:
        reference: As commands take it, ``127.0.0.1:PORT/huge:100``.
        size: Bytes of its layers as they are stored.
        plain_size: Bytes of them decompressed.
        layers: How many there are.
    """

    reference: str
    size: int
    plain_size: int
    layers: int

    def __str__(self) -> str:
        name = self.reference.rpartition("/")[2].partition(":")[0]
        layers = "one layer" if self.layers == 1 else f"{self.layers} layers"
        return f"{name}: {self.size / MB:,.0f} MB compressed, {self.plain_size / MB:,.0f} MB plain, {layers}"


def cache_folder() -> Path:
    """Return where images are kept; it is made if it is not there."""
    given = os.environ.get("AIODOCKERSAVE_BENCHMARKS")
    folder = Path(given) if given else Path(tempfile.gettempdir(), "aiodockersave-benchmarks")
    folder.mkdir(parents=True, exist_ok=True)
    return folder


@contextlib.contextmanager
def stored_images(*names: str, scale: float = 1.0) -> Iterator[list[Stored]]:
    """Run a registry that has these images, and that holds what it has in memory.

    Args:
        names: Of :data:`SHAPES`.
        scale: Make their layers this many times as large: for trying a benchmark out.
    """
    cache = cache_folder()
    with (
        tempfile.TemporaryDirectory(prefix="registry-") as folder,
        running_registry(Path(folder), data=cache / "registry") as registry,
    ):
        yield [_stored(registry, name, scale) for name in names]


def _stored(registry: Registry, name: str, scale: float) -> Stored:
    tag = f"{name}:v{VERSION}-{scale * 100:g}"
    note = cache_folder() / f"{tag.replace(':', '-')}.json"
    if not note.exists():
        print(f"making {tag}, once …", flush=True)
        start = time.perf_counter()
        layers = _push_made(registry, tag, SHAPES[name], scale)
        note.write_text(json.dumps([asdict(layer) for layer in layers]))
        print(f"took {time.perf_counter() - start:.0f} s; it is kept in {cache_folder()}", flush=True)
    layers = [MadeLayer(**fields) for fields in json.loads(note.read_text())]
    for layer in layers:
        _read_into_memory(registry, layer)
    return Stored(
        f"{registry.address}/{tag}",
        sum(layer.size for layer in layers),
        sum(layer.plain_size for layer in layers),
        len(layers),
    )


def _read_into_memory(registry: Registry, layer: MadeLayer) -> None:
    """Read a blob once, so that nobody who is measured waits for the disk."""
    encoded = layer.digest.partition(":")[2]
    blob = registry.data / f"docker/registry/v2/blobs/sha256/{encoded[:2]}/{encoded}/data"
    with blob.open("rb", buffering=0) as file:
        while file.read(1 << 20):
            pass


# ── making ──


def _push_made(registry: Registry, tag: str, shape: Shape, scale: float) -> list[MadeLayer]:
    with tempfile.TemporaryDirectory(prefix="layout-", dir=cache_folder()) as folder:
        layers = _make_layout(Path(folder), shape, scale)
        push_layout(Path(folder), tag, registry)
    return layers


def _make_layout(folder: Path, shape: Shape, scale: float) -> list[MadeLayer]:
    """Write an OCI layout of one image."""
    blobs = folder / "blobs" / "sha256"
    blobs.mkdir(parents=True)
    names = [f"layer {number}" for number in range(len(shape.layers))]
    with ProcessPoolExecutor() as pool:
        jobs = [
            pool.submit(make_layer, folder / name, int(size * scale), shape.mix, name)
            for name, size in zip(names, shape.layers, strict=True)
        ]
        layers = [job.result() for job in jobs]
    for name, layer in zip(names, layers, strict=True):
        (folder / name).rename(blobs / layer.digest.partition(":")[2])

    def add(raw: bytes, media_type: str) -> dict[str, object]:
        digest = Digest.of(raw)
        (blobs / digest.encoded).write_bytes(raw)
        return {"mediaType": media_type, "digest": str(digest), "size": len(raw)}

    config = make_config([Digest.parse(layer.diff_id) for layer in layers])
    manifest = {
        "schemaVersion": 2,
        "mediaType": OCI_MANIFEST,
        "config": add(config, OCI_CONFIG),
        "layers": [
            {"mediaType": OCI_LAYER_GZIP, "digest": layer.digest, "size": layer.size} for layer in layers
        ],
    }
    index = {"schemaVersion": 2, "manifests": [add(to_json(manifest), OCI_MANIFEST)]}
    (folder / "index.json").write_bytes(to_json(index))
    (folder / "oci-layout").write_text('{"imageLayoutVersion":"1.0.0"}')
    return layers
