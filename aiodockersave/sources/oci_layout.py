"""Read images out of an OCI image layout: a directory with blobs by digest, and an index of the images.

::

    DIR/oci-layout                    {"imageLayoutVersion": "1.0.0"}
        index.json                    an index; its descriptors are named by an annotation (the REF)
        blobs/<algorithm>/<encoded>

Source: OCI image-spec, image-layout.md. Symbolic links are followed, since build tools make layouts of links; the digest
of a file's content decides, wherever the file is. Only regular files are read, so that a FIFO cannot block a reader. A
blob is read up to the size that its file has when it is opened.

All work on files is plain blocking code in threads: one call for a whole resolution, one thread for an open blob.
"""

from __future__ import annotations

import contextlib
import os
import re
from collections import Counter
from collections.abc import AsyncIterator, Callable, Iterable
from contextlib import AbstractAsyncContextManager
from typing import Self

from aiodockersave._aio import Worker, running_task
from aiodockersave.core import gojson
from aiodockersave.core.documents import MAX_DOCUMENT_SIZE, ImageIndex, ImageManifest
from aiodockersave.core.errors import (
    BlobNotFoundError,
    ImageNotFoundError,
    InvalidDigestError,
    InvalidDocumentError,
    InvalidInputError,
    SizeMismatchError,
    UnsupportedImageError,
)
from aiodockersave.core.model import (
    CONTAINERD_NAME,
    INDEX_TYPES,
    MANIFEST_TYPES,
    REF_NAME,
    Descriptor,
    Digest,
    Platform,
)
from aiodockersave.core.text import cut, listed, one_line, quoted

from . import (
    ResolvedImage,
    check_document,
    check_document_size,
    check_manifest,
    check_supported,
    default_platform,
)
from .regular_file import open_regular, read_file, shorter

__all__ = ["OciLayoutSource"]

CHUNK_SIZE = 512 << 10
"""Bytes of one read: large beside the cost of a call in a thread, and small in memory."""
_LAYOUT_TYPE = "application/vnd.oci.layout.header.v1+json"
_VERSION = re.compile(r"1\.[0-9.]+")
_MAX_HEADER = 64 << 10
"""The largest file ``oci-layout`` that is read, in bytes; real ones have some 30."""
_MAX_DEPTH = 4
"""The deepest nesting of indexes below ``index.json`` that is followed; real layouts have one."""
_MAX_NAME = 100
"""Characters of a reference or a name that a message shows."""


class OciLayoutSource:
    """The images of an OCI image layout."""

    def __init__(self, path: str | os.PathLike[str]) -> None:
        """Take the path of the layout's directory; nothing is read yet."""
        self._path = os.fspath(path)

    async def resolve(self, reference: str, platform: Platform | None = None) -> ResolvedImage:
        """Find an image.

        Args:
            reference: The value of the annotation ``org.opencontainers.image.ref.name``, else that of
                ``io.containerd.image.name`` (the whole name, where containerd and Docker put only the tag into the other), or
                a digest; empty for the only image of the layout.
            platform: The platform whose manifest is taken out of an index; by default ``linux`` on this machine's
                architecture.

        Raises:
            ImageNotFoundError: There is no layout, or it does not have this image, or has several that match.
            PlatformNotFoundError: The image is not there for ``platform``.
            UnsupportedImageError: The reference leads to something that is not an image.
            InvalidDocumentError, ContentError: A document is not valid, or not the one that was promised.
            BlobNotFoundError: A document is missing.
            OSError: A file cannot be read.

        Cancel: is raised when the documents have been read; nothing stays open.
        """
        running_task()
        return await Worker("aiodockersave-layout").run(
            self._resolve, reference, platform or default_platform()
        )

    def open_blob(
        self, descriptor: Descriptor, *, start: int = 0, stop: int | None = None
    ) -> AbstractAsyncContextManager[AsyncIterator[bytes]]:
        """Open a blob; iterate its bytes from ``start`` up to ``stop``, or to its end, inside the block.

        Raises:
            BlobNotFoundError: There is no such file.
            SizeMismatchError: The file has another size than the descriptor.
            InvalidInputError: There is no such range.
            OSError: The file cannot be read, or ends before its size.

        Cancel: nothing stays open.
        """
        return _OpenBlob(_BlobFile(self._blob_path(descriptor.digest), descriptor), start, stop)

    # ── blocking work ──

    def _resolve(self, reference: str, platform: Platform) -> ResolvedImage:
        self._check_layout(reference)
        descriptor, index = self._find(reference), None
        for _ in range(_MAX_DEPTH):
            if descriptor.media_type not in INDEX_TYPES:
                break
            raw = self._read_document(descriptor, "index", check_manifest)
            index = ImageIndex.parse(raw, descriptor.media_type)
            descriptor = index.select(platform)
        if descriptor.media_type not in MANIFEST_TYPES:
            raise UnsupportedImageError(self._name(reference), f"it is a {cut(descriptor.media_type)}")
        manifest = ImageManifest.parse(
            self._read_document(descriptor, "manifest", check_manifest), descriptor.media_type
        )
        # Before the config is read: the config of an artifact may be anything.
        check_supported(manifest, self._name(reference))
        config = self._read_document(manifest.config, "config", check_document)
        return ResolvedImage(reference, manifest, config, index=index)

    def _name(self, reference: str) -> str:
        layout = f"oci:{one_line(self._path)}"
        return f"{layout}:{cut(one_line(reference), _MAX_NAME)}" if reference else layout

    def _not_found(self, reference: str, reason: str) -> ImageNotFoundError:
        return ImageNotFoundError(self._name(reference), reason)

    def _check_layout(self, reference: str) -> None:
        path = os.path.join(self._path, "oci-layout")
        try:
            raw = read_file(path, _MAX_HEADER)
        except FileNotFoundError:
            reason = "this is no OCI image layout, as it has no file oci-layout"
            raise self._not_found(reference, reason) from None
        except NotADirectoryError:
            reason = "it is a file, not a directory; if it is a layout in a tar, unpack it first"
            raise UnsupportedImageError(self._name(reference), reason) from None
        document = gojson.parse(raw, _LAYOUT_TYPE)
        version = document.get("imageLayoutVersion") if isinstance(document, dict) else None
        if not isinstance(version, str) or not _VERSION.fullmatch(version):
            raise InvalidDocumentError(
                _LAYOUT_TYPE, f"the version of the layout is {quoted(version)}, not 1.x"
            )

    def _find(self, reference: str) -> Descriptor:
        path = os.path.join(self._path, "index.json")
        try:
            raw = read_file(path, MAX_DOCUMENT_SIZE)
        except FileNotFoundError:
            raise self._not_found(reference, "the layout has no index.json") from None
        try:
            images = ImageIndex.parse(raw).manifests
        except InvalidDocumentError as exc:
            exc.add_note(one_line(path))
            raise
        found = {image.digest: image for image in _matching(images, reference)}
        if len(found) == 1:
            return found.popitem()[1]
        if found:
            reason = "the layout has several, of which one must be named"
        else:
            reason = "the layout has none of that name" if reference else "the layout has none"
        raise self._not_found(reference, f"{reason}; there are: {_listed(images)}")

    def _blob_path(self, digest: Digest) -> str:
        return os.path.join(self._path, "blobs", digest.algorithm, digest.encoded)

    def _read_document(
        self, descriptor: Descriptor, what: str, check: Callable[[bytes, Descriptor, str], None]
    ) -> bytes:
        check_document_size(descriptor, what)
        path = self._blob_path(descriptor.digest)
        try:
            raw = read_file(path, MAX_DOCUMENT_SIZE)
        except (FileNotFoundError, NotADirectoryError):
            raise BlobNotFoundError(descriptor.digest, one_line(path)) from None
        check(raw, descriptor, what)
        return raw


def _matching(images: Iterable[Descriptor], reference: str) -> list[Descriptor]:
    if not reference:
        return list(images)
    images = list(images)
    for annotation in (REF_NAME, CONTAINERD_NAME):
        if named := [image for image in images if image.annotations.get(annotation) == reference]:
            return named
    try:
        digest = Digest.parse(reference)
    except InvalidDigestError:
        return []
    return [image for image in images if image.digest == digest]


def _listed(images: Iterable[Descriptor]) -> str:
    """List the names by which each image can be told from the others."""
    images = list(images)
    refs = Counter(image.annotations.get(REF_NAME) for image in images)
    names = []
    for image in images:
        ref, name = image.annotations.get(REF_NAME), image.annotations.get(CONTAINERD_NAME)
        names.append(ref if ref and (refs[ref] == 1 or not name) else name or str(image.digest))
    return listed(names, _MAX_NAME) or "no images at all"


class _OpenBlob:
    """An open blob and the thread that reads it; a class and no async generator, for the reason at the head of ``_aio``."""

    def __init__(self, blob: _BlobFile, start: int, stop: int | None) -> None:
        self._worker = Worker("aiodockersave-read")
        self._held = contextlib.ExitStack()
        self._blob = blob
        self._start = start
        self._stop = stop

    async def __aenter__(self) -> _Chunks:
        running_task()
        if self._start < 0 or (self._stop is not None and self._stop < self._start):
            raise InvalidInputError(f"no range of a blob: start={self._start}, stop={self._stop}")
        self._held.enter_context(self._worker.held())
        try:
            await self._worker.run(self._blob.open)
        except BaseException as exc:
            await self.__aexit__(None, exc, None)
            raise
        return _Chunks(self._worker, self._blob, self._start, self._stop)

    async def __aexit__(self, _: object, fault: BaseException | None, __: object) -> None:
        with self._held:
            if isinstance(fault, GeneratorExit):
                # The coroutine is being closed: nothing can be awaited any more.
                self._worker.leave(self._blob.close)
            else:
                await self._worker.run_always(self._blob.close)


class _Chunks:
    """The bytes of an open blob, read in its thread."""

    def __init__(self, worker: Worker, blob: _BlobFile, start: int, stop: int | None) -> None:
        self._worker = worker
        self._blob = blob
        self._position = start
        self._stop = stop

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> bytes:
        """Return the next chunk.

        Cancel: is raised when the read has ended; its bytes are read again by the next call.
        """
        stop = self._blob.size if self._stop is None else min(self._stop, self._blob.size)
        size = min(CHUNK_SIZE, stop - self._position)
        chunk = await self._worker.run(self._blob.read, self._position, size) if size > 0 else b""
        if not chunk:
            raise StopAsyncIteration
        self._position += len(chunk)
        return chunk


class _BlobFile:
    """The file of a blob; its methods block. The object exists before the file is open, so that it can always be closed."""

    def __init__(self, path: str, descriptor: Descriptor) -> None:
        self._path = path
        self._descriptor = descriptor
        self._fd: int | None = None
        self.size = 0

    def open(self) -> None:
        digest, size = self._descriptor.digest, self._descriptor.size
        try:
            self._fd, self.size = open_regular(self._path)
        except (FileNotFoundError, NotADirectoryError):
            raise BlobNotFoundError(digest, one_line(self._path)) from None
        if size not in (None, self.size):
            raise SizeMismatchError(size, self.size, what=f"blob {digest} in {one_line(self._path)}")

    def read(self, position: int, size: int) -> bytes:
        if self._fd is None:
            raise RuntimeError("the blob is closed: read it inside the block that opened it")
        try:
            chunk = os.pread(self._fd, size, position)
        except OSError as exc:
            exc.filename = self._path
            raise
        if not chunk:
            raise shorter(self._path, self.size, position)
        return chunk

    def close(self) -> None:
        fd, self._fd = self._fd, None
        if fd is not None:
            os.close(fd)
