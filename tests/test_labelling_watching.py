"""Who tells us of votes, and a watch beside other commands."""

from __future__ import annotations

import threading
import time
from pathlib import Path
from typing import Any

import httpx
import pytest

from data.labelling.ledger import Ledger
from data.labelling.watching import HEADER, PATH, Listener, Watch
from rlhf.errors import ConfigError


def test_a_listener_answers_at_once_who_knows_the_secret() -> None:
    with Listener("127.0.0.1", 0, None) as listener, httpx.Client(trust_env=False, timeout=5) as client:
        url = f"http://127.0.0.1:{listener.port}"
        for path, headers in ((PATH, {}), (PATH, {HEADER: "guessed"}), ("/", {HEADER: listener.secret})):
            assert client.post(url + path, headers=headers, json={"action": "x"}).status_code == 403
        assert client.post(url + PATH, headers={HEADER: "é".encode()}).status_code == 403
        assert client.get(url + PATH, headers={HEADER: listener.secret}).status_code == 501
        assert not listener.told.is_set() and listener.refused == 4
        assert client.post(url + PATH, headers={HEADER: listener.secret}, content=b"no JSON").status_code == 204
        assert listener.told.wait(5) and len(listener.secret) > 30


def test_a_listener_is_open_to_others_with_a_token_alone() -> None:
    for host in ("0.0.0.0", "::", "10.1.2.3", "node-7"):
        with pytest.raises(ConfigError, match=f"--host {host}: is open to others; set RLHF_LABEL_TOKEN"):
            Listener(host, 0, None)
    with Listener("0.0.0.0", 0, "mine") as listener:
        assert listener.secret == "mine"
        with pytest.raises(ConfigError, match="cannot listen at 127.0.0.1"):
            Listener("127.0.0.1", listener.port, None)


def test_a_watch_beside_another_command_keeps_its_hook(tmp_path: Path) -> None:
    class Pulls:
        ledger, pulled = Ledger(tmp_path), 0

        def pull(self, whole: bool) -> Any:
            self.pulled += 1
            stop.set()

    stop, said, puller = threading.Event(), list[str](), Pulls()
    with Listener("127.0.0.1", 0, None) as listener:
        watch = Watch(puller, listener, "http://127.0.0.1:1", 60.0)  # type: ignore[arg-type]
        watch.registered = True
        watch.end = lambda warn: None  # type: ignore[method-assign]
        with Ledger(tmp_path).held():
            thread = threading.Thread(target=watch.run, args=(lambda pulled: None, said.append, stop))
            thread.start()
            time.sleep(1.0)
            assert (said, watch.registered, puller.pulled) == ([], True, 0)
        thread.join(20)
    assert (said, watch.registered, puller.pulled) == ([], True, 1)
