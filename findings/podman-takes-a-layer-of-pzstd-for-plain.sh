#!/usr/bin/env bash
# podman and skopeo: a layer that pzstd compressed is taken for a plain one, and a sound image for a damaged one.
#
# pzstd, the parallel compressor of the same package as zstd, puts a skippable frame before each frame. The result is plain
# zstd (RFC 8878, 3.1.2): a decoder passes over such frames, and `zstd -d` restores the layer. One would guess that podman
# and skopeo read the layers of both programs, all the more as their decoder knows skippable frames. But the decoder is not
# asked: they find out the compression by the first four bytes alone, also where the media type says zstd, and know only the
# four of a zstd frame. So they take the compressed bytes for the layer itself. In a docker archive that looks like damage:
# "Digest did not match", where the digest they got is that of the blob as it is stored. In an OCI archive it is "invalid tar
# header". A skippable frame at the end does no harm. ctr 1.6.20 (containerd) imports the same docker archive, by hand.
#
# Versions: podman 4.3.1, skopeo 1.9.3, zstd 1.5.4; for the docker archive, by hand, also podman 5.8.6 and skopeo 1.22.0.
# Seen: see `expected` at the end.
#
# Needs Debian 12 on amd64, root (podman unpacks layers as they are) and apt's lists. Everything is in a temporary folder.
set -euo pipefail

PACKAGES=(
    podman=4.3.1+ds1-8+deb12u1+b3 skopeo=1.9.3+ds1-1+b10 zstd=1.5.4+dfsg2-5+deb12u1
    libgpgme11=1.18.0-3+deb12u1 libassuan0=2.5.5-5 libsubid4=1:4.13+dfsg1-1+deb12u2
    libseccomp2=2.5.4-1+deb12u1 libdevmapper1.02.1=2:1.02.185-2
)
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
cd "$work"
chmod 755 .
apt-get download -qq "${PACKAGES[@]}" >apt.log 2>&1 || { cat apt.log; exit 1; }
for package in *.deb; do dpkg-deb -x "$package" unpacked; done
export LD_LIBRARY_PATH=$work/unpacked/usr/lib/x86_64-linux-gnu:$work/unpacked/lib/x86_64-linux-gnu
export TMPDIR=$work
echo '{"default": [{"type": "insecureAcceptAnything"}]}' >policy.json

mkdir root
seq 100000 >root/numbers
tar --sort=name --owner=0 --group=0 --mtime=@0 -C root -cf layer.tar numbers
unpacked/usr/bin/zstd -q layer.tar -o layer.zstd
unpacked/usr/bin/pzstd -q -p 2 layer.tar -o layer.pzstd
{ cat layer.zstd; printf '\x50\x2a\x4d\x18\x04\0\0\0note'; } >layer.zstd-note

cat >make.py <<'PYTHON'
import hashlib
import io
import json
import pathlib
import tarfile


def add(archive, name, data):
    member = tarfile.TarInfo(name)
    member.size = len(data)
    archive.addfile(member, io.BytesIO(data))


def digest(data):
    return hashlib.sha256(data).hexdigest()


def descriptor(kind, data):
    return {"mediaType": f"application/vnd.oci.image.{kind}", "digest": f"sha256:{digest(data)}", "size": len(data)}


rootfs = {"type": "layers", "diff_ids": [f"sha256:{digest(pathlib.Path('layer.tar').read_bytes())}"]}
config = json.dumps({"architecture": "amd64", "os": "linux", "config": {}, "rootfs": rootfs}).encode()
for name in ("zstd", "pzstd", "zstd-note"):
    layer = pathlib.Path(f"layer.{name}").read_bytes()
    with tarfile.open(f"{name}.docker.tar", "w") as archive:
        add(archive, "layer", layer)
        add(archive, "config", config)
        item = {"Config": "config", "RepoTags": ["example.com/app:1"], "Layers": ["layer"]}
        add(archive, "manifest.json", json.dumps([item]).encode())
    config_descriptor = descriptor("config.v1+json", config)
    layer_descriptor = descriptor("layer.v1.tar+zstd", layer)
    manifest = json.dumps({"schemaVersion": 2, "config": config_descriptor, "layers": [layer_descriptor]}).encode()
    with tarfile.open(f"{name}.oci.tar", "w") as archive:
        for blob in (layer, config, manifest):
            add(archive, f"blobs/sha256/{digest(blob)}", blob)
        add(archive, "oci-layout", b'{"imageLayoutVersion": "1.0.0"}')
        index = {"schemaVersion": 2, "manifests": [descriptor("manifest.v1+json", manifest)]}
        add(archive, "index.json", json.dumps(index).encode())
PYTHON
python3 make.py

podman() {
    unpacked/usr/bin/podman --root "$work/$1/store" --runroot "$work/$1/run" --tmpdir "$work/$1/tmp" \
        --storage-driver vfs "${@:2}"
}
# Run a program; print whether it read the archive, else its error with the digests by their meaning.
outcome() {
    local why='Digest did not match, [a-z0-9:, ]+|archive/tar: invalid tar header'
    if "${@:2}" >out.txt 2>&1; then
        echo "  $1: read"
    else
        echo "  $1: $(grep -oE "$why" out.txt | tail -n 1 | sed "s/$plain/(diff ID)/; s/$stored/(stored blob)/")"
    fi
}
seen() {
    unpacked/usr/bin/podman --version
    unpacked/usr/bin/skopeo --version
    plain=$(sha256sum <layer.tar | head -c 64)
    for name in zstd zstd-note pzstd; do
        stored=$(sha256sum <"layer.$name" | head -c 64)
        echo "$name, first bytes $(head -c 4 "layer.$name" | od -An -tx1 | tr -d ' ')"
        unpacked/usr/bin/zstd -qdc <"layer.$name" | cmp - layer.tar && echo "  zstd -d: the layer"
        outcome "skopeo, docker-archive" unpacked/usr/bin/skopeo --policy policy.json copy -q \
            "docker-archive:$name.docker.tar" "dir:$name.dir"
        outcome "podman, docker-archive" podman "$name.1" load -q --signature-policy policy.json -i "$name.docker.tar"
        outcome "podman, oci-archive" podman "$name.2" load -q --signature-policy policy.json -i "$name.oci.tar"
    done
}
expected() {
    cat <<'EXPECTED'
podman version 4.3.1
skopeo version 1.9.3
zstd, first bytes 28b52ffd
  zstd -d: the layer
  skopeo, docker-archive: read
  podman, docker-archive: read
  podman, oci-archive: read
zstd-note, first bytes 28b52ffd
  zstd -d: the layer
  skopeo, docker-archive: read
  podman, docker-archive: read
  podman, oci-archive: read
pzstd, first bytes 502a4d18
  zstd -d: the layer
  skopeo, docker-archive: Digest did not match, expected sha256:(diff ID), got sha256:(stored blob)
  podman, docker-archive: Digest did not match, expected sha256:(diff ID), got sha256:(stored blob)
  podman, oci-archive: archive/tar: invalid tar header
EXPECTED
}
seen >seen.txt || { cat seen.txt out.txt; exit 1; }
expected | diff - seen.txt || { echo "this has changed"; cat out.txt; exit 1; }
cat seen.txt
