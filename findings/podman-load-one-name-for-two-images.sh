#!/usr/bin/env bash
# podman load: two images of one archive under one name.
#
# A docker archive (manifest.json) may hold several images, and nothing forbids two of them to have the same repo tag. One
# would guess that `podman load` loads both, and that the name goes to the later one, as `docker load` does it (20.10.24, by hand). It loads the
# first one twice: it prints "Loaded image: NAME" two times and ends with status 0, but the second image, which is whole and
# is in the archive, is not in the store, not even without a name. Where the second has no name, it is loaded.
# skopeo takes the first one for the name, too, and finds the second by its place (`:@1`).
#
# Versions: podman 4.3.1 (below) and, seen by hand, podman 5.8.6; skopeo 1.9.3.
# Seen: see `expected` at the end.
#
# Needs Debian 12 on amd64, root (podman unpacks layers as they are) and apt's lists. Everything is in a temporary folder.
set -euo pipefail

PACKAGES=(
    podman=4.3.1+ds1-8+deb12u1+b3 skopeo=1.9.3+ds1-1+b10
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


def image(text):
    """Return names and bytes of a config and its one layer."""
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode="w") as tar:
        add(tar, "text", text)
    layer = file.getvalue()
    diff_id = hashlib.sha256(layer).hexdigest()
    rootfs = {"type": "layers", "diff_ids": [f"sha256:{diff_id}"]}
    config = json.dumps({"architecture": "amd64", "os": "linux", "config": {}, "rootfs": rootfs}).encode()
    return (f"{hashlib.sha256(config).hexdigest()}.json", config), (f"{diff_id}.tar", layer)


def write(path, tags):
    items = []
    with tarfile.open(path, "w") as archive:
        for text, names in zip((b"first", b"second"), tags):
            config, layer = image(text)
            add(archive, *layer)
            add(archive, *config)
            items.append({"Config": config[0], "RepoTags": names, "Layers": [layer[0]]})
        add(archive, "manifest.json", json.dumps(items).encode())


write("one-name.tar", [["example.com/app:1"], ["example.com/app:1"]])
write("two-names.tar", [["example.com/app:1"], ["example.com/app:2"]])
write("second-unnamed.tar", [["example.com/app:1"], []])
for number, text in enumerate((b"first", b"second")):
    with open(f"id-{number}", "w") as file:
        file.write(image(text)[0][0][:12])
PYTHON

named() { sed "s/$(cat id-0)[0-9a-f]*/FIRST/; s/$(cat id-1)[0-9a-f]*/SECOND/; s/sha256://"; }
podman() {
    unpacked/usr/bin/podman --root "$work/$1/store" --runroot "$work/$1/run" --tmpdir "$work/$1/tmp" \
        --storage-driver vfs "${@:2}" 2>>"$work/podman.log"
}
seen() {
    unpacked/usr/bin/podman --version
    unpacked/usr/bin/skopeo --version
    for archive in one-name two-names second-unnamed; do
        echo "$archive.tar"
        podman "$archive" load -q --signature-policy policy.json -i "$archive.tar" | named
        podman "$archive" images -a --no-trunc --format 'in the store: {{.Repository}}:{{.Tag}} {{.ID}}' | named | sort
    done
    for image in example.com/app:1 @0 @1; do
        unpacked/usr/bin/skopeo --policy policy.json copy -q "docker-archive:one-name.tar:$image" "dir:out-${image##*/}"
        printf 'skopeo, one-name.tar:%s ' "$image"
        grep -o '"application/vnd.docker.container.image.v1+json","size":[0-9]*,"digest":"sha256:[0-9a-f]*"' \
            "out-${image##*/}/manifest.json" | grep -o '[0-9a-f]\{64\}' | named
    done
}
expected() {
    cat <<'EXPECTED'
podman version 4.3.1
skopeo version 1.9.3
one-name.tar
Loaded image: example.com/app:1
Loaded image: example.com/app:1
in the store: example.com/app:1 FIRST
two-names.tar
Loaded image: example.com/app:1
Loaded image: example.com/app:2
in the store: example.com/app:1 FIRST
in the store: example.com/app:2 SECOND
second-unnamed.tar
Loaded image: example.com/app:1
Loaded image: SECOND
in the store: <none>:<none> SECOND
in the store: example.com/app:1 FIRST
skopeo, one-name.tar:example.com/app:1 FIRST
skopeo, one-name.tar:@0 FIRST
skopeo, one-name.tar:@1 SECOND
EXPECTED
}
seen >seen.txt || { cat podman.log; exit 1; }
expected | diff - seen.txt || { echo "this has changed"; exit 1; }
cat seen.txt
