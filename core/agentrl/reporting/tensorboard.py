"""The ``tensorboard`` tracker: event files in the run folder, for ``tensorboard --logdir runs``."""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from agentrl.config.syntax import to_yaml
from agentrl.runs.contract import RunInfo

if TYPE_CHECKING:
    from tensorboard.summary.writer.event_file_writer import EventFileWriter

__all__ = ["TensorBoardTracker"]

_FLUSH_SECONDS = 10


class TensorBoardTracker:
    """Writes every metric as a scalar, and the config as text, under ``tensorboard/`` in the run folder.

    It needs the ``tensorboard`` package.
    """

    def __init__(self) -> None:
        import tensorboard.summary.writer.event_file_writer  # noqa: F401

        self._writer: EventFileWriter | None = None

    def start(self, run: RunInfo, config: Mapping[str, Any]) -> None:
        """Open the event file and put the config at its head."""
        from tensorboard.summary.writer.event_file_writer import EventFileWriter

        self._writer = EventFileWriter(str(run.folder / "tensorboard"), flush_secs=_FLUSH_SECONDS)
        if run.resumed_from is not None:
            self._forget_after(run.resumed_from)
        self._add(0, _text("config", f"```yaml\n{to_yaml(dict(config))}```"))

    def log(self, step: int, metrics: Mapping[str, float]) -> None:
        """Add one scalar a metric."""
        from tensorboard.compat.proto.summary_pb2 import Summary

        self._add(step, *(Summary.Value(tag=name, simple_value=value) for name, value in metrics.items()))

    def finish(self, outcome: str) -> None:
        """Add the outcome, flush and close."""
        if self._writer is not None:
            self._add(0, _text("outcome", outcome))
            self._writer.close()
            self._writer = None

    def _forget_after(self, step: int) -> None:
        """Have TensorBoard leave out what was written of later steps, which come again."""
        from tensorboard.compat.proto.event_pb2 import Event, SessionLog

        if self._writer is not None:
            start = SessionLog(status=SessionLog.SessionStatus.START)
            self._writer.add_event(Event(wall_time=time.time(), step=step + 1, session_log=start))

    def _add(self, step: int, *values: Any) -> None:
        from tensorboard.compat.proto.event_pb2 import Event
        from tensorboard.compat.proto.summary_pb2 import Summary

        if self._writer is not None:
            self._writer.add_event(Event(wall_time=time.time(), step=step, summary=Summary(value=values)))


def _text(tag: str, text: str) -> Any:
    """A summary that TensorBoard's text dashboard shows, as Markdown."""
    from tensorboard.compat.proto.summary_pb2 import Summary, SummaryMetadata
    from tensorboard.compat.proto.tensor_pb2 import TensorProto
    from tensorboard.compat.proto.tensor_shape_pb2 import TensorShapeProto

    return Summary.Value(
        tag=tag,
        metadata=SummaryMetadata(plugin_data=SummaryMetadata.PluginData(plugin_name="text")),
        tensor=TensorProto(
            dtype="DT_STRING",
            string_val=[text.encode()],
            tensor_shape=TensorShapeProto(dim=[TensorShapeProto.Dim(size=1)]),
        ),
    )
