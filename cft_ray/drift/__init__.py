"""How far two models lie apart: norms of the difference of their weights, streamed from safetensors."""
