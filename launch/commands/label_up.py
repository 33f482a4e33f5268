"""`rlhf label up`: a Label Studio server on this machine. Loads no torch."""

from __future__ import annotations

import signal
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Annotated

import typer
from rich.console import Console
from rich.progress import Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

from data.labelling.client import KEY
from data.labelling.server import URL
from launch.label_studio import PASSWORD, TOKEN, VERSION, Server, environment_folder, install, is_installed
from rlhf.errors import LabellingError
from rlhf.store.unfinished import hold

DEFAULT = Path("labels/server")


def up(
    directory: Annotated[Path, typer.Option("--directory", metavar="DIR", help="Where its data is.")] = DEFAULT,
    port: Annotated[int, typer.Option(min=1, max=65535, help="Where it listens, on this machine alone.")] = 8080,
) -> None:
    """Start a Label Studio of one's own, until Ctrl-C: for those who have none, and to try one.

    It listens at 127.0.0.1, sends no analytics, and needs an invitation to sign up. The first time its environment is
    made in the cache directory (about 1 GB, some minutes), and its tables (a minute or two). Password and token of its
    owner are drawn then, and kept in DIR, for your eyes alone.

    Examples:

        rlhf label up

        rlhf label up --directory /data/label-studio --port 8081
    """
    with hold(directory, "--directory") as lock:  # from the first: the second of two would draw other secrets
        _serve(directory, port, lock)


def _serve(directory: Path, port: int, lock: IO[str]) -> None:
    console = Console(stderr=True)
    with _waiting(console) as tick:
        if not is_installed():
            console.print(f"making an environment for Label Studio {VERSION}: {environment_folder()}", highlight=False)
        command = install(tick)
        is_new = not (directory / TOKEN).is_file()
        server = Server(directory, port, command, lock)
        for name in (signal.SIGTERM, signal.SIGHUP):
            signal.signal(name, _stop)
        try:
            server.start()
            server.wait(tick)
        except BaseException:
            server.stop()
            raise
    try:
        for line in _welcome(server, is_new):
            typer.echo(line)
        sys.stdout.flush()
        while server.process is not None and server.process.poll() is None:
            time.sleep(0.3)
        raise LabellingError(f"Label Studio has ended by itself; see {directory / 'server.log'}")
    except KeyboardInterrupt:
        console.print("stopping", highlight=False)
    finally:
        server.stop()


def _welcome(server: Server, is_new: bool) -> list[str]:
    token = server.directory / TOKEN
    password = f"password {server.owner.password}" if is_new else f"its password is in {server.directory / PASSWORD}"
    return [
        f"Label Studio {VERSION} at {server.url} (Ctrl-C stops it)",
        f"log in as {server.owner.user}, {password}",
        f'for the commands: export {URL}={server.url} {KEY}="$(cat {token})"',
        f"invite others: {server.url}/people",
    ]


def _stop(*_: object) -> None:
    raise KeyboardInterrupt


@contextmanager
def _waiting(console: Console) -> Iterator[Callable[[str], None]]:
    """A line with what is going on and for how long, on a terminal."""
    columns = SpinnerColumn(), TextColumn("{task.description}"), TimeElapsedColumn()
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as progress:
        task = progress.add_task("starting", total=None)
        yield lambda text: progress.update(task, description=text[: max(console.width - 20, 20)])
