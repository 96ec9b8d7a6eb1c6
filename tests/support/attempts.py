"""One save from a registry that may be hostile, and what its error says: the bench of the security tests."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from pathlib import Path
from typing import Any

from aiodockersave import DockerSaveError, ImageRequest, Platform, save
from aiodockersave.core.model import Layers
from aiodockersave.sources.credentials import Credentials
from aiodockersave.sources.registry import RegistrySource, Timeouts
from tests.support.faulty_registry import PASSWORD, USER, Answer, Fault, Kind
from tests.support.images import make_image, make_layer

NAME = "example.com/app:1.0"
AMD64 = Platform("linux", "amd64")
IMAGE = make_image(make_layer({"data": b"data\n" * 500}))
LAYER = IMAGE.layers[0]
TIMEOUTS = Timeouts(connect=30, silence=30)
TIME_LIMIT = 60.0  # seconds, for anything
FOREIGN = "application/vnd.oci.image.layer.nondistributable.v1.tar+gzip"
DOCUMENTS: tuple[Kind, ...] = ("manifest", "config", "blob")


class Keyring:
    """Credentials for everybody who asks, and who asked."""

    def __init__(self) -> None:
        self.asked: list[str] = []

    async def get(self, registry: str, repository: str) -> Credentials:
        self.asked.append(registry)
        return Credentials(USER, PASSWORD)


async def no_sleep(seconds: float) -> None:
    """Stand for ``asyncio.sleep`` in back-off."""
    await asyncio.sleep(0)


async def attempt(
    reference: str,
    target: Path,
    *,
    tag: str = NAME,
    layers: Layers = "keep",
    max_plain_size: int | None = None,
    **options: Any,
) -> DockerSaveError | None:
    """Save an image; return the error that this ends in. `options` are the source's."""
    for_tests: dict[str, Any] = {"plain_http": True, "timeouts": TIMEOUTS, "sleep": no_sleep}
    async with asyncio.timeout(TIME_LIMIT), RegistrySource(**for_tests | options) as source:
        request = ImageRequest(source, reference, [tag])
        try:
            await save(
                [request], target, layers=layers, platform=AMD64, fsync=False, max_plain_size=max_plain_size
            )
        except DockerSaveError as error:
            assert not target.exists()
            return error
    return None


def everything(error: BaseException | None) -> str:
    """Return all that an error says, with its notes and causes, and as ``repr`` and ``--verbose`` show it."""
    parts: list[str] = []
    while error is not None:
        parts += [str(error), repr(error), repr(error.__dict__), *getattr(error, "__notes__", ())]
        error = error.__cause__ or error.__context__
    return "\n".join(parts)


def challenge(text: str) -> Fault:
    """Ask for credentials in other words."""
    return Fault(
        f"WWW-Authenticate: {text}",
        lambda _, answer: answer.saying(WWW_Authenticate=text),
        when=lambda _, answer: answer.status == 401,
        kinds=("ping", *DOCUMENTS),
    )


def change(what: str, how: Callable[[Answer], Answer]) -> Fault:
    """Answer with something else, always."""
    return Fault(what, lambda _, answer: how(answer))
