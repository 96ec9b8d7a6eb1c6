"""What the command's memory grows by when a layer is huge: its own peak, beside that of the smallest save."""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

LAYER_SIZE = 5 << 30  # bytes; a file of holes, so that it takes no room
COMMAND = """
import sys
from aiodockersave.cli import main
code = main(sys.argv[1:])
print(next(line for line in open("/proc/self/status") if line.startswith("VmHWM")))
sys.exit(code)
"""
MODES = ("keep", "decompress")


def make_layout(folder: Path, size: int) -> None:
    """Write an OCI layout of one image with one plain layer of ``size`` zeros."""
    blobs = folder / "blobs" / "sha256"
    blobs.mkdir(parents=True)
    (folder / "oci-layout").write_text('{"imageLayoutVersion":"1.0.0"}')
    digest = hashlib.sha256()
    piece = bytes(1 << 20)
    for _ in range(size >> 20):
        digest.update(piece)
    layer = blobs / digest.hexdigest()
    layer.touch()
    os.truncate(layer, size)

    def add(document: object) -> dict[str, object]:
        raw = json.dumps(document).encode()
        encoded = hashlib.sha256(raw).hexdigest()
        (blobs / encoded).write_bytes(raw)
        return {"digest": f"sha256:{encoded}", "size": len(raw)}

    oci = "application/vnd.oci.image"
    rootfs = {"type": "layers", "diff_ids": [f"sha256:{layer.name}"]}
    config = add({"architecture": "amd64", "os": "linux", "rootfs": rootfs})
    manifest = add(
        {
            "schemaVersion": 2,
            "mediaType": f"{oci}.manifest.v1+json",
            "config": {"mediaType": f"{oci}.config.v1+json", **config},
            "layers": [{"mediaType": f"{oci}.layer.v1.tar", "digest": f"sha256:{layer.name}", "size": size}],
        }
    )
    entry = {"mediaType": f"{oci}.manifest.v1+json", **manifest}
    (folder / "index.json").write_text(json.dumps({"schemaVersion": 2, "manifests": [entry]}))


def peak(*arguments: str) -> int:
    """Run the command and return its peak resident memory, in KiB: its own VmHWM, read as it ends."""
    process = subprocess.run(
        [sys.executable, "-c", COMMAND, *arguments], check=True, capture_output=True, text=True
    )
    return int(process.stdout.split()[1])


def main() -> None:
    with tempfile.TemporaryDirectory() as folder:
        for name, size in (("small", 1 << 20), ("large", LAYER_SIZE)):
            make_layout(Path(folder, name), size)
        print(f"peak memory of the command, one layer of 1 MiB and of {LAYER_SIZE >> 30} GiB, into /dev/null")
        for mode in MODES:
            small, large = (
                peak("save", f"oci:{folder}/{name}", "-o", "/dev/null", "--layers", mode)
                for name in ("small", "large")
            )
            print(
                f"{mode:44} {small / 1024:7.1f} MiB {large / 1024:7.1f} MiB   grows by {(large - small) / 1024:.1f} MiB"
            )
