"""What a recipe may name in place of something that a stage would make. Loads no torch."""

from __future__ import annotations

import re
from typing import Literal
from urllib.parse import urlsplit

from rlhf.errors import ConfigError

Kind = Literal["model", "server", "function"]


def kind_of(name: str) -> Kind:
    """Whether a name is that of a model (directory or hub id), a server's address, or package.module:function."""
    if re.match(r"https?://", name):
        return "server"
    return "function" if re.fullmatch(r"[^:@]+:[A-Za-z_]\w*", name) else "model"


def check_address(field: str, address: str) -> None:
    """Raise ConfigError for an address that is none, or that holds a password: recipes are logged and kept."""
    try:
        parts = urlsplit(address)
        host, port = parts.hostname, parts.port
    except ValueError as error:
        raise ConfigError(f"{field}={address}: is no address ({error}); write http://HOST:PORT/PATH") from error
    if parts.username is not None or parts.password is not None:
        shown = f"{parts.scheme}://...@{host}{'' if port is None else f':{port}'}{parts.path}"
        raise ConfigError(
            f"{field}={shown}: holds a name or password, and recipes are logged; leave it out and set "
            "RLHF_REWARD_TOKEN in the environment"
        )
    if not host:
        raise ConfigError(f"{field}={address}: names no host; write http://HOST:PORT/PATH")
