"""A model as it lies on disk: its configuration, and which tensors its norms are taken of. No tensor is loaded."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cft_ray.errors import UserError
from cft_ray.models.stored import FLOAT_BYTES, INDEX, SINGLE, StoredTensor, json_of, same_content, stored_tensors

OUTPUT, EMBEDDING = "lm_head.weight", "embed_tokens.weight"
_BUFFERS = ("rotary_emb.inv_freq",)  # recomputed from the config; older checkpoints stored them


@dataclass(frozen=True)
class StoredModel:
    """A folder's configuration and tensors, these in the order in which they lie in their files."""

    folder: Path
    config: Mapping[str, Any]
    tensors: Mapping[str, StoredTensor]

    @property
    def embedding(self) -> StoredTensor | None:
        """Of the input."""
        return next((tensor for name, tensor in self.tensors.items() if name.endswith(EMBEDDING)), None)

    @property
    def ties(self) -> bool:
        """Whether its output layer is its embedding."""
        text = self.config.get("text_config") or self.config
        return bool(text.get("tie_word_embeddings")) and self.embedding is not None


def stored_model(folder: Path) -> StoredModel:
    """Read ``config.json`` and the headers of a model folder's files.

    Raises:
        UserError: no such files, files that are broken (`stored_tensors`), quantised weights, a configuration that ties two
            tensors that differ.
    """
    config = folder / "config.json"
    if not config.is_file():
        raise UserError("there is no config.json", where=str(folder), fix="give a Hugging Face model folder")
    tensors = stored_tensors(folder)
    if not (folder / SINGLE).is_file() and not (folder / INDEX).is_file():
        raise UserError(
            f"there is neither {SINGLE} nor {INDEX}",
            where=str(folder),
            fix="save the model with safetensors (pickled weights are not read; adapters must be merged)",
        )
    kept = {tensor.name: tensor for tensor in tensors if not tensor.name.endswith(_BUFFERS)}
    for tensor in kept.values():
        if tensor.dtype not in FLOAT_BYTES:
            raise UserError(
                f"tensor {tensor.name} is {tensor.dtype}; quantised or whole-number weights cannot be compared",
                where=str(tensor.file),
                fix=f"use weights of {', '.join(FLOAT_BYTES)}",
            )
    model = StoredModel(folder, json_of(config, config.read_bytes()), kept)
    if model.ties and OUTPUT in kept:
        embedding = model.embedding
        assert embedding is not None
        if not same_content(kept[OUTPUT], embedding):
            raise UserError(
                f"config.json says tie_word_embeddings, but {OUTPUT} and {embedding.name} differ in the files",
                where=str(folder),
                fix="set tie_word_embeddings to false in its config.json, or remove the tensor that is not meant",
            )
    return model
