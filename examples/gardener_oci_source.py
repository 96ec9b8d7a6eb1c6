"""Save images through a client of your own, here gardener-oci: a source is two methods around it.

Needs gardener-oci and aiohttp (pip install 'gardener-oci[async]'; its module is called ``oci``, as Oracle's SDK is: one of
the two can be installed). Run it, with a file of authorities if the registry's is not widely known::

    python examples/gardener_oci_source.py alpine:3.20 alpine.tar
    python examples/gardener_oci_source.py registry.local:5000/team/app:1.0 app.tar ca.pem

You will see what was written. The client checks no digest: of manifests the source does, of everything else the library,
so a wrong byte never reaches the file. What the client raises passes through as it is.
"""

from __future__ import annotations

import asyncio
import ssl
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import aiohttp
from oci.client_async import Client
from oci.model import MimeTypes

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


class GardenerSource:
    """One repository of a registry; what is asked for in it is a tag or a digest."""

    def __init__(self, client: Client, name: str) -> None:
        self._client = client
        self._name = name

    async def resolve(self, reference: str, platform: Platform) -> ResolvedImage:
        """Find an image."""
        manifest = parse_document(await self._document(reference))
        if isinstance(manifest, ImageIndex):
            chosen = manifest.select(platform)
            manifest = ImageManifest.parse(await self._document(str(chosen.digest)), chosen.media_type)
        async with self.open_blob(manifest.config) as chunks:
            config = await self._read(chunks)
        tags = () if ":" in reference else (f"{self._name}:{reference}",)
        return ResolvedImage(reference, manifest, config, tags)

    async def _document(self, reference: str) -> bytes:
        image = f"{self._name}{'@' if ':' in reference else ':'}{reference}"
        # The client leaves its answers open: who asked closes them.
        async with await self._client.manifest_raw(image, accept=MimeTypes.prefer_multiarch) as response:
            raw = await self._read(response.content.iter_any())
        if ":" in reference and (wanted := Digest.parse(reference)) != Digest.of(raw, wanted.algorithm):
            raise DigestMismatchError(wanted, Digest.of(raw, wanted.algorithm), what="manifest")
        return raw

    async def _read(self, chunks: AsyncIterator[bytes]) -> bytes:
        """Read a document. Its bytes are counted, since what is said of its size may be wrong."""
        document = bytearray()
        async for chunk in chunks:
            document += chunk
            if len(document) > MAX_DOCUMENT_SIZE:
                raise ContentTooLargeError(MAX_DOCUMENT_SIZE, what=f"a document of {self._name}")
        return bytes(document)

    @asynccontextmanager
    async def open_blob(
        self, descriptor: Descriptor, *, start: int = 0, stop: int | None = None
    ) -> AsyncIterator[AsyncIterator[bytes]]:
        """Open a blob."""
        if start or stop is not None:
            raise NotImplementedError("gardener-oci reads blobs as a whole")
        async with await self._client.blob(self._name, str(descriptor.digest)) as response:
            yield response.content.iter_any()


async def main(image: str, path: str, ca_file: str | None) -> None:
    """Save an image."""
    name = Reference.parse(image).with_default_tag()
    async with aiohttp.ClientSession(
        connector=aiohttp.TCPConnector(ssl=ssl.create_default_context(cafile=ca_file)),
        timeout=aiohttp.ClientTimeout(total=None, sock_connect=10, sock_read=60),  # blobs may take their time
        auto_decompress=False,  # layers as they are stored, whatever a proxy calls them
        headers={"Accept-Encoding": "identity"},
    ) as session:
        source = GardenerSource(Client(session=session), name.name)
        wanted = str(name.digest or name.tag)
        report = await save([ImageRequest(source, wanted)], path)
    print(f"{path}: {report.size} bytes, {len(report.members)} members")


if __name__ == "__main__":
    if len(sys.argv) <= 2:
        sys.exit(__doc__)
    asyncio.run(main(sys.argv[1], sys.argv[2], sys.argv[3] if len(sys.argv) > 3 else None))
