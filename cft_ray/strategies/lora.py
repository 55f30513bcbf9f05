"""Low-rank adaptation (Hu et al. 2021, arXiv 2106.09685), a baseline of the study: rank 64 in bf16.

The study states neither alpha, nor the adapted modules, nor the learning rate. Full fine-tuning's 1e-6 is too low for
LoRA to learn; the grid's entry sets `training.learning_rate` beside these settings. Keeps both constraints: the Phase 1
weights are in the model that is trained, frozen, and not held beside it.
"""

import warnings
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pydantic import Field

from cft_ray.errors import StageFailed, UserError
from cft_ray.strategies.base import Strategy

if TYPE_CHECKING:
    import torch

_ADAPTER = "default"
_BASE = ".base_layer.weight"


class LowRank(Strategy):
    """LoRA: trains W + (alpha / rank)·B·A with W frozen; the finished model has the product merged into W."""

    rank: int = Field(default=64, gt=0, le=65_536, description="rank of B·A")
    alpha: float = Field(default=128.0, gt=0, le=1e6, description="scale of B·A is alpha / rank")
    dropout: float = Field(default=0.0, ge=0, lt=1, description="dropout on the input of A")
    target_modules: tuple[str, ...] = Field(
        default=("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"),
        min_length=1,
        description="last part of the names of the linear layers that are adapted",
    )

    def prepare(self, model: "torch.nn.Module", inputs: Mapping[str, Path], seed: int) -> "torch.nn.Module":
        """Add A (random, by ``seed``) and B (zero) to the target modules and freeze everything else.

        An adapted layer whose weight is also another's (a head that is tied to the embedding) is adapted by itself: the
        finished model has two weights there, and its configuration says so.

        Raises:
            UserError: a target module that the model lacks.
        """
        import torch
        from peft import LoraConfig, inject_adapter_in_model

        present = {name.rpartition(".")[2] for name, module in model.named_modules() if isinstance(module, torch.nn.Linear)}
        if missing := sorted(set(self.target_modules) - present):
            raise UserError(
                f"{type(model).__name__} has no linear layers named {', '.join(missing)}",
                where="LoRA: target_modules",
                fix=f"use some of {', '.join(sorted(present))}",
            )
        config = LoraConfig(
            r=self.rank,
            lora_alpha=self.alpha,  # type: ignore[arg-type]  # peft divides it by the rank; a fraction is as good
            lora_dropout=self.dropout,
            target_modules=list(self.target_modules),
        )
        with torch.random.fork_rng(devices=[]), warnings.catch_warnings():  # adapters are made on the CPU
            warnings.filterwarnings("ignore", message=".*tie_word_embeddings=True")  # see above
            torch.manual_seed(seed)
            prepared = inject_adapter_in_model(config, model, _ADAPTER)
        if any(name.endswith(_BASE) for names in _names(prepared).values() if len(names) > 1 for name in names):
            _untie(prepared)
        return prepared

    def exported(self, model: "torch.nn.Module") -> "Iterator[tuple[str, torch.Tensor]]":
        """Every weight under its Hugging Face name, with (alpha / rank)·B·A added where there is an adapter.

        The sum is taken in float32 and rounded once to the weights' type.

        Raises:
            StageFailed: an adapted layer that was not merged.
        """
        from peft.tuners.lora import LoraLayer

        from cft_ray.models.gathering import gathered

        waiting: dict[str, Any] = {name: module for name, module in model.named_modules() if isinstance(module, LoraLayer)}
        for parameter, names in _names(model).items():
            adapted = [name for name in names if name.endswith(_BASE)]
            plain = [name for name in names if name not in adapted and not _is_adapter(name)]
            if plain:
                with gathered([parameter]):
                    yield plain[0].replace(".base_layer.", "."), parameter.detach()
            for name in adapted:
                owner = name.removesuffix(_BASE)
                layer = waiting.pop(owner)
                a, b = layer.lora_A[_ADAPTER].weight, layer.lora_B[_ADAPTER].weight
                with gathered([parameter, a, b]):
                    change = layer.scaling[_ADAPTER] * (b.detach().float() @ a.detach().float())
                    if getattr(layer, "fan_in_fan_out", False):  # GPT-2 keeps its weights transposed
                        change = change.T
                    yield f"{owner}.weight", (parameter.detach().float() + change).to(parameter.dtype)
        if waiting:
            raise StageFailed(f"LoRA: {len(waiting)} adapted layers were not merged: {', '.join(sorted(waiting)[:5])}")

    def facts(self, model: "torch.nn.Module") -> dict[str, Any]:
        """Number of adapted layers, and the fractions of frozen and trainable parameters (adapters among them)."""
        from peft.tuners.lora import LoraLayer

        from cft_ray.strategies.frozen import fractions

        adapted = sum(isinstance(module, LoraLayer) for module in model.modules())
        return {"adapted_layers": adapted, **fractions(model)}


def _names(model: "torch.nn.Module") -> "dict[torch.nn.Parameter, list[str]]":
    """Every parameter under all its names: a tied one has several."""
    names: dict[Any, list[str]] = {}
    for name, parameter in model.named_parameters(remove_duplicate=False):
        names.setdefault(parameter, []).append(name)
    return names


def _is_adapter(name: str) -> bool:
    return ".lora_A." in name or ".lora_B." in name


def _untie(model: Any) -> None:
    """The configuration of a model that has two weights where it had one."""
    for config in {id(each): each for each in (model.config, model.config.get_text_config())}.values():
        config.tie_word_embeddings = False
