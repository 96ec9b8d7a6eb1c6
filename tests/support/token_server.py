"""A token server, as registries send their clients to: it checks a password and signs tokens.

::

    signer = TokenSigner(trustme.CA())
    async with TokenServer(signer, users={"gordon": "secret"}) as server:
        with running_registry(folder, auth=server.registry_auth(folder)) as registry:
            …
        server.asks                         # who asked for what

The tokens are those of docker-registry: JSON Web Tokens, signed by a key whose certificate comes along (distribution,
docs/spec/auth/jwt.md). By GET a password is changed for a token; by POST (docs/spec/auth/oauth.md) also a refresh
token, which ``docker login`` keeps as ``identitytoken``.
"""

from __future__ import annotations

import base64
import json
import secrets
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import trustme
from aiohttp import BasicAuth, web
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, utils
from cryptography.hazmat.primitives.serialization import Encoding, load_pem_private_key
from cryptography.x509 import load_pem_x509_certificate

SERVICE, ISSUER = "the registry", "the token server"


def _encode(data: bytes) -> str:
    return base64.urlsafe_b64encode(data).rstrip(b"=").decode()


class TokenSigner:
    """Signs tokens with a key that `ca` vouches for."""

    def __init__(self, ca: trustme.CA) -> None:
        issued = ca.issue_cert("token.example.com")
        key = load_pem_private_key(issued.private_key_pem.bytes(), password=None)
        assert isinstance(key, ec.EllipticCurvePrivateKey)
        self._ca = ca
        self._key = key
        certificate = load_pem_x509_certificate(issued.cert_chain_pems[0].bytes())
        self._certificate = base64.b64encode(certificate.public_bytes(Encoding.DER)).decode()

    def write_bundle(self, folder: Path) -> Path:
        """Write what a registry checks the signatures by; return its path."""
        path = folder / "token-ca.pem"
        self._ca.cert_pem.write_to_path(str(path))
        return path

    def sign(self, subject: str, scopes: list[str], lifetime: int) -> str:
        """Return a token that gives what `scopes` name (``repository:team/app:pull``)."""
        now = int(time.time())
        access = [
            {"type": kind, "name": name, "actions": actions.split(",")}
            for kind, name, actions in (scope.split(":") for scope in scopes)
        ]
        claims = {
            "iss": ISSUER,
            "aud": SERVICE,
            "sub": subject,
            "jti": secrets.token_hex(8),
            "access": access,
        }
        times = {"nbf": now - 10, "iat": now, "exp": now + lifetime}
        header = {"typ": "JWT", "alg": "ES256", "x5c": [self._certificate]}
        signed = ".".join(_encode(json.dumps(part).encode()) for part in (header, claims | times))
        r, s = utils.decode_dss_signature(self._key.sign(signed.encode(), ec.ECDSA(hashes.SHA256())))
        return f"{signed}.{_encode(r.to_bytes(32, 'big') + s.to_bytes(32, 'big'))}"


@dataclass(frozen=True)
class TokenAsk:
    """A request for a token.

    Attributes:
        method: GET or POST.
        fields: The query, or the form.
        user: Whose password or refresh token came with it; None for nobody's.
    """

    method: str
    fields: dict[str, str]
    scopes: list[str]
    user: str | None


@dataclass
class TokenServer:
    """Gives tokens to `users` (names and passwords) for whatever they ask; to others, for nothing.

    Attributes:
        refresh_tokens: Whose each is, for the ones that ``docker login`` would have got.
        lifetime: Of a token, in seconds.
        anonymous: Whether who gives no password gets a token too.
        asks: Every request that was answered with a token.
        realm: Its address, for the registry that sends clients here.
    """

    signer: TokenSigner
    users: Mapping[str, str] = field(default_factory=dict)
    refresh_tokens: Mapping[str, str] = field(default_factory=dict)
    lifetime: int = 300
    anonymous: bool = False
    asks: list[TokenAsk] = field(default_factory=list)
    realm: str = field(default="", init=False)
    _runner: web.AppRunner | None = field(default=None, init=False, repr=False)

    async def __aenter__(self) -> Self:
        app = web.Application()
        app.router.add_get("/token", self._get)
        app.router.add_post("/token", self._post)
        self._runner = web.AppRunner(app, access_log=None, shutdown_timeout=1)
        await self._runner.setup()
        await web.TCPSite(self._runner, "127.0.0.1", 0).start()
        self.realm = f"http://127.0.0.1:{self._runner.addresses[0][1]}/token"
        return self

    async def __aexit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, tb: TracebackType | None
    ) -> None:
        assert self._runner is not None
        await self._runner.cleanup()

    def registry_auth(self, folder: Path) -> dict[str, object]:
        """Return what makes a docker-registry send its clients here; `folder` gets the certificate."""
        bundle = str(self.signer.write_bundle(folder))
        return {
            "token": {"realm": self.realm, "service": SERVICE, "issuer": ISSUER, "rootcertbundle": bundle}
        }

    async def _get(self, request: web.Request) -> web.Response:
        given = request.headers.get("Authorization")
        user = None
        if given is not None:
            login = BasicAuth.decode(given)
            if self.users.get(login.login) != login.password:
                return _refused()
            user = login.login
        return self._give("GET", dict(request.query), request.query.getall("scope", []), user)

    async def _post(self, request: web.Request) -> web.Response:
        form: dict[str, Any] = dict(await request.post())
        if form["grant_type"] == "refresh_token":
            user = self.refresh_tokens.get(form["refresh_token"])
        else:
            user = form["username"] if self.users.get(form["username"]) == form["password"] else None
        if user is None:
            return _refused()
        return self._give("POST", form, form.get("scope", "").split(), user)

    def _give(self, method: str, fields: dict[str, str], scopes: list[str], user: str | None) -> web.Response:
        self.asks.append(TokenAsk(method, fields, scopes, user))
        allowed = scopes if user is not None or self.anonymous else []
        token = self.signer.sign(user or "", allowed, self.lifetime)
        name = "access_token" if method == "POST" else "token"
        return web.json_response({name: token, "expires_in": self.lifetime})


def _refused() -> web.Response:
    return web.json_response({"errors": [{"code": "UNAUTHORIZED", "message": "no"}]}, status=401)
