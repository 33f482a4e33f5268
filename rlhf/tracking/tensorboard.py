"""TensorBoard: event files in STAGE/tensorboard, written whole from the stage's files whenever a stage goes on.

Uses the package `tensorboard` alone, without torch: whoever writes here does nothing else.
"""

from __future__ import annotations

import json
import time
from collections.abc import Mapping, Sequence
from typing import Any

from tensorboard.compat.proto.event_pb2 import Event
from tensorboard.compat.proto.summary_pb2 import Summary, SummaryMetadata
from tensorboard.compat.proto.tensor_pb2 import TensorProto
from tensorboard.compat.proto.tensor_shape_pb2 import TensorShapeProto
from tensorboard.compat.proto.types_pb2 import DT_STRING
from tensorboard.summary.writer.event_file_writer import EventFileWriter

from rlhf.store.artifact import remove
from rlhf.tracking.entries import Entry, Table
from rlhf.tracking.public import public
from rlhf.tracking.services import Job, forget_sent, note_sent

ROWS = 16  # of a table of samples; samples/ has all


class TensorboardService:
    """The event file of a stage."""

    name = "tensorboard"
    remote = False

    def __init__(self, job: Job) -> None:
        self.job = job
        self.writer: Any = None

    def open(self) -> None:
        """Begin a new file; what stood there is contained in what will be sent."""
        folder = self.job.folder(self.name)
        remove(folder)
        folder.mkdir(parents=True)
        forget_sent(self.job, self.name)
        self.writer = EventFileWriter(str(folder))
        recipe = json.dumps(public(self.job.recipe), indent=4)
        self._write(0, time.time(), [text("recipe", "    " + recipe.replace("\n", "\n    "))])

    def send(self, entries: Sequence[Entry]) -> None:
        """Write figures as scalars and samples as text."""
        for entry in entries:
            if isinstance(entry, Table):
                moment = entry.path.stat().st_mtime
                self._write(entry.step, moment, [text(f"samples/{entry.name}", markdown(entry.rows()[:ROWS]))])
            else:
                values = [Summary.Value(tag=name, simple_value=value) for name, value in entry.figures.items()]
                self._write(entry.step, entry.time, values)
        self.writer.flush()

    def _write(self, step: int, moment: float, values: Sequence[Any]) -> None:
        self.writer.add_event(Event(wall_time=moment, step=step, summary=Summary(value=values)))

    def finish(self, result: Mapping[str, Any] | None) -> None:
        """Write what was made, and close the file."""
        if result is not None:
            rows = [{"result": name, "value": value} for name, value in result["results"].items()]
            self._write(0, time.time(), [text("results", markdown(rows))])
        self.writer.close()
        note_sent(self.job, self.name, "offline")


def text(tag: str, content: str) -> Any:
    """A value that TensorBoard's text page shows as markdown."""
    metadata = SummaryMetadata(plugin_data=SummaryMetadata.PluginData(plugin_name="text"))
    tensor = TensorProto(
        dtype=DT_STRING,
        string_val=[content.encode("utf-8", "replace")],
        tensor_shape=TensorShapeProto(dim=[TensorShapeProto.Dim(size=1)]),
    )
    return Summary.Value(tag=tag, metadata=metadata, tensor=tensor)


def markdown(rows: Sequence[Mapping[str, Any]]) -> str:
    """Rows as a table."""
    if not rows:
        return "(no rows)"
    lines = [" | ".join(rows[0]), " | ".join("---" for _ in rows[0])]
    lines += [" | ".join(cell(value) for value in row.values()) for row in rows]
    return "\n".join(f"| {line} |" for line in lines)


def cell(value: Any) -> str:
    """A value on one line of a table."""
    shown = f"{value:.4g}" if isinstance(value, float) else str(value)
    return shown.replace("|", "\\|").replace("\r", "").replace("\n", "<br>")
