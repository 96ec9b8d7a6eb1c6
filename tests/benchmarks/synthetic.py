"""Layers that look like root file systems, made from a seed: many files of text, code, programs, weights, archives.

Content comes from a pool of some MiB for each kind. A file is a slice of its kind's pool: gzip sees back 32 KiB only, so
slices compress as if each were new, and a layer is made as fast as zlib compresses it. Mixed as in `images`, they inflate at the
rate of a real system (measured with isal, zlib and skopeo, per plain byte, beside a tar of /usr).
"""

from __future__ import annotations

import hashlib
import itertools
import random
import tarfile
import zlib
from array import array
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path

POOL_SIZE = 4 << 20  # bytes; far beyond gzip's window
BLOCK = 512  # bytes of a tar's block
RECORD = 20 * BLOCK  # what tar programs fill an archive up to
GZIP = 31  # zlib's window bits for one gzip member
LEVEL = 6  # what gzip, docker and BuildKit take
MEDIAN_FILE = 5_000  # bytes; sizes of files are spread log-normally
SPREAD = 1.8

# ── pools ──


def _words(rng: random.Random, count: int) -> list[str]:
    syllables = [
        first + second for first in "bcdfghlmnprstvw" for second in ("a", "e", "i", "o", "u", "en", "or")
    ]
    return ["".join(rng.choices(syllables, k=rng.choice((1, 1, 2, 2, 3, 4)))) for _ in range(count)]


def _falling(count: int) -> list[float]:
    """Return cumulative weights of words in a language: the n-th is used 1/n as often as the first."""
    return list(itertools.accumulate(1 / (rank + 2) for rank in range(count)))


def _phrases(rng: random.Random, parts: list[str], count: int) -> list[str]:
    weights = _falling(len(parts))
    return [
        " ".join(rng.choices(parts, cum_weights=weights, k=rng.choice((1, 1, 2, 3, 4)))) for _ in range(count)
    ]


def _full(pieces: Iterable[bytes]) -> bytes:
    pool = bytearray()
    for piece in pieces:
        pool += piece
        if len(pool) >= POOL_SIZE:
            return bytes(pool[:POOL_SIZE])
    raise ValueError(f"{len(pool)} bytes do not fill a pool")


def _text(rng: random.Random) -> bytes:
    phrases = _phrases(rng, _words(rng, 3000), 4000)
    chosen = rng.choices(phrases, cum_weights=_falling(len(phrases)), k=POOL_SIZE // 9)
    lines = (" ".join(chosen[at : at + 6]).capitalize() for at in range(0, len(chosen), 6))
    return _full(f"{line}.\n".encode() for line in lines)


def _code(rng: random.Random) -> bytes:
    names = _words(rng, 700)
    weights = _falling(len(names))
    shapes = (
        "def {}_{}({}, {}):",
        "    if {}.{} is None:",
        "        return self.{}({}, {}={})",
        "    {} = {}.get('{}', {})",
        "        for {} in {}.{}():",
        "    # {} {} {} {}",
        "import {}.{}",
        '    raise ValueError(f"{} {}: {{{}}}")',
    )
    return _full(
        f"{rng.choice(shapes).format(*rng.choices(names, cum_weights=weights, k=5))}\n".encode()
        for _ in itertools.count()
    )


def _program(rng: random.Random) -> bytes:
    """Make machine code: few idioms, used unevenly, with operands between them."""
    instructions = [rng.randbytes(rng.choice((1, 2, 2, 3, 3, 4))) for _ in range(600)]
    weights = _falling(len(instructions))
    idioms = [
        b"".join(rng.choices(instructions, cum_weights=weights, k=rng.choice((1, 2, 3, 4, 6))))
        for _ in range(3000)
    ]
    chances = _falling(len(idioms))
    operands = [
        *(rng.randbytes(2) for _ in range(40)),
        *[b"\0\0\0", b"\xff\xff\xff", b""] * 25,
        *[bytes(48)] * 9,
    ]
    return _full(
        b"".join((*rng.choices(idioms, cum_weights=chances, k=3), rng.choice(operands)))
        for _ in itertools.count()
    )


def _weights(rng: random.Random) -> bytes:
    return array("f", (rng.gauss(0, 0.02) for _ in range(POOL_SIZE // 4))).tobytes()


def _packed(rng: random.Random) -> bytes:
    return rng.randbytes(POOL_SIZE)


@dataclass(frozen=True)
class Kind:
    """A kind of file.

    Attributes:
        make: Makes its pool.
        places: Where such files lie, and how they end.
        scale: How large they are, beside a text.
    """

    make: Callable[[random.Random], bytes]
    places: tuple[str, str]
    scale: float


KINDS = {
    "text": Kind(_text, ("usr/share/doc", ".txt"), 1),
    "code": Kind(_code, ("usr/lib/python3/dist-packages", ".py"), 1),
    "program": Kind(_program, ("usr/lib/x86_64-linux-gnu", ".so"), 12),
    "weights": Kind(_weights, ("opt/models", ".bin"), 400),
    "packed": Kind(_packed, ("usr/share/archives", ".gz"), 20),
}


@cache
def _pool(kind: str) -> memoryview:
    # Twice, so that a slice may run over the end.
    return memoryview(KINDS[kind].make(random.Random(f"pool of {kind}")) * 2)


# ── layers ──

Mix = Mapping[str, float]
"""Shares of plain bytes by kind."""


@dataclass(frozen=True)
class MadeLayer:
    """A layer in a file; digests as ``sha256:…``, sizes in bytes."""

    digest: str
    size: int
    diff_id: str
    plain_size: int


def make_layer(path: Path, plain_size: int, mix: Mix, seed: str) -> MadeLayer:
    """Write a layer, a tar in one gzip member, to `path`.

    Args:
        path: Where to.
        plain_size: Bytes of the tar, rounded up to whole records.
        mix: What kinds of files it has.
        seed: Whatever tells this layer from others.
    """
    plain_size = -(-plain_size // RECORD) * RECORD
    packer = zlib.compressobj(LEVEL, zlib.DEFLATED, GZIP)
    plain, packed = hashlib.sha256(), hashlib.sha256()
    with path.open("wb") as file:

        def write(piece: bytes) -> None:
            packed.update(piece)
            file.write(piece)

        for piece in _tar(plain_size, mix, random.Random(seed)):
            plain.update(piece)
            write(packer.compress(piece))
        write(packer.flush())
        size = file.tell()
    return MadeLayer(f"sha256:{packed.hexdigest()}", size, f"sha256:{plain.hexdigest()}", plain_size)


def _tar(size: int, mix: Mix, rng: random.Random) -> Iterator[bytes | memoryview]:
    """Yield a tar of exactly `size` bytes; the last file is cut to fit."""
    used = 0
    for name, whole in _files(mix, rng):
        room = (
            size - used - 2 * BLOCK - BLOCK
        )  # for its data: its own header and the two blocks of the end need theirs
        if room <= 0:
            break
        content = whole[:room]
        member = tarfile.TarInfo(name)
        member.size, member.mtime = len(content), 1_700_000_000 + rng.randrange(10**6)
        padding = -len(content) % BLOCK
        yield member.tobuf(tarfile.USTAR_FORMAT)
        yield content
        yield bytes(padding)
        used += BLOCK + len(content) + padding
    yield bytes(size - used)


def _files(mix: Mix, rng: random.Random) -> Iterator[tuple[str, memoryview]]:
    """Yield names and contents without end, kinds in the shares of `mix`."""
    words = _words(rng, 400)
    given = dict.fromkeys(mix, 0)
    for number in itertools.count():
        # Whatever is furthest behind its share: the mix is the same for small layers and large ones.
        kind = min(mix, key=lambda kind: given[kind] / mix[kind])
        place, suffix = KINDS[kind].places
        size = min(POOL_SIZE, int(MEDIAN_FILE * KINDS[kind].scale * rng.lognormvariate(0, SPREAD)) + 1)
        given[kind] += size
        yield f"{place}/{rng.choice(words)}/{rng.choice(words)}{number}{suffix}", _slice(kind, size, rng)


def _slice(kind: str, size: int, rng: random.Random) -> memoryview:
    start = rng.randrange(POOL_SIZE)
    return _pool(kind)[start : start + size]


def piece_of(size: int) -> bytes:
    """Return `size` bytes, at most a pool's, that compress as a root file system does."""
    return b"".join(bytes(_pool(kind)[: -(-size // 3)]) for kind in ("text", "code", "program"))[:size]
