"""One node of a run over ssh: it starts and ends what the first node orders, and says how that ended.

    the first    takes each stage that is due, waits until all of its nodes live, has them start it; where one of them
                 ends badly or falls silent, this attempt is over for all, and there is another, up to `retries`
    every one    starts its agent and its servers when told to
    the lowest   of those that live starts the supervisors of nodes that have fallen silent, by ssh

Loads no torch.
"""

from __future__ import annotations

import os
import signal
import socket
import threading
import time
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from types import FrameType
from typing import IO, Any

from launch.clusters.company import TICK_SECONDS, Rescue, Watch
from launch.clusters.itinerary import Itinerary, Leg
from launch.clusters.leader import LOST, Leader, Steps
from launch.clusters.processes import Agent, Running, adopt_orphans
from launch.clusters.records import Order, Record, Records
from launch.clusters.submission import FOLDER, LOGS
from stages.signals import STOP

BEAT_SECONDS = 1.0


class Supervisor:
    """See the module."""

    def __init__(self, run: Path, plan: Itinerary, node: int) -> None:
        self.run = run
        self.plan = plan
        self.node = node
        self.name = plan.hosts[node].name
        self.records = Records(run)
        self.order = Order()
        self.agent: Agent | None = None
        self.servers: list[Running] = []
        self.log: IO[bytes] | None = None
        self.watch = Watch(self.records, len(plan.hosts))
        self.rescue = Rescue(plan)
        self.mine = Record(node, socket.gethostname(), os.getpid(), 0, 0)
        self.writing = threading.Lock()
        self._take_over()

    def loop(self) -> None:
        """Until there is nothing more to do."""
        adopt_orphans()
        for number in STOP:
            signal.signal(number, self._cancel)
        threading.Thread(target=self._beat, daemon=True).start()
        steps = self._lead()
        try:
            while self.order.do != "end" and self.records.folder.is_dir():
                self._tick()
                self.watch.look()
                try:
                    next(steps, None)
                except OSError as error:  # of the shared folder
                    print(f"{error}; trying again", flush=True)
                    steps = self._lead()
                if self.records.cancelled:
                    if 0 in self.watch.silent:  # who would order the end is not there
                        self._end(self.order.seconds)
                        break
                elif self.node == min(self.watch.living | {self.node}):
                    self._note(told=self.rescue.look(self.watch.silent - {self.node}))
                time.sleep(TICK_SECONDS)
        finally:
            self._end(0)
            self.rescue.close()

    def _lead(self) -> Steps:
        """The first node's orders; of the others nothing."""
        if self.node == 0:
            yield from Leader(self.run, self.plan, self.records, self.watch).lead()

    def _take_over(self) -> None:
        """Say of an order that a predecessor was to carry out that it is over: what it had started is gone with it."""
        self.order = self.records.order()
        self.mine = replace(self.mine, order=self.order.number)
        if self.order.do == "run" and self.node in self.plan.leg(self.order.stage).nodes:
            self.mine = replace(self.mine, state="ended", code=LOST)

    def _cancel(self, number: int, frame: FrameType | None) -> None:
        self.records.cancel(f"{signal.Signals(number).name} on {self.name}")

    def _beat(self) -> None:
        while True:
            self._note(count=self.mine.count + 1)
            time.sleep(BEAT_SECONDS)

    def _note(self, **changes: Any) -> None:
        """Change what this node says of itself."""
        with self.writing:
            changed = replace(self.mine, **changes)
            if changed != self.mine:
                self.mine = changed
                with suppress(OSError):  # a full disk, or a folder that is gone
                    self.records.say(changed)

    def _tick(self) -> None:
        """Take up a new order, or see how far the present one is."""
        order = self.records.order()
        if order.number > self.order.number:
            self._end(order.seconds)
            self.order = order
            leg = self.plan.leg(order.stage) if order.do == "run" else None
            state = "idle"
            if leg and self.node in leg.nodes:
                self._begin(leg)
                state = "running"
            self._note(order=order.number, state=state, code=0, serves=False)
        for server in self.servers:
            server.look()
        self._note(serves=bool(self.servers) and all(each.healthy for each in self.servers))
        if self.mine.state == "running" and (code := self._ended(self.plan.leg(self.order.stage))) is not None:
            self._note(state="ended", code=code)

    def _begin(self, leg: Leg) -> None:
        self.log = self._open(leg.stage)
        at = time.strftime("%Y-%m-%d %H:%M:%S")
        self.log.write(f"-- {at} {self.name}: {leg.stage}, attempt {self.order.attempt}\n".encode())
        self.log.flush()
        self.servers = [Running(each, self._open(each.name)) for each in leg.servers if each.node == self.node]

    def _open(self, name: str) -> IO[bytes]:
        return (self.run / FOLDER / LOGS / f"{name}.{self.name}.log").open("ab")

    def _ended(self, leg: Leg) -> int | None:
        """The code with which this node's part has ended; starts its agent once the stage's servers answer."""
        if late := [each.server.name for each in self.servers if each.late]:
            print(f"{leg.stage}: {' and '.join(late)} does not answer", flush=True)
            return 1
        if self.agent:
            return self.agent.ended()
        if self.node < len(leg.agents) and self.log and all(map(self._serves, {each.node for each in leg.servers})):
            self.agent = Agent(leg, self.node, self.order.attempt, self.log, self.plan.starter == "deepspeed")
        return None

    def _serves(self, node: int) -> bool:
        """Whether the servers of a node answer; no trainer asks them before."""
        record = self.mine if node == self.node else self.records.record(node)
        return record is not None and record.order == self.order.number and record.serves

    def _end(self, seconds: float) -> None:
        """End what runs here, behind a checkpoint if there is time for one."""
        if self.agent:
            if self.agent.process.poll() is None:
                self.agent.stop(seconds)
            self.agent.close([each.process.pid for each in self.servers])
        for server in self.servers:
            server.stop()
            server.log.close()
        if self.log:
            self.log.close()
        self.agent, self.servers, self.log = None, [], None
