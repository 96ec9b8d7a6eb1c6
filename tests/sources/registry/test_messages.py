"""Foreign text is cut in messages: whatever a registry or a layout sends, a message is one short line."""

from __future__ import annotations

import json
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from aiodockersave import Digest, DockerSaveError, Platform
from aiodockersave.cli.image_argument import parse_image
from aiodockersave.core import errors as errors_module
from aiodockersave.core.errors import (
    ConfigurationError,
    DecompressionError,
    ImageNotFoundError,
    InvalidDigestError,
    InvalidDocumentError,
    InvalidInputError,
    InvalidPlatformError,
    InvalidReferenceError,
    PlatformNotFoundError,
    RegistryError,
    TransferError,
    UnsupportedImageError,
)
from aiodockersave.core.gojson import parse
from aiodockersave.core.model import OCI_INDEX, OCI_MANIFEST, REF_NAME
from aiodockersave.core.text import cut, listed, quoted
from aiodockersave.sources.credentials.auth_files import Place as AuthPlace
from aiodockersave.sources.oci_layout import OciLayoutSource
from tests.sources.registry.test_echoes import LOGIN, PLACES, repeating
from tests.support.attempts import AMD64, attempt
from tests.support.faulty_registry import FaultyRegistry
from tests.support.images import make_config, make_image, make_layer, to_json, write_layout

MEGABYTES = 3_000_000
USEFUL = 900  # characters: a message that was cut by the last limit only says little
LAST_LIMIT = 2000


def lines_of(error: BaseException | None) -> list[str]:
    lines: list[str] = []
    while error is not None:
        if isinstance(error, DockerSaveError):
            lines += [str(error), *getattr(error, "__notes__", ())]
        error = error.__cause__ or error.__context__
    return lines


def check_lines(error: BaseException) -> None:
    for line in lines_of(error):
        assert line.isprintable(), ascii(line[:300])
        assert len(line) <= USEFUL, f"{len(line)}: {line[:300]}"


# ── a registry ──

LETTERS = {
    "letters": "a",
    "words": "no ",
    "escapes": "\x1b",
    "marks": "…",
    "URLs": "http://h/?q ",
    "quotes": "'\"",
}


@pytest.mark.parametrize("letters", LETTERS)
@pytest.mark.parametrize("name", PLACES)
async def test_long_texts_of_a_registry(name: str, letters: str, tmp_path: Path) -> None:
    place, unit = PLACES[name], LETTERS[letters]
    is_header = "header" in place.make.__qualname__
    text = unit * ((6000 if is_header else 300_000) // len(unit))
    if is_header:
        text = "".join(c for c in text if c.isascii() and c.isprintable())
    try:
        error = await repeating(name, text, tmp_path / "app.tar", LOGIN)
    except AssertionError:  # nothing came of it, as of a type of nothing
        assert not text
        return
    check_lines(error)


DIGEST = str(Digest.of(b""))
ONE = {"mediaType": OCI_MANIFEST, "digest": DIGEST, "size": 2}
LONG = "a" * MEGABYTES


def index(*manifests: dict[str, Any]) -> bytes:
    return to_json({"schemaVersion": 2, "mediaType": OCI_INDEX, "manifests": manifests})


INDEXES: dict[str, Callable[[], bytes]] = {
    "a long platform": lambda: index(ONE | {"platform": {"os": LONG, "architecture": "b"}}),
    "long variants": lambda: index(
        *[
            ONE | {"platform": {"os": "a", "architecture": "b", "variant": f"{i}{'v' * 100_000}"}}
            for i in range(30)
        ]
    ),
    "many platforms": lambda: index(
        *[ONE | {"platform": {"os": f"os{i}", "architecture": "b"}} for i in range(20_000)]
    ),
    "a long type": lambda: index(
        ONE | {"mediaType": LONG, "platform": {"os": "linux", "architecture": "amd64"}}
    ),
    "a long digest": lambda: index(ONE | {"digest": LONG}),
    "a long name that stands twice": lambda: (
        b'{"%s":1,"%s":2}' % (LONG[:1_500_000].encode(), LONG[:1_500_000].encode())
    ),
    "a long type of its own": lambda: to_json({"schemaVersion": 2, "mediaType": LONG, "manifests": []}),
    "a deep type of its own": lambda: (
        b'{"schemaVersion":2,"manifests":[],"mediaType":' + b"[" * 300 + b"]" * 300 + b"}"
    ),
    "a type that is a long list": lambda: to_json(
        {"schemaVersion": 2, "manifests": [], "mediaType": [0] * 1_000_000}
    ),
}


@pytest.mark.parametrize("name", INDEXES)
async def test_long_texts_of_an_index(name: str, tmp_path: Path) -> None:
    raw = INDEXES[name]()
    async with FaultyRegistry({"team/app:1": make_image(make_layer({"a": b""}))}) as registry:
        registry.add_document("team/app:1", raw, OCI_INDEX)
        error = await attempt(f"{registry.address}/team/app:1", tmp_path / "app.tar")
    assert error is not None
    check_lines(error)
    folder = write_layout(tmp_path / "layout", {"latest": make_image(make_layer({"a": b""}))})
    (folder / "index.json").write_bytes(raw)
    with pytest.raises(DockerSaveError) as caught:
        await OciLayoutSource(folder).resolve("", AMD64)
    check_lines(caught.value)


# ── a layout ──


def named(*names: str) -> bytes:
    return index(
        *[ONE | {"annotations": {REF_NAME: name}, "digest": str(Digest.of(name.encode()))} for name in names]
    )


LAYOUTS: dict[str, tuple[str, Callable[[], bytes]]] = {
    "a long name": ("index.json", lambda: named(LONG)),
    "many names": ("index.json", lambda: named(*[f"name-{i}" for i in range(10_000)])),
    "long names": ("index.json", lambda: named(*["\x1b" * 50_000 + str(i) for i in range(12)])),
    "a long version": ("oci-layout", lambda: to_json({"imageLayoutVersion": LONG[:60_000]})),
    "a version that is a list": ("oci-layout", lambda: to_json({"imageLayoutVersion": [0] * 20_000})),
    "a long version twice": ("oci-layout", lambda: b'{"imageLayoutVersion":"%s"' % LONG[:60_000].encode()),
}


@pytest.mark.parametrize("name", LAYOUTS)
async def test_long_texts_of_a_layout(name: str, tmp_path: Path) -> None:
    folder = write_layout(tmp_path / "layout", {"latest": make_image(make_layer({"a": b""}))})
    file, make = LAYOUTS[name]
    (folder / file).write_bytes(make())
    for reference in ("none", "x" * 100_000):
        with pytest.raises(DockerSaveError) as caught:
            await OciLayoutSource(folder).resolve(reference, AMD64)
        check_lines(caught.value)


async def test_long_texts_of_a_config(tmp_path: Path) -> None:
    image = make_image(make_layer({"a": b""}))
    config = make_config([]).replace(b'"diff_ids":[]', b'"diff_ids":["%s"]' % LONG.encode())
    fields = json.loads(image.manifest_bytes)
    fields["config"] |= {"digest": str(Digest.of(config)), "size": len(config)}
    async with FaultyRegistry({"team/app:1": image}) as registry:
        registry.blobs[str(Digest.of(config))] = config
        registry.add_document("team/app:1", to_json(fields))
        error = await attempt(f"{registry.address}/team/app:1", tmp_path / "app.tar")
    assert isinstance(error, InvalidDocumentError)
    check_lines(error)


# ── what nothing gets past ──

PLATFORM = Platform("linux", "amd64")
CONSTRUCTED: dict[str, Callable[[], DockerSaveError]] = {
    "root": lambda: DockerSaveError(LONG),
    "reference": lambda: InvalidReferenceError(LONG, "it is long"),
    "digest": lambda: InvalidDigestError(LONG, LONG),
    "platform": lambda: InvalidPlatformError("\x1b" * MEGABYTES, "it is long"),
    "document": lambda: InvalidDocumentError(LONG, LONG),
    "image": lambda: ImageNotFoundError(LONG, LONG),
    "platforms": lambda: PlatformNotFoundError(
        Platform(LONG, LONG), [Platform(LONG, str(i)) for i in range(30)]
    ),
    "unsupported": lambda: UnsupportedImageError(LONG, LONG),
    "transfer": lambda: TransferError(LONG, 3, LONG),
    "registry": lambda: RegistryError(LONG, LONG, url=LONG, codes=[LONG]),
    "decompression": lambda: DecompressionError(LONG, LONG, LONG),
    "file": lambda: ConfigurationError(LONG, LONG),
    "lines": lambda: InvalidInputError("two\nlines\x1b[2J"),
}


@pytest.mark.parametrize("name", CONSTRUCTED)
def test_no_message_is_longer_than_a_line(name: str) -> None:
    error = CONSTRUCTED[name]()
    error.add_note(LONG)
    error.add_note("two\nlines")
    for each in (error, pickle.loads(pickle.dumps(error))):
        for line in (str(each), *each.__notes__):
            assert len(line) <= LAST_LIMIT
            assert line.isprintable()
        assert vars(each) == vars(error)  # which are whole
    assert len(error.__notes__) == 2


def test_every_class_has_the_limit() -> None:
    classes = [each for each in vars(errors_module).values() if isinstance(each, type)]
    ours = [each for each in classes if issubclass(each, DockerSaveError)]
    assert all(each.__mro__.index(DockerSaveError) < each.__mro__.index(Exception) for each in ours)
    assert {each for each in ours if "add_note" in vars(each)} == {DockerSaveError}


# ── the pieces ──


def test_a_cut_is_marked() -> None:
    assert cut("x" * 10, 10) == "x" * 10
    assert cut("x" * 11, 10) == "x" * 9 + "…"
    assert quoted("x") == "'x'"
    assert quoted("x" * 1000, 10) == "'" + "x" * 8 + "…"
    assert quoted(5) == "5"
    assert quoted([[]]) == "a list"
    assert quoted({}) == "an object"
    assert listed([]) == ""
    assert listed("bab") == "b, a"
    assert listed(map(str, range(22))) == ", ".join(map(str, range(20))) + " and 2 more"
    assert listed(["x\ny"]) == "'x\\ny'"
    assert listed([f"{i}{'x' * 300}" for i in range(9)], 200).endswith("x… and 6 more")


def test_a_value_that_repr_cannot_show_gets_a_word() -> None:
    """``repr`` would give up on it, with an error of its own."""
    deep: list[Any] = []
    for _ in range(100_000):
        deep = [deep]
    assert quoted(deep) == "a list"


def test_the_faults_of_a_file_are_bounded() -> None:
    text = to_json({"auths": {f"host-{i}": 5 for i in range(10_000)}}).decode()
    file = AuthPlace("$VARIABLE", text=text).read()
    assert len(file.faults) == 21
    assert "9980 more" in file.faults[-1]
    long = AuthPlace("$VARIABLE", text=to_json({"auths": {LONG: 5}}).decode()).read()
    assert len(long.faults[0]) < USEFUL


@pytest.mark.parametrize(
    "text",
    [
        "oci:" + ":" * 100_000,
        "oci:" + "a:" * 50_000 + "=" + "b:c," * 20_000,
        "oci:x=" + "B" * 100_000,
        "/" + "x" * 100_000,
        "x" * 100_000 + ":" + "y" * 100_000,
    ],
    ids=range(5),
)
def test_long_arguments(text: str) -> None:
    try:
        parse_image(text, lambda _: True)
    except InvalidInputError as error:
        assert len(str(error)) <= LAST_LIMIT


def test_a_name_that_stands_twice_is_cut() -> None:
    with pytest.raises(InvalidDocumentError) as caught:
        parse(b'{"%s":1,"%s":2}' % (LONG.encode(), LONG.encode()), OCI_MANIFEST, unique=True)
    assert len(str(caught.value)) < USEFUL
