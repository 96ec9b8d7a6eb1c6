#!/usr/bin/env bash
# ctr images export: a name is lost from manifest.json, depending on the order of the names.
#
# Of one image a store may have two names: one for its manifest, and one for an index of several platforms that leads to the
# same manifest. One would guess that an archive of both has both names, in whichever order they are given; index.json does.
# manifest.json has both if the name of the index comes first. If the name of the manifest comes first, it is lost there: the
# list of names is begun anew when the index leads to the manifest. Status 0, no word. Who reads the archive by manifest.json
# (Docker's own store, skopeo's and podman's docker-archive) never learns of that name. Two names of manifests, or two of
# indexes, are both there in any order. `docker save` with the containerd store does the same (seen by hand: Docker 28.5.2).
#
# Version: containerd 1.6.20 (Debian 12).
# Seen: see `expected` at the end.
#
# Needs Debian 12 on amd64, root (containerd asks for it) and apt's lists. containerd listens on a socket in a temporary
# folder, and everything else is there, too.
set -euo pipefail

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


file = io.BytesIO()
with tarfile.open(fileobj=file, mode="w") as tar:
    add(tar, "text", b"text")
layer = oci("layer.v1.tar") | put(file.getvalue())
rootfs = {"type": "layers", "diff_ids": [layer["digest"]]}
config = oci("config.v1+json") | put(json.dumps({"architecture": "amd64", "os": "linux", "rootfs": rootfs}).encode())
manifest = oci("manifest.v1+json") | put(
    json.dumps({"schemaVersion": 2, **oci("manifest.v1+json"), "config": config, "layers": [layer]}).encode()
)
entry = manifest | {"platform": {"architecture": "amd64", "os": "linux"}}
index = oci("index.v1+json") | put(json.dumps({"schemaVersion": 2, **oci("index.v1+json"), "manifests": [entry]}).encode())


def named(descriptor, name):
    return descriptor | {"annotations": {"io.containerd.image.name": name}}


for path, entries in {
    "both.tar": [named(manifest, "example.com/direct:1"), named(index, "example.com/index:1")],
    "two-direct.tar": [named(manifest, "example.com/direct:1"), named(manifest, "example.com/other:1")],
    "two-index.tar": [named(index, "example.com/index:1"), named(index, "example.com/index:2")],
}.items():
    with tarfile.open(path, "w") as archive:
        add(archive, "oci-layout", b'{"imageLayoutVersion":"1.0.0"}')
        add(archive, "index.json", json.dumps({"schemaVersion": 2, "manifests": entries}).encode())
        for name, data in blobs.items():
            add(archive, name, data)
PYTHON

export_of() { # an archive to import, and the names to export, in order
    ctr -n "$1" images export out.tar "${@:2}"
    for file in index.json manifest.json; do
        echo "    $file: $(tar -xOf out.tar "$file" | grep -o 'example.com/[a-z]*:[0-9]' | tr '\n' ' ')"
    done
}
seen() {
    ctr --version
    for kind in both two-direct two-index; do ctr -n "$kind" images import --no-unpack "$kind.tar" >>import.log 2>&1; done
    echo "a manifest's name, then an index's"
    export_of both example.com/direct:1 example.com/index:1
    echo "an index's name, then a manifest's"
    export_of both example.com/index:1 example.com/direct:1
    echo "two names of a manifest"
    export_of two-direct example.com/direct:1 example.com/other:1
    echo "two names of an index"
    export_of two-index example.com/index:1 example.com/index:2
}
expected() {
    cat <<'EXPECTED'
ctr github.com/containerd/containerd 1.6.20~ds1
a manifest's name, then an index's
    index.json: example.com/direct:1 example.com/index:1
    manifest.json: example.com/index:1
an index's name, then a manifest's
    index.json: example.com/index:1 example.com/direct:1
    manifest.json: example.com/index:1 example.com/direct:1
two names of a manifest
    index.json: example.com/direct:1 example.com/other:1
    manifest.json: example.com/direct:1 example.com/other:1
two names of an index
    index.json: example.com/index:1 example.com/index:2
    manifest.json: example.com/index:1 example.com/index:2
EXPECTED
}
seen | sed 's/ *$//' >seen.txt || { cat containerd.log; exit 1; }
expected | diff - seen.txt || { echo "this has changed"; exit 1; }
cat seen.txt
