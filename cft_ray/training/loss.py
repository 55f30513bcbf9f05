"""The summed cross-entropy of a micro-batch, without ever holding all its logits.

The head is applied to the positions that predict a target, a chunk at a time. A chunk's gradient follows from its
softmax, so it is taken at once and the chunk's logits are dropped: memory holds one chunk, and nothing is computed twice.
"""

import inspect
from typing import Any

import torch
from torch import nn
from transformers import PreTrainedModel

from cft_ray.models.function import Way
from cft_ray.models.outputs import Outputs, outputs_of
from cft_ray.plan.memory import LOGITS_AT_ONCE
from cft_ray.training.collate import MicroBatch


class _SummedCrossEntropy(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, hidden: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None, labels: torch.Tensor, outputs: Outputs
    ) -> torch.Tensor:
        rows = max(1, LOGITS_AT_ONCE // weight.shape[0])
        total = torch.zeros((), dtype=torch.float32, device=hidden.device)
        needs_hidden, needs_weight, needs_bias, *_ = ctx.needs_input_grad
        hidden_gradient = torch.empty_like(hidden) if needs_hidden else None
        weight_gradient = torch.zeros_like(weight) if needs_weight else None
        bias_gradient = torch.zeros_like(bias) if needs_bias and bias is not None else None
        for start in range(0, len(labels), rows):
            part, targets = hidden[start : start + rows], labels[start : start + rows, None]
            logits = outputs(torch.nn.functional.linear(part, weight, bias).float())
            capped = logits.clone() if outputs.cap is not None else None
            logits -= logits.logsumexp(-1, keepdim=True)
            total -= logits.gather(-1, targets).sum()
            gradient = logits.exp_().scatter_add_(-1, targets, torch.full_like(targets, -1, dtype=logits.dtype))
            gradient = outputs.back(gradient, capped).to(part.dtype)
            if hidden_gradient is not None:
                torch.mm(gradient, weight, out=hidden_gradient[start : start + rows])
            if weight_gradient is not None:
                weight_gradient.addmm_(gradient.t(), part)
            if bias_gradient is not None:
                bias_gradient += gradient.sum(0)
        ctx.save_for_backward(hidden_gradient, weight_gradient, bias_gradient)
        return total

    @staticmethod
    def backward(ctx: Any, *gradients: torch.Tensor) -> Any:
        # As a number of Python's: as a tensor it would be rounded to bf16 first, and with it every gradient.
        factor = float(gradients[0])
        found = (None if saved is None else saved * factor for saved in ctx.saved_tensors)
        return (*found, None, None)


class Head(nn.Linear):
    """A language model's head that gives the summed loss instead of logits if it is told the labels.

    A module of its own, because ZeRO-3 gathers a module's parameters around its call. An existing head becomes one by
    changing its class.
    """

    def forward(
        self,
        input: torch.Tensor,
        labels: torch.Tensor | None = None,
        outputs: Outputs = Outputs(),  # noqa: B008 - frozen
    ) -> torch.Tensor:
        """Logits as the layer gives them, or the summed cross-entropy.

        Args:
            input: [tokens, hidden size].
            labels: [tokens] token ids.
            outputs: what the model does to the logits; for the loss.
        """
        if labels is None:
            return super().forward(input)
        return _SummedCrossEntropy.apply(input, self.weight, self.bias, labels, outputs)


class SummedLoss(nn.Module):
    """The module that DeepSpeed drives: micro-batch in, sum of the targets' losses out."""

    def __init__(self, model: nn.Module, causal: PreTrainedModel, way: Way = Way()) -> None:  # noqa: B008 - frozen
        """Wrap a model.

        Args:
            model: as the strategy made it (all its parameters are seen by the engine).
            causal: the Hugging Face model inside it, with a decoder and a head.
            way: how it is run, as `cft_ray.models.function` found it to be right.
        """
        super().__init__()
        self.model = model
        self.way = way
        self.outputs = outputs_of(causal.config)
        self._causal = [causal]  # in a list: a module twice in the tree would be hooked twice
        head = causal.get_output_embeddings()
        if way.head == "chunked" and type(head) is nn.Linear:
            head.__class__ = Head

    def forward(self, batch: MicroBatch, summed: bool = True) -> torch.Tensor:
        """The loss over the micro-batch's targets, in nats.

        Args:
            batch: laid out as the way says.
            summed: their sum; otherwise [targets], the loss of each.
        """
        (causal,) = self._causal
        if self.way.head == "own":
            logits = causal(**self._inputs(causal, batch), use_cache=False).logits.flatten(0, 1)
            return _cross_entropy(logits.index_select(0, batch.predictors), batch.labels, summed)
        decoder: Any = causal.get_decoder()
        hidden = decoder(**self._inputs(decoder, batch), use_cache=False)
        hidden = hidden[0] if isinstance(hidden, tuple) else hidden.last_hidden_state
        head: Any = causal.get_output_embeddings()
        predicting = hidden.flatten(0, 1).index_select(0, batch.predictors)
        if summed and isinstance(head, Head):
            return head(predicting, labels=batch.labels, outputs=self.outputs)
        return _cross_entropy(self.outputs(head(predicting).float()), batch.labels, summed)

    def _inputs(self, module: nn.Module, batch: MicroBatch) -> dict[str, Any]:
        if batch.layout is not None:
            return {"input_ids": batch.input_ids, "position_ids": batch.position_ids, "layout": batch.layout}
        # Rows are padded on the right, so positions are what the model counts by itself; some take none.
        inputs = {"input_ids": batch.input_ids, "attention_mask": batch.mask, "position_ids": batch.position_ids}
        taken = inspect.signature(module.forward).parameters
        return {name: value for name, value in inputs.items() if name != "position_ids" or name in taken}


def _cross_entropy(logits: torch.Tensor, labels: torch.Tensor, summed: bool) -> torch.Tensor:
    return torch.nn.functional.cross_entropy(logits.float(), labels, reduction="sum" if summed else "none")
