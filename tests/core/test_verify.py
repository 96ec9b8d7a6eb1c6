"""A blob that is verified while its bytes pass: every cut of it, and every way to be wrong."""

from __future__ import annotations

import itertools
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from aiodockersave import (
    ContentError,
    ContentTooLargeError,
    DecompressionError,
    Descriptor,
    Digest,
    DigestMismatchError,
    SizeMismatchError,
)
from aiodockersave.core.model import OCI_LAYER, Limits
from aiodockersave.core.verify import Verifier, new_plain_hash
from tests.support.images import Compression, make_layer

PLAIN = b"some plain bytes, well compressed " * 40


def verify(verifier: Verifier, pieces: list[bytes]) -> None:
    for piece in pieces:
        verifier.count(len(piece))
        verifier.update([piece])
    verifier.end()
    verifier.finish()


def cut(data: bytes, places: list[int]) -> list[bytes]:
    bounds = [0, *sorted(places), len(data)]
    return [data[start:stop] for start, stop in itertools.pairwise(bounds)]


@given(data=st.binary(max_size=2000), places=st.lists(st.integers(0, 2000), max_size=8))
def test_however_the_blob_is_cut(data: bytes, places: list[int]) -> None:
    blob = Descriptor(OCI_LAYER, Digest.of(data), len(data))
    for expected in (blob, replace(blob, size=None), None):
        verifier = Verifier(expected)
        verify(verifier, cut(data, places))
        assert (verifier.digest, verifier.received, verifier.head) == (blob.digest, len(data), data[:512])
        assert (verifier.plain_digest, verifier.fault) == (None, None)


@pytest.mark.parametrize("algorithm", ["sha256", "sha512"])
@pytest.mark.parametrize("kind", [None, "gzip", "zstd"])
def test_a_kept_blob_and_its_diff_id_byte_by_byte(kind: Compression, algorithm: str) -> None:
    layer = make_layer(PLAIN, kind, algorithm=algorithm, members=1 if kind is None else 3)
    for diff_id in (layer.diff_id, None):
        verifier = Verifier(
            layer.descriptor, plain=new_plain_hash(layer.descriptor, diff_id, Limits(len(PLAIN)))
        )
        verify(verifier, [layer.blob[at : at + 1] for at in range(len(layer.blob))])
        assert verifier.digest == layer.descriptor.digest
        assert verifier.plain_digest == Digest.of(PLAIN, algorithm if diff_id else "sha256")


@given(
    at=st.integers(0, len(PLAIN) - 1),
    bit=st.integers(0, 7),
    places=st.lists(st.integers(0, 2000), max_size=4),
)
def test_any_wrong_bit_is_found(at: int, bit: int, places: list[int]) -> None:
    wrong = PLAIN[:at] + bytes([PLAIN[at] ^ 1 << bit]) + PLAIN[at + 1 :]
    blob = make_layer(PLAIN, None).descriptor
    verifier = Verifier(blob)
    with pytest.raises(DigestMismatchError) as caught:
        verify(verifier, cut(wrong, places))
    assert verifier.fault is caught.value
    assert (caught.value.what, caught.value.expected, caught.value.actual) == (
        "blob",
        blob.digest,
        Digest.of(wrong),
    )


@given(missing=st.integers(-50, 50), places=st.lists(st.integers(0, 2000), max_size=4))
def test_any_other_size_is_found(missing: int, places: list[int]) -> None:
    data = PLAIN[:-missing] if missing > 0 else PLAIN + bytes(-missing)
    verifier = Verifier(make_layer(PLAIN, None).descriptor)
    if not missing:
        verify(verifier, cut(data, places))
        return
    with pytest.raises(SizeMismatchError) as caught:
        verify(verifier, cut(data, places))
    assert verifier.fault is caught.value
    assert caught.value.expected == len(PLAIN)
    if missing > 0:
        assert caught.value.actual == len(data)
    else:  # at the first piece that is too much, which is not hashed any more
        assert len(PLAIN) < caught.value.actual <= len(data)


def test_too_many_bytes_are_refused_before_they_are_hashed() -> None:
    verifier = Verifier(make_layer(b"abc", None).descriptor)
    verifier.count(3)
    with pytest.raises(SizeMismatchError, match="got at least 4"):
        verifier.count(1)


@pytest.mark.parametrize(
    ("start", "stop", "size", "is_right"), [(10, 30, 20, True), (10, 30, 19, False), (0, 5, 6, False)]
)
def test_of_a_part_the_length_is_all_that_is_known(start: int, stop: int, size: int, is_right: bool) -> None:
    verifier = Verifier(make_layer(PLAIN, None).descriptor, part=(start, stop))
    assert not verifier.hashes
    if is_right:
        verify(verifier, [b"x" * size])
        assert verifier.digest is None
    else:
        with pytest.raises(SizeMismatchError, match=f"bytes {start} to {stop} of blob sha256:"):
            verify(verifier, [b"x" * size])


def test_a_wrong_diff_id_is_told_from_a_wrong_blob() -> None:
    layer = make_layer(PLAIN, "gzip")
    wrong = Digest.of(b"another tar")
    verifier = Verifier(layer.descriptor, plain=new_plain_hash(layer.descriptor, wrong, Limits()))
    with pytest.raises(DigestMismatchError) as caught:
        verify(verifier, [layer.blob])
    assert verifier.fault is caught.value
    assert (caught.value.what, caught.value.expected, caught.value.actual) == (
        "diff ID",
        wrong,
        layer.diff_id,
    )
    assert caught.value.descriptor == layer.descriptor


@pytest.mark.parametrize(
    ("blob", "limits", "error"),
    [
        (make_layer(PLAIN, "gzip").blob[:-5], Limits(), DecompressionError),
        (make_layer(PLAIN, "gzip").blob, Limits(len(PLAIN) - 1), ContentTooLargeError),
        (PLAIN, Limits(len(PLAIN) - 1), ContentTooLargeError),
    ],
    ids=["cut off", "too large", "too large and plain"],
)
def test_a_plain_tar_that_is_none(blob: bytes, limits: Limits, error: type[ContentError]) -> None:
    descriptor = Descriptor(OCI_LAYER, Digest.of(blob), len(blob))
    verifier = Verifier(descriptor, plain=new_plain_hash(descriptor, None, limits))
    with pytest.raises(error, match=f"layer {descriptor.digest}"):
        verify(verifier, [blob])
    with pytest.raises(error, match="the layer"):  # a blob without a name
        verify(Verifier(None, plain=new_plain_hash(None, None, limits)), [blob])


@given(rest=st.integers(0, 40))
def test_what_would_finish_it(rest: int) -> None:
    """A plain tar may end with zeros that were never written; to ask changes nothing."""
    data = PLAIN + bytes(20)
    verifier = Verifier(make_layer(data, None).descriptor)
    verifier.update([PLAIN])
    assert verifier.would_finish(bytes(rest)) == (rest == 20)
    assert not verifier.would_finish(b"x" * 20)
    verifier.update([bytes(20)])
    verifier.finish()
