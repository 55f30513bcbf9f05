"""A user's own strategy, named by import path: freezes some rows of a matrix, a block, and records it."""

from cft_ray.strategies.base import Strategy


class FreezeRows(Strategy):
    rows_frozen: int = 16

    def prepare(self, model, inputs, seed):
        def without_first_rows(gradient):
            gradient = gradient.clone()
            gradient[: self.rows_frozen] = 0
            return gradient

        model.get_parameter("model.layers.0.self_attn.q_proj.weight").register_hook(without_first_rows)
        model.get_submodule("model.layers.1").requires_grad_(False)
        return model

    def facts(self, model):
        return {"rows_frozen": self.rows_frozen}
