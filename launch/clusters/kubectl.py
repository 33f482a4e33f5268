"""kubectl, which knows how to reach a cluster: every call to one goes through it."""

from __future__ import annotations

import json
import shutil
import subprocess
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from rlhf.errors import ConfigError

PATIENCE_SECONDS = 20  # for an answer of the server


@dataclass(frozen=True)
class Kubectl:
    """A cluster and a namespace."""

    namespace: str
    context: str | None = None  # None: kubectl's current one

    def command(self, *arguments: str) -> list[str]:
        """A command line. Raises ConfigError where there is no kubectl."""
        program = shutil.which("kubectl")
        if program is None:
            raise ConfigError("kubectl: is not here; install it, and see that `kubectl get pods` reaches the cluster")
        chosen = ["--context", self.context] if self.context else []
        return [program, *chosen, "--namespace", self.namespace, *arguments]

    def ask(self, *arguments: str, given: str | None = None, seconds: int = PATIENCE_SECONDS) -> str:
        """What it prints. Raises ConfigError with its last line where it fails."""
        command = self.command(f"--request-timeout={seconds}s", *arguments)
        found = subprocess.run(command, input=given, capture_output=True, text=True, check=False)
        if found.returncode:
            raise ConfigError(f"kubectl {arguments[0]}: {said(found.stderr)}")
        return found.stdout

    def get(self, *arguments: str) -> list[Mapping[str, Any]]:
        """Objects as the server has them; those that it has not are left out."""
        text = self.ask("get", *arguments, "--ignore-not-found", "--output", "json")
        if not text.strip():
            return []
        content: Mapping[str, Any] = json.loads(text)
        return list(content["items"]) if "items" in content else [content]

    def follow(self, *arguments: str) -> Iterator[str]:
        """Its lines as they come. Raises ConfigError where it fails."""
        command = self.command(*arguments)
        with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
            assert process.stdout is not None and process.stderr is not None
            try:
                for line in process.stdout:
                    yield line.rstrip("\n")
                problems = process.stderr.read()
            finally:
                process.terminate()
        if process.returncode > 0:
            raise ConfigError(f"kubectl {arguments[0]}: {said(problems)}")


def said(text: str) -> str:
    """The line that tells why, of what kubectl says on the way there."""
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    told = [line for line in lines if not line[:5].startswith(("E0", "E1", "W0", "W1", "I0", "I1"))]
    reason = (told or lines or ["failed without a word"])[-1]
    if "refused" in reason or "no such host" in reason or "timeout" in reason.lower() or "timed out" in reason:
        return f"{reason}; see `kubectl config current-context`, or name another as site kubernetes.context"
    return reason
