#!/usr/bin/env bash
# indexed_zstd: read() takes an empty frame for the end of the file.
#
# A zstd file may consist of several frames (RFC 8878, 3.1), and a frame may hold nothing: `cat` of two files, one of them
# made of no bytes, is enough. One would guess that such a frame adds nothing, as for zstd, and indexed_zstd counts so itself:
# size() is right. But read(), for all or for a piece, takes an empty frame for the end of the file, without an error; where
# the first frame is empty, the whole file reads as empty. After seek() to a place behind the empty frame the rest is there.
# A skippable frame does no harm, nor does an empty frame at the end.
#
# Version: indexed_zstd 1.7.2; backports.zstd 1.8.0 to compress and to compare with. Python 3.11.
# Seen: see `expected` at the end.
#
# Needs Python 3.10 to 3.13 with pip. Everything is in a temporary folder.
set -euo pipefail

work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
cd "$work"
python3 -m pip --disable-pip-version-check install -q --no-deps --only-binary :all: --target packages \
    indexed_zstd==1.7.2 backports.zstd==1.8.0 >pip.log 2>&1 || { cat pip.log; exit 1; }

cat >read.py <<'PYTHON'
from functools import partial
from importlib.metadata import version

from backports import zstd
from indexed_zstd import IndexedZstdFile

first, second, empty = (zstd.compress(data) for data in (b"a" * 1500, b"b" * 2700, b""))
skippable = bytes.fromhex("502a4d18 04000000") + b"note"
files = {
    "first, second": first + second,
    "first, skippable, second": first + skippable + second,
    "first, second, empty": first + second + empty,
    "first, empty, second": first + empty + second,
    "empty, first, second": empty + first + second,
}
print(f"indexed_zstd {version('indexed_zstd')}")
for name, data in files.items():
    with open("file.zst", "wb") as file:
        file.write(data)
    with IndexedZstdFile("file.zst") as file:
        whole = len(file.read())
        file.seek(0)
        pieces = sum(map(len, iter(partial(file.read, 1000), b"")))
        file.seek(1500)
        print(
            f"{name}: {len(zstd.decompress(data))} bytes; size {file.size()}, read whole {whole}, in pieces {pieces},"
            f" from 1500 on {len(file.read())}"
        )
PYTHON

seen() { PYTHONPATH=packages python3 read.py; }
expected() {
    cat <<'EXPECTED'
indexed_zstd 1.7.2
first, second: 4200 bytes; size 4200, read whole 4200, in pieces 4200, from 1500 on 2700
first, skippable, second: 4200 bytes; size 4200, read whole 4200, in pieces 4200, from 1500 on 2700
first, second, empty: 4200 bytes; size 4200, read whole 4200, in pieces 4200, from 1500 on 2700
first, empty, second: 4200 bytes; size 4200, read whole 1500, in pieces 1500, from 1500 on 2700
empty, first, second: 4200 bytes; size 4200, read whole 0, in pieces 0, from 1500 on 2700
EXPECTED
}
seen >seen.txt 2>errors.txt || { cat seen.txt errors.txt; exit 1; }
expected | diff - seen.txt || { echo "this has changed"; exit 1; }
cat seen.txt
