"""What each process of a stage says of itself while it runs, outside the process group, and what follows from silence.

    STAGE/.beacons/rank-00001.json  one record of fixed size per rank, written anew every second by a thread of its own
                   warnings.txt     what the watchdog has said of this execution
          hang/TIME/                what it left before it ended a stage: verdict, stacks, torch's flight recorder

The main thread only notes where it is, in memory (`phase`, `at_step`, `patient`); all else is the thread's work. Loads
no torch: what a process group has done is asked of torch only where it is loaded already.
"""

from __future__ import annotations

from rlhf.beacons.own import EVALUATE, at_step, enter, patient, phase

__all__ = ["EVALUATE", "at_step", "enter", "patient", "phase"]
