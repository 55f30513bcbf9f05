"""The summed cross-entropy of a micro-batch, without ever holding all its logits.

The head is applied to the positions that predict a target, a chunk at a time. A chunk's gradient follows from its
softmax, so it is taken at once and the chunk's logits are dropped: memory holds one chunk, and nothing is computed twice.
"""

from typing import Any

import torch
from torch import nn
from transformers import PreTrainedModel

from cft_ray.plan.memory import LOGITS_AT_ONCE
from cft_ray.training.collate import MicroBatch


class _SummedCrossEntropy(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, hidden: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None, labels: torch.Tensor
    ) -> torch.Tensor:
        rows = max(1, LOGITS_AT_ONCE // weight.shape[0])
        total = torch.zeros((), dtype=torch.float32, device=hidden.device)
        needs_hidden, needs_weight, needs_bias, _ = ctx.needs_input_grad
        hidden_gradient = torch.empty_like(hidden) if needs_hidden else None
        weight_gradient = torch.zeros_like(weight) if needs_weight else None
        bias_gradient = torch.zeros_like(bias) if needs_bias and bias is not None else None
        for start in range(0, len(labels), rows):
            part, targets = hidden[start : start + rows], labels[start : start + rows, None]
            logits = torch.nn.functional.linear(part, weight, bias).float()
            logits -= logits.logsumexp(-1, keepdim=True)
            total -= logits.gather(-1, targets).sum()
            gradient = logits.exp_().scatter_add_(-1, targets, torch.full_like(targets, -1, dtype=logits.dtype)).to(part.dtype)
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
        return (*(None if saved is None else saved * gradients[0].to(saved.dtype) for saved in ctx.saved_tensors), None)


class Head(nn.Linear):
    """A language model's head that gives the summed loss instead of logits if it is told the labels.

    A module of its own, because ZeRO-3 gathers a module's parameters around its call. An existing head becomes one by
    changing its class.
    """

    def forward(self, input: torch.Tensor, labels: torch.Tensor | None = None) -> torch.Tensor:
        """Logits, or the summed cross-entropy.

        Args:
            input: [tokens, hidden size].
            labels: [tokens] token ids.
        """
        if labels is None:
            return super().forward(input)
        return _SummedCrossEntropy.apply(input, self.weight, self.bias, labels)


class SummedLoss(nn.Module):
    """The module that DeepSpeed drives: micro-batch in, sum of the targets' losses out."""

    def __init__(self, model: nn.Module, causal: PreTrainedModel) -> None:
        """Wrap a model.

        Args:
            model: as the strategy made it (all its parameters are seen by the engine).
            causal: the Hugging Face model inside it, with a decoder and a head.
        """
        super().__init__()
        self.model = model
        self._causal = [causal]  # in a list: a module twice in the tree would be hooked twice
        head = causal.get_output_embeddings()
        if type(head) is nn.Linear:
            head.__class__ = Head

    def forward(self, batch: MicroBatch) -> torch.Tensor:
        """Sum over the micro-batch's targets, in nats."""
        (causal,) = self._causal
        extra = {"layout": batch.layout} if batch.layout is not None else {"attention_mask": batch.mask}
        decoder: Any = causal.get_decoder()
        hidden = decoder(input_ids=batch.input_ids, position_ids=batch.position_ids, use_cache=False, **extra).last_hidden_state
        head: Any = causal.get_output_embeddings()
        predicting = hidden.flatten(0, 1).index_select(0, batch.predictors)
        if isinstance(head, Head):
            return head(predicting, labels=batch.labels)
        logits = head(predicting).float()  # a head that a strategy has wrapped
        return torch.nn.functional.cross_entropy(logits, batch.labels, reduction="sum")
