"""A registry may repeat secrets that it was sent: no message, attribute, note, log or pickle of ours may show them.

Each place in an answer that a message of ours quotes is tried with each form that others give a secret. A place is good for
the test only if its text gets into the message at all, which is seen by a text that is no secret.
"""

from __future__ import annotations

import base64
import html
import json
import logging
import pickle
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any
from urllib.parse import quote, quote_plus

import pytest

from aiodockersave import Digest, DockerSaveError, ImageRequest, PlatformNotFoundError, Wait, save
from aiodockersave.core.model import OCI_INDEX, OCI_MANIFEST
from aiodockersave.core.text import Secrets, quoted, shown, shown_url
from aiodockersave.sources.credentials import Credentials
from aiodockersave.sources.registry import RegistrySource, Retries
from tests.support.attempts import AMD64, FOREIGN, IMAGE, attempt, everything
from tests.support.faulty_registry import Answer, Ask, Change, Fault, FaultyRegistry, Kind
from tests.support.images import make_config, make_image, to_json

USER, PASSWORD = "gordon", "Hunter2/+geheim&x,y=Zs~>"  # with what base64 and base64url write differently
IDENTITY, TOKEN = "identity/Token+1?of=gordon", "eyJhbGciOi.Bearer-Token_1/2+3==.signature"
PAIR = f"{USER}:{PASSWORD}"
HARMLESS = "harmless-text"
PLAIN = "geheim-geheim"  # which can be an architecture
EVERY_KIND: tuple[Kind, ...] = ("ping", "token", "manifest", "config", "blob")


def encoded(text: str, encode: Callable[[bytes], bytes] = base64.b64encode) -> str:
    return encode(text.encode()).decode()


def in_percent(text: str) -> str:
    """Encode every character."""
    return "".join(f"%{byte:02x}" for byte in text.encode())


FORMS: dict[str, str] = {
    "password": PASSWORD,
    "in lower case": PASSWORD.lower(),
    "in upper case": PASSWORD.upper(),
    "quoted": quote(PASSWORD, safe=""),
    "quoted in lower case": quote(PASSWORD, safe="").lower(),
    "quoted but for slashes": quote(PASSWORD),
    "quoted as Go does": quote(PASSWORD, safe="$&+=:@"),
    "in a form": quote_plus(PASSWORD),
    "all in percent": in_percent(PASSWORD),
    "in HTML": html.escape(PASSWORD),
    "password in base64": encoded(PASSWORD),
    "password in base64url": encoded(PASSWORD, base64.urlsafe_b64encode),
    "header": encoded(PAIR),
    "header, unpadded": encoded(PAIR).rstrip("="),
    "header in base64url": encoded(PAIR, base64.urlsafe_b64encode),
    "header, quoted": quote(encoded(PAIR), safe=""),
    "header in a word": f"x{encoded(PAIR)}y",
    "user and password": PAIR,
}


@dataclass(frozen=True)
class Place:
    """A place in an answer where it repeats something.

    Attributes:
        make: Makes the answer that does, of the right one.
        kind: Which request is answered so.
        form: What of a text can stand there.
    """

    make: Callable[[Ask, Answer, str], Answer]
    kind: Kind = "manifest"
    form: Callable[[str], str] = str


def body(status: int, **fields: str) -> Callable[[Ask, Answer, str], Answer]:
    """Answer with an error; the fields are templates."""

    def make(_: Ask, __: Answer, text: str) -> Answer:
        entry = {name: value.replace("*", text) for name, value in fields.items()}
        document = entry if "error" in fields else {"errors": [entry]}
        return Answer(status, body=to_json(document))

    return make


def header(name: str, template: str = "*", status: int | None = None) -> Callable[[Ask, Answer, str], Answer]:
    """Answer with a header, made of a template."""

    def make(ask: Ask, answer: Answer, text: str) -> Answer:
        value = template.replace("*", text).replace("ELSEWHERE", ask.elsewhere)
        said = answer.saying(**{name.replace("-", "_"): value})
        return said if status is None else replace(said, status=status, body=b"")

    return make


def document(edit: Callable[[dict[str, Any], str], object]) -> Callable[[Ask, Answer, str], Answer]:
    """Answer with another manifest."""

    def make(_: Ask, __: Answer, text: str) -> Answer:
        fields = json.loads(IMAGE.manifest_bytes)
        edit(fields, text)
        return Answer(body=to_json(fields)).saying(Content_Type=OCI_MANIFEST)

    return make


def index(edit: Callable[[dict[str, Any], str], object]) -> Callable[[Ask, Answer, str], Answer]:
    """Answer with an index of one manifest."""

    def make(_: Ask, __: Answer, text: str) -> Answer:
        one: dict[str, Any] = {
            "mediaType": OCI_MANIFEST,
            "digest": str(IMAGE.manifest.digest),
            "size": len(IMAGE.manifest_bytes),
            "platform": {"os": "linux", "architecture": "amd64"},
        }
        edit(one, text)
        return Answer(body=to_json({"schemaVersion": 2, "manifests": [one]})).saying(Content_Type=OCI_INDEX)

    return make


def foreign_layer(fields: dict[str, Any], text: str) -> None:
    gone = str(Digest.of(b"gone"))
    fields["layers"][0].update(mediaType=FOREIGN, digest=gone, urls=[f"https://example.com/{text}"])


def word(text: str) -> str:
    """Leave out what stands for other parts of a URL, or of a header."""
    return text.replace(" ", "%20")


PLACES: dict[str, Place] = {
    **{
        f"message of a {status}": Place(body(status, code="X", message="*"))
        for status in (404, 403, 500, 429)
    },
    "code": Place(body(404, code="*")),
    "code and message": Place(body(404, code="*", message="you sent * to us")),
    "behind much text": Place(body(404, message="x" * 170 + " *")),
    "error_description": Place(body(403, error="x", error_description="*")),
    "message for a config": Place(body(404, message="*"), "config"),
    "message for a blob": Place(body(404, message="*"), "blob"),
    "message of a token server": Place(body(403, error="*"), "token"),
    "redirect of a token server": Place(header("Location", "http://10.255.255.1:1/*", 302), "token", word),
    "no token": Place(header("Location", "ELSEWHERE/*", 302), "token", word),
    "Content-Encoding": Place(header("Content-Encoding")),
    "Content-Encoding of a config": Place(header("Content-Encoding"), "config"),
    "Content-Encoding of a blob": Place(header("Content-Encoding"), "blob"),
    "Content-Encoding that is a URL": Place(header("Content-Encoding", "http://a.test/*"), "blob"),
    "Content-Type": Place(header("Content-Type")),
    "Content-Type with parameters": Place(header("Content-Type", "a/*;charset=*")),
    "scheme": Place(header("WWW-Authenticate", "* realm=x", 401), "config"),
    "realm": Place(header("WWW-Authenticate", 'Bearer realm="http://a.test/*"', 401), "config"),
    "realm at an address": Place(
        header("WWW-Authenticate", 'Bearer realm="https://10.255.255.1:1/*"', 401), "config"
    ),
    "host of a Location": Place(header("Location", "http://10.255.255.1:1/*", 302), form=word),
    "Location that is not there": Place(header("Location", "ELSEWHERE/*", 302), form=word),
    "Location for a blob": Place(header("Location", "ELSEWHERE/*", 302), "blob", word),
    "Location with a query": Place(header("Location", "ELSEWHERE/*?x=*", 302), form=word),
    "mediaType": Place(document(lambda fields, text: fields.update(mediaType=text))),
    "config's type": Place(document(lambda fields, text: fields["config"].update(mediaType=text))),
    "layer's type": Place(document(lambda fields, text: fields["layers"][0].update(mediaType=text))),
    "config's digest": Place(document(lambda fields, text: fields["config"].update(digest=text))),
    "name that stands twice": Place(
        lambda _, answer, text: replace(
            answer, body=f"{{{json.dumps(text)}:1,{json.dumps(text)}:1}}".encode()
        ).saying(Docker_Content_Digest=None)
    ),
    "layer's URL": Place(document(foreign_layer)),
    "type in an index": Place(index(lambda one, text: one.update(mediaType=text))),
    "digest in an index": Place(index(lambda one, text: one.update(digest=text))),
    "platform": Place(index(lambda one, text: one.update(platform={"os": text, "architecture": "x"}))),
    "diff ID": Place(lambda *_: Answer(), "config"),
}
"""``diff ID`` is made in :func:`repeating`: its manifest has to fit."""


@pytest.fixture
def log(caplog: pytest.LogCaptureFixture) -> Callable[[], str]:
    caplog.set_level(logging.DEBUG, "aiodockersave")
    return lambda: "\n".join(each.getMessage() for each in caplog.records if each.name == "aiodockersave")


class Keyring:
    """A store with the same credentials for every registry."""

    def __init__(self, credentials: Credentials) -> None:
        self._credentials = credentials

    async def get(self, registry: str, repository: str) -> Credentials:
        return self._credentials


def login(challenge: str) -> Fault:
    """Make a fault by which a registry wants a login, and accepts any."""
    return Fault(
        "login",
        lambda ask, _: Answer(401).saying(
            WWW_Authenticate=challenge.replace("HOST", ask.headers.get("Host", ""))
        ),
        when=lambda ask, _: "Authorization" not in ask.headers,
        kinds=("ping", "manifest", "config", "blob"),
    )


def give(token: str) -> Fault:
    return Fault(
        "token", lambda *_: Answer(body=to_json({"token": token})), when=lambda *_: True, kinds=("token",)
    )


def repeat(place: Place, text: str) -> Fault:
    change: Change = lambda ask, answer: place.make(ask, answer, place.form(text))  # noqa: E731
    return Fault(
        "repeat",
        change,
        when=lambda ask, _: not ask.is_elsewhere and ("Authorization" in ask.headers or bool(ask.body)),
        kinds=(place.kind,),
    )


async def repeating(
    name: str, text: str, target: Path, credentials: Credentials, scheme: str = "basic"
) -> DockerSaveError:
    """Save from a registry that repeats a text in one place; return what comes of it."""
    place = PLACES[name]
    challenge = (
        'Bearer realm="http://HOST/token"'
        if scheme == "bearer" or place.kind == "token"
        else 'Basic realm="x"'
    )
    async with FaultyRegistry({"team/app:1": IMAGE}) as registry:
        if name == "diff ID":
            config = make_config([]).replace(
                b'"diff_ids":[]', b'"diff_ids":[' + json.dumps(text).encode() + b"]"
            )
            fields = json.loads(IMAGE.manifest_bytes)
            fields["config"] |= {"digest": str(Digest.of(config)), "size": len(config)}
            registry.blobs[str(Digest.of(config))] = config
            registry.add_document("team/app:1", to_json(fields))
            registry.faults = [login(challenge), give(TOKEN)]
        else:
            registry.faults = [give(TOKEN), repeat(place, text), login(challenge)]
        error = await attempt(
            f"{registry.address}/team/app:1",
            target,
            credentials=Keyring(credentials),
            retries=Retries(attempts=1),
        )
        assert error is not None, name
        return error


def all_that_is_said(error: BaseException) -> str:
    """Return every text of an error, its pickle included."""
    pickled = pickle.loads(pickle.dumps(error))
    return everything(error) + "\n" + everything(pickled)


LOGIN = Credentials(USER, PASSWORD)


@pytest.mark.parametrize("name", [name for name in PLACES if name != "Location with a query"])
async def test_texts_that_are_not_secrets_are_shown(name: str, tmp_path: Path) -> None:
    """Otherwise the place would prove nothing."""
    error = await repeating(name, HARMLESS, tmp_path / "app.tar", LOGIN)
    assert HARMLESS in str(error) + str(error.__cause__), everything(error)


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("name", PLACES)
async def test_a_password_is_not_repeated(
    name: str, form: str, tmp_path: Path, log: Callable[[], str]
) -> None:
    error = await repeating(name, FORMS[form], tmp_path / "app.tar", LOGIN)
    for said in (all_that_is_said(error), log()):
        lowered = said.lower()
        assert not [each for each in (*FORMS.values(), "hunter2") if each.lower() in lowered], said


@pytest.mark.parametrize("form", ["harmless", *FORMS])
@pytest.mark.parametrize("name", ["message of a 500", "message of a 429"])
async def test_a_password_is_not_repeated_while_the_next_attempt_is_waited_for(
    name: str, form: str, log: Callable[[], str]
) -> None:
    waits: list[Wait] = []

    async def sleep(_: float) -> None:
        waits.extend(source.waits())

    text = FORMS.get(form, HARMLESS)
    async with FaultyRegistry({"team/app:1": IMAGE}) as registry:
        registry.faults = [repeat(PLACES[name], text), login('Basic realm="x"')]
        async with RegistrySource(
            plain_http=True, credentials=Keyring(LOGIN), retries=Retries(attempts=3), sleep=sleep
        ) as source:
            with pytest.raises(DockerSaveError):
                await source.resolve(f"{registry.address}/team/app:1", AMD64)
    assert len(waits) == 2
    assert all(wait.reason.startswith("the next attempt, as ") for wait in waits)
    said = "\n".join([*map(repr, waits), log()]).lower()
    assert (HARMLESS in said) == (form == "harmless")
    assert not [each for each in (*FORMS.values(), "hunter2") if each.lower() in said], said


TOKENS = {
    "token that was given": (Credentials(USER, PASSWORD), TOKEN),
    "identity token": (Credentials("", "", identity_token=IDENTITY), IDENTITY),
    "token for the registry": (Credentials("", "", registry_token=IDENTITY), IDENTITY),
}


TOKEN_PLACES = [
    (name, secret)
    for name, place in PLACES.items()
    for secret in TOKENS
    if secret == "identity token" or place.kind != "token"  # where it is not sent
]


@pytest.mark.parametrize(("name", "secret"), TOKEN_PLACES)
async def test_a_token_is_not_repeated(
    name: str, secret: str, tmp_path: Path, log: Callable[[], str]
) -> None:
    credentials, text = TOKENS[secret]
    for form in (text, quote(text, safe=""), quote_plus(text).lower(), encoded(text)):
        error = await repeating(name, form, tmp_path / "app.tar", credentials, "bearer")
        for said in (all_that_is_said(error), log()):
            assert not [each for each in (text, form) if each.lower() in said.lower()], said


@pytest.mark.parametrize("padding", range(0, 210, 7))
@pytest.mark.parametrize(
    "name", ["message of a 404", "mediaType", "config's type", "Content-Encoding", "platform"]
)
async def test_a_part_of_a_secret_left_by_a_cut_is_not_repeated(
    name: str, padding: int, tmp_path: Path
) -> None:
    error = await repeating(name, "x" * padding + PASSWORD, tmp_path / "app.tar", LOGIN)
    assert "hunt" not in everything(error).lower()


@pytest.mark.parametrize(
    "password", ["pass#word#1", "pass?word?1", "pass@word@1", "pass;word;1", 'pass"word"1', "pa ss wo rd"]
)
@pytest.mark.parametrize("name", PLACES)
async def test_passwords_that_a_url_would_be_cut_at(name: str, password: str, tmp_path: Path) -> None:
    error = await repeating(name, password, tmp_path / "app.tar", Credentials(USER, password))
    said = everything(error)
    assert not [each for each in (password, "pass", "word") if each in said.replace("password", "")], said


@pytest.mark.parametrize("is_allowed", [False, True], ids=["refused", "taken"])
@pytest.mark.parametrize("secret", [PLAIN, HARMLESS, "x" * 4_000])
async def test_the_platform_of_a_config(
    secret: str, is_allowed: bool, tmp_path: Path, log: Callable[[], str]
) -> None:
    """It is quoted after the last request, by code that knows no registry."""
    image = make_image(IMAGE.layers[0], architecture=secret)
    async with FaultyRegistry({"team/app:1": image}) as registry:
        registry.faults = [login('Basic realm="x"')]
        login_data = Keyring(Credentials(USER, PLAIN))
        async with RegistrySource(plain_http=True, credentials=login_data) as source:
            request = ImageRequest(source, f"{registry.address}/team/app:1")
            saving = save(
                [request], tmp_path / "app.tar", platform=AMD64, allow_other_platform=is_allowed, fsync=False
            )
            if is_allowed:
                await saving
                said = log()
                assert "it is taken all the same" in said
            else:
                with pytest.raises(PlatformNotFoundError) as caught:
                    await saving
                said = all_that_is_said(caught.value)
    assert PLAIN not in said.lower()
    assert (HARMLESS in said) == (secret == HARMLESS)
    assert len(log()) < 2_000


@pytest.mark.parametrize(
    "name",
    [
        "Content-Type",
        "Content-Encoding",
        "message for a config",
        "message for a blob",
        "Content-Encoding of a blob",
    ],
)
@pytest.mark.parametrize("word", ["team", "manifests", "blobs", "127.0.0.1"])
async def test_a_password_in_the_url_is_not_revealed_by_a_gap(name: str, word: str, tmp_path: Path) -> None:
    error = await repeating(name, HARMLESS, tmp_path / "app.tar", Credentials(USER, word))
    said = everything(error)
    assert "***" not in said


async def test_the_name_of_the_image_stays(tmp_path: Path) -> None:
    """A gap in the user's own words would tell the password to every reader of the message."""
    error = await repeating(
        "message of a 404", "no team here", tmp_path / "app.tar", Credentials(USER, "team")
    )
    assert "/team/app:1" in str(error)
    assert "no *** here" in str(error)


async def test_an_earlier_token_is_not_repeated(tmp_path: Path) -> None:
    """An earlier token may still be valid for some minutes."""
    tokens = iter(f"Token-number-{number}" for number in range(9))
    given: list[str] = []

    def give_another(*_: object) -> Answer:
        given.append(next(tokens))
        return Answer(body=to_json({"token": given[-1]}))

    def expired(*_: object) -> Answer:
        return Answer(401).saying(
            WWW_Authenticate=f'Bearer realm="http://{registry.address}/token",error="invalid_token"'
        )

    faults = [
        Fault("token", give_another, when=lambda *_: True, kinds=("token",)),
        Fault("expired", expired, when=lambda *_: len(given) < 2, kinds=("manifest",)),
        Fault(
            "repeat",
            lambda *_: Answer(404, body=to_json({"errors": [{"message": " ".join(given)}]})),
            when=lambda *_: len(given) > 1,
            kinds=("manifest",),
        ),
    ]
    async with FaultyRegistry({"team/app:1": IMAGE}, faults) as registry:
        error = await attempt(
            f"{registry.address}/team/app:1", tmp_path / "app.tar", credentials=Keyring(LOGIN)
        )
    assert len(given) == 2
    assert "*** ***" in str(error)
    assert "Token-number" not in everything(error)


async def test_the_login_at_a_proxy_is_not_repeated(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    said = body(404, message="you are *")
    texts = iter([PASSWORD, encoded(PAIR), quote(PASSWORD, safe="")])
    fault = Fault(
        "repeat", lambda ask, answer: said(ask, answer, next(texts)), when=lambda *_: True, kinds=EVERY_KIND
    )
    async with FaultyRegistry({}, [fault]) as proxy:
        monkeypatch.setenv("HTTP_PROXY", f"http://{USER}:{quote(PASSWORD, safe='')}@{proxy.address}")
        monkeypatch.delenv("NO_PROXY", raising=False)
        for _ in range(3):
            error = await attempt("registry.example/team/app:1", tmp_path / "app.tar")
            assert "you are ***" in str(error)
            assert "Proxy-Authorization" in proxy.asks[-1].headers


# ── the texts alone ──


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("a secret: abcd1234!", "a secret: ***!"),
        ("ABCD1234", "***"),
        ("abcd1234abcd1234", "******"),
        ("abcd12345678", "***"),  # two that overlap
        ("x%61bcd1234%35", "x***%35"),
        ("%2561bcd1234", "%2561bcd1234"),  # encoded twice: on purpose
        ("größe: Grö%C3%9Fe-1", "größe: ***"),
        ("größe-1, ärger-2", "***, ***"),
        ("abc", "abc"),
        ("it begins with abcd1…", "it begins with ***…"),
        ("abc…", "abc…"),
        ("http://h/abcd1?***", "http://h/***?***"),
        ("abcd1 and more", "abcd1 and more"),
    ],
)
def test_secrets_are_hidden(text: str, expected: str) -> None:
    assert Secrets(["abcd1234", "12345678", "Größe-1", "ÄRGER-2", "abc"]).hide(text) == expected


def test_texts_of_the_user_stay() -> None:
    secrets = Secrets(["team", "h/v2"])
    assert secrets.hide("team/app: http://h/v2/team/x team", own=("team/app", "http://h/v2/")) == (
        "team/app: http://h/v2/***/x ***"
    )


def test_a_secret_is_found_at_the_end_of_what_is_looked_at() -> None:
    secrets = Secrets(["abcd" * 500])
    for at in range(3990, 4010):
        assert "abcd" not in shown("x" * at + "abcd" * 500, secrets=secrets, limit=200)
    assert shown(("abcd" * 500 + " ") * 9, secrets=secrets) == "*** ***…"


def test_a_secret_at_the_end_of_what_is_looked_at_may_be_longer_in_percent() -> None:
    secrets = Secrets([PASSWORD])
    for at in range(100 - 3 * len(PASSWORD), 100):
        text = "x" * at + in_percent(PASSWORD)
        assert secrets.hide(text, limit=100) == "x" * at + "***"


@pytest.mark.parametrize("at", range(40, 60))
def test_a_secret_that_was_cut_in_the_middle_of_a_percent_sign_and_its_digits(at: int) -> None:
    secrets = Secrets([PASSWORD])
    for text in (in_percent(PASSWORD), f"{PASSWORD[:-2]}{in_percent(PASSWORD[-2:])}"):
        said = secrets.hide(quoted("x" * at + text) + " is no media type")
        assert said.startswith(f"'{'x' * at}***")
        assert said.endswith("is no media type")
        assert "%" not in said
    assert secrets.hide(quoted("100%" + "x" * 60)) == quoted("100%" + "x" * 60)


def test_urls_are_looked_through_before_they_are_cut() -> None:
    secrets = Secrets(["pass?word", "user@host"])
    assert shown_url("http://h/pass?word", secrets=secrets) == "http://h/***"
    assert shown_url("http://user@host/x", secrets=secrets) == "http://***/x"
    assert shown_url("http://h/pass?x=1", secrets=Secrets(["pass#1"])) == "http://h/pass"


def test_the_secrets_used_last_are_kept() -> None:
    secrets = Secrets(["in use"])
    for number in range(2000):
        secrets.add(f"token-{number}")
        secrets.add("in use")
    assert "in use" in secrets
    assert "token-1999" in secrets
    assert len(secrets) <= 512
    assert "secret" not in repr(Secrets(["secret"])).replace("secrets", "")
