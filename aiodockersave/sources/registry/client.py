"""Images out of registries, by the distribution protocol (OCI distribution-spec), over aiohttp.

::

    resolve("alpine:3.20", linux/arm64)
        HEAD /v2/library/alpine/manifests/3.20         the registry itself: only it knows what a tag means
        GET /v2/library/alpine/manifests/sha256:…      mirrors first from here on: the digest says what is right
        GET /v2/library/alpine/blobs/sha256:…          the config
    open_blob(layer)
        GET /v2/library/alpine/blobs/sha256:…          with ranges, as often as it takes

What a digest names in a repository is kept, so that the same image costs one request the next time. A HEAD does not
count against the limits that registries have for pulls. Where nothing is kept yet, and no mirror may have it, a GET by
the tag brings the document too, and saves a round trip.

How it is asked is told by the modules beside: ``_endpoint`` (an address, and its scheme), ``_auth`` (logging in),
``_transport`` (redirects), ``_dialling`` and ``_addresses`` (what may be connected to), ``_retrying`` and ``_blobs``
(not giving up), ``_documents`` (manifests).
"""

from __future__ import annotations

import asyncio
import os
import ssl
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import AbstractAsyncContextManager
from dataclasses import replace
from typing import TYPE_CHECKING, Final, Self, TypeVar

from aiodockersave._aio import close_all, running_task
from aiodockersave.core.documents import ImageIndex, ImageManifest
from aiodockersave.core.errors import (
    BlobNotFoundError,
    DockerSaveError,
    ImageNotFoundError,
    InvalidDocumentError,
    RegistryError,
    UnsupportedImageError,
)
from aiodockersave.core.model import INDEX_TYPES, MANIFEST_TYPES, Descriptor, Digest, Platform
from aiodockersave.core.reference import Reference
from aiodockersave.core.text import Secrets, cut, shown_url
from aiodockersave.sources import (
    ResolvedImage,
    check_document_size,
    check_supported,
    default_platform,
)

from .addresses import DialGuard
from .answers import discretion
from .blob_reader import BlobReader, Wanted
from .cache import Kept, Recent
from .certificates import tls_context
from .endpoint import Endpoint, Place, Retries, Sleep, Turns
from .manifests import fetch_config, fetch_digest, fetch_manifest
from .session_pool import Proxies, Settings, Timeouts

if TYPE_CHECKING:
    import aiohttp

    from aiodockersave.sources.credentials import CredentialStore

__all__ = ["DialGuard", "RegistrySource", "Retries", "Timeouts"]

_MAX_DEPTH: Final = 4
"""Indexes, one in the other; real ones have one."""
_MAX_CONTEXTS: Final = 64
_MAX_URLS: Final = 8
_NOT_FOUND = 404

Path = str | os.PathLike[str]
T = TypeVar("T")


class RegistrySource:
    """The images of any number of registries, and of their mirrors.

    Leave it by ``async with``, or call :meth:`aclose`. It belongs to the event loop on which it is used first.

    A layer's descriptor out of a manifest that was resolved here is looked for in the repository of that manifest; one
    that you made yourself in all repositories of images that were resolved with the same source. What is kept is kept for
    its repository, so that nobody gets by a digest what the registry would not give from there. Whether somebody may
    read a repository with the credentials of a source that several people share is for you to decide.

    Args:
        credentials: Knows usernames and passwords; by default what Docker and podman keep.
        session: A session of the caller's, whose connector is used. Nothing else of it is, and it is neither changed nor
            closed. Its connector dials by itself, so whether a registry may point at a host is checked by resolving the
            name just before, and, if it is a plain ``TCPConnector``, at the other end of the connection before anything
            is sent. With another one a resolver that then changes its mind is not noticed. Where neither ``ca_file`` nor
            ``cert_dir`` is given, its own TLS settings decide which certificates are accepted.
        plain_http: Whether registries are asked by http. Without it, only ``localhost`` and loopback addresses are, where
            they refuse TLS and no authority is given.
        ca_file: More certificate authorities, in PEM.
        cert_dir: A directory of authorities and of a client certificate, laid out as Docker does.
        mirrors: URLs of mirrors, which are asked first, in this order, for what is named by a digest; a path is what
            stands before the names of repositories. What a tag means is asked of the registry itself.
        timeouts: How long things may take.
        retries: The limits on asking again.
        guard: The rules for addresses that a registry points at.
        sleep: Waits for seconds between attempts.

    Proxies are taken from the environment, as Docker takes them.

    Raises:
        InvalidInputError: A mirror is no URL.
    """

    def __init__(
        self,
        *,
        credentials: CredentialStore | None = None,
        session: aiohttp.ClientSession | None = None,
        plain_http: bool = False,
        ca_file: Path | None = None,
        cert_dir: Path | None = None,
        mirrors: Sequence[str] = (),
        timeouts: Timeouts | None = None,
        retries: Retries | None = None,
        guard: DialGuard | None = None,
        sleep: Sleep | None = None,
    ) -> None:
        if isinstance(mirrors, str):
            raise TypeError("mirrors is a list of URLs")
        self._credentials = credentials or _default_credentials()
        self._plain_http = plain_http
        self._ca_file = ca_file
        self._cert_dir = cert_dir
        self._retries = retries or Retries()
        self._sleep = sleep or asyncio.sleep
        self._settings = Settings(
            tls=self._tls,
            timeouts=timeouts or Timeouts(),
            guard=guard or DialGuard(),
            proxies=Proxies.read(os.environ),
            session=session,
        )
        self._secrets = Secrets()
        self._contexts: Recent[tuple[str, bool], ssl.SSLContext] = Recent(_MAX_CONTEXTS)
        self._mirrors = [
            Endpoint.of_mirror(url, self._settings, self._credentials, self._secrets) for url in mirrors
        ]
        self._registries: dict[str, Endpoint] = {}
        self._kept = Kept()
        self._is_closed = False

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.aclose()

    async def aclose(self) -> None:
        """Close all connections, but those of a caller's session. The source cannot be used any more.

        Cancel: they are closed all the same, but not waited for.
        """
        self._is_closed = True
        await close_all(endpoint.aclose for endpoint in (*self._mirrors, *self._registries.values()))

    def _check_open(self) -> None:
        running_task()
        if self._is_closed:
            raise RuntimeError("the source is closed")

    # ── images ──

    async def resolve(self, reference: str, platform: Platform | None = None) -> ResolvedImage:
        """Find an image.

        Args:
            reference: A name as Docker writes it; ``latest`` where there is neither tag nor digest. Beside a digest, a
                tag is only the name that the image gets.
            platform: Which manifest of an index is taken; by default ``linux`` on this machine's architecture.

        Raises:
            InvalidReferenceError: It is no such name.
            ImageNotFoundError: The registry has no such image.
            PlatformNotFoundError: It is not there for ``platform``.
            UnsupportedImageError: What is there is no image.
            InvalidDocumentError, ContentError: A document is not valid, or not the one that was promised.
            AuthenticationError, RateLimitedError, RegistryError: The registry refuses.
            TransferError: It does not answer, for all attempts.
            ConfigurationError: Credentials or certificates cannot be read.

        Cancel: nothing stays open.
        """
        return await self.resolve_early(reference, platform or default_platform(), lambda _: None)

    async def resolve_early(
        self, reference: str, platform: Platform, found: Callable[[ImageManifest], None]
    ) -> ResolvedImage:
        """Find an image as :meth:`resolve` does; ``found`` is told its manifest before the config is asked for.

        Not where a session was lent. Errors are those of :meth:`resolve`.

        Cancel: nothing stays open, but what was opened because of ``found``.
        """
        self._check_open()
        image = Reference.parse(reference).with_default_tag()
        with discretion(self._secrets, str(image), *self._own_urls(image), image.name):
            return await self._resolve(reference, image, platform, found)

    async def _resolve(
        self,
        reference: str,
        image: Reference,
        platform: Platform,
        found: Callable[[ImageManifest], None],
    ) -> ResolvedImage:
        manifest = await self._image_manifest(image, platform)
        what = f"{image} (manifest {manifest.digest})"
        # Before the config is fetched, which may be anything where this is no image.
        check_supported(manifest, what)
        self._kept.put_layers(image, manifest)
        # A lent session may have few connections: what waits unread there could keep all of them from the config.
        if self._settings.session is None:
            found(manifest)
        config = await self._config(image, manifest.config)
        return ResolvedImage(reference, manifest, config, _default_tags(image), self._secrets)

    async def _image_manifest(self, image: Reference, platform: Platform) -> ImageManifest:
        if image.digest is None:
            document = await self._tagged(image)
        else:
            document = await self._document(image, _by_digest(image.digest))
        for _ in range(_MAX_DEPTH):
            if isinstance(document, ImageManifest):
                return document
            document = await self._document(image, document.select(platform))
        raise UnsupportedImageError(f"{image} ({document.digest})", f"it is an index {_MAX_DEPTH} deep")

    async def _tagged(self, image: Reference) -> ImageManifest | ImageIndex:
        """Return what a tag means now."""
        registry, tag, what = self._registry(image), str(image.tag), f"manifest {image}"
        is_digest_enough = self._kept.has_manifests or len(self._places(image)) > 1

        async def ask(place: Place) -> ImageManifest | ImageIndex | Digest:
            nonlocal is_digest_enough
            if is_digest_enough:
                is_digest_enough = False  # for the next attempt: some registries have trouble with HEAD
                digest = await fetch_digest(place, tag, what)
                if digest is not None:
                    return digest
            return await fetch_manifest(place, tag, what, None)

        found = await self._fetch(image, what, [registry], ask)
        if isinstance(found, Digest):
            return await self._document(image, _by_digest(found))
        self._kept.put_manifest(image, found)
        return found

    async def _document(self, image: Reference, expected: Descriptor) -> ImageManifest | ImageIndex:
        what = f"manifest {image}"
        what = f"{what} ({expected.digest})" if expected.digest != image.digest else what
        _check_manifest_type(expected, what)
        check_document_size(expected, what)
        known = self._kept.manifest(image, expected.digest)
        if known is not None and expected.size in (None, len(known.raw)):
            return _of_type(known, expected, what)

        async def ask(place: Place) -> ImageManifest | ImageIndex:
            return await fetch_manifest(place, str(expected.digest), what, expected)

        document = await self._fetch(image, what, self._places(image), ask)
        self._kept.put_manifest(image, document)
        return _of_type(document, expected, what)

    async def _fetch(
        self, image: Reference, what: str, places: Sequence[Place], ask: Callable[[Place], Awaitable[T]]
    ) -> T:
        try:
            return await Turns(what, places, self._retries, self._sleep).run(ask)
        except RegistryError as exc:
            if exc.status != _NOT_FOUND:
                raise
            raise ImageNotFoundError(str(image), f"{exc.url}: {exc.reason}") from exc

    async def _config(self, image: Reference, descriptor: Descriptor) -> bytes:
        what = f"config {descriptor.digest} of {image}"
        check_document_size(descriptor, what)
        known = self._kept.config(image, descriptor.digest)
        if known is not None and descriptor.size == len(known):
            return known

        async def ask(place: Place) -> bytes:
            return await fetch_config(place, descriptor, what)

        try:
            config = await Turns(what, self._places(image), self._retries, self._sleep).run(ask)
        except RegistryError as exc:
            if exc.status != _NOT_FOUND:
                raise
            raise BlobNotFoundError(descriptor.digest, f"{image.name} ({exc.url})") from exc
        self._kept.put_config(image, descriptor.digest, config)
        return config

    # ── blobs ──

    def open_blob(
        self, descriptor: Descriptor, *, start: int = 0, stop: int | None = None
    ) -> AbstractAsyncContextManager[AsyncIterator[bytes]]:
        """Open a layer of an image that was resolved; its bytes from ``start`` up to ``stop`` are iterated in the block.

        What breaks off goes on where it broke. Not more bytes are given than ``descriptor`` promises; whether they are
        the right ones is for the reader to verify.

        Raises:
            BlobNotFoundError: No repository has it, or no image that was resolved names it.
            UnsupportedImageError: It is a foreign layer, which the registry does not have.
            SizeMismatchError: It is longer or shorter than promised.
            TransferError: It breaks off without end, or the registry sends far too much.
            DockerSaveError: As :meth:`resolve`.

        Cancel: nothing stays open.
        """
        return _Reading(lambda: self._reader(descriptor, Wanted.of(descriptor, start, stop)))

    def _reader(
        self, descriptor: Descriptor, wanted: Wanted
    ) -> tuple[BlobReader, Callable[[], Awaitable[None]]]:
        """Return what reads a blob, and what opens it."""
        self._check_open()
        images = self._kept.repositories(descriptor)
        if not images:
            raise BlobNotFoundError(
                descriptor.digest, "any image that was resolved here; resolve its image first"
            )
        places = [place for image in images for place in self._places(image)]
        names = ", ".join(image.name for image in images)
        what = f"blob {descriptor.digest} of {names}"
        reader = BlobReader(what, descriptor, wanted, places, self._retries, self._sleep)

        async def open_it() -> None:
            urls = [url for image in images for url in self._own_urls(image)]
            with discretion(self._secrets, what, *urls, names):
                await _open(reader, descriptor, names, self._secrets)

        return reader, open_it

    # ── places ──

    def _own_urls(self, image: Reference) -> list[str]:
        """Return the beginnings of URLs that are made of what the user gave, longer ones first."""
        places = [*(mirror.place(image.repository) for mirror in self._mirrors), self._registry(image)]
        return [place.url + path for path in ("manifests/", "blobs/", "") for place in places]

    def _places(self, image: Reference) -> list[Place]:
        """Return where content is that is named by its digest."""
        mirrors = [mirror.place(image.repository) for mirror in self._mirrors if mirror.is_answering]
        return [*mirrors, self._registry(image)]

    def _registry(self, image: Reference) -> Place:
        endpoint = self._registries.get(image.registry)
        if endpoint is None:
            endpoint = self._registries[image.registry] = Endpoint.of_registry(
                image.registry,
                self._settings,
                self._credentials,
                plain_http=self._plain_http,
                has_authorities=self._ca_file is not None or self._cert_dir is not None,
                secrets=self._secrets,
            )
        return endpoint.place(image.repository)

    async def _tls(self, host_port: str, is_named: bool) -> ssl.SSLContext | bool:  # noqa: FBT001 - a callback
        if self._settings.session is not None and self._ca_file is None and self._cert_dir is None:
            return True  # as the caller's connector is set up
        context = self._contexts.get((host_port, is_named))
        if context is None:
            context = await tls_context(
                host_port, ca_file=self._ca_file, cert_dir=self._cert_dir, shows_client=is_named
            )
            self._contexts.put((host_port, is_named), context)
        return context


class _Reading:
    """A blob while it is open."""

    # No async generator: up to Python 3.12 one that waits is not told that its coroutine is closed.

    def __init__(self, make: Callable[[], tuple[BlobReader, Callable[[], Awaitable[None]]]]) -> None:
        self._make = make
        self._reader: BlobReader | None = None

    async def __aenter__(self) -> BlobReader:
        self._reader, open_it = self._make()
        try:
            await open_it()
        except BaseException:
            self._reader.close()
            raise
        return self._reader

    async def __aexit__(self, *_: object) -> None:
        if self._reader is not None:
            self._reader.close()


def _default_credentials() -> CredentialStore:
    from aiodockersave.sources.credentials import DockerCredentials  # noqa: PLC0415 - not needed where the caller has others

    return DockerCredentials()


def _default_tags(image: Reference) -> tuple[str, ...]:
    return () if image.tag is None else (replace(image, digest=None).repo_tag,)


def _by_digest(digest: Digest) -> Descriptor:
    """Describe a document of which only the digest is known."""
    return Descriptor(_ANY_TYPE, digest, None)


_ANY_TYPE = "*/*"


def _check_manifest_type(expected: Descriptor, what: str) -> None:
    if expected.media_type not in {*MANIFEST_TYPES, *INDEX_TYPES, _ANY_TYPE}:
        raise UnsupportedImageError(what, f"it is a {cut(expected.media_type)}, not an image")


def _of_type(
    document: ImageManifest | ImageIndex, expected: Descriptor, what: str
) -> ImageManifest | ImageIndex:
    if expected.media_type not in (_ANY_TYPE, document.media_type):
        raise InvalidDocumentError(expected.media_type, f"{what}: it is a {document.media_type}")
    return document


async def _open(reader: BlobReader, descriptor: Descriptor, names: str, secrets: Secrets) -> None:
    error: DockerSaveError
    try:
        await reader.open()
    except RegistryError as exc:
        if exc.status != _NOT_FOUND:
            raise
        if descriptor.urls:
            elsewhere = ", ".join(shown_url(url, secrets=secrets) for url in descriptor.urls[:_MAX_URLS])
            reason = f"it is a foreign layer, which the registry does not have; it is at {elsewhere}, which is not asked"
            error = UnsupportedImageError(f"layer {descriptor.digest} of {names} ({exc.url})", reason)
        else:
            error = BlobNotFoundError(descriptor.digest, f"{names} ({exc.url})")
        raise error from exc
