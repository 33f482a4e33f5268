"""What a recipe may name in place of something that a stage would make. Loads no torch."""

from __future__ import annotations

import re
from typing import Literal
from urllib.parse import parse_qsl, urlsplit

from rlhf.errors import ConfigError

Kind = Literal["model", "server", "function"]

# Words of a query's key, as in ?api_key= and ?X-Amz-Signature=, whose value gives access to something.
_ACCESS = {"token", "accesstoken", "key", "apikey", "auth", "password", "secret", "sig", "signature"}


def kind_of(name: str) -> Kind:
    """Whether a name is that of a model (directory or hub id), a server's address, or package.module:function."""
    if re.match(r"https?://", name):
        return "server"
    return "function" if re.fullmatch(r"[^:@]+:[A-Za-z_]\w*", name) else "model"


def check_address(field: str, address: str) -> None:
    """Raise ConfigError for an address that is none, or that holds a secret: recipes are logged and kept."""
    try:
        parts = urlsplit(address)
        host, port = parts.hostname, parts.port
    except ValueError as error:
        shown = re.sub(r"//[^/]*@", "//...@", address.partition("?")[0])
        raise ConfigError(f"{field}={shown}: is no address ({error}); write http://HOST:PORT/PATH") from error
    named = parts.username is not None or parts.password is not None
    keys = [key for key, _ in parse_qsl(parts.query, keep_blank_values=True) if _gives_access(key)]
    if named or keys:
        place = f"{host or ''}{'' if port is None else f':{port}'}{parts.path}"
        shown = f"{parts.scheme}://{'...@' if named else ''}{place}{f'?{keys[0]}=...' if keys else ''}"
        what = "a name or password" if named else f"a secret in {keys[0]}"
        raise ConfigError(
            f"{field}={shown}: holds {what}, and recipes are logged; leave it out and set "
            "RLHF_REWARD_TOKEN in the environment"
        )
    if not host:
        raise ConfigError(f"{field}={address}: names no host; write http://HOST:PORT/PATH")


def _gives_access(key: str) -> bool:
    return bool(_ACCESS & set(re.split(r"[^a-z0-9]+", key.lower())))
