"""Define one tree of errors, split by the party that can do something about them.

::

    DockerSaveError                           root; str() is one line: what, where, what to do
    ├── InvalidInputError (ValueError)        the caller's argument; nothing was done
    │   ├── InvalidDigestError
    │   ├── InvalidReferenceError
    │   └── InvalidPlatformError
    ├── InvalidDocumentError (ValueError)     a manifest, index or config is not what its spec says
    ├── ContentError                          the bytes are not what was promised
    │   ├── DigestMismatchError
    │   ├── SizeMismatchError
    │   ├── ContentTooLargeError
    │   └── DecompressionError
    ├── WriterError                           how the archive object was used
    │   ├── WriterClosedError                 closed or aborted
    │   ├── WriterBrokenError                 __cause__ is the first failure
    │   ├── ImageConflictError                same config, other layers
    │   ├── NameConflictError                 one name for two images
    │   └── SinkError                         the sink breaks its protocol
    ├── SourceError                           where images come from
    │   ├── ImageNotFoundError (LookupError)
    │   ├── BlobNotFoundError (LookupError)
    │   ├── PlatformNotFoundError (LookupError)
    │   ├── UnsupportedImageError
    │   ├── ConfigurationError (ValueError)   a file of credentials or certificates is not usable
    │   ├── TransferError                     attempts or bytes are used up; __cause__ is the last failure
    │   └── RegistryError                     a registry refuses, or answers what it must not
    │       ├── AuthenticationError
    │       └── RateLimitedError
    ├── InsufficientSpaceError (OSError)      the archive will not fit where it is to be
    ├── PartFileError                         the part file of an earlier save cannot be resumed
    │   └── PartFileLockedError               another save is writing it
    ├── EventLoopError (RuntimeError)         the running event loop is not asyncio's
    └── MissingDependencyError (ImportError)  an extra is not installed

Exceptions of the caller's own source or sink are not wrapped and not in this tree; neither is
``CancelledError``. Wrong types stay ``TypeError``.
"""

from __future__ import annotations

import errno
from copyreg import __newobj__  # type: ignore[attr-defined]  # which pickle knows by this name
from typing import TYPE_CHECKING

from .text import cut, listed, message_line, one_line, quoted

if TYPE_CHECKING:
    from collections.abc import Sequence

    from .model import Descriptor, Digest, Platform

__all__ = [
    "AuthenticationError",
    "BlobNotFoundError",
    "ConfigurationError",
    "ContentError",
    "ContentTooLargeError",
    "DecompressionError",
    "DigestMismatchError",
    "DockerSaveError",
    "EventLoopError",
    "ImageConflictError",
    "ImageNotFoundError",
    "InsufficientSpaceError",
    "InvalidDigestError",
    "InvalidDocumentError",
    "InvalidInputError",
    "InvalidPlatformError",
    "InvalidReferenceError",
    "MissingDependencyError",
    "NameConflictError",
    "PartFileError",
    "PartFileLockedError",
    "PlatformNotFoundError",
    "RateLimitedError",
    "RegistryError",
    "SinkError",
    "SizeMismatchError",
    "SourceError",
    "TransferError",
    "UnsupportedImageError",
    "WriterBrokenError",
    "WriterClosedError",
    "WriterError",
]


class DockerSaveError(Exception):
    """Root of every error that this package raises; ``str()`` is one line, of at most 2000 characters."""

    def __init__(self, *args: object) -> None:
        # The last limit. Foreign text is cut earlier, where it becomes part of a message.
        super().__init__(*(message_line(arg) if isinstance(arg, str) else arg for arg in args))

    def add_note(self, note: str) -> None:
        """Add a note, which is one line too."""
        super().add_note(message_line(note))

    def __reduce__(self) -> tuple[object, ...]:
        # Constructors of subclasses take facts, not a message: the default, the class called with ``args``, fails.
        return __newobj__, (type(self), *self.args), {**self.__dict__, "args": self.args}


class _FileError(DockerSaveError):
    """A file or directory of ours or the user's is not usable.

    Attributes:
        path: The file or directory.
        reason: The fault, and the remedy.
    """

    def __init__(self, path: str, reason: str) -> None:
        super().__init__(f"{one_line(path)}: {reason}")
        self.path = path
        self.reason = reason


# ── the caller's argument ──


class InvalidInputError(DockerSaveError, ValueError):
    """An argument is not usable; nothing was done."""


class _MalformedError(InvalidInputError):
    """A text is not of its form.

    Attributes:
        text: The text that was given.
        reason: What is wrong with it.
    """

    _kind = ""
    _limit = 200

    def __init__(self, text: str, reason: str) -> None:
        super().__init__(f"invalid {self._kind} {quoted(text, self._limit)}: {reason}")
        self.text = text
        self.reason = reason


class InvalidDigestError(_MalformedError):
    """A digest is not ``algorithm:encoded`` of a known algorithm; ``text`` was given, and has the fault ``reason``."""

    _kind = "digest"


class InvalidReferenceError(_MalformedError):
    """A name is no image reference; ``text`` was given, and has the fault ``reason``."""

    _kind = "reference"
    _limit = 300


class InvalidPlatformError(_MalformedError):
    """A platform is not ``os/architecture[/variant]``; ``text`` was given, and has the fault ``reason``."""

    _kind = "platform"


class InvalidDocumentError(DockerSaveError, ValueError):
    """A manifest, index or config breaks its specification.

    Attributes:
        media_type: The media type that the document was read as.
        reason: What is wrong with it.
    """

    def __init__(self, media_type: str, reason: str) -> None:
        super().__init__(f"invalid document ({cut(media_type)}): {reason}")
        self.media_type = media_type
        self.reason = reason


# ── the bytes ──


class ContentError(DockerSaveError):
    """The bytes are others than promised; the member was rewound, or the writer is broken."""


class DigestMismatchError(ContentError):
    """Content has another digest than it should.

    Attributes:
        expected: The digest that was promised.
        actual: The digest of the bytes that came.
        what: The kind of content that was checked: ``blob``, ``diff ID`` or ``config``.
        descriptor: The descriptor of the blob, where there is one.
    """

    def __init__(
        self, expected: Digest, actual: Digest, *, what: str = "blob", descriptor: Descriptor | None = None
    ) -> None:
        of = f" of blob {descriptor.digest}" if descriptor and descriptor.digest != expected else ""
        super().__init__(f"{what}{of} is not what was promised: expected {expected}, got {actual}")
        self.expected = expected
        self.actual = actual
        self.what = what
        self.descriptor = descriptor


class SizeMismatchError(ContentError):
    """Content is shorter or longer than it should be.

    Attributes:
        expected: The size that was promised, in bytes.
        actual: The size that came, in bytes. Where reading stopped at the first byte too many, it
            is the size read until then.
        what: The name of the blob or document.
    """

    def __init__(self, expected: int, actual: int, *, what: str) -> None:
        size = f"at least {actual}" if actual > expected else f"only {actual}"
        super().__init__(f"{what} has the wrong size: expected {expected} bytes, got {size}")
        self.expected = expected
        self.actual = actual
        self.what = what


class ContentTooLargeError(ContentError):
    """The content that ``what`` names exceeds a ``limit`` in bytes."""

    def __init__(self, limit: int, *, what: str, why: str = "") -> None:
        super().__init__(f"{what} is larger than the limit of {limit} bytes{why and f': {why}'}")
        self.limit = limit
        self.what = what


class DecompressionError(ContentError):
    """Compressed content is damaged, cut off, or followed by something else.

    Attributes:
        what: The name of the content.
        media_type: The media type, or the compression where none was given.
        reason: The fault.
    """

    def __init__(self, what: str, media_type: str, reason: str) -> None:
        super().__init__(f"cannot decompress {what} ({cut(media_type)}): {reason}")
        self.what = what
        self.media_type = media_type
        self.reason = reason


# ── the archive object ──


class WriterError(DockerSaveError):
    """The archive object cannot serve a call, because of how it was used before."""


class WriterClosedError(WriterError):
    """The writer was closed or aborted.

    Attributes:
        aborted: Whether it was given up; its archive has no end then.
    """

    def __init__(self, *, aborted: bool) -> None:
        state = "was aborted: the archive is incomplete" if aborted else "is closed: the archive is complete"
        super().__init__(f"the archive writer {state}; open a new one")
        self.aborted = aborted


class WriterBrokenError(WriterError):
    """An earlier call failed in the middle of a member on a sink that cannot rewind.

    ``__cause__`` is that first failure.

    Attributes:
        position: Where in the archive the torn bytes start, in bytes.
        member: The member that was being written.
    """

    def __init__(self, position: int, member: str) -> None:
        super().__init__(
            f"the archive is torn since byte {position} ({member}) and cannot go on; discard it and start again"
        )
        self.position = position
        self.member = member


class ImageConflictError(WriterError):
    """One config, ``image_id`` its digest, was put with two different lists of layers."""

    def __init__(self, image_id: Digest) -> None:
        super().__init__(f"image {image_id} is already in the archive with other layers")
        self.image_id = image_id


class NameConflictError(WriterError):
    """Two images of one archive, ``image_ids`` in the order in which they came, were given one ``name``."""

    def __init__(self, name: str, image_ids: tuple[Digest, Digest]) -> None:
        ids = " and ".join(map(str, image_ids))
        super().__init__(f"one name for two images: {name} is {ids}; give one of them another name")
        self.name = name
        self.image_ids = image_ids


class SinkError(WriterError):
    """The sink breaks its protocol: it took nothing, or more than it was given."""


# ── where images come from ──


class SourceError(DockerSaveError):
    """A source cannot give the image."""


class ImageNotFoundError(SourceError, LookupError):
    """The source has no such image.

    Attributes:
        reference: The reference that was asked for.
    """

    def __init__(self, reference: str, reason: str) -> None:
        super().__init__(f"image {reference} not found: {reason}")
        self.reference = reference
        self.reason = reason


class BlobNotFoundError(SourceError, LookupError):
    """The source has no blob of this ``digest``; ``where`` says where it was looked for."""

    def __init__(self, digest: Digest, where: str) -> None:
        super().__init__(f"blob {digest} not found in {where}")
        self.digest = digest
        self.where = where


class PlatformNotFoundError(SourceError, LookupError):
    """An index has no image for the platform, or the one image that there is says that it is for another.

    Attributes:
        wanted: The platform asked for.
        available: The platforms that there are.
    """

    def __init__(self, wanted: Platform, available: Sequence[Platform], advice: str = "") -> None:
        names = listed(str(platform) for platform in available) or "none"
        what_to_do = f"; {advice}" if advice else ""
        super().__init__(f"no image for platform {cut(str(wanted))}; there are: {names}{what_to_do}")
        self.wanted = wanted
        self.available = tuple(available)


class UnsupportedImageError(SourceError):
    """The reference names something that is not an image, or not one that can be put into an archive.

    Attributes:
        reason: Why not.
    """

    def __init__(self, what: str, reason: str) -> None:
        super().__init__(f"{what} cannot be saved: {reason}")
        self.what = what
        self.reason = reason


class TransferError(SourceError):
    """Fetching was given up: the attempts, or the bytes that may be received for it, are used up.

    ``__cause__`` is the last failure.

    Attributes:
        what: The content that was to be fetched, and its place.
        attempts: How many requests were made since there was progress last.
        reason: The last failure.
    """

    def __init__(self, what: str, attempts: int, reason: str) -> None:
        count = "1 attempt" if attempts == 1 else f"{attempts} attempts"
        super().__init__(f"{what} could not be fetched, given up after {count}: {reason}")
        self.what = what
        self.attempts = attempts
        self.reason = reason


class RegistryError(SourceError):
    """A registry refuses, gives an answer that it must not give, or must not be asked.

    Attributes:
        what: The content that was to be fetched.
        reason: Why it was not.
        url: Where, without credentials, query and fragment.
        status: The status of the answer; None where there was none.
        codes: The error codes in the answer (OCI distribution-spec, § Error Codes).
    """

    def __init__(
        self, what: str, reason: str, *, url: str, status: int | None = None, codes: Sequence[str] = ()
    ) -> None:
        super().__init__(f"{what}: {url}: {reason}")
        self.what = what
        self.reason = reason
        self.url = url
        self.status = status
        self.codes = tuple(codes)


class AuthenticationError(RegistryError):
    """A registry or its token server does not grant access, or must not be told credentials."""


class RateLimitedError(RegistryError):
    """A registry wants fewer requests.

    Attributes:
        retry_after: After how many seconds it may be asked again; None where it did not say.
    """

    def __init__(
        self, what: str, reason: str, *, url: str, codes: Sequence[str] = (), retry_after: float | None = None
    ) -> None:
        wait = "" if retry_after is None else f"; it may be asked again after {retry_after:.0f} s"
        super().__init__(what, reason + wait, url=url, status=429, codes=codes)
        self.retry_after = retry_after


class ConfigurationError(_FileError, SourceError, ValueError):
    """A file of credentials or certificates for a registry is not usable. The message does not quote the file."""


# ── the target ──


class InsufficientSpaceError(DockerSaveError, OSError):
    """There is not enough space for the archive, or for content that is staged; the last of the space stays free.

    Attributes:
        path: The target.
        needed: Bytes that are still to be written.
        available: Bytes that there are.
    """

    def __init__(self, path: str, needed: int, available: int) -> None:
        super().__init__(
            f"{path}: {needed} bytes are needed there, {available} are free; free some space, or write to another place"
        )
        self.errno = errno.ENOSPC
        self.path = path
        self.needed = needed
        self.available = available


class PartFileError(_FileError):
    """A part file cannot be resumed."""


class PartFileLockedError(PartFileError):
    """Another save is writing the part file."""

    def __init__(self, path: str) -> None:
        super().__init__(path, "another save is writing it at the moment")


# ── the environment ──


class EventLoopError(DockerSaveError, RuntimeError):
    """The code does not run on an asyncio event loop."""

    def __init__(self) -> None:
        super().__init__("aiodockersave runs on asyncio only; under trio or without a loop use asyncio.run()")


class MissingDependencyError(DockerSaveError, ImportError):
    """An optional dependency is not installed.

    Attributes:
        extra: The extra of this package that brings it.
    """

    def __init__(self, what: str, extra: str) -> None:
        super().__init__(f"{what} needs an optional dependency: pip install 'aiodockersave[{extra}]'")
        self.what = what
        self.extra = extra
