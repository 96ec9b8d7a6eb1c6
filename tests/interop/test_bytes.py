"""Images of every shape, converted by the installed skopeo and by us: not one byte different.

The layouts are made by hypothesis, the same ones in each run, so that a failure repeats; it is shrunk to a small
image, which may take a minute.
"""

from __future__ import annotations

import asyncio
import tempfile
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from aiodockersave import InvalidDocumentError
from aiodockersave.core.model import OCI_LAYER, OCI_NONDISTRIBUTABLE_LAYER_GZIP
from tests.support.images import (
    Image,
    Layer,
    archive_of,
    config_texts,
    make_image,
    make_layer,
    read_layout,
    write_layout,
)

from .programs import ProgramError, skopeo

pytestmark = [pytest.mark.interop("skopeo"), pytest.mark.timeout(900)]

NAME = "example.com/app:1.0"
EXAMPLES = 60

POOL: list[Layer] = [
    make_layer({}, "gzip"),
    make_layer(b"", "gzip"),
    make_layer(b"", None),
    *(make_layer({f"file-{number}": b"%d" % number * number * 40}, "gzip") for number in range(30)),
    *(make_layer({f"many/{number}": bytes([number]) * 999}, "gzip", members=3) for number in range(4)),
    *(make_layer({f"plain/{number}": b"plain\n" * number}, None) for number in range(8)),
]
"""Layers that Debian's skopeo reads: it refuses zstd, and Docker's media types in an OCI manifest."""


def skopeos_archive(layout: Path, *, out: Path) -> bytes:
    skopeo("copy", "--quiet", f"oci:{layout}:latest", f"docker-archive:{out}:{NAME}")
    return out.read_bytes()


def our_archive(layout: Path) -> bytes:
    return asyncio.run(archive_of([read_layout(layout, "latest", [NAME])], layers="decompress"))


# ── random ones ──


@st.composite
def images(draw: st.DrawFn) -> Image:
    """Draw an image of 0 to 80 layers, some of them twice or empty, with a config as it may be."""
    count = draw(st.sampled_from([0, 1, 2, 3, 5, 8, 30, 80]))
    stack = draw(st.lists(st.sampled_from(POOL), min_size=count, max_size=count))
    config = draw(config_texts([layer.diff_id for layer in stack]))
    return make_image(*stack, config_bytes=config)


@settings(
    derandomize=True,
    max_examples=EXAMPLES,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large],
)
@given(image=images())
def test_not_one_byte_is_different(image: Image) -> None:
    with tempfile.TemporaryDirectory() as folder:
        layout = write_layout(Path(folder, "layout"), {"latest": image})
        assert our_archive(layout) == skopeos_archive(layout, out=Path(folder, "out.tar"))


# ── corners that chance does not find ──

LAYER = make_layer({"etc/name": b"corner\n"})
SHA512 = make_layer({"etc/name": b"corner\n"}, algorithm="sha512")
FOREIGN = make_layer({"etc/name": b"corner\n"}, media_type=OCI_NONDISTRIBUTABLE_LAYER_GZIP)
MISLABELLED = make_layer({"etc/name": b"corner\n"}, media_type=OCI_LAYER)


def config_with(members: bytes) -> bytes:
    return b'{%s,"rootfs":{"type":"layers","diff_ids":["%s"]}}' % (members, str(LAYER.diff_id).encode())


SAME: list[tuple[str, bytes, tuple[Layer, ...]]] = [
    ("null for a config", b" null\n", ()),
    ("invalid UTF-8", config_with(b'"os":"\xff\xfe<","a\xff":1'), (LAYER,)),
    ("a surrogate in UTF-8", config_with(b'"os":"\xed\xa0\x80"'), (LAYER,)),
    ("an escaped name", config_with(rb'"\u006fs":"linux","os":null,"\u006Fs":"last"'), (LAYER,)),
    ("a name in another case", config_with(b'"OS":"linux","Config":{}'), (LAYER,)),
    ("900 levels", config_with(b'"config":' + b"[" * 900 + b"]" * 900), (LAYER,)),
    ("almost 4 MiB", config_with(b'"os":"linux"').ljust((4 << 20) - 1), (LAYER,)),
    ("a blob's sha512 digest", config_with(b'"os":"linux"'), (SHA512,)),
    ("a foreign layer that is there", config_with(b'"os":"linux"'), (FOREIGN,)),
    ("gzip that says it is plain", config_with(b'"os":"linux"'), (MISLABELLED,)),
]


@pytest.mark.parametrize(("config", "layers"), [row[1:] for row in SAME], ids=[row[0] for row in SAME])
def test_corners_are_the_same(tmp_path: Path, config: bytes, layers: tuple[Layer, ...]) -> None:
    layout = write_layout(tmp_path / "layout", {"latest": make_image(*layers, config_bytes=config)})
    assert our_archive(layout) == skopeos_archive(layout, out=tmp_path / "out.tar")


REFUSED = {
    "NaN": config_with(b'"os":NaN'),
    "a control character": config_with(b'"os":"\x01"'),
    "no JSON": config_with(b'"os":'),
    "a trailing comma": config_with(b'"os":[1,]'),
    "a number with a leading zero": config_with(b'"os":01'),
    "an escape that is none": config_with(rb'"os":"\x41"'),
    "something after it": config_with(b'"os":1') + b"{}",
    "a byte order mark": b"\xef\xbb\xbf" + config_with(b'"os":1'),
    "10,000 levels": config_with(b'"config":' + b"[" * 10_000 + b"]" * 10_000),
}


@pytest.mark.parametrize("config", REFUSED.values(), ids=REFUSED)
def test_what_go_does_not_read_neither_takes(tmp_path: Path, config: bytes) -> None:
    image = make_image(LAYER, config_bytes=config)
    layout = write_layout(tmp_path / "layout", {"latest": image})
    with pytest.raises(ProgramError, match="unmarshaling config"):
        skopeos_archive(layout, out=tmp_path / "out.tar")
    with pytest.raises(InvalidDocumentError):
        asyncio.run(archive_of([image], layers="decompress"))
