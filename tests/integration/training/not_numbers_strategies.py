"""Strategies whose gradients, or exported weights, are no numbers while the loss is one."""

import torch

from cft_ray.strategies.base import Strategy


class EndlessGradients(Strategy):
    def prepare(self, model, inputs, seed):
        model.get_parameter("model.layers.0.self_attn.q_proj.weight").register_hook(lambda gradient: gradient * float("inf"))
        return model


class EndlessWeights(Strategy):
    def exported(self, model):
        for name, tensor in super().exported(model):
            yield name, torch.full_like(tensor, float("nan")) if name.endswith("layers.0.mlp.up_proj.weight") else tensor
