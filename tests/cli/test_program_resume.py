"""`save --resume` as a process: killed at any moment, beside another one, on a disk that is full."""

from __future__ import annotations

import contextlib
import hashlib
import json
import random
import resource
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from aiodockersave import plan_archive
from aiodockersave.sinks.part_file import part_name
from tests.cli.test_program import (
    ENDINGS,
    LIMIT,
    command,
    execute,
    is_stopped,
    only_line,
    started,
    wait_until,
)
from tests.sinks.test_adapters import ROOT, on_small_disk
from tests.support.images import make_image, make_layer, write_layout

SIZES = (18 << 20, 9 << 20, 3 << 20)
LARGE = make_image(*(make_layer(random.Random(size).randbytes(size), None) for size in SIZES))
PLAN = plan_archive([LARGE.tagged("a:1").spec])
SMALL = make_image(make_layer(random.Random(1).randbytes(100_000), None))
MOMENTS = 20


class Desk:
    """A folder with an old archive, and the command that replaces it."""

    def __init__(self, folder: Path, layout: Path) -> None:
        self.layout = layout
        self.target = folder / "a.tar"
        self.part = folder / part_name("a.tar", PLAN.etag)
        self.arguments = ("save", f"oci:{layout}=a:1", "-o", self.target, "--resume", "--no-fsync")

    def clear(self) -> None:
        for path in self.target.parent.iterdir():
            path.unlink()
        self.target.write_bytes(b"old")

    def received(self) -> int:
        """Return how many bytes are in the part file, as far as the disk has been given blocks for them."""
        try:
            return self.part.stat().st_blocks * 512
        except FileNotFoundError:
            return 0

    def there(self) -> int:
        """Return how many bytes of blobs are in the part file."""
        if not self.part.exists():
            return 0
        data = self.part.read_bytes()
        blobs = [each for each in PLAN.segments if each.descriptor is not None]
        return sum(len(data[blob.offset :][: blob.size].rstrip(b"\0")) for blob in blobs)

    @contextlib.contextmanager
    def stopped_in_the_middle(self, *options: object) -> Iterator[subprocess.Popen[bytes]]:
        """Run the command, and stop it when some was received; anew where a busy machine has looked too late."""
        for _ in range(50):
            self.clear()
            with started(*self.arguments, *options, "--quiet") as process:
                wait_until(lambda: self.received() > 1 << 20 or process.poll() is not None)
                if is_stopped(process) and self.part.exists():
                    yield process
                    return
        raise AssertionError("it was never seen at work")

    def assert_kept(self) -> None:
        assert self.target.read_bytes() == b"old"
        assert {path.name for path in self.target.parent.iterdir()} == {"a.tar", self.part.name}

    def finish(self, whole: str) -> int:
        """Go on to the end; return how many bytes were not fetched again."""
        ended = execute(*self.arguments, "--progress", "json")
        assert ended.returncode == 0, ended.stderr
        assert sha256_of(self.target) == whole
        assert [path.name for path in self.target.parent.iterdir()] == ["a.tar"]
        events = [json.loads(line) for line in ended.stderr.splitlines() if line.startswith(b"{")]
        return sum(event["resumed"] for event in events if event["event"] == "layer_started")


def sha256_of(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


@pytest.fixture(scope="module")
def layout(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_layout(tmp_path_factory.mktemp("layout"), {"latest": LARGE})


@pytest.fixture
def desk(tmp_path: Path, layout: Path) -> Iterator[Desk]:
    folder = tmp_path / "folder"
    folder.mkdir()
    desk = Desk(folder, layout)
    desk.clear()
    yield desk
    desk.clear()


@pytest.fixture(scope="module")
def whole(layout: Path, tmp_path_factory: pytest.TempPathFactory) -> str:
    """The SHA-256 of an archive that nothing has interrupted."""
    target = tmp_path_factory.mktemp("whole") / "a.tar"
    assert execute("save", f"oci:{layout}=a:1", "-o", target, "--quiet").returncode == 0
    digest = sha256_of(target)
    assert target.stat().st_size == PLAN.size
    target.unlink()
    return digest


@pytest.mark.timeout(600)
@pytest.mark.parametrize("jobs", [1, 2])
def test_killed_at_any_moment(desk: Desk, whole: str, jobs: int) -> None:
    """It is killed when so many bytes were received; and whenever that is, the same archive follows."""
    moments = random.Random(f"SIGKILL, {jobs} jobs")
    resumed = []
    for _ in range(MOMENTS // 2):
        desk.clear()
        at = moments.uniform(0, 1) * PLAN.size
        with started(*desk.arguments, "--jobs", jobs, "--quiet") as process:
            wait_until(lambda: desk.received() > at or process.poll() is not None)  # noqa: B023 - waited for here
            process.kill()
            process.wait(LIMIT)
        if desk.part.exists():
            desk.assert_kept()
        there = desk.there()
        resumed.append(desk.finish(whole))
        assert resumed[-1] == there
    assert sum(each > 0 for each in resumed) >= MOMENTS // 4


def test_killed_again_and_again(desk: Desk, whole: str) -> None:
    """Each save is killed a little later, and none fetches again what an earlier one has received."""
    before = 0
    for number in range(1, 5):
        with started(*desk.arguments, "--quiet") as process:
            wait_until(lambda: desk.received() > number * PLAN.size // 6 or process.poll() is not None)  # noqa: B023
            process.kill()
            process.wait(LIMIT)
        assert desk.received() >= before
        before = desk.received()
    assert desk.finish(whole) > 0


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_a_signal_says_how_to_go_on(desk: Desk, whole: str, number: signal.Signals) -> None:
    code, line = ENDINGS[number]
    with desk.stopped_in_the_middle("--jobs", 1) as process:
        process.send_signal(number)
        process.send_signal(signal.SIGCONT)
        assert process.wait(LIMIT) == code
        said = only_line(process.communicate()[1])
    assert said.startswith(line)
    assert (
        f"the part that was received is kept in {desk.part}; the same command with --resume resumes there"
        in said
    )
    desk.assert_kept()
    assert desk.finish(whole) > 0


def test_two_at_once(desk: Desk, whole: str) -> None:
    with desk.stopped_in_the_middle() as first:
        second = execute(*desk.arguments, "--quiet")
        assert second.returncode == 8
        assert f"{desk.part}: another save is writing it at the moment" in only_line(second.stderr)
        desk.assert_kept()
        first.send_signal(signal.SIGCONT)
        assert first.wait(LIMIT) == 0
    assert sha256_of(desk.target) == whole


def test_two_that_begin_at_once(desk: Desk, whole: str) -> None:
    """One makes the archive; the other says that it does, or comes so late that it makes the same once more."""
    for _ in range(3):
        desk.clear()
        with (
            started(*desk.arguments, "--quiet") as one,
            started(*desk.arguments, "--quiet") as two,
        ):
            codes = [one.wait(LIMIT), two.wait(LIMIT)]
            said = [one.communicate()[1], two.communicate()[1]]
        assert sorted(codes) in ([0, 0], [0, 8])
        for code, line in zip(codes, said, strict=True):
            assert (b"another save is writing it" in line) == (code == 8)
        assert sha256_of(desk.target) == whole
        assert [path.name for path in desk.target.parent.iterdir()] == ["a.tar"]


def test_a_limit_on_file_sizes(desk: Desk, whole: str) -> None:
    limit = 10_000_000

    def set_limit() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))

    ended = execute(*desk.arguments, "--jobs", "1", preexec_fn=set_limit)
    assert ended.returncode == 8
    assert f"{desk.target}: File too large" in ended.stderr.decode()
    desk.assert_kept()
    assert desk.part.stat().st_size == limit
    assert desk.finish(whole) == limit - next(each.offset for each in PLAN.segments if each.descriptor)


def test_a_small_disk(tmp_path: Path) -> None:
    """The lack of room is an error before the first byte is fetched; the part file stays, and is resumed with more room."""
    disk, layout = tmp_path / "disk", write_layout(tmp_path / "layout", {"latest": SMALL})
    disk.mkdir()
    plan = plan_archive([SMALL.tagged("a:1").spec])
    part = disk / part_name("a.tar", plan.etag)
    blob = next(iter((layout / "blobs" / "sha256").glob(SMALL.layers[0].descriptor.digest.encoded)))
    offset = next(each.offset for each in plan.segments if each.descriptor)
    save = " ".join(
        f"'{word}'" for word in command("save", f"oci:{layout}=a:1", "-o", disk / "a.tar", "--resume")
    )
    script = f"""
        {save}; echo $?; ls -A {disk}
        truncate -s {offset} {part}; head -c 30000 {blob} >> {part}
        {save}; echo $?; ls -A {disk}
        mount -o remount,size=10m {disk}
        {save}; echo $?; ls -A {disk}; sha256sum < {disk}/a.tar
    """
    ended = subprocess.run(
        [*on_small_disk(disk), "sh", "-c", script], cwd=ROOT, capture_output=True, timeout=LIMIT, check=False
    )
    assert execute("save", f"oci:{layout}=a:1", "-o", tmp_path / "a.tar").returncode == 0
    assert ended.stdout.decode().split() == [
        "8",
        "8",
        part.name,
        "0",
        "a.tar",
        sha256_of(tmp_path / "a.tar"),
        "-",
    ]
    first, second, *_ = ended.stderr.decode().splitlines()
    assert "kept" not in first
    assert f"kept in {part}" in second
