"""Servers that a run would talk to: whether they answer, and take our keys, which are never shown."""

from __future__ import annotations

import os
from collections.abc import Iterator
from typing import Any
from urllib.parse import urlsplit

import httpx

from launch.checking.finding import Finding, failure, ok, warning
from rlhf.config import Recipe
from rlhf.references import is_loopback, kind_of
from rlhf.tracking.services import settled_mode, wanted
from stages.lineage import used_by

CHECK = "services"
SECONDS = 10.0
WANDB_HOST = "https://api.wandb.ai"
VIEWER = {"query": "query Viewer { viewer { username } }"}
LABEL_STUDIO, LABEL_STUDIO_KEY = "LABEL_STUDIO_URL", "LABEL_STUDIO_API_KEY"


def look(recipe: Recipe | None) -> list[Finding]:
    """Ask each server that the recipe or the environment names, from this node."""
    found = []
    if recipe is not None:
        found += list(trackers(recipe))
        found += list(others(recipe))
    if address := os.environ.get(LABEL_STUDIO):
        found.append(label_studio(address.rstrip("/"), os.environ.get(LABEL_STUDIO_KEY)))
    return found or [ok(CHECK, "no server is named")]


def trackers(recipe: Recipe) -> Iterator[Finding]:
    """W&B and MLflow. A run goes on without them, and `rlhf sync` sends later: they only warn, but for a wrong key."""
    services = wanted(recipe)
    if "wandb" in services:
        if settled_mode(recipe.tracking.wandb) == "online":
            yield wandb(os.environ.get("WANDB_BASE_URL", WANDB_HOST).rstrip("/"), os.environ.get("WANDB_API_KEY"))
        else:
            yield ok(CHECK, "W&B is offline: rlhf sync sends what was logged")
    if recipe.tracking.mlflow is not None and recipe.tracking.mlflow.is_server:
        address = recipe.tracking.mlflow.uri.rstrip("/")
        try:
            answer = httpx.get(f"{address}/health", timeout=SECONDS)
            if answer.is_success:
                yield ok(CHECK, f"MLflow answers at {shown(address)}")
            else:
                yield unreachable("MLflow", address, str(answer.status_code))
        except (httpx.HTTPError, httpx.InvalidURL) as error:
            yield unreachable("MLflow", address, said(error))


def wandb(address: str, key: str | None) -> Finding:
    """Whether W&B answers and knows the key."""
    try:
        answer = httpx.post(f"{address}/graphql", json=VIEWER, auth=("api", key or ""), timeout=SECONDS)
        known = answer.is_success and (answer.json().get("data") or {}).get("viewer")
    except (httpx.HTTPError, httpx.InvalidURL) as error:
        return unreachable("W&B", address, said(error))
    except (ValueError, AttributeError):
        return unreachable("W&B", address, "no answer of W&B's")
    if known:
        return ok(CHECK, f"W&B at {shown(address)} knows the key")
    if answer.is_success or answer.status_code in (401, 403):
        what = (
            f"W&B at {shown(address)} does not know the key in WANDB_API_KEY"
            if key
            else "W&B: WANDB_API_KEY is not set"
        )
        return failure(CHECK, what, "set it to yours, or use tracking.wandb.mode=offline")
    return unreachable("W&B", address, str(answer.status_code))


def label_studio(address: str, key: str | None) -> Finding:
    """Whether Label Studio answers and knows the key, which may be a token of either kind."""
    own: dict[str, Any] = {"timeout": SECONDS, "trust_env": not is_loopback(address)}  # as the run will ask it
    try:
        answer = httpx.get(f"{address}/health", **own)
        if not answer.is_success:
            return unreachable("Label Studio", address, str(answer.status_code))
        if not key:
            what = f"Label Studio answers at {shown(address)}, and {LABEL_STUDIO_KEY} is not set"
            return warning(CHECK, what, "set it to your access token")
        if key.count(".") == 2:  # a personal one, exchanged for one of minutes
            answer = httpx.post(f"{address}/api/token/refresh", json={"refresh": key}, **own)
        else:
            headers = {"Authorization": f"Token {key}"}
            answer = httpx.get(f"{address}/api/current-user/whoami", headers=headers, **own)
    except (httpx.HTTPError, httpx.InvalidURL) as error:
        return unreachable("Label Studio", address, said(error))
    if answer.is_success:
        return ok(CHECK, f"Label Studio at {shown(address)} knows the key")
    what = f"Label Studio at {shown(address)} does not take the key in {LABEL_STUDIO_KEY} ({answer.status_code})"
    return failure(CHECK, what, "make a new access token in its account settings")


def others(recipe: Recipe) -> Iterator[Finding]:
    """Servers that sample or score: a run stops without them, but they may be started with it."""
    named = [("generation server", address) for address in recipe.ppo.generation.server.addresses]
    if (used := used_by(recipe, "reward")) and kind_of(used) == "server":
        named.append(("reward server", used))
    named += [("reward server", term.use) for term in recipe.ppo.rewards if kind_of(term.use) == "server"]
    if (judge := recipe.ppo.held_out.judge) and kind_of(judge) == "server":
        named.append(("judge", judge))
    for what, address in dict.fromkeys(named):
        try:
            proxies = what != "generation server" and not is_loopback(address)  # as the run will ask it
            httpx.get(address, timeout=SECONDS, trust_env=proxies)  # any answer shows that somebody is there
            yield ok(CHECK, f"{what} answers at {shown(address)}")
        except (httpx.HTTPError, httpx.InvalidURL) as error:
            yield warning(CHECK, f"{what} at {shown(address)}: {said(error)}", "start it before the run does")


def unreachable(name: str, address: str, why: str) -> Finding:
    """No answer, or none that says anything."""
    remedy = "see the address and the proxy (HTTPS_PROXY)"
    if name != "Label Studio":
        remedy += "; a run goes on without, and rlhf sync sends later"
    return warning(CHECK, f"{name} at {shown(address)} cannot be reached: {why}", remedy)


def said(error: Exception) -> str:
    """An error of the connection, without the address, which may hold a name and a password."""
    return type(error).__name__ + (f" ({error})" if isinstance(error, httpx.ConnectError) else "")


def shown(address: str) -> str:
    """An address without a name, a password or a query."""
    try:
        parts = urlsplit(address)
        return f"{parts.scheme}://{parts.hostname}{f':{parts.port}' if parts.port else ''}{parts.path}"
    except ValueError:
        return "(no address)"
