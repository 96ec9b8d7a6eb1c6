"""The first bytes of a layer say that it is compressed, a tar of any kind, empty, or nothing that a layer can be."""

from __future__ import annotations

import bz2
import gzip
import io
import lzma
import tarfile

import pytest

from aiodockersave.core.first_bytes import is_like_a_layer, sniff
from aiodockersave.core.tar import END_OF_ARCHIVE, link_header, member_header
from tests.support.images import compress, make_config

CHECKSUM = slice(148, 156)


def tar_of(format: int, name: str = "etc/name", comment: str = "", **attributes: object) -> bytes:
    out = io.BytesIO()
    headers = {"comment": comment} if comment else {}
    with tarfile.open(fileobj=out, mode="w", format=format, pax_headers=headers) as tar:
        member = tarfile.TarInfo(name)
        for key, value in attributes.items():
            setattr(member, key, value)
        tar.addfile(member)
    return out.getvalue()


def v7(name: bytes, *, signed: bool = False, checksum: bytes | None = None) -> bytes:
    """A header as tar wrote it before there was a magic number."""
    block = bytearray(512)
    block[: len(name)] = name
    block[100:148] = b"\0".join([b"0000644", b"0000000", b"0000000", b"00000000000", b"00000000000", b""])
    block[CHECKSUM] = b" " * 8
    total = sum(byte - 256 if signed and byte > 127 else byte for byte in block)
    block[CHECKSUM] = (b"%06o\0 " % total if checksum is None else checksum).ljust(8, b"\0")
    return bytes(block)


OLD_SUM = sum(v7(b"old")) - sum(v7(b"old")[CHECKSUM]) + 8 * ord(" ")

LAYERS = {
    "nothing": b"",
    "an empty tar": END_OF_ARCHIVE,
    "a record of zeros": bytes(10_240),
    "one block of zeros": bytes(512),
    "zeros first": bytes(512) + b"x" * 512,
    "gzip": gzip.compress(b"x"),
    "zstd": compress(b"x", "zstd"),
    "zstd, skippable": b"\x5f\x2a\x4d\x18\0\0\0\0",
    "ustar": tar_of(tarfile.USTAR_FORMAT),
    "GNU": tar_of(tarfile.GNU_FORMAT),
    "GNU, long name": tar_of(tarfile.GNU_FORMAT, "n" * 300),
    "GNU, large size": tar_of(tarfile.GNU_FORMAT, uid=1 << 40),
    "PAX": tar_of(tarfile.PAX_FORMAT, "é" * 200),
    "PAX, global": tar_of(tarfile.PAX_FORMAT, comment="x"),
    "a link": tar_of(tarfile.USTAR_FORMAT, type=tarfile.SYMTYPE, linkname="x"),
    "our own": member_header("a.tar", 1),
    "our own link": link_header("a/layer.tar", "../a.tar"),
    "v7": v7(b"etc/name"),
    "v7, Latin-1": v7(b"caf\xe9"),
    "v7, signed sum": v7(b"caf\xe9" * 5, signed=True),
    "sum without end": v7(b"old", checksum=b"%08o" % OLD_SUM),
    "sum with spaces": v7(b"old", checksum=b" %o \0" % OLD_SUM),
}
OTHERS = {
    "text": b"this is not a layer\n" * 50,
    "one byte": b"x",
    "half a gzip magic": b"\x1f",
    "JSON": make_config([]),
    "a page": b"<!DOCTYPE html><html>".ljust(2000),
    "a zip": b"PK\x03\x04".ljust(600, b"\0"),
    "a program": b"\x7fELF\x02\x01\x01".ljust(600, b"\0"),
    "bzip2": bz2.compress(b"x" * 5000).ljust(600, b"x"),
    "xz": lzma.compress(b"x" * 5000).ljust(600, b"x"),
    "zeros, cut off": bytes(511),
    "a header, cut off": tar_of(tarfile.USTAR_FORMAT)[:511],
    "a wrong sum": v7(b"old", checksum=b"%06o\0 " % (OLD_SUM + 1)),
    "no sum": v7(b"old", checksum=b""),
    "a sum with a sign": v7(b"old", checksum=b"+%06o\0" % OLD_SUM),
    "a sum with an underscore": v7(b"old", checksum=b"%o_%o\0" % (OLD_SUM >> 3, OLD_SUM & 7)),
    "a sum in decimal": v7(b"old", checksum=b"%d\0" % OLD_SUM),
    "a header later": b"x" * 512 + tar_of(tarfile.USTAR_FORMAT),
    "nearly zeros": bytes(511) + b"x",
}


@pytest.mark.parametrize("content", LAYERS.values(), ids=LAYERS)
def test_layers(content: bytes) -> None:
    assert is_like_a_layer(content)
    assert is_like_a_layer(content[:512])


@pytest.mark.parametrize("content", OTHERS.values(), ids=OTHERS)
def test_what_is_none(content: bytes) -> None:
    assert not is_like_a_layer(content)
    assert not is_like_a_layer(content[:512])


@pytest.mark.parametrize("name", [name for name in LAYERS if not sniff(LAYERS[name][:4])])
def test_python_reads_these_as_tars(name: str) -> None:
    if LAYERS[name]:
        tarfile.open(fileobj=io.BytesIO(LAYERS[name].ljust(10_240, b"\0"))).close()
