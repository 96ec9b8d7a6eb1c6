#!/usr/bin/env bash
# podman load: a short name in an archive of Docker's, alone and beside another one.
#
# `docker save` (25 and later; here in the shape of the containerd store) writes an OCI layout and a manifest.json into one
# archive. The two have the same names: whole ones in index.json (io.containerd.image.name: docker.io/library/app:1), short
# ones in manifest.json (RepoTags: app:1). So one would guess that `podman load` names an image alike whether it is alone in
# the archive or not. It does not: alone, the image is docker.io/library/app:1. Where the archive holds another name, even one
# of the same image, it is localhost/app:1. podman tries one kind of archive after the other (--log-level debug): with several
# entries in index.json the OCI layout fails, unseen, and manifest.json counts, where a short name is one of this machine's own.
# A name with a registry in it is the same either way.
#
# Versions: podman 4.3.1 (below) and, seen by hand with archives of Docker 28.5.2's own, podman 4.3.1 and 5.8.6.
# Seen: see `expected` at the end.
#
# Needs Debian 12 on amd64, root (podman unpacks layers as they are) and apt's lists. Everything is in a temporary folder.
set -euo pipefail

PACKAGES=(
    podman=4.3.1+ds1-8+deb12u1+b3
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
echo '{"default": [{"type": "insecureAcceptAnything"}]}' >policy.json

python3 - <<'PYTHON'
import hashlib
import io
import json
import tarfile


def add(archive, name, data):
    member = tarfile.TarInfo(name)
    member.size = len(data)
    archive.addfile(member, io.BytesIO(data))


def write(path, *names):
    """Write one image under these names, as Docker's containerd store does."""
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode="w") as tar:
        add(tar, "text", b"text")
    blobs = {}

    def put(data):
        digest = hashlib.sha256(data).hexdigest()
        blobs[f"blobs/sha256/{digest}"] = data
        return {"digest": f"sha256:{digest}", "size": len(data)}

    def oci(kind):
        return {"mediaType": f"application/vnd.oci.image.{kind}"}

    layer = oci("layer.v1.tar") | put(file.getvalue())
    rootfs = {"type": "layers", "diff_ids": [layer["digest"]]}
    config = oci("config.v1+json") | put(json.dumps({"architecture": "amd64", "os": "linux", "config": {}, "rootfs": rootfs}).encode())
    manifest = oci("manifest.v1+json") | put(
        json.dumps({"schemaVersion": 2, **oci("manifest.v1+json"), "config": config, "layers": [layer]}).encode()
    )
    entries = [
        manifest | {"annotations": {"io.containerd.image.name": name, "org.opencontainers.image.ref.name": name.split(":")[1]}}
        for name in names
    ]
    item = {
        "Config": "blobs/" + config["digest"].replace(":", "/"),
        "RepoTags": [name.removeprefix("docker.io/library/") for name in names],
        "Layers": ["blobs/" + layer["digest"].replace(":", "/")],
    }
    with tarfile.open(path, "w") as archive:
        for name in sorted(blobs):
            add(archive, name, blobs[name])
        add(archive, "index.json", json.dumps({"schemaVersion": 2, **oci("index.v1+json"), "manifests": entries}).encode())
        add(archive, "manifest.json", json.dumps([item]).encode())
        add(archive, "oci-layout", b'{"imageLayoutVersion":"1.0.0"}')


write("alone.tar", "docker.io/library/app:1")
write("beside-another.tar", "docker.io/library/app:1", "example.com/app:1")
PYTHON

podman() {
    unpacked/usr/bin/podman --root "$work/$1/store" --runroot "$work/$1/run" --tmpdir "$work/$1/tmp" \
        --storage-driver vfs "${@:2}" 2>>"$work/podman.log"
}
seen() {
    unpacked/usr/bin/podman --version
    for archive in alone beside-another; do
        echo "$archive.tar"
        podman "$archive" load -q --signature-policy policy.json -i "$archive.tar"
    done
}
expected() {
    cat <<'EXPECTED'
podman version 4.3.1
alone.tar
Loaded image: docker.io/library/app:1
beside-another.tar
Loaded image: localhost/app:1
Loaded image: example.com/app:1
EXPECTED
}
seen >seen.txt || { cat podman.log; exit 1; }
expected | diff - seen.txt || { echo "this has changed"; exit 1; }
cat seen.txt
