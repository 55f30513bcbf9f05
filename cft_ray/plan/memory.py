"""GPU memory of one device in ZeRO-3 training, part by part.

Sources: states, Rajbhandari et al. 2020 (ZeRO, arXiv 1910.02054) section 3.1; activations, counted for a gated,
grouped-query block in the manner of Korthikanti et al. 2022 (arXiv 2205.05198) section 4, without the attention matrix, which
fused attention does not keep.
"""

from dataclasses import asdict, dataclass

from cft_ray.grid.settings import TrainingSettings
from cft_ray.plan.known import Shape

LOGITS_AT_ONCE = 2**25
"""logits that a training holds at a time (`cft_ray.training.loss`): 128 MiB in float32"""


@dataclass(frozen=True)
class TrainingMemory:
    """Bytes on one device, at the peak of a step. Fragmentation and the CUDA context come on top (some 1 to 3 GB)."""

    parameters: float
    gradients: float
    master: float
    moments: float
    gathered: float
    """whole weights of the blocks that are in use"""
    activations: float
    logits: float

    @property
    def total(self) -> float:
        """All parts together."""
        return sum(asdict(self).values())


def training_memory(shape: Shape, training: TrainingSettings, workers: int) -> TrainingMemory:
    """What each of ``workers`` devices holds when all parameters are trained (LoRA and freezing need less).

    Args:
        shape: of the model.
        training: precision, micro-batch, checkpointing, offload and packing count.
        workers: devices that the states are split over.

    Returns:
        With P parameters over W devices, in bf16: 2P/W parameters, 2P/W gradients, 4P/W fp32 master weights, 8P/W Adam
        moments; two blocks or one embedding gathered; per token and block the inputs of its matrix products and
        non-linearities (or, with gradient checkpointing, one block of them and the block inputs); at most `LOGITS_AT_ONCE`
        logits in fp32 with their gradient in the training's precision, and the gradients of the whole head and of the
        hidden states, which are taken with them.
    """
    width = 2 if training.precision == "bf16" else 4
    share = shape.parameters / workers
    on_device = training.offload == "none"
    weights = 0.0 if training.offload == "all" else width * share
    tokens = max(training.micro_batch_tokens, training.packing or training.longest(None))
    # Kept for the backward pass: block input, both norms' outputs, queries, attention's output, the MLP's residual
    # input; keys and values; gate, up, the gate's activation and the product.
    block = (
        width
        * tokens
        * (4 * shape.hidden + 2 * shape.heads * shape.head_size + 2 * shape.kv_heads * shape.head_size + 4 * shape.intermediate)
    )
    kept = block + shape.layers * width * tokens * shape.hidden if training.gradient_checkpointing else shape.layers * block
    return TrainingMemory(
        parameters=weights,
        gradients=width * share,
        master=4 * share if on_device else 0.0,
        moments=8 * share if on_device else 0.0,
        gathered=width * max(2 * shape.block_parameters, shape.embedding_parameters),
        activations=kept,
        logits=min(tokens * shape.vocabulary, LOGITS_AT_ONCE) * (4 + width) + width * shape.hidden * (shape.vocabulary + tokens),
    )
