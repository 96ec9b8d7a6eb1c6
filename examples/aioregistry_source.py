"""Save images through a client of your own, here aioregistry: a source is two methods around it.

Needs aioregistry (pip install aioregistry). Run it, with a file of authorities if the registry's is not widely known::

    python examples/aioregistry_source.py alpine:3.20 alpine.tar
    python examples/aioregistry_source.py registry.local:5000/team/app:1.0 app.tar ca.pem

You will see what was written. The client checks no digest: of manifests the source does, of everything else the library,
so a wrong byte never reaches the file. Nor does it limit what it reads of a manifest into memory: use it with registries that
you trust. What the client raises passes through as it is.
"""

from __future__ import annotations

import asyncio
import ssl
import sys
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import aclosing, asynccontextmanager
from typing import cast

import aiohttp
from aioregistry import (
    AsyncRegistryClient,
    Registry,
    RegistryBlobRef,
    RegistryManifestRef,
    default_credential_store,
)

from aiodockersave import (
    ContentTooLargeError,
    Descriptor,
    Digest,
    DigestMismatchError,
    ImageIndex,
    ImageManifest,
    ImageRequest,
    Platform,
    Reference,
    ResolvedImage,
    save,
)
from aiodockersave.core.documents import MAX_DOCUMENT_SIZE, parse_document


class AioregistrySource:
    """One repository of a registry; what is asked for in it is a tag or a digest."""

    def __init__(self, client: AsyncRegistryClient, name: Reference) -> None:
        self._client = client
        self._name = name.name
        self._repository = name.repository.split("/")
        # Not aioregistry's own parser: it asks 127.0.0.1 by http, and reads name:tag@digest wrongly.
        host, _, port = name.registry.partition(":")
        is_hub = name.registry == "docker.io"  # which is what the client takes without a registry
        self._registry = None if is_hub else Registry(host=host, port=int(port or 443))

    async def resolve(self, reference: str, platform: Platform) -> ResolvedImage:
        """Find an image."""
        manifest = parse_document(await self._document(reference))
        if isinstance(manifest, ImageIndex):
            chosen = manifest.select(platform)
            manifest = ImageManifest.parse(await self._document(str(chosen.digest)), chosen.media_type)
        config = bytearray()
        async with self.open_blob(manifest.config) as chunks:
            async for chunk in chunks:  # counted, since what is said of its size may be wrong
                config += chunk
                if len(config) > MAX_DOCUMENT_SIZE:
                    raise ContentTooLargeError(MAX_DOCUMENT_SIZE, what=f"config of {self._name}")
        tags = () if ":" in reference else (f"{self._name}:{reference}",)
        return ResolvedImage(reference, manifest, bytes(config), tags)

    async def _document(self, reference: str) -> bytes:
        ref = RegistryManifestRef(registry=self._registry, repo=self._repository, ref=reference)
        raw = (await self._client.manifest_download(ref)).canonical().encode()
        if ":" in reference and (wanted := Digest.parse(reference)) != Digest.of(raw, wanted.algorithm):
            raise DigestMismatchError(wanted, Digest.of(raw, wanted.algorithm), what="manifest")
        return raw

    @asynccontextmanager
    async def open_blob(
        self, descriptor: Descriptor, *, start: int = 0, stop: int | None = None
    ) -> AsyncIterator[AsyncIterator[bytes]]:
        """Open a blob."""
        if start or stop is not None:
            raise NotImplementedError("aioregistry reads blobs as a whole")
        ref = RegistryBlobRef(registry=self._registry, repo=self._repository, ref=str(descriptor.digest))
        _, stream = await self._client.ref_content_stream(ref, chunk_size=1 << 18)
        async with aclosing(cast("AsyncGenerator[bytes, None]", stream)) as chunks:
            # A stream that was never started would keep its connection, so it is started here, come what may.
            first = await anext(chunks, b"")
            async with aclosing(_joined(first, chunks)) as blob:
                yield blob


async def _joined(first: bytes, rest: AsyncIterator[bytes]) -> AsyncGenerator[bytes, None]:
    yield first
    async for chunk in rest:
        yield chunk


async def main(image: str, path: str, ca_file: str | None) -> None:
    """Save an image."""
    name = Reference.parse(image).with_default_tag()
    async with aiohttp.ClientSession(
        auto_decompress=False,  # layers as they are stored, whatever a proxy calls them
        headers={"Accept-Encoding": "identity"},
    ) as session:
        client = AsyncRegistryClient(
            session=session,
            creds=default_credential_store(),
            timeout=aiohttp.ClientTimeout(
                total=None, sock_connect=10, sock_read=60
            ),  # else it waits for ever
            ssl_context=ssl.create_default_context(cafile=ca_file),  # else no certificate is verified
        )
        source = AioregistrySource(client, name)
        wanted = str(name.digest or name.tag)
        report = await save([ImageRequest(source, wanted)], path)
    print(f"{path}: {report.size} bytes, {len(report.members)} members")


if __name__ == "__main__":
    if len(sys.argv) <= 2:
        sys.exit(__doc__)
    asyncio.run(main(sys.argv[1], sys.argv[2], sys.argv[3] if len(sys.argv) > 3 else None))
