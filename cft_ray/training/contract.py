"""What is demanded of a model, in the order in which a training asks: limits, weights, function, files, engine, return.

Each part is in `cft_ray.models`; here it is asked for on all ranks together, so that every rank goes on or none does.
"""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from torch import distributed
from transformers import PreTrainedModel

from cft_ray.data.chat_form import ChatForm
from cft_ray.errors import StageFailed, UserError
from cft_ray.grid.settings import TrainingSettings
from cft_ray.models import function, limits, loading, saving, weights
from cft_ray.training import engine, group
from cft_ray.training.examples import Examples
from cft_ray.training.probe import Probe, attention_of

HEADROOM = 1.5
"""free memory of a device, in sizes of the model, from which on the model is compared there"""


class Contract:
    """Of one training with the model that it starts from; every rank makes one and calls each method.

    Args:
        folder: of the model.
        settings: of the training.
        probe: rows that losses are compared on.
    """

    def __init__(self, folder: str, settings: TrainingSettings, probe: Probe) -> None:
        self.folder, self.settings, self.probe = folder, settings, probe
        self.dtype = torch.bfloat16 if settings.precision == "bf16" else torch.float32
        self.notes: list[str] = []
        self.way = function.Way()
        self.side_files = Path()
        self._own = torch.empty(0)
        self._buffers: dict[str, torch.Tensor] = {}

    def check_limits(self, examples: Examples) -> None:
        """Token ids, length and end token against the model's configuration.

        Raises:
            UserError: the first thing that does not fit.
        """
        found = limits.limits_of(limits.in_folder(self.folder))
        limits.check_length(found, self.settings.longest(found.positions), where=self.folder)
        limits.check_packed(found, where=self.folder)
        limits.check_vocabulary(found, where=self.folder)
        limits.check_end(found, where=self.folder)
        highest = _highest(examples.tokens)
        if found.vocabulary is not None and highest >= found.vocabulary:
            raise UserError(
                f"the rows have a token with id {highest}, but the model's embedding has {found.vocabulary} rows",
                where=self.folder,
                fix="resize the model's embedding to the tokenizer (resize_token_embeddings)",
            )

    def load(self, ranks: int) -> PreTrainedModel:
        """The model as it is trained: compared with its files and with its own forward pass, then partitioned.

        Raises:
            UserError: it cannot be loaded, or not trained rightly.
        """
        leader = distributed.get_rank() == 0
        causal = group.together(
            lambda: loading.load(self.folder, dtype=self.dtype) if leader else loading.skeleton(self.folder, dtype=self.dtype)
        )
        if leader:
            self._buffers = weights.snapshot(causal)
            _to_device(causal)
        choice = group.from_first(
            lambda: function.choose(
                causal,
                self.probe.rows,
                self.probe.of_model,
                padding=self.settings.padding,
                attention=attention_of,
                where=self.folder,
            )
        )
        self.way, self._own = choice.way, choice.losses
        self.notes += choice.notes
        if getattr(causal.config.get_text_config(), "output_router_logits", False):
            self.notes.append("the auxiliary loss of the experts' router (output_router_logits) is not part of the loss")
        self.settings = self.settings.model_copy(update={"padding": self.way.padding})
        if not leader:
            function.set_attention(causal, choice.attention)
        engine.partition(causal, self.settings, ranks)
        return causal

    def save_side_files(self, causal: PreTrainedModel, form: ChatForm, card: str, folder: Path) -> None:
        """Everything of the finished model but its weights, written now; after the strategy has prepared the model.

        Args:
            causal: the model.
            form: tokenizer, chat template and ends as the model is taught with them.
            card: text of ``README.md``.
            folder: where to.

        Raises:
            UserError: it cannot be written.
        """
        self.side_files = folder
        self.notes += group.from_first(lambda: saving.save_side_files(causal, form.tokenizer, folder, ends=form.ends, card=card))

    def check_engine(self, deep: engine.Engine, causal: PreTrainedModel) -> None:
        """See that what the engine drives is still the model: buffers to the bit, losses of every rank to the precision's noise.

        Raises:
            StageFailed: it is not.
        """
        now = {name.replace(".base_layer.", "."): buffer for name, buffer in causal.named_buffers()}
        changed = weights.changed(now, self._buffers)
        losses: list[torch.Tensor] = [torch.empty(0)] * distributed.get_world_size()
        distributed.all_gather_object(losses, self._losses(deep))

        def compare() -> None:
            if changed:
                names = ", ".join(changed[:5])
                raise StageFailed(f"{self.folder}: buffers of the model were changed while it was set up for training: {names}")
            for rank, found in enumerate(losses):
                if different := function.difference(found, self._own, self.dtype):
                    what = "the model as it is set up for training is another function than the model"
                    where = f" on rank {rank}" if len(losses) > 1 else ""
                    raise StageFailed(f"{self.folder}: {what}{where}: {different}")

        group.from_first(compare)

    def last_losses(self, deep: engine.Engine) -> Callable[[Path], str | None]:
        """Of the trained model; what is returned says in words whether a folder loads as the same model (rank 0 asks)."""
        last = self._losses(deep)

        def comes_back(folder: Path) -> str | None:
            try:
                loaded = loading.load(str(folder), dtype=self.dtype)
            except UserError as error:
                return f"the exported model cannot be loaded: {error}"
            _to_device(loaded)
            different = function.difference(function.own_losses(loaded, self.probe.rows), last, self.dtype)
            return None if different is None else f"the exported model is not the trained one: {different}"

        return comes_back

    def _losses(self, deep: engine.Engine) -> torch.Tensor:
        was = deep.module.training
        deep.module.eval()
        try:
            with torch.no_grad():
                return self.probe.losses(deep.module, self.way, deep.device).cpu()
        except ValueError as error:  # its sum is not what a step would take
            raise StageFailed(f"{self.folder}: {error}") from error
        finally:
            deep.module.train(was)


def _highest(ids: np.ndarray) -> int:
    """A part at a time: the array is a file that may be larger than memory."""
    return max((int(ids[start : start + 2**24].max()) for start in range(0, len(ids), 2**24)), default=0)


def _to_device(causal: PreTrainedModel) -> None:
    """To the training's device, if there is room for the model beside what is there already."""
    device = group.device()
    if device.type == "cuda":
        torch.cuda.empty_cache()  # at a training's end: what its steps leave is not free for the driver
        size = sum(parameter.numel() * parameter.element_size() for parameter in causal.parameters())
        if torch.cuda.mem_get_info(device)[0] > HEADROOM * size:
            causal.to(device)  # type: ignore[arg-type]
