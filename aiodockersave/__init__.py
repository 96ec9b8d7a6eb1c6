"""Write ``docker save`` archives with asyncio, from blobs streamed from anywhere to any async byte sink.

Only the public names live here. They are resolved when they are first used (PEP 562), so that
``import aiodockersave`` loads neither asyncio nor any dependency.
"""

import _signal  # type: ignore[import-not-found]  # what `signal` is made of, which takes 15 ms to load
import sys

# Where these are the first lines of our own program, Ctrl-C ends the process at once, as SIGTERM does, until a loop takes it
# over: there is nothing to clean up yet, and a KeyboardInterrupt in the middle of an import is no pretty sight.
_is_program = "".join(sys.argv[:1]).rpartition("/")[2] == __name__ or (
    sys.argv[:1] == ["-m"] and ("-m", __name__) in zip(sys.orig_argv, sys.orig_argv[1:], strict=False)
)
if _is_program and _signal.getsignal(_signal.SIGINT) is _signal.default_int_handler:
    try:  # noqa: SIM105 - contextlib takes long to load
        _signal.signal(_signal.SIGINT, _signal.SIG_DFL)
    except ValueError:  # in another thread than the first: this is no program of ours
        pass

from importlib import import_module  # noqa: E402 - as soon as can be, before all that can take long
from typing import TYPE_CHECKING  # noqa: E402

__version__ = "0.1.0.dev0"

if TYPE_CHECKING:
    from .archive.archive_file import open_archive
    from .archive.stream import archive_stream, stream_plan
    from .archive.writer import ArchiveWriter
    from .blobs.content import Content
    from .core.docker_archive import ManifestItem
    from .core.documents import ImageConfig, ImageIndex, ImageManifest
    from .core.errors import (
        AuthenticationError,
        BlobNotFoundError,
        ConfigurationError,
        ContentError,
        ContentTooLargeError,
        DecompressionError,
        DigestMismatchError,
        DockerSaveError,
        EventLoopError,
        ImageConflictError,
        ImageNotFoundError,
        InsufficientSpaceError,
        InvalidDigestError,
        InvalidDocumentError,
        InvalidInputError,
        InvalidPlatformError,
        InvalidReferenceError,
        MissingDependencyError,
        NameConflictError,
        PartFileError,
        PartFileLockedError,
        PlatformNotFoundError,
        RateLimitedError,
        RegistryError,
        SinkError,
        SizeMismatchError,
        SourceError,
        TransferError,
        UnsupportedImageError,
        WriterBrokenError,
        WriterClosedError,
        WriterError,
    )
    from .core.model import Descriptor, Digest, Format, Layers, Platform
    from .core.plan import ArchiveMember, ImageSpec, Plan, Report, Segment, plan_archive
    from .core.reference import Reference
    from .pipeline.progress import (
        Event,
        ImageFinished,
        LayerAdvanced,
        LayerFinished,
        LayerRetried,
        LayerReused,
        LayerStarted,
        Progress,
        SaveFinished,
        SaveStarted,
        Waiting,
    )
    from .pipeline.resolve import ImageRequest, Prepared, PreparedImage, prepare
    from .pipeline.save import save
    from .sinks.adapters import AnySink, Sink, as_sink
    from .sources import ResolvedImage, Source, SupportsEarlyBlobs
    from .sources.credentials import (
        Credentials,
        CredentialStore,
        DockerCredentials,
        MappingCredentials,
        StaticCredentials,
    )
    from .sources.oci_layout import OciLayoutSource
    from .sources.registry import RegistrySource, Retries, Timeouts
    from .sources.waits import SupportsWaits, Wait

__all__ = [
    "AnySink",
    "ArchiveMember",
    "ArchiveWriter",
    "AuthenticationError",
    "BlobNotFoundError",
    "ConfigurationError",
    "Content",
    "ContentError",
    "ContentTooLargeError",
    "CredentialStore",
    "Credentials",
    "DecompressionError",
    "Descriptor",
    "Digest",
    "DigestMismatchError",
    "DockerCredentials",
    "DockerSaveError",
    "Event",
    "EventLoopError",
    "Format",
    "ImageConfig",
    "ImageConflictError",
    "ImageFinished",
    "ImageIndex",
    "ImageManifest",
    "ImageNotFoundError",
    "ImageRequest",
    "ImageSpec",
    "InsufficientSpaceError",
    "InvalidDigestError",
    "InvalidDocumentError",
    "InvalidInputError",
    "InvalidPlatformError",
    "InvalidReferenceError",
    "LayerAdvanced",
    "LayerFinished",
    "LayerRetried",
    "LayerReused",
    "LayerStarted",
    "Layers",
    "ManifestItem",
    "MappingCredentials",
    "MissingDependencyError",
    "NameConflictError",
    "OciLayoutSource",
    "PartFileError",
    "PartFileLockedError",
    "Plan",
    "Platform",
    "PlatformNotFoundError",
    "Prepared",
    "PreparedImage",
    "Progress",
    "RateLimitedError",
    "Reference",
    "RegistryError",
    "RegistrySource",
    "Report",
    "ResolvedImage",
    "Retries",
    "SaveFinished",
    "SaveStarted",
    "Segment",
    "Sink",
    "SinkError",
    "SizeMismatchError",
    "Source",
    "SourceError",
    "StaticCredentials",
    "SupportsEarlyBlobs",
    "SupportsWaits",
    "Timeouts",
    "TransferError",
    "UnsupportedImageError",
    "Wait",
    "Waiting",
    "WriterBrokenError",
    "WriterClosedError",
    "WriterError",
    "__version__",
    "archive_stream",
    "as_sink",
    "open_archive",
    "plan_archive",
    "prepare",
    "save",
    "stream_plan",
]

# Where each name lives; what is not listed is an error.
_ROOMS = {
    "Retries": "sources.registry",
    "Timeouts": "sources.registry",
    "Progress": "pipeline.progress",
    "Layers": "core.model",
    "Format": "core.model",
    "Content": "blobs.content",
    "AnySink": "sinks.adapters",
    "Descriptor": "core.model",
    "Digest": "core.model",
    "ImageConfig": "core.documents",
    "ImageIndex": "core.documents",
    "ImageManifest": "core.documents",
    "Platform": "core.model",
    "Reference": "core.reference",
    "ImageSpec": "core.plan",
    "Plan": "core.plan",
    "plan_archive": "core.plan",
    "Sink": "sinks.adapters",
    "as_sink": "sinks.adapters",
    "ArchiveWriter": "archive.writer",
    "Report": "core.plan",
    "open_archive": "archive.archive_file",
    "ResolvedImage": "sources",
    "Source": "sources",
    "SupportsEarlyBlobs": "sources",
    "SupportsWaits": "sources.waits",
    "Wait": "sources.waits",
    "OciLayoutSource": "sources.oci_layout",
    "RegistrySource": "sources.registry",
    "CredentialStore": "sources.credentials",
    "Credentials": "sources.credentials",
    "DockerCredentials": "sources.credentials",
    "MappingCredentials": "sources.credentials",
    "StaticCredentials": "sources.credentials",
    "ImageRequest": "pipeline.resolve",
    "ArchiveMember": "core.plan",
    "Segment": "core.plan",
    "ManifestItem": "core.docker_archive",
    "prepare": "pipeline.resolve",
    "Prepared": "pipeline.resolve",
    "PreparedImage": "pipeline.resolve",
    "Event": "pipeline.progress",
    "SaveStarted": "pipeline.progress",
    "Waiting": "pipeline.progress",
    "LayerStarted": "pipeline.progress",
    "LayerAdvanced": "pipeline.progress",
    "LayerFinished": "pipeline.progress",
    "LayerReused": "pipeline.progress",
    "LayerRetried": "pipeline.progress",
    "SaveFinished": "pipeline.progress",
    "ImageFinished": "pipeline.progress",
    "save": "pipeline.save",
    "archive_stream": "archive.stream",
    "stream_plan": "archive.stream",
}

if not TYPE_CHECKING:  # a type checker would take any misspelt name for one of these

    def __getattr__(name: str) -> object:
        """Load a public name from its room, and keep it."""
        room = "core.errors" if name.endswith("Error") else _ROOMS.get(name)
        if name not in __all__ or room is None:
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        value = globals()[name] = getattr(import_module(f".{room}", __name__), name)
        return value

    def __dir__() -> list[str]:
        """List the public names too that are not loaded yet."""
        return sorted({*globals(), *__all__})
