"""What servers make of new weights: whether they can take them, and how what they hold differs from what was given."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path

from agentrl import AgentRLError, finish_in_thread
from agentrl.inference.contract import HeldWeights, Weights
from agentrl_vllm import control
from agentrl_vllm.client import one_line
from agentrl_vllm.replica import Replica

__all__ = ["Checked", "raise_refused", "size_of", "take_out", "unlike"]


@dataclasses.dataclass(frozen=True, slots=True)
class Checked:
    """A replica whose server was asked whether it can take new weights, and the answer."""

    replica: Replica
    life: int
    fault: BaseException | None


async def unlike(held: HeldWeights, weights: Weights) -> str:
    """Returns the names of a few tensors that a server holds in another form than ``weights``; empty for none."""
    if held.tensors is None:
        return ""
    own = await finish_in_thread(weights.digests, {name: each.dtype for name, each in held.tensors.items()})
    names = sorted(name for name, each in held.tensors.items() if name in own and own[name] != each)
    return ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")


def size_of(folder: Path) -> int:
    return sum(file.stat().st_size for file in folder.glob("*.safetensors"))


def raise_refused(checked: Sequence[Checked]) -> None:
    """Raise ``Refused`` where no server can take the weights and one says why."""
    refusals = [each.fault for each in checked if isinstance(each.fault, control.Refused)]
    if refusals and all(each.fault is not None for each in checked):
        raise refusals[0]


def take_out(replica: Replica, life: int, error: BaseException) -> None:
    text = error.message if isinstance(error, AgentRLError) else one_line(error) or type(error).__name__
    replica.fail(f"it did not take new weights: {text}", life=life)
