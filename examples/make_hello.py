"""Make ``examples/hello``: a real image, as an OCI image layout, small enough to keep in a repository.

Run it (Linux on x86-64 with gcc; the standard library is enough)::

    python examples/make_hello.py

You will see the layout's files with their sizes and, last, the digest of the manifest. The image
has one layer with two files: ``/hello``, a static program without a C library, and ``/hello.txt``.
Nothing in it depends on the clock or on who runs this, so that a second run with the same compiler
makes the same bytes.

The result is what the other examples read, and it runs::

    aiodockersave save oci:examples/hello=hello:latest -o hello.tar
    docker load -i hello.tar && docker run --rm hello
"""

from __future__ import annotations

import gzip
import hashlib
import io
import json
import shutil
import subprocess
import sys
import tarfile
import tempfile
from pathlib import Path

GREETING = b"Hello from an image that no daemon has touched.\n"

# The loader jumps to _start without a return address: this ends by a system call, never by `return`.
PROGRAM = (
    r"""
static long call(long number, long first, long second, long third)
{
    long result;
    __asm__ volatile("syscall"
                     : "=a"(result)
                     : "a"(number), "D"(first), "S"(second), "d"(third)
                     : "rcx", "r11", "memory");
    return result;
}

static const char greeting[] = "@GREETING@";

void _start(void)
{
    const long count = sizeof greeting - 1;
    const long written = call(1, 1, (long)greeting, count); /* write(1, greeting, count) */
    call(60, written == count ? 0 : 1, 0, 0);               /* exit */
    __builtin_unreachable();
}
"""
).replace("@GREETING@", GREETING.decode().replace("\n", r"\n"))

COMPILER = [
    "gcc", "-std=c11", "-Wall", "-Wextra", "-Werror", "-Os", "-static", "-nostdlib", "-ffreestanding",
    "-fno-pie", "-no-pie", "-fno-stack-protector", "-fno-asynchronous-unwind-tables", "-fcf-protection=none",
    # No build ID, no alignment of segments to pages: a program of some hundred bytes instead of 9,000.
    "-Wl,--build-id=none", "-Wl,--nmagic", "-Wl,-z,noexecstack", "-s",
]  # fmt: skip

CREATED = "2024-01-01T00:00:00Z"


def compile_program() -> bytes:
    """Compile `PROGRAM` to a static executable for linux/amd64."""
    with tempfile.TemporaryDirectory() as folder:
        source, program = Path(folder, "hello.c"), Path(folder, "hello")
        source.write_text(PROGRAM)
        subprocess.run([*COMPILER, "-o", program, source], check=True)
        return program.read_bytes()


def make_layer(files: dict[str, tuple[int, bytes]]) -> bytes:
    """Make the plain tar of a layer from names, modes and contents."""
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w", format=tarfile.USTAR_FORMAT) as tar:
        for name, (mode, data) in sorted(files.items()):
            member = tarfile.TarInfo(name)  # mtime, uid and gid are 0
            member.mode = mode
            member.size = len(data)
            tar.addfile(member, io.BytesIO(data))
    return out.getvalue()


def digest_of(data: bytes) -> str:
    """Return the digest of `data` as a descriptor spells it."""
    return "sha256:" + hashlib.sha256(data).hexdigest()


def to_json(value: object) -> bytes:
    """Write JSON as registries hold it: compact."""
    return json.dumps(value, separators=(",", ":")).encode()


class Layout:
    """An OCI image layout that is being made in `folder`."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def write(self, name: str, data: bytes) -> None:
        """Write one file of the layout."""
        path = self.folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)
        print(f"{len(data):6}  {name}")

    def put_blob(self, media_type: str, data: bytes) -> dict[str, object]:
        """Store a blob under its digest and return its descriptor."""
        digest = digest_of(data)
        self.write(f"blobs/{digest.replace(':', '/')}", data)
        return {"mediaType": media_type, "digest": digest, "size": len(data)}


def make_layout(folder: Path) -> str:
    """Write the whole layout into `folder`, which is emptied first; return the manifest's digest."""
    layer = make_layer({"hello": (0o755, compile_program()), "hello.txt": (0o644, GREETING)})
    shutil.rmtree(folder, ignore_errors=True)
    layout = Layout(folder)
    config = {
        "created": CREATED,
        "architecture": "amd64",
        "os": "linux",
        "config": {"Entrypoint": ["/hello"], "WorkingDir": "/"},
        "rootfs": {"type": "layers", "diff_ids": [digest_of(layer)]},
        "history": [{"created": CREATED, "created_by": "examples/make_hello.py", "comment": "two files"}],
    }
    manifest = {
        "schemaVersion": 2,
        "mediaType": "application/vnd.oci.image.manifest.v1+json",
        "config": layout.put_blob("application/vnd.oci.image.config.v1+json", to_json(config)),
        "layers": [
            layout.put_blob("application/vnd.oci.image.layer.v1.tar+gzip", gzip.compress(layer, mtime=0))
        ],
    }
    descriptor = layout.put_blob("application/vnd.oci.image.manifest.v1+json", to_json(manifest))
    named = {
        **descriptor,
        "annotations": {"org.opencontainers.image.ref.name": "latest"},
        "platform": {"architecture": "amd64", "os": "linux"},
    }
    index = {
        "schemaVersion": 2,
        "mediaType": "application/vnd.oci.image.index.v1+json",
        "manifests": [named],
    }
    layout.write("index.json", to_json(index))
    layout.write("oci-layout", to_json({"imageLayoutVersion": "1.0.0"}))
    return str(descriptor["digest"])


def main() -> int:
    """Make the layout beside this file."""
    if shutil.which(COMPILER[0]) is None:
        print("make_hello.py needs gcc", file=sys.stderr)
        return 1
    print(make_layout(Path(__file__).with_name("hello")))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
