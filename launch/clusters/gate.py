"""Wait until a stage's inputs are complete, on a CPU of Kubernetes; then let it run. Loads no torch.

    python -P -m launch.clusters.gate --run RUN --wait SECONDS [--recipe FILE] [--patch PATH --with JSON] STAGE

Exit code 0: it may run, or is complete already; 2: its inputs did not come, or something else is wrong, in a line.
With --patch the server of the cluster is asked to change an object so, by the rights of the pod's service account.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import ssl
import sys
from pathlib import Path
from typing import Any

import httpx

from launch.clusters.due import due
from launch.clusters.recipe import bring_recipe
from rlhf.errors import ConfigError, RLHFError
from stages.lineage import STAGES
from stages.signals import RESUMABLE

ACCOUNT = Path("/var/run/secrets/kubernetes.io/serviceaccount")  # where Kubernetes puts what a pod may show
PATIENCE_SECONDS = 30.0


def server() -> str:
    """The address of the cluster's API server, as each pod is told it."""
    host, port = os.environ.get("KUBERNETES_SERVICE_HOST", ""), os.environ.get("KUBERNETES_SERVICE_PORT", "443")
    if not host:
        raise ConfigError("KUBERNETES_SERVICE_HOST: is not set; --patch works in a pod of the cluster alone")
    return f"https://{f'[{host}]' if ':' in host else host}:{port}"


def patch(path: str, change: dict[str, Any], account: Path = ACCOUNT) -> None:
    """Ask the API server for a merge patch (RFC 7386) of the object at a path.

    Raises ConfigError where it is refused, with what to do about it, and OSError where nobody answers.
    """
    try:
        token, authority = (account / "token").read_text(encoding="utf-8").strip(), str(account / "ca.crt")
    except OSError as error:
        raise ConfigError(f"{account}: no service account's token ({error}); mount one into the pod") from error
    headers = {"Authorization": f"Bearer {token}", "Content-Type": "application/merge-patch+json"}
    try:
        context = ssl.create_default_context(cafile=authority)
        address = server() + path
        with httpx.Client(verify=context, timeout=PATIENCE_SECONDS, trust_env=False) as client:  # through no proxy
            answer = client.patch(address, content=json.dumps(change), headers=headers)
    except httpx.HTTPError as error:
        raise OSError(f"{server()}: does not answer ({type(error).__name__}: {error})") from error
    if answer.status_code == httpx.codes.FORBIDDEN:
        raise ConfigError(
            f"{path}: the service account may not patch it; give it the Role of docs/clusters-kubernetes.md"
        )
    if answer.is_error:
        raise OSError(f"{path}: {answer.status_code} {' '.join(answer.text.split())[:300]}")


def main() -> None:
    """See the module."""
    parser = argparse.ArgumentParser(prog="python -m launch.clusters.gate")
    parser.add_argument("--run", type=Path, required=True)
    parser.add_argument("--recipe", type=Path)
    parser.add_argument("--wait", type=float, required=True, metavar="SECONDS")
    parser.add_argument("--patch", metavar="PATH")
    parser.add_argument("--with", dest="change", type=json.loads, metavar="JSON")
    parser.add_argument("stage", choices=list(STAGES))
    options = parser.parse_args()
    # The first process of a container ignores what it has no handler for: its pod, once deleted, would be waited for.
    signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(RESUMABLE))
    try:
        if options.recipe:
            bring_recipe(options.recipe, options.run)
        print(f"{options.stage}: waits for {' and '.join(STAGES[options.stage].inputs)}", flush=True)
        if not due(options.run, options.stage, options.wait):
            print(f"{options.stage}: complete, nothing to do")
        elif options.patch:
            patch(options.patch, options.change)
            print(f"{options.stage}: may run")
    except (RLHFError, OSError) as error:
        for line in getattr(error, "problems", (str(error),)):
            print(f"error: {line}", file=sys.stderr)
        # What the system or the network refuses may be granted the next time.
        sys.exit(2 if isinstance(error, RLHFError) else 1)


if __name__ == "__main__":
    main()
