"""Find and parse the files in which Docker and podman keep credentials. Everything here blocks.

A part of a file that cannot be used is reported as a fault, and the rest of the file is used. Only a file that cannot be
parsed at all is an error. No fault and no error shows a secret.
"""

from __future__ import annotations

import base64
import binascii
import os
import stat
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Literal

from aiodockersave.core import gojson
from aiodockersave.core.errors import ConfigurationError, ContentTooLargeError, InvalidDocumentError
from aiodockersave.core.text import MAX_LISTED, cut, one_line
from aiodockersave.sources.regular_file import is_text, read_file

__all__ = [
    "MAX_FILE",
    "AuthFile",
    "Credentials",
    "Place",
    "names_of",
    "object_of",
    "parse_document",
    "places",
]

MAX_FILE = 1 << 20
"""The largest file that is read, in bytes: as much as Kubernetes allows for a secret."""

SYSTEM_FILE = "/etc/containers/auth.json"
_READABLE_BY_OTHERS = stat.S_IRGRP | stat.S_IROTH


@dataclass(frozen=True, slots=True)
class Credentials:
    """Credentials for a registry and its token server. ``repr()`` shows no secrets.

    Attributes:
        username: The user; may be empty beside a token.
        password: The password, or a token in its place.
        identity_token: A refresh token for the token server (OAuth2); empty if there is none.
        registry_token: A bearer token for the registry itself; empty if there is none.
        origin: The file, the variable or the helper that has them, for messages; empty for the caller's own.
    """

    username: str
    password: str = field(repr=False)
    identity_token: str = field(default="", repr=False)
    registry_token: str = field(default="", repr=False)
    origin: str = field(default="", repr=False, compare=False)


@dataclass(frozen=True, slots=True)
class AuthFile:
    """The usable content of a file.

    Attributes:
        entries: Credentials by registry or path, in the order of the file.
        helpers: The names of helpers by registry.
        store: The name of the helper for all other registries; empty if there is none.
        faults: For each part that cannot be used, a message with the reason.
    """

    entries: Mapping[str, Credentials] = field(default_factory=dict)
    helpers: Mapping[str, str] = field(default_factory=dict)
    store: str = ""
    faults: tuple[str, ...] = ()


# ── places ──


@dataclass(frozen=True, slots=True)
class Place:
    """A file, or an environment variable, that may hold credentials.

    Attributes:
        path: The path of the file, or the name of the variable.
        if_missing: The meaning of a file that is missing: nothing ("fine"), a fault ("reported"), an error ("error").
        is_legacy: Whether the whole file has the form of "auths" in other files.
        is_private: Whether it is an error that others can read the file.
        is_for_logins: Whether a login is written into the file.
        text: The value of the variable; None for a file.
    """

    path: str
    if_missing: Literal["fine", "reported", "error"] = "fine"
    is_legacy: bool = False
    is_private: bool = False
    is_for_logins: bool = False
    text: str | None = field(default=None, repr=False)

    def read(self) -> AuthFile:
        """Read the file or the variable; the result is empty where there is no file.

        Raises:
            ConfigurationError: The content cannot be parsed at all; or the file is required and cannot be read, or is
                not private.
        """
        if self.text is not None:
            return self._read_variable(self.text)
        try:
            if self.is_private and os.stat(self.path).st_mode & _READABLE_BY_OTHERS:
                raise ConfigurationError(self.path, "others can read it; make it private with chmod 600")
            raw = read_file(self.path, MAX_FILE)
        except ContentTooLargeError:
            raise ConfigurationError(self.path, f"it is larger than {MAX_FILE} bytes") from None
        except OSError as error:
            return self._unread(error)
        return _parse(raw, self)

    def _read_variable(self, text: str) -> AuthFile:
        try:
            file = _parse(text.encode(errors="surrogateescape"), self)
        except ConfigurationError as error:
            # Docker too reports the fault and continues with its file.
            return AuthFile(faults=(str(error),))
        return AuthFile(file.entries, faults=file.faults)  # Docker uses only "auths" of this variable

    def _unread(self, error: OSError) -> AuthFile:
        reason = error.strerror or type(error).__name__
        if self.if_missing == "error":
            raise ConfigurationError(self.path, reason)
        if isinstance(error, FileNotFoundError | NotADirectoryError) and self.if_missing == "fine":
            return AuthFile()
        return AuthFile(faults=(f"{one_line(self.path)} is not used: {reason}",))


def places(authfile: str | None, environ: Mapping[str, str], home: str | None) -> list[Place]:
    """Return the places that may hold credentials; the first that has some decides."""
    if authfile is not None:
        return [Place(authfile, "error", is_for_logins=True)]
    if named := environ.get("REGISTRY_AUTH_FILE"):
        return [Place(named, "reported", is_for_logins=True)]
    return list(_default_places(environ, home or environ.get("HOME") or os.path.expanduser("~")))


def _default_places(environ: Mapping[str, str], home: str) -> Iterator[Place]:
    user = os.getuid()
    is_unit = bool(environ.get("INVOCATION_ID"))  # of systemd
    if user == 0 and is_unit:
        yield Place(SYSTEM_FILE, is_private=True)
    runtime = environ.get("XDG_RUNTIME_DIR")
    folder = os.path.join(runtime, "containers") if runtime else f"/run/containers/{user}"
    yield Place(os.path.join(folder, "auth.json"))
    config = environ.get("XDG_CONFIG_HOME") or os.path.join(home, ".config")
    yield Place(os.path.join(config, "containers", "auth.json"))
    if text := environ.get("DOCKER_AUTH_CONFIG"):
        yield Place("$DOCKER_AUTH_CONFIG", text=text)
    docker = environ.get("DOCKER_CONFIG") or os.path.join(home, ".docker")
    # Docker reads this file alone, and podman reads it too.
    yield Place(os.path.join(docker, "config.json"), is_for_logins=True)
    yield Place(os.path.join(home, ".dockercfg"), is_legacy=True)
    if user == 0 and not is_unit:
        yield Place(SYSTEM_FILE, is_private=True)


# ── parsing ──


class _Unusable(Exception):  # noqa: N818 - not an error of the file: the rest of it is used
    """A part of a file cannot be used; ``str()`` is the reason, without any of the file's text."""


def _parse(raw: bytes, place: Place) -> AuthFile:
    document = parse_document(raw, place.path)
    faults: list[str] = []
    if place.is_legacy:
        return AuthFile(_entries(document, faults), faults=_located(faults, place))
    entries = _entries(object_of(document, "auths", faults), faults)
    helpers = _helpers(object_of(document, "credHelpers", faults), faults)
    store = _last(document, "credsStore") or ""
    if not isinstance(store, str):
        faults.append('"credsStore" is not used: it is not a name')
        store = ""
    return AuthFile(entries, helpers, store, _located(faults, place))


def _located(faults: list[str], place: Place) -> tuple[str, ...]:
    more = (
        [f"{len(faults) - MAX_LISTED} more of its entries are not used"] if len(faults) > MAX_LISTED else []
    )
    return tuple(f"{one_line(place.path)}: {fault}" for fault in [*faults[:MAX_LISTED], *more])


def names_of(document: Mapping[str, object], name: str) -> list[str]:
    """Return every spelling of a field's name in a document, in order: Go ignores the case of names."""
    wanted = gojson.fold(name)
    return [key for key in document if gojson.fold(key) == wanted]


def _all(document: Mapping[str, object], name: str) -> list[object]:
    return [document[key] for key in names_of(document, name)]


def _last(document: Mapping[str, object], name: str) -> object:
    # In Go, null leaves a text as it is.
    return next((value for value in reversed(_all(document, name)) if value is not None), None)


def object_of(document: Mapping[str, object], name: str, faults: list[str]) -> dict[str, object]:
    """Return a new object with the members of a field, as Go reads them; add the reason to ``faults`` where it is none."""
    found: dict[str, object] = {}
    for value in _all(document, name):
        if value is None:  # in Go, null empties a map, and an object in another spelling adds to it
            found = {}
        elif isinstance(value, dict):
            found |= value
        else:
            faults.append(f'"{name}" is not used: it is not an object')
    return found


def _entries(auths: Mapping[str, object], faults: list[str]) -> Mapping[str, Credentials]:
    entries: dict[str, Credentials] = {}
    for key, value in auths.items():
        try:
            entry = _parse_entry(value)
        except _Unusable as fault:
            faults.append(f"the entry {_shown_key(key)} is not used: {fault}")
        else:
            if entry is not None:
                entries[key] = entry
    return entries


def _helpers(names: Mapping[str, object], faults: list[str]) -> Mapping[str, str]:
    helpers: dict[str, str] = {}
    for key, value in names.items():
        if is_text(key) and is_text(value):
            helpers[key] = value
        else:
            faults.append(f"the helper for {_shown_key(key)} is not used: it is not a name")
    return helpers


def parse_document(raw: bytes, path: str) -> dict[str, object]:
    """Parse a whole file.

    Raises:
        ConfigurationError: It is not a JSON object.
    """
    if not raw.strip():
        return {}  # Docker takes an empty file for one without entries
    reason = "it is not a JSON object"
    try:
        document = gojson.parse(raw, path)
    except InvalidDocumentError as error:
        document, reason = None, error.reason
    # Raised outside of the handler: json's error holds the whole text, and would be the context of ours.
    if not isinstance(document, dict):
        raise ConfigurationError(path, reason)
    return document


def _parse_entry(entry: object) -> Credentials | None:
    """Return an entry's credentials; None where it has none: Docker leaves such entries where a helper has them."""
    if not isinstance(entry, dict):
        raise _Unusable("it is not an object")
    username, password = _text(entry, "username"), _text(entry, "password")
    if auth := _text(entry, "auth"):
        username, password = _decode_auth(auth)
    identity_token, registry_token = _text(entry, "identitytoken"), _text(entry, "registrytoken")
    if not (registry_token.isascii() and registry_token.isprintable()):
        raise _Unusable('"registrytoken" has characters that no header may have')
    if not (username or identity_token or registry_token):
        return None
    return Credentials(username, password, identity_token, registry_token)


def _text(entry: Mapping[str, object], name: str) -> str:
    value = _last(entry, name)
    if value is None:
        return ""
    if not is_text(value):
        raise _Unusable(f'"{name}" is not a text')
    return value


def _decode_auth(auth: str) -> tuple[str, str]:
    """Decode username and password as Docker does: the password begins after the first colon, and NULs around it are cut."""
    try:
        decoded = base64.b64decode(auth.replace("\r", "").replace("\n", ""), validate=True)
    except (binascii.Error, ValueError):  # ValueError: other characters than ASCII
        raise _Unusable('"auth" is not base64') from None
    try:
        username, colon, password = decoded.decode().partition(":")
    except UnicodeDecodeError:
        raise _Unusable('"auth" is not UTF-8') from None
    if not (username and colon):
        raise _Unusable('"auth" is not the base64 of username:password')
    return username, password.strip("\0")


def _shown_key(key: str) -> str:
    """Return a key for a message, without user and password before a host."""
    return cut(one_line(key.rpartition("@")[2]))
