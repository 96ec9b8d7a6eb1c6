"""Certificates in the places and under the names that Docker and podman have for them, tried on real TLS servers."""

from __future__ import annotations

import asyncio
import contextlib
import datetime as dt
import ipaddress
import logging
import os
import pickle
import ssl
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import aiohttp
import pytest
import trustme
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.hazmat.primitives.serialization import (
    BestAvailableEncryption,
    Encoding,
    NoEncryption,
    PrivateFormat,
    load_pem_private_key,
)
from cryptography.x509.oid import NameOID

from aiodockersave import Platform, RegistryError, RegistrySource
from aiodockersave.core.errors import ConfigurationError, InvalidInputError
from aiodockersave.sources.credentials import MappingCredentials
from aiodockersave.sources.registry import certificates
from aiodockersave.sources.registry.answers import Origin
from aiodockersave.sources.registry.certificates import tls_context
from aiodockersave.sources.registry.endpoint import Endpoint
from aiodockersave.sources.registry.session_pool import Settings

HOST = "localhost"
ANONYMOUS = "nobody"
PODMAN_PLACE = ".config/containers/certs.d"


# ── a registry's TLS ──


@dataclass(frozen=True)
class Keys:
    """An authority, a server whose certificate it signed, and clients."""

    authority: trustme.CA
    server: trustme.LeafCert
    client: trustme.LeafCert
    other_client: trustme.LeafCert


@pytest.fixture(scope="module")
def keys() -> Keys:
    authority = trustme.CA()
    return Keys(
        authority,
        authority.issue_cert(HOST, "127.0.0.1"),
        authority.issue_cert(common_name="client", organization_name="client"),
        authority.issue_cert(common_name="other", organization_name="other"),
    )


@contextlib.asynccontextmanager
async def registry(keys: Keys, **settings: Any) -> AsyncIterator[int]:
    """Run a TLS server that tells its clients their names; yield its port."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    keys.server.configure_cert(context)
    keys.authority.configure_trust(context)
    context.verify_mode = ssl.CERT_OPTIONAL
    for name, value in settings.items():
        setattr(context, name, value)

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        names = dict(part[0] for part in (writer.get_extra_info("peercert") or {}).get("subject", ()))
        writer.write(names.get("commonName", ANONYMOUS).encode())
        with contextlib.suppress(ConnectionError):
            await writer.drain()
        writer.close()

    server = await asyncio.start_server(answer, "127.0.0.1", 0, ssl=context)
    async with server:
        yield server.sockets[0].getsockname()[1]


async def client_at(port: int, context: ssl.SSLContext, host: str = HOST) -> str:
    """Return the name by which the server knows us."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port, ssl=context, server_hostname=host)
    try:
        return (await asyncio.wait_for(reader.read(), 60)).decode()
    finally:
        writer.close()
        with contextlib.suppress(ConnectionError, ssl.SSLError):
            await writer.wait_closed()


def write_authority(keys: Keys, path: Path) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(keys.authority.cert_pem.bytes())
    return path


def write_client(leaf: trustme.LeafCert, directory: Path, name: str = "client") -> None:
    directory.mkdir(parents=True, exist_ok=True)
    (directory / f"{name}.cert").write_bytes(b"".join(blob.bytes() for blob in leaf.cert_chain_pems))
    (directory / f"{name}.key").write_bytes(leaf.private_key_pem.bytes())


@pytest.fixture(autouse=True)
def system(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> tuple[Path, Path]:
    """The system's places, for podman and for Docker, in a folder of this test."""
    places = tmp_path / "etc" / "containers", tmp_path / "etc" / "docker"
    monkeypatch.setattr(certificates, "_SYSTEM_PLACES", tuple(map(str, places)))
    return places


@pytest.fixture
def home(tmp_path: Path) -> Path:
    path = tmp_path / "home"
    path.mkdir()
    return path


# ── who is trusted ──


async def test_by_default_an_unknown_authority_is_refused(keys: Keys, home: Path) -> None:
    context = await tls_context(HOST, home=home)
    async with registry(keys) as port:
        with pytest.raises(ssl.SSLCertVerificationError):
            await client_at(port, context)


async def test_defaults_are_secure(keys: Keys, home: Path) -> None:
    context = await tls_context(HOST, home=home)
    assert context.check_hostname
    assert context.verify_mode is ssl.CERT_REQUIRED
    assert context.minimum_version is ssl.TLSVersion.TLSv1_2
    assert not context.verify_flags & ssl.VERIFY_X509_STRICT
    assert not context.hostname_checks_common_name
    assert context.cert_store_stats()["x509"] == ssl.create_default_context().cert_store_stats()["x509"]


async def test_an_authority_of_the_caller_is_trusted_and_the_name_is_checked(
    keys: Keys, home: Path, tmp_path: Path
) -> None:
    system_authorities = (await tls_context(HOST, home=home)).cert_store_stats()["x509_ca"]
    context = await tls_context(HOST, ca_file=write_authority(keys, tmp_path / "ca.pem"), home=home)
    assert context.cert_store_stats()["x509_ca"] == system_authorities + 1  # besides the system's
    async with registry(keys) as port:
        assert await client_at(port, context) == ANONYMOUS
        with pytest.raises(ssl.SSLCertVerificationError, match="Hostname mismatch"):
            await client_at(port, context, "example.com")


async def test_tls_1_1_is_refused(keys: Keys, home: Path, tmp_path: Path) -> None:
    context = await tls_context(HOST, ca_file=write_authority(keys, tmp_path / "ca.pem"), home=home)
    with pytest.warns(DeprecationWarning, match="TLSv1_1 is deprecated"):
        await only_old(keys, context)


async def only_old(keys: Keys, context: ssl.SSLContext) -> None:
    old = ssl.TLSVersion.TLSv1_1
    async with registry(keys, minimum_version=old, maximum_version=old) as port:
        with pytest.raises((ssl.SSLError, ConnectionError)):
            await client_at(port, context)


async def test_an_intermediate_authority_is_trusted_alone(home: Path, tmp_path: Path) -> None:
    """As with Go, a certificate in ca.crt is trusted, whoever signed it."""
    root = trustme.CA()
    middle = root.create_child_ca()
    keys = Keys(
        middle, middle.issue_cert(HOST), middle.issue_cert("a.example"), middle.issue_cert("b.example")
    )
    context = await tls_context(HOST, ca_file=write_authority(keys, tmp_path / "ca.pem"), home=home)
    async with registry(keys) as port:
        assert await client_at(port, context) == ANONYMOUS


async def test_a_file_may_have_several_authorities_and_words_between(
    keys: Keys, home: Path, tmp_path: Path
) -> None:
    path = tmp_path / "ca.pem"
    other = trustme.CA().cert_pem.bytes()
    path.write_bytes("# Prüfstelle\n".encode() + other + b"# ours\n" + keys.authority.cert_pem.bytes())
    async with registry(keys) as port:
        assert await client_at(port, await tls_context(HOST, ca_file=path, home=home)) == ANONYMOUS


# ── whose certificate it is ──


def signed(keys: Keys, folder: Path, *names: x509.GeneralName, common_name: str) -> ssl.SSLContext:
    """A server whose certificate has a common name, and these alternative names, if any."""
    issuer = x509.load_pem_x509_certificate(keys.authority.cert_pem.bytes())
    issuer_key: Any = load_pem_private_key(keys.authority.private_key_pem.bytes(), None)
    key = ec.generate_private_key(ec.SECP256R1())
    now = dt.datetime.now(dt.UTC)
    builder = (
        x509.CertificateBuilder()
        .subject_name(x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, common_name)]))
        .issuer_name(issuer.subject)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - dt.timedelta(days=1))
        .not_valid_after(now + dt.timedelta(days=1))
    )
    if names:
        builder = builder.add_extension(x509.SubjectAlternativeName(names), critical=False)
    certificate = builder.sign(issuer_key, hashes.SHA256())
    path = folder / "server.pem"
    secret = key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
    path.write_bytes(certificate.public_bytes(Encoding.PEM) + secret)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(path)
    return context


@contextlib.asynccontextmanager
async def talking_tls(context: ssl.SSLContext) -> AsyncIterator[int]:
    """Run a server that closes every connection; yield its port."""
    server = await asyncio.start_server(lambda _, writer: writer.close(), "127.0.0.1", 0, ssl=context)
    async with server:
        yield server.sockets[0].getsockname()[1]


@dataclass(frozen=True)
class Named:
    """A certificate's names, and the host that it is shown for."""

    id: str
    host: str
    fits: bool
    names: tuple[x509.GeneralName, ...] = ()
    common_name: str = "a.example.com"
    says: str = "mismatch"


NAMELESS = "it has no subject alternative name, and a common name alone does not count"
ADDRESS = x509.IPAddress(ipaddress.ip_address("127.0.0.1"))
NAMED = [
    Named("a common name alone", "a.example.com", False, says=NAMELESS),
    Named("a common name alone, of another host", "b.example.com", False, says=NAMELESS),
    Named("a common name that is the address", "127.0.0.1", False, common_name="127.0.0.1", says=NAMELESS),
    Named("a wildcard as common name", "a.example.com", False, common_name="*.example.com", says=NAMELESS),
    Named("a common name beside an address", "a.example.com", False, (ADDRESS,)),
    Named("a common name beside another name", "a.example.com", False, (x509.DNSName("b.example.com"),)),
    Named("an alternative name", "a.example.com", True, (x509.DNSName("a.example.com"),), "z"),
    Named("an alternative address", "127.0.0.1", True, (ADDRESS,), "z"),
    Named("an address as a name", "127.0.0.1", False, (x509.DNSName("127.0.0.1"),), "z"),
    # as OpenSSL, Go and browsers have it: one whole label, the first one
    Named("a wildcard", "a.example.com", True, (x509.DNSName("*.example.com"),), "z"),
    Named("a wildcard for two labels", "b.a.example.com", False, (x509.DNSName("*.example.com"),), "z"),
    Named("a wildcard for no label", "example.com", False, (x509.DNSName("*.example.com"),), "z"),
    Named("a part of a label", "app.example.com", False, (x509.DNSName("a*.example.com"),), "z"),
    Named("a wildcard that is not first", "a.b.example.com", False, (x509.DNSName("a.*.example.com"),), "z"),
]


@pytest.mark.parametrize("case", NAMED, ids=lambda case: case.id)
async def test_which_names_of_a_certificate_count(
    keys: Keys, home: Path, tmp_path: Path, case: Named
) -> None:
    """The expected results are those of Go's clients, Docker and podman."""
    server = signed(keys, tmp_path, *case.names, common_name=case.common_name)
    context = await tls_context(HOST, ca_file=write_authority(keys, tmp_path / "ca.pem"), home=home)
    async with talking_tls(server) as port:
        if case.fits:
            assert await client_at(port, context, case.host) == ""
            return
        with pytest.raises(ssl.SSLCertVerificationError) as caught:
            await client_at(port, context, case.host)
    assert case.says in caught.value.verify_message


@pytest.mark.parametrize("is_lent", [False, True], ids=["own session", "lent session"])
async def test_a_registry_with_a_common_name_alone_is_refused_and_told_why(
    keys: Keys, tmp_path: Path, is_lent: bool
) -> None:
    """Also with a caller's session, where authorities are given: then the context is ours."""
    server = signed(keys, tmp_path, common_name="localhost")
    async with contextlib.AsyncExitStack() as stack:
        port = await stack.enter_async_context(talking_tls(server))
        session = await stack.enter_async_context(aiohttp.ClientSession()) if is_lent else None
        source = RegistrySource(ca_file=write_authority(keys, tmp_path / "ca.pem"), session=session)
        await stack.enter_async_context(source)
        with pytest.raises(RegistryError, match=f"certificate is not valid: {NAMELESS}"):
            await source.resolve(f"localhost:{port}/app:1", Platform("linux", "amd64"))


async def test_a_proxy_with_a_common_name_alone_is_refused(
    keys: Keys, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    server = signed(keys, tmp_path, common_name="localhost")
    async with talking_tls(server) as port:
        monkeypatch.setenv("HTTPS_PROXY", f"https://localhost:{port}")
        async with RegistrySource(ca_file=write_authority(keys, tmp_path / "ca.pem")) as source:
            with pytest.raises(RegistryError, match=f"certificate is not valid: {NAMELESS}"):
                await source.resolve("registry.example/app:1", Platform("linux", "amd64"))


# ── the places ──

PODMAN = "podman's, the user's"
SYSTEM = "podman's, the system's"
DOCKER = "docker's"


def directory_in(place: str, name: str, home: Path, system: tuple[Path, Path]) -> Path:
    return {PODMAN: home / PODMAN_PLACE, SYSTEM: system[0], DOCKER: system[1]}[place] / name


@pytest.mark.parametrize("name", ["localhost:5000", "registry.example.com", "[::1]:5000"])
@pytest.mark.parametrize("place", [PODMAN, SYSTEM, DOCKER])
async def test_the_default_places(
    keys: Keys, home: Path, system: tuple[Path, Path], place: str, name: str
) -> None:
    """containers-certs.d(5), Docker's documentation: a directory by host and port, CAs in *.crt, pairs by name."""
    directory = directory_in(place, name, home, system)
    write_authority(keys, directory / "ca.crt")
    write_client(keys.client, directory)
    async with registry(keys) as port:
        assert await client_at(port, await tls_context(name, home=home)) == "client"
        with pytest.raises(ssl.SSLCertVerificationError):
            await client_at(port, await tls_context("other.example", home=home))


@pytest.mark.parametrize(("first", "later"), [(PODMAN, SYSTEM), (SYSTEM, DOCKER), (PODMAN, DOCKER)])
async def test_the_first_directory_counts_alone(
    keys: Keys, home: Path, system: tuple[Path, Path], first: str, later: str
) -> None:
    """containers/image dockerCertDir: the first directory that exists."""
    for place, client in ((first, keys.client), (later, keys.other_client)):
        directory = directory_in(place, HOST, home, system)
        write_authority(keys, directory / "any.crt")
        write_client(client, directory)
    async with registry(keys) as port:
        assert await client_at(port, await tls_context(HOST, home=home)) == "client"


async def test_a_named_directory_counts_alone(
    keys: Keys, home: Path, tmp_path: Path, system: tuple[Path, Path]
) -> None:
    """skopeo's --cert-dir: the directory itself, without the host's name in it."""
    write_client(keys.other_client, system[1] / HOST)
    write_authority(keys, tmp_path / "certs" / "ca.crt")
    write_client(keys.client, tmp_path / "certs", "anyname")
    context = await tls_context(HOST, cert_dir=tmp_path / "certs", home=home)
    async with registry(keys) as port:
        assert await client_at(port, context) == "client"


async def test_a_client_certificate_is_shown_to_the_registry_alone(
    keys: Keys, home: Path, tmp_path: Path
) -> None:
    """A host that a registry redirects to is verified by the same authorities, and is shown no client certificate."""
    write_authority(keys, tmp_path / "certs" / "ca.crt")
    write_client(keys.client, tmp_path / "certs")
    context = await tls_context(HOST, cert_dir=tmp_path / "certs", home=home, shows_client=False)
    async with registry(keys) as port:
        assert await client_at(port, context) == ANONYMOUS


async def test_the_home_directory_is_the_users(
    keys: Keys, home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", str(home))
    write_authority(keys, home / PODMAN_PLACE / HOST / "ca.crt")
    async with registry(keys) as port:
        assert await client_at(port, await tls_context(HOST)) == ANONYMOUS


async def test_the_first_client_certificate_is_used_and_the_others_are_reported(
    keys: Keys, home: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Docker tries them "in alphabetical order"."""
    write_authority(keys, tmp_path / "certs" / "ca.crt")
    write_client(keys.other_client, tmp_path / "certs", "b")
    write_client(keys.client, tmp_path / "certs", "a")
    context = await tls_context(HOST, cert_dir=tmp_path / "certs", home=home)
    async with registry(keys) as port:
        assert await client_at(port, context) == "client"
    (record,) = caplog.records
    assert record.levelno == logging.WARNING
    assert "a.cert is used, not b.cert" in record.getMessage()


async def test_a_place_that_cannot_be_looked_into_is_passed_over(
    keys: Keys, home: Path, system: tuple[Path, Path], caplog: pytest.LogCaptureFixture
) -> None:
    """containers/image dockerCertDir passes over what it may not read."""
    (home / PODMAN_PLACE).mkdir(parents=True)
    (home / PODMAN_PLACE / HOST).symlink_to(HOST)  # a loop: not even root can look into it
    write_authority(keys, system[1] / HOST / "ca.crt")
    async with registry(keys) as port:
        assert await client_at(port, await tls_context(HOST, home=home)) == ANONYMOUS
    assert "is not used: Too many levels of symbolic links" in caplog.text


async def test_other_files_do_not_count(home: Path, tmp_path: Path) -> None:
    for name in ("README", "ca.pem", "crt", ".hidden"):
        (tmp_path / name).write_bytes(b"nothing")
    await tls_context(HOST, cert_dir=tmp_path, home=home)


# ── what cannot be used ──

Spoil = Callable[[Keys, Path], object]


def encrypted(leaf: trustme.LeafCert) -> bytes:
    key = load_pem_private_key(leaf.private_key_pem.bytes(), None)
    return key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, BestAvailableEncryption(b"word"))


def rsa_key() -> bytes:
    """Return a key of no certificate here: trustme's keys are of elliptic curves."""
    key = rsa.generate_private_key(public_exponent=65537, key_size=2048)
    return key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())


def writing(name: str, content: bytes) -> Spoil:
    return lambda keys, folder: (folder / name).write_bytes(content)


def replacing_by_a_directory(name: str) -> Spoil:
    def spoil(keys: Keys, folder: Path) -> None:
        (folder / name).unlink()
        (folder / name).mkdir()

    return spoil


@dataclass(frozen=True)
class Fault:
    id: str
    spoil: Spoil
    name: str
    reason: str


BAD_PEM = b"-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n"

FAULTS = [
    # Docker, containers/image: "missing key %s for client certificate %s. CA certificates must use the extension .crt"
    Fault("cert without key", lambda keys, folder: (folder / "client.key").unlink(), "client.cert", "client.key is missing; an authority's certificate ends in .crt"),
    # Docker, containers/image: "missing client certificate %s for key %s"
    Fault("key without cert", lambda keys, folder: (folder / "client.cert").unlink(), "client.key", "its certificate, which ends in .cert, is missing"),
    # ours, for the authorities: Docker and podman pass over what is none, and the connection fails without a reason
    Fault("authority: empty", writing("ca.crt", b""), "ca.crt", "not made of valid certificates"),
    Fault("authority: no PEM", writing("ca.crt", b"hello"), "ca.crt", "not made of valid certificates"),
    Fault("authority: bad PEM", writing("ca.crt", BAD_PEM), "ca.crt", "not made of valid certificates"),
    Fault("authority: bytes", writing("ca.crt", bytes(range(256))), "ca.crt", "not made of valid certificates"),
    Fault("authority: too large", writing("ca.crt", b" " * (4 << 20) + b"x"), "ca.crt", "larger than 4194304 bytes"),
    Fault("authority: a link to nothing", lambda keys, folder: (folder / "b.crt").symlink_to("none"), "b.crt", "No such file"),
    Fault("authority: a directory", lambda keys, folder: (folder / "b.crt").mkdir(), "b.crt", "not a regular file"),
    Fault("authority: a FIFO", lambda keys, folder: os.mkfifo(folder / "b.crt"), "b.crt", "not a regular file"),
    Fault("certificate: no PEM", writing("client.cert", b"hello"), "client.cert", "not made of valid certificates"),
    Fault("key: no PEM", writing("client.key", b"hello"), "client.key", "not a valid private key"),
    Fault("key: empty", writing("client.key", b""), "client.key", "not a valid private key"),
    Fault("key: a certificate", writing("client.key", BAD_PEM), "client.key", "not a valid private key"),
    Fault("key: a directory", replacing_by_a_directory("client.key"), "client.key", "not a regular file"),
    Fault("key: another's", lambda keys, folder: (folder / "client.key").write_bytes(keys.other_client.private_key_pem.bytes()), "client.key", "belongs to another certificate"),
    Fault("key: of another algorithm", lambda keys, folder: (folder / "client.key").write_bytes(rsa_key()), "client.key", "belongs to another certificate"),
    Fault("key: encrypted", lambda keys, folder: (folder / "client.key").write_bytes(encrypted(keys.client)), "client.key", "it is encrypted"),
]  # fmt: skip


@pytest.mark.parametrize("place", ["named", "default"])
@pytest.mark.parametrize("fault", FAULTS, ids=lambda fault: fault.id)
async def test_errors_name_the_unusable_file(
    keys: Keys, home: Path, tmp_path: Path, fault: Fault, place: str
) -> None:
    folder = home / PODMAN_PLACE / HOST
    write_authority(keys, folder / "ca.crt")
    write_client(keys.client, folder)
    await tls_context(HOST, home=home)
    fault.spoil(keys, folder)
    with pytest.raises(ConfigurationError) as caught:
        await tls_context(HOST, home=home, cert_dir=folder if place == "named" else None)
    assert caught.value.path == str(folder / fault.name)
    assert fault.reason in caught.value.reason
    assert str(caught.value) == f"{caught.value.path}: {caught.value.reason}"
    assert vars(pickle.loads(pickle.dumps(caught.value))) == vars(caught.value)


async def test_a_named_file_or_directory_must_be_there(home: Path, tmp_path: Path) -> None:
    missing = tmp_path / "none"
    with pytest.raises(ConfigurationError, match="none: No such file or directory"):
        await tls_context(HOST, home=home, ca_file=missing)
    with pytest.raises(ConfigurationError, match="none: No such file or directory"):
        await tls_context(HOST, home=home, cert_dir=missing)


@pytest.mark.parametrize(
    "name", ["", "..", ".", "../x", "a/b", "a b", "a\0b", "-a", "a:", "a:b", "a:1:2", "[::1", "a\n"]
)
async def test_an_invalid_registry_name_never_becomes_a_path(home: Path, name: str) -> None:
    with pytest.raises(InvalidInputError, match="not the name of a registry"):
        await tls_context(name, home=home)


# ── under which name they are looked for ──


@pytest.mark.parametrize(
    ("registry", "asked", "name", "shows_client"),
    [
        ("docker.io", ("https", "registry-1.docker.io", 443), "docker.io", True),
        ("quay.io", ("https", "quay.io", 443), "quay.io", True),
        ("quay.io:443", ("https", "quay.io", 443), "quay.io:443", True),
        ("quay.io:5000", ("https", "quay.io", 5000), "quay.io:5000", True),
        ("[::1]:5000", ("https", "::1", 5000), "[::1]:5000", True),
        ("quay.io", ("https", "cdn.example", 443), "cdn.example", False),
        ("quay.io", ("https", "cdn.example", 8443), "cdn.example:8443", False),
        ("quay.io", ("https", "quay.io", 8443), "quay.io:8443", False),
    ],
)
async def test_directories_are_found_by_the_name_in_the_reference(
    registry: str, asked: Origin, name: str, shows_client: bool
) -> None:
    """As with Docker and podman; a host that a registry points at has directories under its own name."""
    names = []

    async def tls(registry: str, is_named: bool) -> bool:
        names.append((registry, is_named))
        return True

    endpoint = Endpoint.of_registry(
        registry, Settings(tls), MappingCredentials({}), plain_http=False, has_authorities=False
    )
    await endpoint._transport.dialler.options(asked)
    assert names == [(name, shows_client)]
