"""`rlhf label watch`: votes as they come. Loads no torch."""

from __future__ import annotations

import os
import signal
import threading
from datetime import datetime
from pathlib import Path
from typing import Annotated

import typer

from data.labelling.ledger import Ledger, directory_of
from data.labelling.pulling import Pulled, Puller, server_of
from data.labelling.server import URL
from data.labelling.watching import Listener, Watch
from rlhf.errors import ConfigError
from rlhf.references import is_loopback

TOKEN = "RLHF_LABEL_TOKEN"
PATIENCE = 5.0  # seconds with one request; the watch itself has no end of it


def watch(
    title: Annotated[str, typer.Option("--project", metavar="TITLE", help="The project's title on the server.")],
    url: Annotated[
        str | None, typer.Option(metavar="URL", help=f"The server. Default: ${URL}, else that pushed to.")
    ] = None,
    directory: Annotated[Path | None, typer.Option(metavar="DIR", help="Default: labels/TITLE.")] = None,
    every: Annotated[float, typer.Option(min=5, help="Seconds between whole pulls.")] = 300.0,
    host: Annotated[str, typer.Option(help="Where to listen; beyond this machine only with a token.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=0, max=65535, help="Where to listen. 0: any free one.")] = 0,
    address: Annotated[
        str | None, typer.Option(metavar="URL", help="How the server reaches us. Default: http://HOST:PORT.")
    ] = None,
) -> None:
    """Pull votes as they come, until Ctrl-C: new ones are in DIR/votes.jsonl within seconds.

    The server is asked to tell us of annotations (webhooks), with a secret that is drawn anew each time, or that of
    RLHF_LABEL_TOKEN, without which nothing but this machine can call. Hooks get lost, so there is a whole pull as well
    every --every seconds. A server that restarts is waited for. Push and pull may run meanwhile.

    Examples:

        rlhf label watch --project "demo, round 1"

        rlhf label watch --project helpful --host 0.0.0.0 --port 9000 --address http://trainer.local:9000
    """
    if address is None and host in ("0.0.0.0", "::"):
        raise ConfigError(f"--host {host}: is no address that others can call; give --address http://NAME:PORT as well")
    ledger = Ledger(directory_of(title, directory))
    ledger.require_project()
    for name in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(name, _interrupt)
    token = os.environ.get(TOKEN, "").strip() or None
    with server_of(ledger, url, PATIENCE) as server, Listener(host, port, token) as listener:
        here = address or f"http://{host}:{listener.port}"
        if not is_loopback(server.url) and is_loopback(here):
            _say(f"{server.url} cannot reach {here}: a pull every {every:g} s; see --host and --address for webhooks")
        found = Watch(Puller(server, ledger), listener, here, every)
        _say(f"watching {title}; Ctrl-C ends it")
        try:
            found.run(_tell, _say, threading.Event())
        except KeyboardInterrupt:
            found.end(_say)


def _interrupt(*_: object) -> None:
    raise KeyboardInterrupt


def _tell(pulled: Pulled) -> None:
    counts = pulled.counts
    rejects = len(pulled.account.rejects)
    gold = f" and {counts['votes_on_gold']:,} on gold pairs" if counts["votes_on_gold"] else ""
    _say(
        f"{counts['votes']:,} votes{gold}, {rejects:,} annotations without; {counts['pairs_with_votes']:,} of "
        f"{counts['pairs']:,} pairs"
    )


def _say(line: str) -> None:
    typer.echo(f"{datetime.now():%H:%M:%S} {line}")
