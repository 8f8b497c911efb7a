"""The reference of a backend's suite: a plain forward of the model, which every engine's tokens are compared with."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from agentrl.inference.contract import Chunk
from agentrl.inference.model_folder import no_progress_bars

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel

    from agentrl.learner.lending import LentWeights

__all__ = ["Reference", "load_reference"]


@dataclass(frozen=True, slots=True)
class Reference:
    """A model in float32 on the CPU, with the weights of policy version ``version``."""

    model: PreTrainedModel
    folder: Path
    """Where it was loaded from; its tokenizer is there."""
    version: int = 0

    def logprobs(self, prompt: Sequence[int], ids: Sequence[int], temperature: float = 1.0) -> torch.Tensor:
        """Returns log-probabilities ``[tokens, vocabulary]`` at the positions of a completion, each given its past."""
        import torch

        with torch.inference_mode():
            logits = self.model(torch.tensor([[*prompt, *ids]]), use_cache=False).logits[0, len(prompt) - 1 : -1]
        expected: torch.Tensor = (logits.double() / temperature).log_softmax(-1)
        return expected

    def distances(self, prompt: Sequence[int], chunk: Chunk, temperature: float = 1.0) -> list[float]:
        """Returns, for each token of ``chunk``, how far its logprob is from this model's."""
        import torch

        ours = self.logprobs(prompt, chunk.ids, temperature).gather(1, torch.tensor(chunk.ids)[:, None])[:, 0]
        distances: list[float] = (ours - torch.tensor(chunk.logprobs, dtype=ours.dtype)).abs().tolist()
        return distances

    def off_by(self, prompt: Sequence[int], chunk: Chunk, temperature: float = 1.0) -> float:
        """Returns the largest of ``distances``."""
        return max(self.distances(prompt, chunk, temperature))

    def behind(self, prompt: Sequence[int], chunk: Chunk) -> list[float]:
        """Returns, for each token of ``chunk``, how far below the likeliest token this model scores it."""
        import torch

        ours = self.logprobs(prompt, chunk.ids)
        behind: list[float] = (ours.amax(1) - ours.gather(1, torch.tensor(chunk.ids)[:, None])[:, 0]).tolist()
        return behind

    def changed(self, *, head_only: bool = False) -> Reference:
        """Returns a model of the next version, with every parameter changed.

        With ``head_only`` only parameters behind the last layer change: then the KV of a text is the same under the
        old weights and the new.
        """
        import copy

        import torch

        model = copy.deepcopy(self.model)
        generator = torch.Generator().manual_seed(self.version)
        embedding = model.get_input_embeddings().weight
        with torch.no_grad():
            for name, parameter in model.named_parameters():
                if head_only and (parameter is embedding or ".layers." in name):
                    continue
                spread = 0.2 * float(parameter.std()) + 0.02
                parameter.add_(torch.randn(parameter.shape, generator=generator), alpha=spread)
        return Reference(model, self.folder, self.version + 1)

    @property
    def weights(self) -> LentWeights:
        """As the learner lends them; a backend has them until its ``update_weights`` returns."""
        from agentrl.learner.lending import LentWeights
        from agentrl.learner.policy import Policy

        return LentWeights(Policy(self.model), self.version, self.folder, borrower="the backend")


def load_reference(folder: Path) -> Reference:
    """Returns the model in ``folder``, as version 0."""
    import torch
    from transformers import AutoModelForCausalLM

    with no_progress_bars():
        model: PreTrainedModel = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    return Reference(model.train(False), folder)
