"""The memory of a source of registries: documents, and where blobs are.

It is kept by repository, though digests say what is right wherever it comes from: whoever may read one repository need not
be allowed to read what another one has, and knowing a digest is no permission.

What a long-running process keeps must not grow without bound: so it is kept in dictionaries that forget (:class:`Recent`).
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
    """The values that were used last, up to a weight in all.

    Args:
        limit: The weight that is kept; what alone weighs more is not kept.
        weigh: Tells the weight of a value; each weighs 1 by default.
    """

    def __init__(self, limit: int, weigh: Callable[[V], int] = lambda _: 1) -> None:
        self._limit = limit
        self._weigh = weigh
        self._values: OrderedDict[K, tuple[V, int]] = OrderedDict()
        self._weight = 0

    def get(self, key: K) -> V | None:
        """Return a value, which counts as used; None if there is none."""
        if key not in self._values:
            return None
        self._values.move_to_end(key)
        return self._values[key][0]

    def put(self, key: K, value: V) -> None:
        """Keep a value; what was not used for longest is forgotten for it."""
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
"""Bytes of manifests and of configs that are kept."""
_MAX_BLOBS: Final = 1 << 16
"""Blobs for which the repositories that have them are kept."""
_MAX_HOLDERS: Final = 8
"""Repositories that are kept for one blob."""

_Key = tuple[str, Digest]
"""A repository, by its whole name with the registry's, and a digest in it."""


class _Origins(dict[int, tuple[weakref.ref[Digest], Reference]]):
    """The repositories that digest objects came from, by the objects' ``id``. A dict that can be referred to weakly."""


class Kept:
    """Knowledge of registries, up to a bound; what was not used for longest is forgotten."""

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
        """Whether there is any manifest or index."""
        return bool(self._manifests)

    def manifest(self, image: Reference, digest: Digest) -> ImageManifest | ImageIndex | None:
        """Return a manifest or index that a repository has; None if it is not known to."""
        return self._manifests.get((image.name, digest))

    def put_manifest(self, image: Reference, document: ImageManifest | ImageIndex) -> None:
        """Keep a manifest or index that a repository has."""
        self._manifests.put((image.name, document.digest), document)

    def config(self, image: Reference, digest: Digest) -> bytes | None:
        """Return a config that a repository has; None if it is not known to."""
        return self._configs.get((image.name, digest))

    def put_config(self, image: Reference, digest: Digest, config: bytes) -> None:
        """Keep a config that a repository has."""
        self._configs.put((image.name, digest), config)

    def put_layers(self, image: Reference, manifest: ImageManifest) -> None:
        """Keep that a repository should have the layers that a manifest from there names."""
        repository = Reference(image.registry, image.repository)
        for layer in manifest.layers:
            self._put_origin(layer.digest, repository)
            known = self._holders.get(layer.digest) or ()
            others = [each for each in known if each != repository]
            self._holders.put(layer.digest, (*others, repository)[-_MAX_HOLDERS:])

    def _put_origin(self, digest: Digest, repository: Reference) -> None:
        key, origins = id(digest), weakref.ref(self._origins)
        if self._origin(digest) is None:
            # The object takes its entry along when it goes.
            self._origins[key] = weakref.ref(digest, lambda _: _forget(origins(), key)), repository

    def _origin(self, digest: Digest) -> Reference | None:
        # Not by `id` alone: an entry stays where its object could not take it along, as an interrupt came in between.
        origin = self._origins.get(id(digest))
        return origin[1] if origin is not None and origin[0]() is digest else None

    def repositories(self, descriptor: Descriptor) -> list[Reference]:
        """Return where to look for a layer: only in its own repository, if a manifest from there gave the descriptor.

        Else a manifest could name a layer of another repository, for those who may not read that. Of a descriptor that a
        caller has made, only the caller knows who may have it, and all repositories with such a layer are returned.
        """
        origin = self._origin(descriptor.digest)
        return [origin] if origin else list(self._holders.get(descriptor.digest) or ())


def _forget(origins: _Origins | None, key: int) -> None:
    if origins is not None:
        origins.pop(key, None)
