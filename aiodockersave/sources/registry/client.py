"""Images out of registries, by the distribution protocol (OCI distribution-spec), over aiohttp.

::

    resolve("alpine:3.20", linux/arm64)
        HEAD /v2/library/alpine/manifests/3.20         the registry itself: a mirror's tags may be old
        GET /v2/library/alpine/manifests/sha256:…      mirrors first from here on: the digest verifies content
        GET /v2/library/alpine/blobs/sha256:…          the config
    open_blob(layer)
        GET /v2/library/alpine/blobs/sha256:…          with ranges, as often as it takes

Manifests and configs are kept by repository and digest, so that the same image costs one request the next time. A HEAD
does not count against the limits that registries have for pulls. Where no manifest is kept yet, and there is no mirror
to ask, a GET by the tag brings the document at once and saves a round trip.

The modules beside hold the parts: ``manifests`` and ``blob_reader`` (what is fetched), ``endpoint`` (an address, its
scheme, and the order of attempts), ``auth`` (logging in), ``transport`` (redirects), ``session_pool``, ``addresses`` and
``certificates`` (connections), ``answers`` (what registries and connections report), ``cache``.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Sequence
from contextlib import AbstractAsyncContextManager, closing, contextmanager
from dataclasses import replace
from functools import partial
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
    warn_of_size,
)
from aiodockersave.sources.waits import Sleep, Wait, Waits

from .addresses import DialGuard
from .answers import discretion
from .blob_reader import BlobReader, Wanted
from .cache import Kept
from .certificates import Path, TlsContexts
from .endpoint import Endpoint, Place, Retries, Turns
from .manifests import fetch_config, fetch_digest, fetch_manifest
from .session_pool import Proxies, Settings
from .timeouts import Timeouts

if TYPE_CHECKING:
    import aiohttp

    from aiodockersave.sources.credentials import CredentialStore

__all__ = ["DialGuard", "RegistrySource", "Retries", "Timeouts"]

_MAX_DEPTH: Final = 4
"""The deepest nesting of indexes that is followed; real images have one index."""
_MAX_URLS: Final = 8
"""URLs of a foreign layer that an error lists: a manifest may name any number."""
_ANY_TYPE: Final = "*/*"
"""The media type of a document of which only the digest is known."""
_OK = 200
_NOT_FOUND = 404

T = TypeVar("T")


class RegistrySource:
    """The images of any number of registries, and of their mirrors.

    Use the source in ``async with``, or call :meth:`aclose`. It belongs to the event loop on which it is used first.
    Proxies are read from the environment, as Docker reads them.

    :meth:`open_blob` looks for a layer in the repository whose manifest gave the descriptor, if the manifest was resolved
    with this source. It looks for a descriptor that you made yourself in all repositories that were resolved with this
    source. Documents are kept for their repository alone, so that nobody gets by a digest a document that the registry
    would not give from there. Where several people share a source, decide yourself who may read with its credentials.

    Args:
        credentials: The store of usernames and passwords; by default those that Docker and podman keep.
        session: A session of the caller's, whose connector is used. Nothing else of the session is used, and the session
            is neither changed nor closed. Its connector dials by itself. So the name of a host that a registry points at
            is resolved and checked just before, and the other end of the connection is checked before anything is sent,
            if the connector is a plain ``TCPConnector``. With another connector, a resolver that changes its answer after
            the check is not noticed. Where neither ``ca_file`` nor ``cert_dir`` is given, the connector's own TLS
            settings decide which certificates are accepted.
        plain_http: Whether registries are asked by http. Without it, only ``localhost`` and loopback addresses are, where
            they refuse TLS and no authority is given.
        ca_file: More certificate authorities, in PEM.
        cert_dir: A directory of authorities and of a client certificate, laid out as Docker does.
        mirrors: URLs of mirrors, which are asked first, in this order, for content that is named by a digest. The path of
            a URL is put before the names of repositories. Tags are asked of the registry itself.
        timeouts: The limits on time.
        retries: The limits on asking again.
        guard: The rules for addresses that a registry points at.
        sleep: A coroutine function that waits between attempts, for a number of seconds.

    Raises:
        InvalidInputError: A mirror is not a URL.
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
        self._contexts = TlsContexts(ca_file, cert_dir, is_lent=session is not None)
        self._retries = retries or Retries()
        self._waits = Waits(sleep or asyncio.sleep)
        self._settings = Settings(
            tls=self._contexts.get,
            timeouts=timeouts or Timeouts(),
            guard=guard or DialGuard(),
            proxies=Proxies.read(os.environ),
            session=session,
            waits=self._waits,
        )
        self._secrets = Secrets()
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
        """Close all connections, except those of a caller's session. The source cannot be used any more.

        Cancel: the connections are closed all the same, but their ends are not waited for.
        """
        self._is_closed = True
        await close_all(endpoint.aclose for endpoint in (*self._mirrors, *self._registries.values()))

    def _check_open(self) -> None:
        running_task()
        if self._is_closed:
            raise RuntimeError("the source is closed")

    def waits(self) -> list[Wait]:
        """Return what the source waits for at this moment, the longest wait first."""
        return self._waits.listed()

    # ── logins ──

    async def check_login(self, registry: str) -> bool:
        """Ask a registry whether it takes the credentials that the store has for it.

        Args:
            registry: Host and perhaps port, as in references.

        Returns:
            Whether the registry has asked for credentials. If not, they were not shown, and may be wrong.

        Raises:
            InvalidReferenceError: ``registry`` has an address or a port that cannot be.
            AuthenticationError: The registry refuses the credentials, or must not be told them.
            DockerSaveError: As :meth:`resolve`.

        Cancel: nothing stays open.
        """
        self._check_open()
        what, endpoint = f"login at {registry}", self._endpoint(registry)

        async def ask(place: Place) -> None:
            with closing(await place.open(what, "", {})) as response:
                if response.status != _OK:
                    raise await response.failure()

        with discretion(self._secrets, what, endpoint.url("")):
            await Turns(what, [endpoint.place("")], self._retries, self._waits).run(ask)
        return endpoint.is_logged_in

    # ── images ──

    async def resolve(self, reference: str, platform: Platform | None = None) -> ResolvedImage:
        """Find an image.

        Args:
            reference: A name as Docker writes it; ``latest`` where there is neither tag nor digest. Beside a digest, a
                tag is only the name that the image gets.
            platform: The platform whose manifest is taken out of an index; by default ``linux`` on this machine's
                architecture.

        Raises:
            InvalidReferenceError: ``reference`` is not such a name.
            ImageNotFoundError: The registry has no such image.
            PlatformNotFoundError: The image is not there for ``platform``.
            UnsupportedImageError: The reference leads to something that is not an image.
            InvalidDocumentError, ContentError: A document is not valid, or not the one that was promised.
            AuthenticationError, RateLimitedError, RegistryError: The registry refuses.
            TransferError: The registry does not answer, for all attempts.
            ConfigurationError: Credentials or certificates cannot be read.

        Cancel: nothing stays open.
        """
        return await self.resolve_early(reference, platform or default_platform(), lambda _: None)

    async def resolve_early(
        self, reference: str, platform: Platform, found: Callable[[ImageManifest], None]
    ) -> ResolvedImage:
        """Find an image as :meth:`resolve` does, and call ``found`` with its manifest before the config is asked for.

        With a caller's session ``found`` is not called. Errors are those of :meth:`resolve`.

        Cancel: nothing stays open, except blobs that ``found`` has opened.
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
        manifest, index = await self._image_manifest(image, platform)
        what = f"{image} (manifest {manifest.digest})"
        # Before the config is fetched: the config of an artifact may be anything.
        check_supported(manifest, what)
        self._kept.put_layers(image, manifest)
        # A lent session may have few connections, and layers that wait unread could take all of them from the config.
        if self._settings.session is None:
            found(manifest)
        config = await self._config(image, manifest.config)
        return ResolvedImage(reference, manifest, config, _default_tags(image), self._secrets, index)

    async def _image_manifest(
        self, image: Reference, platform: Platform
    ) -> tuple[ImageManifest, ImageIndex | None]:
        """Return the image's manifest, and the index that it was chosen from, if there was one."""
        if image.digest is None:
            document = await self._tagged(image)
        else:
            document = await self._document(image, _by_digest(image.digest))
        index = None
        for _ in range(_MAX_DEPTH):
            if isinstance(document, ImageManifest):
                return document, index
            index = document
            document = await self._document(image, document.select(platform))
        raise UnsupportedImageError(f"{image} ({document.digest})", f"it is an index {_MAX_DEPTH} deep")

    async def _tagged(self, image: Reference) -> ImageManifest | ImageIndex:
        """Return the manifest or index that a tag names now."""
        registry, tag, what = self._registry(image), str(image.tag), f"manifest {image}"
        is_digest_enough = self._kept.has_manifests or len(self._places(image)) > 1

        async def read(place: Place) -> ImageManifest | ImageIndex:
            return await fetch_manifest(place, tag, what, None)

        async def ask(place: Place) -> ImageManifest | ImageIndex | Digest:
            nonlocal is_digest_enough
            if is_digest_enough:
                is_digest_enough = False  # for the next attempt: some registries have trouble with HEAD
                digest = await fetch_digest(place, tag, what)
                if digest is not None:
                    return digest
            return await read(place)

        found = await self._fetch(image, what, [registry], ask)
        if isinstance(found, Digest):
            try:
                return await self._document(image, _by_digest(found))
            except ImageNotFoundError:  # some proxies have manifests by their tags alone
                found = await self._fetch(image, what, [registry], read)
        self._kept.put_manifest(image, found)
        return found

    async def _document(self, image: Reference, expected: Descriptor) -> ImageManifest | ImageIndex:
        what = f"manifest {image}"
        what = f"{what} ({expected.digest})" if expected.digest != image.digest else what
        _check_manifest_type(expected, what)
        check_document_size(expected, what)
        known = self._kept.manifest(image, expected.digest)
        if known is not None:
            warn_of_size(known.raw, expected, what)
            return _of_type(known, expected, what)

        async def ask(place: Place) -> ImageManifest | ImageIndex:
            return await fetch_manifest(place, str(expected.digest), what, expected)

        document = await self._fetch(image, what, self._places(image), ask)
        self._kept.put_manifest(image, document)
        return _of_type(document, expected, what)

    async def _fetch(
        self, image: Reference, what: str, places: Sequence[Place], ask: Callable[[Place], Awaitable[T]]
    ) -> T:
        with _not_found_as(lambda exc: ImageNotFoundError(str(image), f"{exc.url}: {exc.reason}")):
            return await Turns(what, places, self._retries, self._waits).run(ask)

    async def _config(self, image: Reference, descriptor: Descriptor) -> bytes:
        what = f"config {descriptor.digest} of {image}"
        check_document_size(descriptor, what)
        known = self._kept.config(image, descriptor.digest)
        if known is not None and descriptor.size == len(known):
            return known

        async def ask(place: Place) -> bytes:
            return await fetch_config(place, descriptor, what)

        with _not_found_as(lambda exc: BlobNotFoundError(descriptor.digest, f"{image.name} ({exc.url})")):
            config = await Turns(what, self._places(image), self._retries, self._waits).run(ask)
        self._kept.put_config(image, descriptor.digest, config)
        return config

    # ── blobs ──

    def open_blob(
        self, descriptor: Descriptor, *, start: int = 0, stop: int | None = None
    ) -> AbstractAsyncContextManager[AsyncIterator[bytes]]:
        """Open a layer of an image that was resolved; iterate its bytes from ``start`` up to ``stop`` inside the block.

        A transfer that breaks off is resumed where it broke. No more bytes are given than ``descriptor`` promises. The
        reader of the bytes must verify their digest.

        Args:
            descriptor: The layer, with its size.
            start: The offset of the first byte.
            stop: The offset behind the last byte; the end of the layer by default.

        Raises:
            BlobNotFoundError: No repository has the layer, or no image that was resolved names it.
            UnsupportedImageError: The layer is a foreign one, which the registry does not have.
            SizeMismatchError: The layer is longer or shorter than promised.
            TransferError: The transfer broke off in every attempt, or the registry sends far too much.
            InvalidInputError: The size of the layer is not known, or there is no such range of it.
            DockerSaveError: As :meth:`resolve`.

        Cancel: nothing stays open.
        """
        return _Reading(lambda: self._open_reader(descriptor, Wanted.of(descriptor, start, stop)))

    async def _open_reader(self, descriptor: Descriptor, wanted: Wanted) -> BlobReader:
        self._check_open()
        images = self._kept.repositories(descriptor)
        if not images:
            raise BlobNotFoundError(
                descriptor.digest, "any image that was resolved here; resolve its image first"
            )
        places = [place for image in images for place in self._places(image)]
        urls = [url for image in images for url in self._own_urls(image)]
        names = ", ".join(image.name for image in images)
        what = f"blob {descriptor.digest} of {names}"
        reader = BlobReader(what, descriptor, wanted, places, self._retries, self._waits)
        missing = partial(_missing_layer, descriptor, names, self._secrets)
        try:
            with discretion(self._secrets, what, *urls, names), _not_found_as(missing):
                await reader.open()
        except BaseException:
            reader.close()
            raise
        return reader

    # ── places ──

    def _own_urls(self, image: Reference) -> list[str]:
        """Return the beginnings of the URLs that are made of the user's own words, longer ones first."""
        places = [*(mirror.place(image.repository) for mirror in self._mirrors), self._registry(image)]
        return [place.url + path for path in ("manifests/", "blobs/", "") for place in places]

    def _places(self, image: Reference) -> list[Place]:
        """Return the places of content that is named by its digest: the mirrors, then the registry."""
        mirrors = [mirror.place(image.repository) for mirror in self._mirrors if mirror.is_answering]
        return [*mirrors, self._registry(image)]

    def _registry(self, image: Reference) -> Place:
        return self._endpoint(image.registry).place(image.repository)

    def _endpoint(self, registry: str) -> Endpoint:
        endpoint = self._registries.get(registry)
        if endpoint is None:
            endpoint = self._registries[registry] = Endpoint.of_registry(
                registry,
                self._settings,
                self._credentials,
                plain_http=self._plain_http,
                has_authorities=self._contexts.has_authorities,
                secrets=self._secrets,
            )
        return endpoint


class _Reading:
    """A blob while it is open; a class and no async generator, for the reason at the head of ``_aio``."""

    def __init__(self, open_reader: Callable[[], Awaitable[BlobReader]]) -> None:
        self._open_reader = open_reader
        self._reader: BlobReader | None = None

    async def __aenter__(self) -> BlobReader:
        self._reader = await self._open_reader()
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


def _check_manifest_type(expected: Descriptor, what: str) -> None:
    if expected.media_type not in {*MANIFEST_TYPES, *INDEX_TYPES, _ANY_TYPE}:
        raise UnsupportedImageError(what, f"it is a {cut(expected.media_type)}, not an image")


def _of_type(
    document: ImageManifest | ImageIndex, expected: Descriptor, what: str
) -> ImageManifest | ImageIndex:
    if expected.media_type not in (_ANY_TYPE, document.media_type):
        raise InvalidDocumentError(expected.media_type, f"{what}: it is a {document.media_type}")
    return document


@contextmanager
def _not_found_as(make: Callable[[RegistryError], DockerSaveError]) -> Iterator[None]:
    """Raise the error that ``make`` returns instead of a registry's 404."""
    try:
        yield
    except RegistryError as exc:
        if exc.status != _NOT_FOUND:
            raise
        raise make(exc) from exc


def _missing_layer(
    descriptor: Descriptor, names: str, secrets: Secrets, exc: RegistryError
) -> DockerSaveError:
    if not descriptor.urls:
        return BlobNotFoundError(descriptor.digest, f"{names} ({exc.url})")
    elsewhere = ", ".join(shown_url(url, secrets=secrets) for url in descriptor.urls[:_MAX_URLS])
    reason = (
        f"it is a foreign layer, which the registry does not have; it is at {elsewhere}, which is not asked"
    )
    return UnsupportedImageError(f"layer {descriptor.digest} of {names} ({exc.url})", reason)
