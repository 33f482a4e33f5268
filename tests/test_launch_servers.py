"""Servers beside the processes of a stage over ssh: started again, given up, waited for."""

from __future__ import annotations

import os
import time
from pathlib import Path

import pytest

from launch.clusters import processes
from launch.clusters.itinerary import Server
from launch.clusters.processes import Running
from launch.local import free_port


def running(folder: Path, command: str) -> Running:
    server = Server("reward", 0, f"sh -c '{command}'", {}, free_port(), None)
    return Running(server, (folder / "log").open("ab"))


def ended(server: Running) -> None:
    server.process.wait(20)


def test_a_server_that_ends_long_after_it_served_gets_its_time_anew(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(processes, "STARTS_SECONDS", 30.0)
    monkeypatch.setattr(processes, "AGAIN_SECONDS", 0.0)
    server = running(tmp_path, "exit 0")
    ended(server)
    server.begun, server.healthy = time.monotonic() - 1000.0, True  # it has served for long
    first = server.process.pid
    server.look()
    assert server.process.pid != first and not server.late
    ended(server)
    server.stop()
    server.log.close()


def test_what_a_server_has_left_is_ended_before_another_starts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(processes, "AGAIN_SECONDS", 0.0)
    server = running(tmp_path, f"sleep 60 & echo $! >{tmp_path}/left")
    ended(server)
    left = int((tmp_path / "left").read_text())
    os.kill(left, 0)
    server.look()
    for _ in range(100):
        if not Path(f"/proc/{left}").exists() or " Z " in Path(f"/proc/{left}/stat").read_text():
            break
        time.sleep(0.1)
    else:
        pytest.fail("it lives")
    ended(server)
    server.stop()
    server.log.close()


def test_a_server_that_never_serves_is_given_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(processes, "AGAIN_SECONDS", 0.0)
    monkeypatch.setattr(processes, "FALLS", 2)
    server = running(tmp_path, "exit 3")
    for _ in range(2):
        assert not server.late
        ended(server)
        server.look()
    assert server.late
    ended(server)
    server.stop()
    server.log.close()
