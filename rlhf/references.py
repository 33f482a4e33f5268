"""What a recipe may name in place of something that a stage would make, and addresses. Loads no torch."""

from __future__ import annotations

import ipaddress
import re
from typing import Literal
from urllib.parse import parse_qsl, urlsplit

from rlhf.errors import ConfigError

Kind = Literal["model", "server", "function"]

# Words of a query's key, as in ?api_key= and ?X-Amz-Signature=, whose value gives access to something.
_ACCESS = {"token", "accesstoken", "key", "apikey", "auth", "password", "secret", "sig", "signature"}


def kind_of(name: str) -> Kind:
    """Whether a name is that of a model (directory or hub id), a server's address, or package.module:function."""
    if re.match(r"https?://", name, re.I):
        return "server"
    return "function" if re.fullmatch(r"[^:@]+:[A-Za-z_]\w*", name) else "model"


def check_address(field: str, address: str) -> None:
    """Raise ConfigError for an address that is none, or that holds a secret: recipes are logged and kept."""
    if (problem := secret_in(address)) is not None:
        raise ConfigError(f"{field}={problem}")
    try:
        parts = urlsplit(address)
        host, _ = parts.hostname, parts.port
    except ValueError as error:
        raise ConfigError(f"{field}={address}: is no address ({error}); write http://HOST:PORT/PATH") from error
    if not host:
        raise ConfigError(f"{field}={address}: names no host; write http://HOST:PORT/PATH")


def secret_in(address: str, variable: str = "RLHF_REWARD_TOKEN") -> str | None:
    """What is wrong with an address that holds a secret, which is not shown; None where it holds none.

    Of one with a name or password nothing is shown up to the last @. variable: of the environment, which is to hold it
    instead.
    """
    found = re.match(r"\s*(https?://)([^/?#]*)(.*)", address, re.I | re.S)
    if found is None:
        return None
    scheme, authority, behind = found.groups()
    # A password that holds one of /?# ends the authority before its @: what is left of it has no port.
    named = "@" in authority or ("@" in behind and not re.fullmatch(r"(\[.*\]|[^:]*)(:\d*)?", authority))
    before, _, after = (authority + behind).rpartition("@") if named else ("", "", authority + behind)
    place, _, query = after.partition("#")[0].partition("?")
    keys = [key for key, _ in parse_qsl(query, keep_blank_values=True) if _gives_access(key)]
    if not named and not keys:
        return None
    if any(_gives_access(key) for key in re.findall(r"[?&]([^=&]*)=", before)):  # whose value holds the last @
        place = ""
    shown = f"{scheme}{'...@' if named else ''}{place}{f'?{keys[0]}=...' if keys else ''}"
    what = "a name or password" if named else f"a secret in {keys[0]}"
    return f"{shown}: holds {what}, and recipes are logged; leave it out and set {variable} in the environment"


def is_loopback(address: str) -> bool:
    """Whether a server is on this machine: what is sent there leaves it by no proxy, whatever the environment says."""
    try:
        return is_local(urlsplit(address).hostname or "")
    except ValueError:
        return False


def is_local(host: str) -> bool:
    """Whether a host is this machine, seen from itself alone."""
    if re.fullmatch(r"localhost\.?", host):
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def _gives_access(key: str) -> bool:
    return bool(_ACCESS & set(re.split(r"[^a-z0-9]+", key.lower())))
