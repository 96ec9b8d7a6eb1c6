#!/usr/bin/env bash
# ctr images export: the order of images in manifest.json is another one in each run.
#
# containerd's archives look deterministic: members are sorted by name, times are zero, and one image exported twice gives the
# same file twice. So one would guess that several images exported twice, under the same names in the same order, give the
# same file, too. They do not: index.json has the images in the order of the names, but manifest.json has them in an order of
# chance (a map of Go's is iterated), so the file's checksum changes from run to run. Who caches such an archive by its
# checksum, or takes the n-th item of manifest.json for the n-th name, is wrong. `docker save` of Docker 25 and later writes
# its archives by the same code where it has the containerd store (seen by hand: Docker 28.5.2, 2 of 12 runs differed).
#
# Version: containerd 1.6.20 (Debian 12) and, seen by hand, 2.1.9 (11 names: 10 different files in 25 runs).
# Seen: see `expected` at the end.
#
# Needs Debian 12 on amd64, root (containerd asks for it) and apt's lists. containerd listens on a socket in a temporary
# folder, and everything else is there, too.
set -euo pipefail

RUNS=40
work=$(mktemp -d)
daemon=
trap '[ -z "$daemon" ] || { kill "$daemon"; wait "$daemon" || true; } 2>/dev/null; rm -rf "$work"' EXIT
cd "$work"
chmod 755 .
apt-get download -qq containerd=1.6.20~ds1-1+deb12u3 >apt.log 2>&1 || { cat apt.log; exit 1; }
dpkg-deb -x containerd_*.deb unpacked

cat >config.toml <<CONFIG
version = 2
root = "$work/root"
state = "$work/state"
disabled_plugins = ["io.containerd.grpc.v1.cri", "io.containerd.internal.v1.opt", "io.containerd.snapshotter.v1.btrfs",
    "io.containerd.snapshotter.v1.zfs", "io.containerd.snapshotter.v1.aufs", "io.containerd.snapshotter.v1.devmapper",
    "io.containerd.snapshotter.v1.overlayfs", "io.containerd.internal.v1.tracing"]
[grpc]
address = "$work/socket"
CONFIG
unpacked/usr/bin/containerd --config config.toml >containerd.log 2>&1 &
daemon=$!
ctr() { unpacked/usr/bin/ctr --address "$work/socket" "$@"; }
for _ in $(seq 200); do
    ! ctr version >version.txt 2>&1 || break
    kill -0 "$daemon" || { cat containerd.log; exit 1; }
    sleep 0.1
done

python3 - <<'PYTHON'
import hashlib
import io
import json
import tarfile


def add(archive, name, data):
    member = tarfile.TarInfo(name)
    member.size = len(data)
    archive.addfile(member, io.BytesIO(data))


def oci(kind):
    return {"mediaType": f"application/vnd.oci.image.{kind}"}


blobs = {}


def put(data):
    digest = hashlib.sha256(data).hexdigest()
    blobs[f"blobs/sha256/{digest}"] = data
    return {"digest": f"sha256:{digest}", "size": len(data)}


entries = []
for number in range(6):
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode="w") as tar:
        add(tar, "number", b"%d" % number)
    layer = oci("layer.v1.tar") | put(file.getvalue())
    rootfs = {"type": "layers", "diff_ids": [layer["digest"]]}
    config = oci("config.v1+json") | put(json.dumps({"architecture": "amd64", "os": "linux", "rootfs": rootfs}).encode())
    manifest = {"schemaVersion": 2, **oci("manifest.v1+json"), "config": config, "layers": [layer]}
    name = f"example.com/app:{number}"
    entries.append(
        oci("manifest.v1+json") | put(json.dumps(manifest).encode()) | {"annotations": {"io.containerd.image.name": name}}
    )
with tarfile.open("images.tar", "w") as archive:
    add(archive, "oci-layout", b'{"imageLayoutVersion":"1.0.0"}')
    add(archive, "index.json", json.dumps({"schemaVersion": 2, "manifests": entries}).encode())
    for name, data in blobs.items():
        add(archive, name, data)
PYTHON

seen() {
    ctr --version
    ctr images import --no-unpack images.tar >import.log 2>&1
    for run in $(seq "$RUNS"); do
        ctr images export "six-$run.tar" example.com/app:{0,1,2,3,4,5}
        ctr images export "one-$run.tar" example.com/app:0
    done
    python3 - "$RUNS" <<'PYTHON'
import hashlib
import json
import sys
import tarfile


def look(name):
    with tarfile.open(name) as archive:
        files = {each.name: archive.extractfile(each).read() for each in archive if each.isfile()}
    with open(name, "rb") as file:
        whole = hashlib.sha256(file.read()).hexdigest()
    index = [each["annotations"]["io.containerd.image.name"] for each in json.loads(files.pop("index.json"))["manifests"]]
    items = [item["RepoTags"][0] for item in json.loads(files.pop("manifest.json"))]
    return whole, tuple(index), tuple(items), tuple(sorted(files))


def several(found):
    return "the same" if len(set(found)) == 1 else "several"


for kind in ("one", "six"):
    wholes, indexes, items, others = zip(*(look(f"{kind}-{run}.tar") for run in range(1, int(sys.argv[1]) + 1)))
    print(f"{kind}: files {several(wholes)}, order of index.json {several(indexes)}, of manifest.json {several(items)}")
    print(f"    images in manifest.json {several(map(frozenset, items))}, other members {several(others)}")
PYTHON
}
expected() {
    cat <<'EXPECTED'
ctr github.com/containerd/containerd 1.6.20~ds1
one: files the same, order of index.json the same, of manifest.json the same
    images in manifest.json the same, other members the same
six: files several, order of index.json the same, of manifest.json several
    images in manifest.json the same, other members the same
EXPECTED
}
seen >seen.txt || { cat containerd.log; exit 1; }
expected | diff - seen.txt || { echo "this has changed"; exit 1; }
cat seen.txt
