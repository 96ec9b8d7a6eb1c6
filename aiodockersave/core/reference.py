"""Names of images, as Docker reads them.

``alpine`` is short for ``docker.io/library/alpine``. The text before the first slash is a registry only if
it has a dot, a colon or an upper-case letter, or is ``localhost``; so ``user/app`` is on Docker Hub and
``user.org/app`` is not. Source: the grammar and the normalisation of the Go module ``distribution/reference``.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import Final

from .errors import InvalidDigestError, InvalidReferenceError
from .model import Digest

__all__ = ["DEFAULT_REGISTRY", "DEFAULT_TAG", "Reference", "parse_repo_tags"]

DEFAULT_REGISTRY: Final = "docker.io"
DEFAULT_TAG: Final = "latest"

_LEGACY_REGISTRY = "index.docker.io"
_OFFICIAL = "library/"
_MAX_REPOSITORY = 255
_MAX_TAG = 128

_LABEL = "[A-Za-z0-9](?:[A-Za-z0-9-]*[A-Za-z0-9])?"
# IPv6 without zones, as upstream; the name or address is not looked up here.
_REGISTRY = re.compile(rf"(?:{_LABEL}(?:\.{_LABEL})*|\[[0-9A-Fa-f:]+\])(?::[0-9]+)?")
_COMPONENT = "[a-z0-9]+(?:(?:[._]|__|-+)[a-z0-9]+)*"
_REPOSITORY = re.compile(f"{_COMPONENT}(?:/{_COMPONENT})*")
_TAG = re.compile("[A-Za-z0-9_][A-Za-z0-9_.-]*")
_IDENTIFIER = re.compile("[0-9a-f]{64}")
_PLAIN = re.compile("[!-~]+")
_DIGESTS = ("sha256:", "sha512:")


@dataclass(frozen=True, slots=True)
class Reference:
    """A repository in a registry, with a tag, a digest, both or neither.

    The parts are checked and normalised however it was made, so ``Reference.parse(str(reference))`` is
    always the reference itself.

    Attributes:
        registry: Host and perhaps port, such as ``docker.io`` or ``localhost:5000``.
        repository: The path in the registry, such as ``library/alpine``.
        tag: The tag, or None.
        digest: The digest, or None.
    """

    registry: str
    repository: str
    tag: str | None = None
    digest: Digest | None = None

    def __post_init__(self) -> None:
        if not all(isinstance(part, str) for part in (self.registry, self.repository, self.tag or "")):
            raise TypeError("registry, repository and tag are str")
        if not isinstance(self.digest, Digest | None):
            raise TypeError(f"digest is a Digest, not {type(self.digest).__name__}")
        if self.registry == _LEGACY_REGISTRY:
            object.__setattr__(self, "registry", DEFAULT_REGISTRY)
        if self.registry == DEFAULT_REGISTRY and self.repository and "/" not in self.repository:
            object.__setattr__(self, "repository", _OFFICIAL + self.repository)
        fault = (
            _registry_fault(self.registry)
            or _repository_fault(self.repository)
            or (None if self.tag is None else _tag_fault(self.tag))
        )
        if fault:
            raise InvalidReferenceError(str(self), fault)

    @classmethod
    def parse(cls, text: str) -> Reference:
        """Parse ``[registry/]repository[:tag][@digest]``.

        Raises:
            InvalidReferenceError: Docker would not take it for a name either, or the digest is of an
                algorithm other than sha256 and sha512.
        """
        if not isinstance(text, str):
            raise TypeError(f"a reference is a str, not {type(text).__name__}")
        shown = _without_login(text)
        if fault := _text_fault(text):
            raise InvalidReferenceError(shown, fault)
        rest, at, digest = text.partition("@")
        path, slash, last = rest.rpartition("/")
        last, colon, tag = last.partition(":")
        registry, repository = _split_registry(f"{path}{slash}{last}")
        try:
            return cls(registry, repository, tag if colon else None, Digest.parse(digest) if at else None)
        except InvalidDigestError as error:
            raise InvalidReferenceError(shown, f"the digest is not valid: {error.reason}") from None
        except InvalidReferenceError as error:
            raise InvalidReferenceError(shown, error.reason) from None

    @property
    def name(self) -> str:
        """Registry and repository, such as ``docker.io/library/alpine``."""
        return f"{self.registry}/{self.repository}"

    @property
    def familiar(self) -> str:
        """The shortest form that means the same, such as ``alpine:3.20``."""
        if self.registry != DEFAULT_REGISTRY:
            return str(self)
        short = self.repository.removeprefix(_OFFICIAL)
        name = self.repository if "/" in short else short
        text = name + self._suffix
        # Upstream shortens these too, and reads something else when it gets them back.
        is_other = _split_registry(name)[0] != DEFAULT_REGISTRY or _IDENTIFIER.fullmatch(text)
        return str(self) if is_other else text

    @property
    def repo_tag(self) -> str:
        """Name and tag as they stand in ``manifest.json``, with ``latest`` where there is no tag.

        Raises:
            InvalidReferenceError: There is a digest: an archive cannot record one.
        """
        if self.digest is not None:
            raise InvalidReferenceError(str(self), "the name of an image in an archive cannot have a digest")
        return str(self.with_default_tag())

    def with_default_tag(self) -> Reference:
        """Add ``latest`` where there is neither tag nor digest."""
        return self if self.tag or self.digest else replace(self, tag=DEFAULT_TAG)

    @property
    def _suffix(self) -> str:
        tag = "" if self.tag is None else f":{self.tag}"
        return tag if self.digest is None else f"{tag}@{self.digest}"

    def __str__(self) -> str:
        return self.name + self._suffix


def _split_registry(name: str) -> tuple[str, str]:
    first, slash, rest = name.partition("/")
    return (first, rest) if slash and _is_registry(first) else (DEFAULT_REGISTRY, name)


def _is_registry(first: str) -> bool:
    return first == "localhost" or "." in first or ":" in first or first != first.lower()


def _without_login(text: str) -> str:
    """Leave out the text before ``@`` where it may be a login, as in a URL."""
    before, at, behind = text.rpartition("@")
    is_login = "://" in before or (":" in before and not before.startswith("[") and "/" not in before)
    is_digest = behind.startswith(_DIGESTS)
    return f"…@{behind}" if at and is_login and not is_digest else text


def _text_fault(text: str) -> str | None:
    if not text:
        return "it is empty"
    if not _PLAIN.fullmatch(text):
        return "it has white space, control characters or characters other than ASCII"
    if "://" in text:
        return "leave out what stands before and with '://'"
    if _IDENTIFIER.fullmatch(text):
        return "64 hexadecimal characters are an image ID, not a name"
    return None


def parse_repo_tags(repo_tags: Iterable[str]) -> tuple[Reference, ...]:
    """Parse the names that an image gets.

    Raises:
        InvalidReferenceError: One is no reference, or has a digest.
    """
    if isinstance(repo_tags, str):
        raise TypeError("repo_tags is a sequence of names, not one string")
    references = tuple(Reference.parse(tag).with_default_tag() for tag in repo_tags)
    for reference in references:
        _ = reference.repo_tag  # refuses one with a digest
    return references


def _registry_fault(registry: str) -> str | None:
    if not _REGISTRY.fullmatch(registry):
        return "the registry is not HOST or HOST:PORT"
    if not _is_registry(registry):
        return "a registry has a dot or a port in its name, or is localhost"
    return None


def _repository_fault(repository: str) -> str | None:
    if not repository:
        return "the repository name is missing"
    if len(repository) > _MAX_REPOSITORY:
        return f"the repository name is longer than {_MAX_REPOSITORY} characters"
    if repository != repository.lower():
        return "the repository name must be lowercase"
    if not _REPOSITORY.fullmatch(repository):
        return "the repository name is made of a-z and 0-9, with '.', '_', '__' or dashes between them, and of '/'"
    return None


def _tag_fault(tag: str) -> str | None:
    if not tag:
        return "the tag is empty"
    if tag.startswith(_DIGESTS):
        return "a digest stands behind '@', not behind ':'"
    if len(tag) > _MAX_TAG:
        return f"the tag is longer than {_MAX_TAG} characters"
    if not _TAG.fullmatch(tag):
        return "the tag is made of A-Z a-z 0-9 _ . and -, and does not start with '.' or '-'"
    return None
