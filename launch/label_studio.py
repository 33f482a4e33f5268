"""A Label Studio server of one's own on this machine: its environment, its files, its process.

Label Studio pins versions that are not ours, so it has an environment of its own, made once (about 1 GB) in
$XDG_CACHE_HOME/rlhf (default: ~/.cache/rlhf). It listens at 127.0.0.1, sends no analytics, and nobody can sign up
without an invitation. Loads no torch.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO

import httpx

from rlhf.errors import ConfigError, LabellingError

VERSION = "1.23.2"
HOST = "127.0.0.1"
USER = "admin@localhost.localdomain"
PASSWORD, TOKEN, SECRET = "password", "token", "secret-key"  # files of a server's directory, for its owner's eyes alone
START_SECONDS = 900.0  # until it answers: the first time it makes its tables, which takes a minute or more
STOP_SECONDS = 15.0
LOOK_SECONDS = 0.25
LOG = "server.log"
PR_SET_PDEATHSIG = 1
LIBC = ctypes.CDLL(None)  # looked up here: between fork and exec nothing should be loaded
Say = Callable[[str], None]


def environment_folder() -> Path:
    """Where Label Studio's environment is, or will be."""
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    return cache / "rlhf" / f"label-studio-{VERSION}"


def is_installed() -> bool:
    """Whether the environment is there, and whole."""
    return (environment_folder() / "complete").is_file()


def install(tick: Say) -> Path:
    """The `label-studio` command of its environment, which is made if it is not there; tick: told what pip does.

    Raises LabellingError where it cannot be made.
    """
    folder = environment_folder()
    command = folder / "bin" / "label-studio"
    if is_installed():
        return command
    shutil.rmtree(folder, ignore_errors=True)
    folder.parent.mkdir(parents=True, exist_ok=True)
    pip = [str(folder / "bin" / "python"), "-m", "pip", "install", "--disable-pip-version-check", "--no-input"]
    for words in ([sys.executable, "-m", "venv", str(folder)], [*pip, f"label-studio=={VERSION}"]):
        last = _followed(words, tick)
        if last is not None:
            shutil.rmtree(folder, ignore_errors=True)
            raise LabellingError(f"{folder}: cannot be made ({last}); see that pip can reach its index, and try again")
    (folder / "complete").touch()
    return command


def _followed(words: Sequence[str], tick: Say) -> str | None:
    """Run a command and tell its lines; its last line if it failed."""
    last = ""
    with subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, errors="replace") as made:
        assert made.stdout is not None
        for line in made.stdout:
            if line.strip() and not line.startswith("WARNING"):
                last = line.strip()
                tick(last)
    return None if made.returncode == 0 else last or f"exit code {made.returncode}"


@dataclass(frozen=True)
class Owner:
    """The first user of a server, who may do everything there."""

    user: str
    password: str
    token: str


def owner_of(directory: Path) -> Owner:
    """Who owns the server of a directory; password and token are drawn when it is new."""
    directory.mkdir(parents=True, exist_ok=True, mode=0o700)
    directory.chmod(0o700)
    password = kept_secret(directory / PASSWORD, secrets.token_urlsafe(15))
    return Owner(USER, password, kept_secret(directory / TOKEN, secrets.token_hex(20)))


def kept_secret(path: Path, drawn: str) -> str:
    """What a file of ours alone holds; `drawn` is put there if there is none."""
    if not path.is_file():
        partial = path.with_name(f".{path.name}.partial")
        partial.unlink(missing_ok=True)
        os.close(os.open(partial, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o600))
        with partial.open("w", encoding="utf-8") as file:
            file.write(f"{drawn}\n")
        partial.replace(path)
    return path.read_text(encoding="utf-8").strip()


class Server:
    """A server's process; to be used in a `with`, whose end is also its own."""

    def __init__(self, directory: Path, port: int, command: Path | None = None, lock: IO[str] | None = None) -> None:
        """lock: of the directory, which the server's process then holds too, should it outlive us for a moment."""
        self.directory = directory.absolute()
        self.port = port
        self.command = command or environment_folder() / "bin" / "label-studio"
        self.owner = owner_of(self.directory)
        self.lock = lock
        self.process: subprocess.Popen[bytes] | None = None

    @property
    def url(self) -> str:
        """Its address."""
        return f"http://{HOST}:{self.port}"

    def start(self) -> None:
        """Start it. Raises ConfigError where somebody else has the port: it would silently take another one."""
        if not is_free(self.port):
            raise ConfigError(f"--port {self.port}: is in use; give another, or stop what listens there")
        words = [str(self.command), "start", "--no-browser", "--internal-host", HOST, "--port", str(self.port)]
        words += ["--data-dir", str(self.directory), "--enable-legacy-api-token"]
        with (self.directory / LOG).open("ab") as log:
            self.process = subprocess.Popen(
                words,
                env=environment(self.directory, self.owner, os.environ),
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                pass_fds=[self.lock.fileno()] if self.lock else [],
                start_new_session=True,  # Ctrl-C is for us to act upon
                preexec_fn=_end_with_parent,
            )

    def wait(self, tick: Say = lambda text: None) -> None:
        """Wait until it answers to its owner's token. Raises LabellingError where it ends before, or never does."""
        deadline = time.monotonic() + START_SECONDS
        while time.monotonic() < deadline:
            if self.process is None or self.process.poll() is not None:
                raise LabellingError(f"Label Studio ended while it started; see {self.directory / LOG}")
            if self.answers():
                return
            tick("starting")
            time.sleep(LOOK_SECONDS)
        raise LabellingError(f"Label Studio did not answer within {START_SECONDS:g} s; see {self.directory / LOG}")

    def answers(self) -> bool:
        """Whether it is there, and ours."""
        headers = {"Authorization": f"Token {self.owner.token}"}
        try:
            with httpx.Client(trust_env=False, timeout=5.0) as client:
                return client.get(f"{self.url}/api/current-user/whoami", headers=headers).status_code == 200
        except httpx.HTTPError:
            return False

    def stop(self) -> None:
        """End it; what it has taken in is on the disk already."""
        process, self.process = self.process, None
        if process is None or process.poll() is not None:
            return
        process.terminate()
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(STOP_SECONDS)
            return
        process.kill()
        process.wait()

    def __enter__(self) -> Server:
        """Start it."""
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        """Stop it."""
        self.stop()


def environment(directory: Path, owner: Owner, outer: Mapping[str, str]) -> dict[str, str]:
    """What the server sees: nothing of ours, its own folders, no analytics, its owner; secrets stand nowhere else."""
    folders = {"HOME": "home", "XDG_DATA_HOME": "data", "XDG_CONFIG_HOME": "config", "XDG_CACHE_HOME": "cache"}
    for name in folders.values():
        (directory / name).mkdir(exist_ok=True)
    return {
        "PATH": outer.get("PATH", os.defpath),
        "LANG": outer.get("LANG", "C.UTF-8"),
        **{variable: str(directory / name) for variable, name in folders.items()},
        "LABEL_STUDIO_BASE_DATA_DIR": str(directory),
        # Tokens and sessions are signed with it; without one it would be written where others may read.
        "SECRET_KEY": kept_secret(directory / SECRET, secrets.token_hex(32)),
        "COLLECT_ANALYTICS": "false",
        "LATEST_VERSION_CHECK": "false",
        "SENTRY_DSN": "",
        "FRONTEND_SENTRY_DSN": "",
        # Else it refuses to tell `rlhf label watch` on this machine of votes. It can call what its users name here.
        "SSRF_PROTECTION_ENABLED": "false",
        "LABEL_STUDIO_DISABLE_SIGNUP_WITHOUT_LINK": "true",
        "LABEL_STUDIO_USERNAME": owner.user,
        "LABEL_STUDIO_PASSWORD": owner.password,
        "LABEL_STUDIO_USER_TOKEN": owner.token,
    }


def is_free(port: int) -> bool:
    """Whether nobody listens at a port of this machine."""
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((HOST, port))
        except OSError:
            return False
    return True


def _end_with_parent() -> None:
    """Have the kernel end the server should we be killed: nobody else would."""
    LIBC.prctl(PR_SET_PDEATHSIG, signal.SIGTERM)
