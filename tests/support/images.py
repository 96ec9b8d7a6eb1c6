"""Builders of images: layers that are real tars, configs, manifests, and OCI layouts on disk.

::

    base = make_layer({"etc/name": b"base\n"})                          # gzip; or "zstd", None; members=3
    image = make_image(base, make_layer({"app": b"…"}, "zstd"), repo_tags=["example.com/app:1.0"])
    image.config, image.manifest, image.layers[0].descriptor, image.layers[0].diff_id, image.spec
    write_layout(folder, {"latest": image})                             # and read_layout(folder, "latest")
    data = await archive_of([image], layers="decompress")               # what ArchiveWriter makes of it

Strategies for hypothesis: :func:`layers` and :func:`image_lists` (small images that share layers and repeat
them, with sizes around the block's border), :func:`config_texts` (configs as nobody should write them, and
as Go reads them).

Everything is made from its arguments alone: no clock, no chance, no user's name.
"""

from __future__ import annotations

import functools
import gzip
import io
import json
import random
import sys
import tarfile
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal, TypeAlias

import pytest
from hypothesis import strategies as st

from aiodockersave import (
    ArchiveWriter,
    Descriptor,
    Digest,
    ImageConfig,
    ImageIndex,
    ImageManifest,
    ImageSpec,
    Plan,
    plan_archive,
)
from aiodockersave.core.documents import LEGACY_ATTRIBUTES
from aiodockersave.core.model import (
    OCI_CONFIG,
    OCI_INDEX,
    OCI_LAYER,
    OCI_LAYER_GZIP,
    OCI_LAYER_ZSTD,
    OCI_MANIFEST,
    compression,
)

if sys.version_info >= (3, 14):
    from compression import zstd
else:
    from backports import zstd

Compression: TypeAlias = Literal["gzip", "zstd"] | None
"""The compression of a layer's blob; None for a plain tar."""

REF_NAME = "org.opencontainers.image.ref.name"
EXAMPLES = Path(__file__).parents[2] / "examples"
MEDIA_TYPES: dict[Compression, str] = {None: OCI_LAYER, "gzip": OCI_LAYER_GZIP, "zstd": OCI_LAYER_ZSTD}


# ── layers ──


@dataclass(frozen=True, repr=False)
class Layer:
    """One layer: the blob as a registry has it, and the plain bytes in it.

    Attributes:
        blob: The bytes as they are stored at the source.
        plain: The bytes after decompression.
        descriptor: What a manifest says of the blob.
        diff_id: The digest of the plain bytes.
    """

    blob: bytes
    plain: bytes
    descriptor: Descriptor
    diff_id: Digest

    def __repr__(self) -> str:  # hypothesis would print every byte
        return f"<layer {self.descriptor.digest}: {len(self.plain)} bytes as {self.descriptor.media_type}>"

    @property
    def plain_descriptor(self) -> Descriptor:
        """The layer as ``layers="decompress"`` stores it."""
        return Descriptor(OCI_LAYER, self.diff_id, len(self.plain))


def layer_tar(files: Mapping[str, bytes]) -> bytes:
    """Return a tar of these files, as a layer holds them."""
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w", format=tarfile.PAX_FORMAT) as tar:
        for name, data in files.items():
            member = tarfile.TarInfo(name)  # mode 0644, owned by 0:0, dated 1970
            member.size = len(data)
            tar.addfile(member, io.BytesIO(data))
    return out.getvalue()


def noise(seed: int | str, size: int) -> bytes:
    """Return bytes that nothing compresses, the same for the same seed."""
    return random.Random(seed).randbytes(size)


def compress(plain: bytes, kind: Compression, *, members: int = 1) -> bytes:
    """Compress bytes, cut into ``members`` gzip members or zstd frames one behind the other."""
    if kind is None:
        return plain
    step = -(-len(plain) // members) or 1
    parts = [plain[at * step : (at + 1) * step] for at in range(members)]
    return b"".join(gzip.compress(part, mtime=0) if kind == "gzip" else zstd.compress(part) for part in parts)


def hide_decompressors(patch: pytest.MonkeyPatch) -> None:
    """Let no package for decompression be found: gzip is left to zlib, and nothing reads zstd."""
    for name in ("isal.igzip_lib", "compression.zstd", "backports.zstd"):
        patch.setitem(sys.modules, name, None)


def decompress(blob: bytes, kind: Compression) -> bytes:
    """Decompress with the standard library (or its backport)."""
    if kind is None:
        return blob
    return gzip.decompress(blob) if kind == "gzip" else zstd.decompress(blob)


def make_layer(
    content: Mapping[str, bytes] | bytes,
    kind: Compression = "gzip",
    *,
    members: int = 1,
    algorithm: str = "sha256",
    diff_id_algorithm: str | None = None,
    media_type: str | None = None,
) -> Layer:
    """Make a layer.

    Args:
        content: Files by name; or plain bytes, which need not be a tar where nobody unpacks them.
        kind: The blob's compression.
        members: So many gzip members or zstd frames.
        algorithm: The digest's algorithm, for blob and diff ID.
        diff_id_algorithm: Another one for the diff ID.
        media_type: Another media type than the compression's own.
    """
    plain = content if isinstance(content, bytes) else layer_tar(content)
    blob = compress(plain, kind, members=members)
    descriptor = Descriptor(media_type or MEDIA_TYPES[kind], Digest.of(blob, algorithm), len(blob))
    return Layer(blob, plain, descriptor, Digest.of(plain, diff_id_algorithm or algorithm))


# ── images ──


@dataclass(frozen=True, repr=False)
class Image:
    """An image with all of its blobs.

    Attributes:
        config: The config's bytes.
        layers: The layers, base first.
        manifest_bytes: The manifest, as a registry has it.
        repo_tags: The names that an archive is to have for it.
    """

    config: bytes
    layers: tuple[Layer, ...]
    manifest_bytes: bytes
    repo_tags: tuple[str, ...] = ()

    def __repr__(self) -> str:
        return f"<image {self.config!r} {self.layers} {self.repo_tags}>"

    @functools.cached_property
    def manifest(self) -> ImageManifest:
        """The manifest, parsed."""
        return ImageManifest.parse(self.manifest_bytes)

    @property
    def image_id(self) -> Digest:
        """The digest of the config."""
        return Digest.of(self.config)

    @property
    def spec(self) -> ImageSpec:
        """The image for ``plan_archive``."""
        return ImageSpec(self.config, self.manifest, self.repo_tags)

    def tagged(self, *repo_tags: str) -> Image:
        """Return the same image with other names."""
        return replace(self, repo_tags=repo_tags)


def make_image(
    *layers: Layer, repo_tags: Iterable[str] = (), config_bytes: bytes | None = None, **attributes: object
) -> Image:
    """Make an image of these layers.

    Args:
        layers: Base first.
        repo_tags: The names in the archive.
        config_bytes: The whole config, instead of one of ``attributes``.
        attributes: Members of the config; None leaves one out.
    """
    config = config_bytes
    if config is None:
        config = make_config([layer.diff_id for layer in layers], **attributes)
    manifest = {
        "schemaVersion": 2,
        "mediaType": OCI_MANIFEST,
        "config": to_document(Descriptor(OCI_CONFIG, Digest.of(config), len(config))),
        "layers": [to_document(layer.descriptor) for layer in layers],
    }
    return Image(config, layers, to_json(manifest), tuple(repo_tags))


def make_config(diff_ids: Sequence[Digest], **attributes: object) -> bytes:
    """Make the config of an image for linux/amd64; ``attributes`` as for :func:`make_image`."""
    config: dict[str, object] = {
        "created": "2024-01-01T00:00:00Z",
        "architecture": "amd64",
        "os": "linux",
        "config": {"Cmd": ["/app"]},
        "rootfs": {"type": "layers", "diff_ids": [str(diff_id) for diff_id in diff_ids]},
        "history": [{"created_by": f"layer {number}"} for number, _ in enumerate(diff_ids)],
    }
    return to_json({name: value for name, value in (config | attributes).items() if value is not None})


def to_json(value: object) -> bytes:
    """Write JSON as registries hold it: compact."""
    return json.dumps(value, separators=(",", ":")).encode()


def to_document(descriptor: Descriptor, **annotations: str) -> dict[str, object]:
    """Return a descriptor as documents have it."""
    document: dict[str, object] = {
        "mediaType": descriptor.media_type,
        "digest": str(descriptor.digest),
        "size": descriptor.size,
    }
    return document | ({"annotations": annotations} if annotations else {})


# ── archives ──


class ListSink:
    """Takes bytes and keeps them; cannot take anything back.

    Attributes:
        writes: What each write was given.
    """

    def __init__(self) -> None:
        self.writes: list[bytes] = []

    async def write(self, data: bytes, /) -> None:
        self.writes.append(data)

    def getvalue(self) -> bytes:
        """Return all bytes that were written."""
        return b"".join(self.writes)


class MemorySink:
    """Keeps bytes in memory, and has every power: rewind, patch, read."""

    def __init__(self) -> None:
        self.data = bytearray()

    async def write(self, data: bytes, /) -> None:
        self.data += data

    def rewind(self, position: int, /) -> None:
        del self.data[position:]

    def patch(self, position: int, data: bytes, /) -> None:
        self.data += bytes(max(0, position - len(self.data)))  # as a file: a gap reads as zeros
        self.data[position : position + len(data)] = data

    def move(self, source: int, target: int, size: int, /) -> None:
        self.patch(target, self.read(source, size))

    def read(self, position: int, size: int, /) -> bytes:
        return bytes(self.data[position : position + size])

    def getvalue(self) -> bytes:
        """Return all bytes that are there."""
        return bytes(self.data)


class RewindSink:
    """Keeps bytes in memory and rewinds; cannot be patched, so that what is not known is staged."""

    def __init__(self) -> None:
        self._memory = MemorySink()
        self.write = self._memory.write
        self.rewind = self._memory.rewind
        self.getvalue = self._memory.getvalue


async def put(archive: ArchiveWriter, image: Image, **options: Any) -> None:
    """Put an image's layers in the order of its manifest, then the image."""
    for layer in image.layers:
        await archive.put_layer(layer.blob, layer.descriptor, diff_id=layer.diff_id, **options)
    await archive.put_image(image.config, image.manifest, image.repo_tags)


async def archive_of(images: Iterable[Image], **options: Any) -> bytes:
    """Return the archive of these images, written to a sink that cannot rewind; options as ArchiveWriter's."""
    sink = ListSink()
    async with ArchiveWriter(sink, **options) as archive:
        for image in images:
            await put(archive, image)
    return sink.getvalue()


def blobs_of(images: Iterable[Image]) -> dict[Digest, bytes]:
    """Return the blobs of images' layers."""
    return {layer.descriptor.digest: layer.blob for image in images for layer in image.layers}


def bytes_of_plan(plan: Plan, blobs: Mapping[Digest, bytes]) -> bytes:
    """Put a plan's segments together."""
    parts = []
    for segment in plan.segments:
        if segment.data is None:
            assert segment.descriptor is not None
            parts.append(blobs[segment.descriptor.digest])
        else:
            parts.append(segment.data)
        assert len(parts[-1]) == segment.size
    return b"".join(parts)


def planned_archive_of(images: Sequence[Image], **options: Any) -> bytes:
    """Return the archive that a plan of these images has, as ``save`` writes it; options as for ``plan_archive``."""
    return bytes_of_plan(plan_archive([image.spec for image in images], **options), blobs_of(images))


# ── OCI image layouts (image-spec, image-layout.md) ──


def write_layout(folder: Path, images: Mapping[str, Image]) -> Path:
    """Write an OCI layout with the images under these reference names; return its folder."""
    manifests = []
    for name, image in images.items():
        for blob, digest in _blobs(image):
            path = folder / "blobs" / digest.algorithm / digest.encoded
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(blob)
        manifests.append(to_document(image.manifest.descriptor, **{REF_NAME: name}))
    index = {"schemaVersion": 2, "mediaType": OCI_INDEX, "manifests": manifests}
    (folder / "index.json").write_bytes(to_json(index))
    (folder / "oci-layout").write_bytes(to_json({"imageLayoutVersion": "1.0.0"}))
    return folder


def _blobs(image: Image) -> list[tuple[bytes, Digest]]:
    return [
        (image.manifest_bytes, image.manifest.digest),
        (image.config, image.image_id),
        *((layer.blob, layer.descriptor.digest) for layer in image.layers),
    ]


def read_layout(folder: Path, name: str, repo_tags: Iterable[str] = ()) -> Image:
    """Read an image of an OCI layout (its manifest, not an index), every blob as it is."""

    def blob(digest: Digest) -> bytes:
        return (folder / "blobs" / digest.algorithm / digest.encoded).read_bytes()

    index = ImageIndex.parse((folder / "index.json").read_bytes())
    (found,) = (each for each in index.manifests if each.annotations.get(REF_NAME) == name)
    manifest = ImageManifest.parse(blob(found.digest))
    config = blob(manifest.config.digest)
    read = (
        Layer(data, decompress(data, compression(layer.media_type)), layer, diff_id)
        for layer, diff_id in zip(manifest.layers, ImageConfig.parse(config).diff_ids, strict=True)
        for data in [blob(layer.digest)]
    )
    return Image(config, tuple(read), manifest.raw, tuple(repo_tags))


# ── strategies: images ──

BORDER_SIZES = (0, 1, 511, 512, 513, 1023, 1024, 1025)
TAGS = {
    "alpine": "docker.io/library/alpine:latest",
    "busybox": "docker.io/library/busybox:latest",
    "example.com/app:1.0": "example.com/app:1.0",
    "example.com/app:2": "example.com/app:2",
    "example.com/app": "example.com/app:latest",
    "localhost:5000/a/b:x_1": "localhost:5000/a/b:x_1",
}
"""Names as users write them, and as archives have them."""


@st.composite
def layers(
    draw: st.DrawFn,
    kinds: Sequence[Compression] = (None, "gzip", "zstd"),
    algorithms: Sequence[str] = ("sha256", "sha512"),
) -> Layer:
    """Draw a layer; its plain bytes are no tar, so that size and content are anything."""
    size = draw(st.sampled_from(BORDER_SIZES) | st.integers(0, 3000))
    plain = bytes([draw(st.integers(0, 9))]) * size
    return make_layer(plain, draw(st.sampled_from(kinds)), algorithm=draw(st.sampled_from(algorithms)))


@st.composite
def image_lists(
    draw: st.DrawFn,
    pool: st.SearchStrategy[Layer] | None = None,
    *,
    max_images: int = 4,
    max_layers: int = 6,
) -> list[Image]:
    """Draw images that share layers, repeat them within one image, have none, and come again with other tags.

    No two images have one name: that is a conflict, which has tests of its own.
    """
    # One blob for one diff ID: the same config with other layers is a conflict, which has tests of its own.
    chosen = draw(st.lists(pool or layers(), max_size=max_layers, unique_by=lambda layer: layer.diff_id))
    stacks = st.lists(st.sampled_from(chosen), max_size=max_layers) if chosen else st.just([])
    tags = st.lists(st.sampled_from(list(TAGS)), max_size=3)
    images: list[Image] = []
    named: dict[str, Digest] = {}
    for _ in range(draw(st.integers(0, max_images))):
        if images and draw(st.integers(0, 3)) == 0:
            image = draw(st.sampled_from(images))
        else:
            image = make_image(*draw(stacks), comment=f"variant {draw(st.integers(0, 2))}")
        own = [tag for tag in draw(tags) if named.setdefault(tag, image.image_id) == image.image_id]
        images.append(image.tagged(*own))
    return images


# ── strategies: configs as text ──

ODD_STRINGS = (
    '""',
    '"<a href=\\"x\\">&amp;</a>"',
    '"\\u003c\\u003E\\u0026"',
    '"\\/ \\\\ \\b\\f\\n\\r\\t \\u0000\\u001f"',
    '"é 漢字 \U0001f40b \x7f"',
    '"\u2028 \u2029 \\u2028"',
    '"\\ud800 \\udc00 \\ud83d\\udc0b"',
    '"  spaces  are , kept : {[ "',
)
ODD_NUMBERS = (
    *("0", "-0", "-0.0", "1E5", "1e+5", "2.50", "1e-400", "1e400", "-12.5E-3"),
    *("9007199254740993", "18446744073709551616", "123456789012345678901234567890", "1" * 5000),
)
_SPACE = st.sampled_from(["", "", " ", "\n\t", " \r\n  "])
_NAMES = st.sampled_from(
    ["a", "B", "b", "", "id", "layer_id", "parent", "<&>", "\\u0061", "é", "\u2028", "\\ud800"]
)


def _members(names: st.SearchStrategy[str], values: st.SearchStrategy[str]) -> st.SearchStrategy[str]:
    return st.lists(st.tuples(_SPACE, names, _SPACE, _SPACE, values, _SPACE), max_size=4).map(
        lambda members: ",".join(f'{a}"{name}"{b}:{c}{value}{d}' for a, name, b, c, value, d in members)
    )


def _containers(values: st.SearchStrategy[str]) -> st.SearchStrategy[str]:
    arrays = st.tuples(_SPACE, st.lists(values, max_size=4), _SPACE).map(
        lambda parts: f"[{parts[0]}{','.join(parts[1])}{parts[2]}]"
    )
    return arrays | _members(_NAMES, values).map(lambda text: f"{{{text}}}")


json_texts: st.SearchStrategy[str] = st.recursive(
    st.sampled_from(["null", "true", "false", *ODD_STRINGS, *ODD_NUMBERS])
    | st.text(max_size=8).map(json.dumps)
    | st.text(st.characters(exclude_categories=["Cs"], min_codepoint=0x20), max_size=8).map(
        lambda text: json.dumps(text, ensure_ascii=False)
    ),
    _containers,
    max_leaves=8,
)
"""JSON values as text, with numbers, escapes and names that a parser might not keep."""


@st.composite
def config_texts(draw: st.DrawFn, diff_ids: Sequence[Digest]) -> bytes:
    """Draw a config of these layers: sections missing, null or twice, in any order, with any space between."""
    rootfs = to_json({"type": "layers", "diff_ids": [str(diff_id) for diff_id in diff_ids]}).decode()
    names = st.sampled_from([*LEGACY_ATTRIBUTES, *LEGACY_ATTRIBUTES, "\\u006fs", "Created", "history", "x"])
    odd = draw(st.lists(st.tuples(names, st.just("null") | json_texts), max_size=9))
    # The names that platforms are read from stay free of case variants; rootfs stands once, or twice with the last whole.
    members = draw(st.permutations([*odd, ("rootfs", rootfs)]))
    if draw(st.integers(0, 4)) == 0:
        members = [("rootfs", "null"), *members]
    spaced = [
        f'{draw(_SPACE)}"{name}"{draw(_SPACE)}:{draw(_SPACE)}{value}{draw(_SPACE)}' for name, value in members
    ]
    return f"{draw(_SPACE)}{{{','.join(spaced)}}}{draw(_SPACE)}".encode()
