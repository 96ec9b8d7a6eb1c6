"""The cache of a registry source: documents, and the repositories that have a blob.

Documents are kept by repository and digest. The digest alone would be enough to verify a document, but a user who may
read one repository need not be allowed to read another, and knowing a digest is no permission.

The cache of a long-running process must not grow without bound, so it consists of dictionaries that forget
(:class:`Recent`).
"""

from __future__ import annotations

import weakref
from collections import OrderedDict
from collections.abc import Callable
from typing import Final, Generic, TypeVar

from aiodockersave.core.documents import ImageIndex, ImageManifest
from aiodockersave.core.model import Descriptor, Digest
from aiodockersave.core.reference import Reference

__all__ = ["Kept", "Recent"]

K = TypeVar("K")
V = TypeVar("V")


class Recent(Generic[K, V]):
    """A dictionary of the values that were used last, up to a weight in all.

    Args:
        limit: The weight of all values together; a value that alone weighs more is not kept.
        weigh: Returns the weight of a value; 1 for each by default.
    """

    def __init__(self, limit: int, weigh: Callable[[V], int] = lambda _: 1) -> None:
        self._limit = limit
        self._weigh = weigh
        self._values: OrderedDict[K, tuple[V, int]] = OrderedDict()
        self._weight = 0

    def get(self, key: K) -> V | None:
        """Return the value of a key, which counts as used; None if there is none."""
        if key not in self._values:
            return None
        self._values.move_to_end(key)
        return self._values[key][0]

    def put(self, key: K, value: V) -> None:
        """Keep a value, and forget those that were not used for longest where the weight exceeds the limit."""
        self._weight -= self._values.pop(key, (value, 0))[1]
        weight = self._weigh(value)
        if weight > self._limit:
            return
        self._values[key] = value, weight
        self._weight += weight
        while self._weight > self._limit:
            self._weight -= self._values.popitem(last=False)[1][1]

    def __len__(self) -> int:
        return len(self._values)

    def values(self) -> list[V]:
        """Return all values, the one that was used last at the end."""
        return [value for value, _ in self._values.values()]


_CACHE_SIZE: Final = 32 << 20
"""Bytes of manifests that are kept, and of configs: eight of the largest, 4 MiB, or some thousands of usual ones."""
_MAX_BLOBS: Final = 1 << 16
"""Blobs whose repositories are kept, so that a process that runs for long does not grow with each image."""
_MAX_HOLDERS: Final = 8
"""Repositories that are kept for one blob; each may be asked for the blob in turn."""

_Key = tuple[str, Digest]
"""The name of a repository, with its registry, and a digest in it."""


class _Origins(dict[int, tuple[weakref.ref[Digest], Reference]]):
    """The repositories of digest objects, by the objects' ``id``; a subclass, as a plain dict has no weak references."""


class Kept:
    """The documents and the repositories of blobs that a source has seen, up to a bound."""

    def __init__(self) -> None:
        self._manifests: Recent[_Key, ImageManifest | ImageIndex] = Recent(
            _CACHE_SIZE, lambda document: len(document.raw)
        )
        self._configs: Recent[_Key, bytes] = Recent(_CACHE_SIZE, len)
        self._holders: Recent[Digest, tuple[Reference, ...]] = Recent(_MAX_BLOBS)
        # The digest objects in the layers of a manifest, by `id`, with the manifest's repository: nothing else tells a
        # descriptor from an equal one out of another repository. They are known for as long as they live, and not up to a
        # bound: a descriptor that is forgotten would be taken for the caller's own.
        self._origins = _Origins()

    @property
    def has_manifests(self) -> bool:
        """True if any manifest or index is kept."""
        return bool(self._manifests)

    def manifest(self, image: Reference, digest: Digest) -> ImageManifest | ImageIndex | None:
        """Return a manifest or index of a repository; None if it is not kept."""
        return self._manifests.get((image.name, digest))

    def put_manifest(self, image: Reference, document: ImageManifest | ImageIndex) -> None:
        """Keep a manifest or index of a repository."""
        self._manifests.put((image.name, document.digest), document)

    def config(self, image: Reference, digest: Digest) -> bytes | None:
        """Return a config of a repository; None if it is not kept."""
        return self._configs.get((image.name, digest))

    def put_config(self, image: Reference, digest: Digest, config: bytes) -> None:
        """Keep a config of a repository."""
        self._configs.put((image.name, digest), config)

    def put_layers(self, image: Reference, manifest: ImageManifest) -> None:
        """Keep the repository of a manifest as one that has the manifest's layers."""
        repository = Reference(image.registry, image.repository)
        for layer in manifest.layers:
            self._put_origin(layer.digest, repository)
            known = self._holders.get(layer.digest) or ()
            others = [each for each in known if each != repository]
            self._holders.put(layer.digest, (*others, repository)[-_MAX_HOLDERS:])

    def _put_origin(self, digest: Digest, repository: Reference) -> None:
        key, origins = id(digest), weakref.ref(self._origins)
        if self._origin(digest) is None:
            # The entry is removed when the digest object is.
            self._origins[key] = weakref.ref(digest, lambda _: _forget(origins(), key)), repository

    def _origin(self, digest: Digest) -> Reference | None:
        # Not by `id` alone: where an interrupt kept the entry of a dead object, a new object may have the same `id`.
        origin = self._origins.get(id(digest))
        return origin[1] if origin is not None and origin[0]() is digest else None

    def repositories(self, descriptor: Descriptor) -> list[Reference]:
        """Return the repositories in which to look for a layer.

        For a descriptor out of a manifest, that is the manifest's repository alone: else a manifest could give its readers
        a layer of another repository, which they may not read. For a descriptor that the caller made, it is every
        repository with such a layer; the caller decides who may have it.
        """
        origin = self._origin(descriptor.digest)
        return [origin] if origin else list(self._holders.get(descriptor.digest) or ())


def _forget(origins: _Origins | None, key: int) -> None:
    if origins is not None:
        origins.pop(key, None)
