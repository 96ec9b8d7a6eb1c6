#!/usr/bin/env bash
# aiotarfile: a tar archive in several gzip members ends after the first one, without an error.
#
# A gzip file may consist of several members (RFC 1952, 2.2), and archives do: an eStargz layer of an image has at least one
# member for each tar entry, and bgzip or `cat` make members of their own. One would guess that a reader of compressed
# archives goes on with the next member, as gzip, GNU tar and Python's tarfile do, or says that the archive has no end.
# aiotarfile stops at the end of the first member. Where this is the end of a tar entry, too, as in eStargz, the loop over
# the entries just ends: all further entries are missing, and there is no error. Several streams of bzip2 or xz are cut in
# the same way. There is an AioTarfileError only where the first member ends inside of an entry.
#
# Version: aiotarfile 0.5.2, Python 3.11.
# Seen: see `expected` at the end.
#
# Needs Python 3.9 to 3.13 with pip, gzip and GNU tar. Everything is in a temporary folder.
set -euo pipefail

work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
cd "$work"
python3 -m pip --disable-pip-version-check install -q --no-deps --only-binary :all: --target packages aiotarfile==0.5.2 \
    >pip.log 2>&1 || { cat pip.log; exit 1; }

cat >make.py <<'PYTHON'
import bz2
import gzip
import io
import lzma
import tarfile


def entry(name, size):
    member = tarfile.TarInfo(name)
    member.size = size
    return member.tobuf() + b"x" * size + bytes(-size % tarfile.BLOCKSIZE)


entries = [entry("first", 5000), entry("second", 300), entry("third", 70000)]
end = bytes(2 * tarfile.BLOCKSIZE)
tar = b"".join(entries) + end
files = {
    "plain.tar": tar,
    "one-member.tar.gz": gzip.compress(tar),
    "member-per-entry.tar.gz": b"".join(map(gzip.compress, [*entries, end])),
    "members-cut-an-entry.tar.gz": gzip.compress(tar[:3000]) + gzip.compress(tar[3000:]),
    "stream-per-entry.tar.bz2": b"".join(map(bz2.compress, [*entries, end])),
    "stream-per-entry.tar.xz": b"".join(map(lzma.compress, [*entries, end])),
}
for name, data in files.items():
    with open(name, "wb") as file:
        file.write(data)
PYTHON

cat >read.py <<'PYTHON'
import asyncio
import os
import sys
import tarfile
from importlib.metadata import version

import aiotarfile


class Stream:
    def __init__(self, path):
        self.file = open(path, "rb")

    async def read(self, size=-1):
        return self.file.read(size)


async def names(path):
    async with await aiotarfile.open_rd(Stream(path)) as archive:
        try:
            async for entry in archive:
                yield entry.name().decode()
        except aiotarfile.AioTarfileError as error:
            yield f"AioTarfileError: {error}"


async def main(paths):
    for path in paths:
        with tarfile.open(path) as archive:
            print(f"{path}\n  tarfile: {', '.join(archive.getnames())}")
        print(f"  aiotarfile: {', '.join([name async for name in names(path)])}")


print(f"aiotarfile {version('aiotarfile')}")
asyncio.run(main(sys.argv[1:]))
# aiotarfile's threads can outlive the loop and disturb the interpreter as it shuts down: leave without that.
sys.stdout.flush()
os._exit(0)
PYTHON

seen() {
    PYTHONPATH=packages python3 read.py plain.tar one-member.tar.gz member-per-entry.tar.gz members-cut-an-entry.tar.gz \
        stream-per-entry.tar.bz2 stream-per-entry.tar.xz
    gzip --test member-per-entry.tar.gz && echo "gzip: member-per-entry.tar.gz is whole"
    echo "GNU tar: $(tar -tzf member-per-entry.tar.gz | paste -sd ' ')"
}
expected() {
    cat <<'EXPECTED'
aiotarfile 0.5.2
plain.tar
  tarfile: first, second, third
  aiotarfile: first, second, third
one-member.tar.gz
  tarfile: first, second, third
  aiotarfile: first, second, third
member-per-entry.tar.gz
  tarfile: first, second, third
  aiotarfile: first
members-cut-an-entry.tar.gz
  tarfile: first, second, third
  aiotarfile: first, AioTarfileError: unexpected EOF during skip
stream-per-entry.tar.bz2
  tarfile: first, second, third
  aiotarfile: first
stream-per-entry.tar.xz
  tarfile: first, second, third
  aiotarfile: first
gzip: member-per-entry.tar.gz is whole
GNU tar: first second third
EXPECTED
}
python3 make.py
seen >seen.txt 2>errors.txt || { cat seen.txt errors.txt; exit 1; }
expected | diff - seen.txt || { echo "this has changed"; exit 1; }
cat seen.txt
