"""The SHA-256 of an archive: that of the bytes that are at the target, and only where somebody asked for it."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path
from typing import Any

import pytest

from aiodockersave import Digest, SinkError, save
from aiodockersave._aio import Worker
from aiodockersave.blobs.open_file import OpenFile
from aiodockersave.core.model import Layers
from aiodockersave.pipeline import saving
from tests.support.images import ListSink, make_image, make_layer
from tests.support.stores import Store

IMAGE = make_image(make_layer({"a": bytes(5000)}), make_layer({"b": bytes(range(256)) * 9}, "gzip"))


@pytest.fixture(autouse=True)
def _small_steps(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(saving, "_STEP", 1500)
    monkeypatch.setattr(saving, "_PIECE", 400)


@pytest.mark.parametrize("options", [{}, {"resume": True}, {"jobs": 1}], ids=str)
@pytest.mark.parametrize("layers", ["keep", "decompress"])
async def test_the_checksum_of_a_file_is_that_of_its_bytes(
    layers: Layers, options: dict[str, Any], tmp_path: Path
) -> None:
    if layers == "decompress" and "resume" in options:
        return
    target = tmp_path / "app.tar"
    for checksum in (True, False):
        report = await save(
            Store({"one": IMAGE}).requests(), target, layers=layers, checksum=checksum, **options
        )
        assert report.sha256 == (Digest.of(target.read_bytes()) if checksum else None)


@pytest.mark.parametrize("layers", ["keep", "decompress"])
async def test_the_checksum_of_a_stream_is_that_of_its_bytes(layers: Layers) -> None:
    for checksum in (True, False):
        sink = ListSink()
        report = await save(Store({"one": IMAGE}).requests(), sink, layers=layers, checksum=checksum)
        assert report.sha256 == (Digest.of(sink.getvalue()) if checksum else None)


@pytest.mark.parametrize("size", [0, 1, 399, 400, 1499, 1500, 1501, 6000])
async def test_a_file_of_any_size_is_hashed_up_to_its_end(size: int, tmp_path: Path) -> None:
    data = os.urandom(size)
    (tmp_path / "file").write_bytes(data + b"behind its end")
    file = OpenFile(os.open(tmp_path / "file", os.O_RDONLY))
    assert (
        str(await saving.sha256_of(file, size, Worker("test")))
        == f"sha256:{hashlib.sha256(data).hexdigest()}"
    )
    file.close()


async def test_a_file_that_is_too_short_is_an_error_of_the_sink(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(bytes(1000))
    file = OpenFile(os.open(tmp_path / "file", os.O_RDONLY))
    with pytest.raises(SinkError, match="the file is shorter than what was written to it, at byte 1000"):
        await saving.sha256_of(file, 5000, Worker("test"))
    file.close()
