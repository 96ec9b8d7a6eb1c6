"""A registry of images of any size, which lie nowhere: each blob is a beginning, a piece repeated, and an end.

    with running_pieces() as address:
        PieceImage("gzip", layers=16, size=1_000_000, latency=100).reference(address)

A reference says everything, so nothing is pushed: ``127.0.0.1:PORT/gzip/16x1000000/100ms:1`` has 16 layers of a million plain
bytes in gzip, and every answer waits for 100 ms. It is a process of its own; an image's digests are found out when its
manifest is asked for.
"""

from __future__ import annotations

import contextlib
import functools
import hashlib
import http.client
import json
import re
import struct
import subprocess
import sys
import tarfile
import threading
import time
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Literal

from .synthetic import BLOCK, LEVEL, RECORD, piece_of

PIECE = 64 << 10  # bytes
AT_ONCE = 16  # pieces in one write
RAW = -15  # zlib's window bits for deflate alone
OCI = "application/vnd.oci.image"
MANIFEST, CONFIG = f"{OCI}.manifest.v1+json", f"{OCI}.config.v1+json"
TAR_END = bytes(2 * BLOCK)
GZIP_HEAD = b"\x1f\x8b\x08\0\0\0\0\0\0\xff"
Form = Literal["tar", "gzip"]


@dataclass(frozen=True)
class PieceImage:
    """An image that the registry has because it can be named.

    Attributes:
        form: How its layers are stored, plain or compressed.
        layers: How many there are.
        size: Plain bytes of each, rounded up to what tars are filled up to.
        latency: Milliseconds that each answer waits for.
    """

    form: Form
    layers: int
    size: int
    latency: int = 0

    @property
    def repository(self) -> str:
        """Its name, which says all this."""
        return f"{self.form}/{self.layers}x{self.size}/{self.latency}ms"

    def reference(self, address: str) -> str:
        """Return what commands take."""
        return f"{address}/{self.repository}:1"


def warm_up(address: str, image: PieceImage) -> None:
    """Have the registry find out the image's digests."""
    with contextlib.closing(http.client.HTTPConnection(address, timeout=600)) as connection:
        connection.request("GET", f"/v2/{image.repository}/manifests/1")
        response = connection.getresponse()
        if response.status != 200:
            raise AssertionError(f"status {response.status}: {response.read()!r}")
        response.read()


@contextlib.contextmanager
def running_pieces() -> Iterator[str]:
    """Run the registry; give its address."""
    command = [sys.executable, "-m", "tests.benchmarks.piece_registry"]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        try:
            yield process.stdout.readline().strip()
        finally:
            process.kill()


# ── blobs ──


@dataclass(frozen=True)
class Pieces:
    """A blob: `head`, `piece` so many times, `tail`."""

    head: bytes
    piece: bytes
    count: int
    tail: bytes

    @property
    def size(self) -> int:
        """Its bytes."""
        return len(self.head) + len(self.piece) * self.count + len(self.tail)

    def parts(self, start: int, stop: int) -> Iterator[memoryview]:
        """Yield the bytes from `start` to before `stop`, or the end."""
        stop = min(stop, self.size)
        many = _repeated(self.piece)
        middle = len(self.head)
        end = middle + len(self.piece) * self.count
        while start < stop:
            if start < middle:
                part = memoryview(self.head)[start:stop]
            elif start < end:
                skipped = (start - middle) % len(self.piece)
                part = memoryview(many)[skipped : skipped + min(stop, end) - start]
            else:
                part = memoryview(self.tail)[start - end : stop - end]
            yield part
            start += len(part)


@functools.cache
def _repeated(piece: bytes) -> bytes:
    return piece * AT_ONCE


def plain_blob(number: int, size: int) -> Pieces:
    """Make the plain bytes of a layer: a tar of one file, whose name differs from layer to layer."""
    content = max(-(-size // RECORD), 1) * RECORD - BLOCK - len(TAR_END)
    member = tarfile.TarInfo(f"layer-{number}")
    member.size = content
    piece = piece_of(PIECE)
    count, rest = divmod(content, PIECE)
    return Pieces(member.tobuf(tarfile.USTAR_FORMAT), piece, count, piece[:rest] + TAR_END)


def gzip_blob(plain: Pieces) -> Pieces:
    """Compress into one gzip member, where every piece becomes the same bytes."""
    checksum = zlib.crc32(plain.head)
    for _ in range(plain.count):
        checksum = zlib.crc32(plain.piece, checksum)
    checksum = zlib.crc32(plain.tail, checksum)
    trailer = struct.pack("<II", checksum, plain.size & 0xFFFFFFFF)
    return Pieces(
        GZIP_HEAD + _deflated(plain.head),
        _deflated(plain.piece),
        plain.count,
        _deflated(plain.tail, zlib.Z_FINISH) + trailer,
    )


@functools.lru_cache(16)
def _deflated(data: bytes, flush: int = zlib.Z_FULL_FLUSH) -> bytes:
    # A full flush ends on a byte, and nothing behind it looks back over it.
    packer = zlib.compressobj(LEVEL, zlib.DEFLATED, RAW)
    return packer.compress(data) + packer.flush(flush)


def _digest(blob: Pieces) -> str:
    sha256 = hashlib.sha256()
    for part in blob.parts(0, blob.size):
        sha256.update(part)
    return f"sha256:{sha256.hexdigest()}"


# ── documents ──


@dataclass(frozen=True)
class Served:
    """An image with its blobs by digest."""

    manifest: bytes
    blobs: dict[str, Pieces]


@functools.cache
def _served(form: Form, layers: int, size: int) -> Served:
    blobs, descriptors, diff_ids = {}, [], []
    for number in range(layers):
        plain = plain_blob(number, size)
        blob = gzip_blob(plain) if form == "gzip" else plain
        digest = _digest(blob)
        blobs[digest] = blob
        media_type = f"{OCI}.layer.v1.tar" + ("+gzip" if form == "gzip" else "")
        descriptors.append({"mediaType": media_type, "digest": digest, "size": blob.size})
        diff_ids.append(_digest(plain) if form == "gzip" else digest)
    rootfs = {"type": "layers", "diff_ids": diff_ids}
    config = json.dumps({"architecture": "amd64", "os": "linux", "rootfs": rootfs}).encode()
    config_blob = Pieces(config, b"", 0, b"")
    blobs[_digest(config_blob)] = config_blob
    manifest = {
        "schemaVersion": 2,
        "mediaType": MANIFEST,
        "config": {"mediaType": CONFIG, "digest": _digest(config_blob), "size": len(config)},
        "layers": descriptors,
    }
    return Served(json.dumps(manifest).encode(), blobs)


# ── the server ──

_PATH = re.compile(
    r"/v2/(?P<form>tar|gzip)/(?P<layers>\d+)x(?P<size>\d+)/(?P<latency>\d+)ms/(?P<kind>manifests|blobs)/(.+)"
)
_RANGE = re.compile(r"bytes=(\d*)-(\d*)")
_making = threading.Lock()


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True  # a head and a body are two writes

    def do_HEAD(self) -> None:
        self.do_GET()

    def do_GET(self) -> None:
        found = _PATH.fullmatch(self.path)
        if found is None:
            self._answer(200 if self.path == "/v2/" else 404, Pieces(b"{}", b"", 0, b""), "application/json")
            return
        with _making:  # once, whoever asks first
            image = _served(
                "gzip" if found["form"] == "gzip" else "tar", int(found["layers"]), int(found["size"])
            )
        time.sleep(int(found["latency"]) / 1000)
        if found["kind"] == "manifests":
            self._answer(200, Pieces(image.manifest, b"", 0, b""), MANIFEST)
        else:
            self._answer(200, image.blobs[found[6]], "application/octet-stream")

    def _answer(self, status: int, blob: Pieces, media_type: str) -> None:
        start, stop = 0, blob.size
        if wanted := _RANGE.fullmatch(self.headers.get("Range", "")):
            status = 206
            first, last = wanted[1], wanted[2]
            start = int(first) if first else max(0, blob.size - int(last))
            stop = min(int(last) + 1, blob.size) if first and last else blob.size
        self.send_response(status)
        self.send_header("Content-Type", media_type)
        self.send_header("Content-Length", str(stop - start))
        if status == 206:
            self.send_header("Content-Range", f"bytes {start}-{stop - 1}/{blob.size}")
        self.end_headers()
        if self.command == "GET":
            for part in blob.parts(start, stop):
                self.wfile.write(part)

    def log_message(self, format: str, *args: object) -> None:
        """Say nothing."""


class _Server(ThreadingHTTPServer):
    request_queue_size = 128  # where the usual 5 are too few, a connection is tried again after a second
    daemon_threads = True


def main() -> None:
    """Serve until standard input ends: until whoever started it is gone."""
    server = _Server(("127.0.0.1", 0), _Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    print(f"127.0.0.1:{server.server_port}", flush=True)
    sys.stdin.read()


if __name__ == "__main__":
    main()
