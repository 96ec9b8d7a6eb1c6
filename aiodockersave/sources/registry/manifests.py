"""Fetch manifests, indexes and configs from a registry, and verify each before anything else is done with it.

The digest of a document is computed from the bytes that came. The registry's headers ``Docker-Content-Digest`` and
``Content-Type`` may be missing; where they are there, they must agree with the document.
"""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from typing import Final, NamedTuple

from aiodockersave._aio import Worker
from aiodockersave.core import gojson
from aiodockersave.core.documents import (
    MAX_DOCUMENT_SIZE,
    ImageConfig,
    ImageIndex,
    ImageManifest,
    parse_document,
)
from aiodockersave.core.errors import (
    AuthenticationError,
    DigestMismatchError,
    InvalidDigestError,
    InvalidDocumentError,
    UnsupportedImageError,
)
from aiodockersave.core.model import INDEX_TYPES, MANIFEST_TYPES, Descriptor, Digest
from aiodockersave.core.text import shown
from aiodockersave.sources import check_document, check_manifest

from .answers import InterruptedTransfer, media_type
from .endpoint import Place
from .transport import Response

__all__ = ["Stated", "fetch_config", "fetch_digest", "fetch_manifest", "read_manifest"]

SCHEMA_1_TYPES: Final = frozenset(
    {
        "application/vnd.docker.distribution.manifest.v1+json",
        "application/vnd.docker.distribution.manifest.v1+prettyjws",
    }
)
# Schema 1 is accepted too, so that a registry that has nothing else sends it, and the error can name the reason.
_ACCEPT: Final = ", ".join([*sorted(MANIFEST_TYPES | INDEX_TYPES), *sorted(SCHEMA_1_TYPES)])
# Servers of plain files send these for any document, so they are no statement about this one.
_VAGUE_TYPES: Final = frozenset(
    {"", "application/json", "application/octet-stream", "binary/octet-stream", "text/plain"}
)
_KNOWN_TYPES: Final = MANIFEST_TYPES | INDEX_TYPES | SCHEMA_1_TYPES | _VAGUE_TYPES
_OK = 200


class Stated(NamedTuple):
    """The statements of headers about a document.

    Attributes:
        content_type: ``Content-Type``.
        digests: Every ``Docker-Content-Digest``.
    """

    content_type: str | None = None
    digests: Sequence[str] = ()


async def fetch_manifest(
    place: Place, target: str, what: str, expected: Descriptor | None
) -> ImageManifest | ImageIndex:
    """Fetch a manifest or index from one place.

    Args:
        place: The place.
        target: A tag or a digest.
        what: The name of the document, for errors.
        expected: The document's descriptor; None where only a tag is known.

    Raises:
        InterruptedTransfer: Another attempt may help.
        DockerSaveError: The document is not there, or is not the expected one.

    Cancel: no connection stays open; a document that is being verified is verified to the end, and dropped.
    """
    path = f"manifests/{target}"
    response = await place.open(what, path, {"Accept": _ACCEPT})
    with place.discretion(what, path):
        raw = await _read(response)
        stated = Stated(response.header("Content-Type"), response.headers("Docker-Content-Digest"))
        return await Worker("aiodockersave-document").run(read_manifest, raw, stated, what, expected)


async def fetch_digest(place: Place, tag: str, what: str) -> Digest | None:
    """Ask by HEAD for the digest of the document that a tag names.

    Returns:
        The digest. None where the headers do not give exactly one, or where the HEAD is refused: some registries allow only
        GET, and only the body of an answer to GET tells the reason of a refusal.

    Raises:
        InterruptedTransfer: Another attempt may help.
        DockerSaveError: The registry cannot be asked.

    Cancel: no connection stays open.
    """
    try:
        response = await place.open(what, f"manifests/{tag}", {"Accept": _ACCEPT}, is_head=True)
    except AuthenticationError:
        return None
    with contextlib.closing(response):
        if response.status != _OK:
            fault = await response.failure()
            if isinstance(fault, InterruptedTransfer):
                raise fault
            return None
        return _only_digest(response.headers("Docker-Content-Digest"))


def _only_digest(values: Sequence[str]) -> Digest | None:
    try:
        found = {Digest.parse(value.strip()) for value in values}
    except InvalidDigestError:
        return None
    return found.pop() if len(found) == 1 else None


async def fetch_config(place: Place, descriptor: Descriptor, what: str) -> bytes:
    """Fetch a config from one place; errors as :func:`fetch_manifest`.

    Cancel: as :func:`fetch_manifest`.
    """
    path = f"blobs/{descriptor.digest}"
    response = await place.open(what, path, {"Accept": "*/*"})
    with place.discretion(what, path):
        raw = await _read(response)
        await Worker("aiodockersave-document").run(_check_config, raw, descriptor, what)
    return raw


def _check_config(raw: bytes, descriptor: Descriptor, what: str) -> None:
    check_document(raw, descriptor, what)
    # Parsed here, where the secrets that an error must not show are known; later readers of the config do not know them.
    try:
        ImageConfig.parse(raw)
    except InvalidDocumentError as exc:
        fault = InvalidDocumentError(exc.media_type, f"{what}: {exc.reason}")
    else:
        return
    raise fault


async def _read(response: Response) -> bytes:
    with contextlib.closing(response):
        if response.status != _OK:
            raise await response.failure()
        encoding = response.header("Content-Encoding") or "identity"
        if encoding.strip().lower() != "identity":
            raise response.error(
                f"it answers with Content-Encoding {shown(encoding, secrets=response.secrets, limit=40)}"
            )
        return await response.read(MAX_DOCUMENT_SIZE)


# ── what a document is ──


def read_manifest(
    raw: bytes, stated: Stated, what: str, expected: Descriptor | None = None
) -> ImageManifest | ImageIndex:
    """Verify a manifest or index, and parse it.

    Args:
        raw: The bytes that came.
        stated: The statements of the answer's headers.
        what: The name of the document, for errors.
        expected: The document's digest and, if known, its size.

    Raises:
        ContentError: The document is not the expected one, or not the one that its headers state.
        UnsupportedImageError: The document is of schema 1.
        InvalidDocumentError: The document is not a manifest or index, or not a valid one.
    """
    if expected is not None:
        check_manifest(raw, expected, what)
    for text in dict.fromkeys(stated.digests):
        _check_stated_digest(raw, text, what)
    claimed = media_type(stated.content_type)
    if claimed not in _KNOWN_TYPES:
        claimed = (stated.content_type or "").strip()  # with its parameters, for the error
    if claimed in SCHEMA_1_TYPES:
        if _is_schema_1(raw):
            raise _schema_1(what)
        raise InvalidDocumentError(
            claimed, f"{what}: its Content-Type says so, and the document is no schema 1"
        )
    try:
        return parse_document(raw, None if claimed in _VAGUE_TYPES else claimed)
    except InvalidDocumentError as exc:
        fault = InvalidDocumentError(exc.media_type, f"{what}: {exc.reason}")
    raise _schema_1(what) if _is_schema_1(raw) else fault


def _check_stated_digest(raw: bytes, text: str, what: str) -> None:
    try:
        stated = Digest.parse(text.strip())
    except InvalidDigestError as exc:
        raise InvalidDocumentError("Docker-Content-Digest", f"{what}: {exc.reason}") from None
    actual = Digest.of(raw, stated.algorithm)
    if actual != stated:
        raise DigestMismatchError(stated, actual, what=f"{what} (by its header Docker-Content-Digest)")


def _schema_1(what: str) -> UnsupportedImageError:
    return UnsupportedImageError(
        what, "it is of Docker's schema 1, which no registry should have any more; push it anew"
    )


def _is_schema_1(raw: bytes) -> bool:
    try:
        document = gojson.parse(raw, "")
    except InvalidDocumentError:
        return False
    return isinstance(document, dict) and document.get("schemaVersion") == 1
