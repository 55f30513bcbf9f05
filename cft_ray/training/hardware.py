"""What the devices are worth: memory in use, and the share of their arithmetic that a training uses."""

import resource
import sys

import torch

PEAK_BF16_FLOPS = {
    "A100": 312e12,
    "H100 PCIe": 756e12,
    "H100": 989e12,
    "H200": 989e12,
    "B200": 2250e12,
    "A10G": 70e12,
    "L4": 121e12,
    "L40S": 362e12,
}
"""dense bf16 operations per second, from the makers' data sheets"""


def peak_flops(device: torch.device) -> float:
    """Operations per second of a device in bf16; 0 for one that is not known (an honest 0 beats a guess)."""
    if device.type != "cuda":
        return 0.0
    name = torch.cuda.get_device_name(device)
    known = [key for key in PEAK_BF16_FLOPS if all(word in name for word in key.split())]
    return PEAK_BF16_FLOPS[max(known, key=len)] if known else 0.0


def flops_per_token(parameters: int, layers: int, hidden_size: int, mean_length: float) -> float:
    """Operations of forward and backward for a token: 6 per parameter, and causal attention (PaLM, appendix B, halved).

    Args:
        parameters: without the embedding table, which is looked up.
        layers: decoder layers.
        hidden_size: width of the attention.
        mean_length: mean over tokens of the length of their sample.
    """
    return 6.0 * parameters + 6.0 * layers * hidden_size * mean_length


def peak_memory(device: torch.device) -> int:
    """Bytes at the highest so far: of the device's memory, or of this process on a CPU."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    highest = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return highest if sys.platform == "darwin" else highest * 1024
