"""Nodes that meet: who comes, who does not, who leaves, and never a wait without an end."""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from launch.checking.examination import understood
from launch.checking.folders import Folder, Probe
from launch.checking.lines import Line
from launch.checking.meeting import TOKEN, Invitation, Meeting, MeetingError, alone, invitation, meet
from launch.checking.network import Post, ask
from launch.local import free_port
from rlhf.errors import ConfigError


def invited(nodes: int, port: int, rank: int | None = None, seconds: float = 10.0) -> Invitation:
    return Invitation(nodes, "127.0.0.1", port, rank, seconds)


def together(*nodes: Callable[[], Any]) -> list[Any]:
    """What each comes to, or how it fails; the first begins before the others."""
    with ThreadPoolExecutor(len(nodes)) as pool:
        running: list[Future[Any]] = []
        for node in nodes:
            running.append(pool.submit(node))
            time.sleep(0.05)
        return [each.exception() or each.result() for each in running]


def node(invitation: Invitation, name: str, *given: Any) -> Callable[[], Any]:
    """One that hands in values, one exchange each; what it got."""

    def run() -> Any:
        meeting = meet(invitation, name, lambda line: None)
        try:
            return meeting, [meeting.exchange(each, 5.0) for each in given]
        finally:
            meeting.close()

    return run


def told_to(hello: dict[str, Any], port: int) -> Any:
    """What somebody is told who says this."""
    with socket.create_connection(("127.0.0.1", port)) as connection:
        line = Line(connection)
        line.send(hello)
        return line.receive(5.0)


def test_all_get_what_all_hand_in() -> None:
    port = free_port()
    results = together(*(node(invited(3, port), name, name * 2, 7) for name in "abc"))
    assert [got for _, got in results] == [[{0: "aa", 1: "bb", 2: "cc"}, {0: 7, 1: 7, 2: 7}]] * 3
    assert [meeting.rank for meeting, _ in results] == [0, 1, 2]
    assert {meeting.id for meeting, _ in results} == {results[0][0].id}


def test_ranks_are_as_they_were_given() -> None:
    port = free_port()
    results = together(*(node(invited(3, port, rank), name, name) for rank, name in ((0, "a"), (2, "c"), (None, "b"))))
    assert results[0][0].names == {0: "a", 1: "b", 2: "c"} and results[1][0].rank == 2


def test_two_of_one_name_are_told_apart() -> None:
    port = free_port()
    results = together(*(node(invited(2, port), "vm", 0) for _ in range(2)))
    assert results[0][0].names == {0: "vm", 1: "vm (1)"}


def test_who_does_not_come_is_missing_in_time() -> None:
    started = time.monotonic()
    meeting, got = node(invited(3, free_port(), 0, seconds=1.0), "a", "x")()
    assert meeting.missing == [1, 2] and got == [{0: "x"}] and time.monotonic() - started < 3


def test_who_leaves_is_lost_and_the_others_go_on() -> None:
    port = free_port()
    results = together(
        node(invited(3, port), "a", 1, 2), node(invited(3, port), "b", 1), node(invited(3, port), "c", 1, 2)
    )
    first, got = results[0]
    assert got == [{0: 1, 1: 1, 2: 1}, {0: 2, 2: 2}] and list(first.lost) == [1]
    assert results[2][1] == got


def test_a_node_that_falls_silent_is_lost_in_time() -> None:
    port, over = free_port(), threading.Event()

    def silent() -> None:
        meeting = meet(invited(2, port), "b", lambda line: None)
        over.wait(20)
        meeting.close()

    def first() -> Meeting:
        meeting = meet(invited(2, port), "a", lambda line: None)
        meeting.exchange(1, 0.5)
        over.set()
        meeting.close()
        return meeting

    started = time.monotonic()
    (meeting, _) = together(first, silent)
    assert list(meeting.lost) == [1] and "no answer" in meeting.lost[1] and time.monotonic() - started < 5


@pytest.mark.parametrize("leaves", [True, False])
def test_it_is_seen_when_another_node_waits_for_this_one_or_has_gone(leaves: bool) -> None:
    port, over = free_port(), threading.Event()

    def other() -> None:
        meeting = meet(invited(2, port), "b", lambda line: None)
        over.wait(5)
        if not leaves:
            meeting.exchange(1, 5.0)
        meeting.close()

    def first() -> tuple[bool, bool]:
        meeting = meet(invited(2, port), "a", lambda line: None)
        before = meeting.waited_for()
        over.set()
        time.sleep(0.5)
        after = meeting.waited_for()
        meeting.exchange(1, 5.0)
        meeting.close()
        return before, after

    assert together(first, other)[0] == (False, True)


def test_nobody_there_is_told_in_time() -> None:
    with pytest.raises(MeetingError, match=r"b does not reach 127\.0\.0\.1:\d+ within 1 s \(refused: nobody listens\)"):
        meet(invited(2, free_port(), 1, seconds=1.0), "b", lambda line: None)


def test_somebody_else_there_is_told() -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        threading.Thread(target=lambda: listener.accept()[0].close(), daemon=True).start()
        with pytest.raises(MeetingError, match="is no rlhf doctor"):
            meet(invited(2, listener.getsockname()[1], 1, seconds=3.0), "b", lambda line: None)


def test_a_port_in_use_is_told_to_the_first() -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener, pytest.raises(ConfigError, match="Address already in use"):
        meet(invited(2, listener.getsockname()[1], 0, seconds=1.0), "a", lambda line: None)


def test_the_first_is_where_the_rendezvous_is() -> None:
    with pytest.raises(ConfigError, match="--node-rank 0 is the node whose address that is"):
        meet(Invitation(2, "192.0.2.1", 29400, 0, 1.0), "a", lambda line: None)


@pytest.mark.parametrize(
    ("other", "said"),
    [
        ({"nodes": 3}, "--nodes 3 there and --nodes 2 here"),
        ({"rank": 0}, "--node-rank 0 has been given twice"),
        ({"rank": 7}, "of --nodes 2 the last is 1"),
        ({"token": "guess"}, "another token"),
        ({"protocol": "rlhf doctor 0"}, "another version of rlhf"),
    ],
)
def test_who_cannot_take_part_is_told_why_and_the_others_wait(other: dict[str, Any], said: str) -> None:
    port = free_port()

    def stranger() -> Any:
        return told_to({"protocol": "rlhf doctor 1", "token": "", "nodes": 2, "rank": None, "name": "x", **other}, port)

    first, refused, second = together(node(invited(2, port), "a", 1), stranger, node(invited(2, port), "b", 1))
    assert said in refused["refused"] and first[1] == second[1] == [{0: 1, 1: 1}]


def test_a_port_scan_does_not_matter() -> None:
    port = free_port()

    def scan() -> None:
        with socket.create_connection(("127.0.0.1", port)) as connection:
            connection.sendall(b"GET / HTTP/1.1\r\n\r\n")

    first, _, second = together(node(invited(2, port), "a", 1), scan, node(invited(2, port), "b", 1))
    assert first[1] == second[1] == [{0: 1, 1: 1}]


def test_a_token_keeps_others_out(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(TOKEN, "secret")
    port = free_port()

    def stranger() -> Any:
        return told_to({"protocol": "rlhf doctor 1", "token": "", "nodes": 2, "rank": None, "name": "x"}, port)

    _, refused, second = together(node(invited(2, port), "a", 1), stranger, node(invited(2, port), "b", 1))
    assert "secret" not in str(refused) and "token" in refused["refused"] and second[1] == [{0: 1, 1: 1}]


@pytest.mark.parametrize("text", ["", "node", "node:", "node:0x1", "node:99999", ":29400", "http://node:1", "a@node:1"])
def test_what_is_no_rendezvous(text: str) -> None:
    with pytest.raises(ConfigError, match="is no address"):
        invitation(2, text, None, 1.0)


def test_addresses_of_both_kinds() -> None:
    assert invitation(2, "[::1]:29400", None, 1.0).place == "[::1]:29400"
    assert invitation(2, "node-1:29400", 1, 1.0).place == "node-1:29400"


def test_a_rank_that_there_is_none_of() -> None:
    with pytest.raises(ConfigError, match="of --nodes 2 the last is 1"):
        invitation(2, "node-1:29400", 2, 1.0)


def test_the_time_of_a_node() -> None:
    post = Post("127.0.0.1")
    port = post.port
    seen = ask("127.0.0.1", port)
    post.close()
    assert seen.error is None and seen.ahead is not None and abs(seen.ahead) < 0.1
    assert "refused" in str(ask("127.0.0.1", port).error)


def test_a_folder_of_one_node(tmp_path: Path) -> None:
    found = Probe(tmp_path / "runs" / "demo", alone("a")).look()
    assert found == Folder(place=str(tmp_path), read=found.read, seconds=found.seconds) and found.read > 10
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("shared", [True, False])
def test_folders_of_two_nodes(shared: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("launch.checking.folders.SEEN_SECONDS", 1.0)
    places = [tmp_path / "one", tmp_path / ("one" if shared else "other")]
    for place in places:
        place.mkdir(exist_ok=True)
    port = free_port()

    def look(place: Path) -> Folder:
        meeting = meet(invited(2, port), place.name, lambda line: None)
        try:
            return Probe(place, meeting).look()
        finally:
            meeting.close()

    first, second = together(lambda: look(places[0]), lambda: look(places[1]))
    assert (first.unseen, second.unseen) == (((), ()) if shared else ((1,), (0,)))
    assert (second.read > 10) == shared and first.torn == second.torn == 0
    assert [list(place.iterdir()) for place in places] == [[], []]


def test_a_name_that_leads_to_this_machine_alone_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    """As Debian's /etc/hosts has it."""
    found = [(socket.AF_INET, socket.SOCK_STREAM, 6, "", ("127.0.1.1", 29400))]
    monkeypatch.setattr(socket, "getaddrinfo", lambda *_, **__: found)
    with pytest.raises(ConfigError, match=r"node-1 leads to 127\.0\.1\.1 on this machine"):
        meet(Invitation(2, "node-1", 29400, None, 1.0), "node-1", lambda line: None)


def test_who_says_things_otherwise_is_left_out() -> None:
    meeting = alone("a")
    said = {0: {"place": "/runs"}, 1: {"place": "/runs", "new": 1}}
    assert list(understood(Folder, said, meeting)) == [0] and "another version" in meeting.lost[1]
