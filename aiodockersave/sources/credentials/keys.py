"""Tell by which key a registry's credentials are kept: those who read and those who write the files ask here."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Final, NamedTuple, TypeVar

from .auth_files import AuthFile

__all__ = [
    "HUB",
    "HUB_SERVER",
    "Helper",
    "canonical",
    "for_path",
    "for_registry",
    "helper_for",
    "registry_of",
]

T = TypeVar("T")

HUB: Final = "docker.io"
HUB_SERVER: Final = "https://index.docker.io/v1/"
"""Docker Hub's name in Docker's files and stores: the address of an index that no longer exists."""
_HUB_HOSTS = frozenset({HUB, "index.docker.io", "registry-1.docker.io"})


def canonical(registry: str) -> str:
    """Return the one name of a registry: Docker Hub has several hosts."""
    return HUB if registry in _HUB_HOSTS else registry


def for_path(entries: Mapping[str, T], registry: str, repository: str) -> T | None:
    """Return the entry of the longest path that leads to the repository."""
    return next((entries[path] for path in _paths(registry, repository) if path in entries), None)


def _paths(registry: str, repository: str) -> Iterator[str]:
    path = f"{registry}/{repository}"
    while path != registry:
        yield path
        path = path.rpartition("/")[0]


def for_registry(entries: Mapping[str, T], registry: str) -> T | None:
    """Return the entry of a whole registry: under its name, or else under another form of it."""
    if registry in entries:
        return entries[registry]
    return next((entry for key, entry in entries.items() if registry_of(key) == registry), None)


def registry_of(key: str) -> str | None:
    """Return the registry that a key names as a whole, or None if it names a path in one.

    Docker wrote addresses of its API for years (``https://quay.io/v1/``), also without the scheme.
    """
    bare = key.removeprefix("https://").removeprefix("http://")
    host, _, path = bare.partition("/")
    is_path = bare == key and path.rstrip("/") not in {"", "v1", "v2"}
    return None if is_path else canonical(host)


def _helper_key(helpers: Mapping[str, str], registry: str) -> str | None:
    """Return the key of a registry's helper. Only Docker Hub has more than one form there."""
    if registry in helpers or registry != HUB:
        return registry if registry in helpers else None
    return next((key for key in helpers if registry_of(key) == HUB), None)


class Helper(NamedTuple):
    """A helper that a file names for a registry.

    Attributes:
        name: The part of the program's name after ``docker-credential-``.
        server: The registry's name in the helper's store.
        is_of_registry: Whether the file names it for this registry alone; its entries are not used then.
    """

    name: str
    server: str
    is_of_registry: bool


def helper_for(file: AuthFile, registry: str) -> Helper | None:
    """Return the helper that a file names for a registry; None if it names none."""
    key = _helper_key(file.helpers, registry)
    if key is not None:  # in Docker, an empty name of a helper excludes its registry from the store
        return Helper(file.helpers[key], key, is_of_registry=True) if file.helpers[key] else None
    if not file.store:
        return None
    return Helper(file.store, HUB_SERVER if registry == HUB else registry, is_of_registry=False)
