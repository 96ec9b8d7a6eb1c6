"""Odd answers of real registries and of what stands in front of them, and what comes out: the next one is one row.

Who sends it is said in words, with where it was reported.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import pytest

from aiodockersave import ImageRequest, InvalidDocumentError, RegistrySource, UnsupportedImageError, save
from aiodockersave.core.model import DOCKER_LAYER_GZIP, DOCKER_MANIFEST, Platform
from tests.support.attempts import no_sleep
from tests.support.faulty_registry import (
    Answer,
    Ask,
    Fault,
    FaultyRegistry,
    drop,
    label,
    redirect,
    wants_token,
)
from tests.support.images import Image, archive_of, make_image, make_layer, to_json

AMD64 = Platform("linux", "amd64")
IMAGE = make_image(make_layer({"noise": random.Random(1).randbytes(60_000)}))
OTHER = make_image(make_layer({"other": b"other"}))


def says(content_type: str) -> Fault:
    """Let manifests come with another type."""
    return Fault(
        f"is {content_type!r}",
        lambda _, answer: answer.saying(Content_Type=content_type),
        kinds=("manifest",),
    )


def answers(status: int, *, where: str) -> Fault:
    """Answer with a status where the path, or the header Range, has a part."""

    def has(ask: Ask, _: Answer) -> bool:
        return where in ask.path or ask.headers.get("Range", "").endswith(where)

    return Fault(
        f"{status} where {where}", lambda *_: Answer(status, body=b"{}"), when=has, kinds=("manifest", "blob")
    )


def of_2015(config_type: str | None) -> Image:
    """Make an image whose manifest calls its config something vague."""
    layer = IMAGE.layers[0].descriptor
    config: dict[str, Any] = {
        "mediaType": config_type,
        "digest": str(IMAGE.image_id),
        "size": len(IMAGE.config),
    }
    document = {
        "schemaVersion": 2,
        "mediaType": DOCKER_MANIFEST,
        "config": {name: value for name, value in config.items() if value is not None},
        "layers": [{"mediaType": DOCKER_LAYER_GZIP, "digest": str(layer.digest), "size": layer.size}],
    }
    return Image(IMAGE.config, IMAGE.layers, to_json(document))


@dataclass(frozen=True)
class Row:
    """An odd answer.

    Attributes:
        who: Who sends it, in words, and where it was reported.
        faults: What is odd.
        image: The image that is there.
        error: What it must end in; None where the image is saved.
    """

    who: str
    faults: Sequence[Fault] = field(default=())
    image: Image = IMAGE
    error: type[Exception] | None = None


ROWS = [
    Row("an object store as a registry calls manifests what it calls all files", [says("binary/octet-stream")]),
    Row("a server of plain files (moby#31318)", [says("application/octet-stream")]),
    Row("a server of plain files (containers/image#417, go-containerregistry#617)", [says("text/plain; charset=utf-8")]),
    Row("a proxy with a character set of its own (containerd#3556)", [says("application/json;charset=ISO-8859-1")]),
    Row(
        "a registry that says schema 1 of every manifest (containerd#5632)",
        [says("application/vnd.docker.distribution.manifest.v1+prettyjws")],
        error=InvalidDocumentError,
    ),
    Row("Apache's httpd calls every gzip file x-gzip (moby#17595)", [label("x-gzip")]),
    Row("a cache in front of a registry calls every gzip file gzip (moby#27642)", [label("gzip")]),
    Row("a store that refuses ranges without an end, after a transfer broke off", [drop(0.5).often(1), answers(416, where="-")]),
    Row("a proxy names the repository behind it (ciiiii/cloudflare-docker-proxy#17)", wants_token("repository:library/app:pull")),
    Row("a domain of one's own redirects to a registry that gives a token to anybody", [redirect("{elsewhere}{path}").of("manifest", "config", "blob"), *wants_token("repository:team/app:pull", elsewhere=True)]),
    Row("a proxy that has manifests by their tags alone", [answers(404, where="/manifests/sha256:")]),
    Row("Docker Hub's images of 2015: the config is bytes", image=of_2015("application/octet-stream")),
    Row("images of 2015: the config's type is empty", image=of_2015("")),
    Row("images of 2015: the config has no type", image=of_2015(None)),
    Row("a chart is no image, whatever its layers are", image=of_2015("application/vnd.cncf.helm.config.v1+json"), error=UnsupportedImageError),
    Row("an artifact without a config of its own", image=of_2015("application/vnd.oci.empty.v1+json"), error=UnsupportedImageError),
]  # fmt: skip


@pytest.mark.parametrize("count", [1, 2], ids=["one image", "two images"])
@pytest.mark.parametrize("row", ROWS, ids=lambda row: row.who)
async def test_an_odd_answer(row: Row, count: int, tmp_path: Any) -> None:
    """Alone, and beside another image, which is known already: then the digest is asked for by HEAD."""
    target = tmp_path / "a.tar"
    async with (
        FaultyRegistry({"team/app:1": row.image, "team/other:1": OTHER}) as registry,
        RegistrySource(sleep=no_sleep) as source,
    ):
        # An image of Docker's has Docker's type.
        registry.add_document("team/app:1", row.image.manifest_bytes, row.image.manifest.media_type)
        images = [
            ImageRequest(source, f"{registry.address}/team/{name}:1", [f"{name}:1"])
            for name in ("other", "app")
        ][-count:]
        if count == 2:
            await source.resolve(images[0].reference, AMD64)
        registry.faults = [fault.often(fault.times) for fault in row.faults]
        if row.error is not None:
            with pytest.raises(row.error):
                await save(images, target, platform=AMD64, fsync=False)
            return
        await save(images, target, platform=AMD64, fsync=False)
    expected = [OTHER.tagged("other:1"), row.image.tagged("app:1")][-count:]
    assert target.read_bytes() == await archive_of(expected)
