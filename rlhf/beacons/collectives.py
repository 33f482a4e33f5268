"""What this process's group has been asked to do, from outside of the calls: torch counts and records them already.

Each backend counts its collectives, DDP's reducer and FSDP's gathers among them, and its flight recorder (on unless
TORCH_FR_BUFFER_SIZE=0) knows the name of each. Asking for the count costs a microsecond and nothing in the main thread;
the recorder is asked only about a rank that stands still.
"""

from __future__ import annotations

import json
import sys
from typing import Any

from rlhf.beacons.record import Wait

ASIDE = "aside"  # a group of another thread: where it waits, the stage goes on
STILL_SECONDS = 2.0  # without a new collective, after which the recorder is asked


class Traffic:
    """The collectives of this process as its beacon tells them."""

    def __init__(self) -> None:
        self.last: dict[str, tuple[int, float]] = {}  # by group: how many, and since when by our clock

    def look(self, now: float) -> tuple[dict[str, tuple[int, float]], Wait | None]:
        """Collectives begun and seconds since the last one, by group; and the one that has not come back."""
        for name, number in numbers().items():
            if self.last.get(name, (None, 0.0))[0] != number:
                self.last[name] = number, now
        ages = {name: (number, now - since) for name, (number, since) in self.last.items()}
        still = min((age for _, age in ages.values()), default=0.0) >= STILL_SECONDS
        # Asked anew in each look: the one that was found before may have come back meanwhile, without another begun.
        return ages, pending(entries()) if still and is_waiting() else None


def numbers() -> dict[str, int]:
    """How many collectives each group has begun, by group and backend."""
    found: dict[str, int] = {}
    distributed = sys.modules.get("torch.distributed.distributed_c10d")
    if distributed is None or not distributed.is_initialized():
        return found
    for group in list(distributed._world.pg_map):
        if group.group_desc == ASIDE:
            continue
        for device in group._device_types:
            backend = group._get_backend(device)
            found[f"{group.group_name}:{backend.name()}"] = backend._get_sequence_number_for_group()
    return found


def recorded(all_of_it: bool) -> list[dict[str, Any]]:
    """What torch's flight recorders hold, that of NCCL and that of the other backends."""
    bindings = sys.modules.get("torch._C._distributed_c10d")
    dumps = [getattr(bindings, name, None) for name in ("_dump_nccl_trace_json", "_dump_fr_trace_json")]
    return [json.loads(dump(all_of_it, False)) for dump in dumps if dump is not None]


def is_waiting() -> bool:
    """Whether some group has begun a collective that has not come back, be it another thread's: a cheap question."""
    for record in recorded(False):
        for status in record.get("pg_status", {}).values():
            if int(status["last_enqueued_collective"]) > int(status["last_completed_collective"]):
                return True
    return False


def entries() -> list[dict[str, Any]]:
    """Every collective that the flight recorders remember."""
    return [entry for record in recorded(True) for entry in record.get("entries", [])]


def pending(found: list[dict[str, Any]]) -> Wait | None:
    """The oldest of some recorded collectives that has not come back."""
    for entry in found:
        if entry["process_group"][1] == ASIDE:
            continue
        if not entry["retired"] and not entry["is_p2p"] and entry["state"] != "completed":
            backend, _, operation = entry["profiling_name"].partition(":")
            sizes = " ".join(str(size) for size in entry["input_sizes"])
            group = f"{entry['process_group'][0]}:{backend}"
            return Wait(group, int(entry["collective_seq_id"]), operation or backend, sizes)
    return None
