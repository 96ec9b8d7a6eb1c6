"""Images out of a registry, by the OCI distribution protocol."""

from __future__ import annotations

import os
from collections.abc import AsyncIterator, Sequence
from contextlib import AbstractAsyncContextManager
from typing import TYPE_CHECKING, Self

from aiodockersave.model import Descriptor, Platform

from . import ResolvedImage
from ._addresses import DialGuard
from ._retrying import Retries, Sleep
from ._transport import Timeouts

if TYPE_CHECKING:
    import aiohttp

    from .credentials import CredentialStore

__all__ = ["RegistrySource", "Retries", "Timeouts"]


class RegistrySource:
    """The images of registries: skeleton, being written."""

    def __init__(
        self,
        *,
        credentials: CredentialStore | None = None,
        session: aiohttp.ClientSession | None = None,
        plain_http: bool = False,
        ca_file: str | os.PathLike[str] | None = None,
        cert_dir: str | os.PathLike[str] | None = None,
        mirrors: Sequence[str] = (),
        timeouts: Timeouts | None = None,
        retries: Retries | None = None,
        guard: DialGuard | None = None,
        sleep: Sleep | None = None,
    ) -> None: ...

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.aclose()

    async def aclose(self) -> None: ...

    async def resolve(self, reference: str, platform: Platform) -> ResolvedImage:
        raise NotImplementedError

    def open_blob(
        self, descriptor: Descriptor, *, start: int = 0, stop: int | None = None
    ) -> AbstractAsyncContextManager[AsyncIterator[bytes]]:
        raise NotImplementedError
