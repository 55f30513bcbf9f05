"""Whether an engine of one model can take another model's weights: the folders differ in nothing else.

Tokenizer, templates, generation settings and configuration are read when an engine starts, so they must be the same, byte
for byte. So must the names, shapes and types of the tensors: vLLM only warns of a tensor that a reload leaves as it was.
"""

import json
import struct
from hashlib import sha256
from pathlib import Path

ARCHITECTURES = frozenset({"LlamaForCausalLM", "MistralForCausalLM", "Qwen2ForCausalLM", "Qwen3ForCausalLM"})
"""Those of which a test shows that reloaded weights answer as a fresh engine does. A reload leaves tied heads as they were."""
_INDEX = "model.safetensors.index.json"
_UNREAD = frozenset({"README.md", "LICENSE", ".gitattributes", _INDEX})
"""Files that say nothing to an engine; how weights are spread over files does not matter."""
_NAMES = ("_name_or_path", "transformers_version")
"""Keys of a configuration that do not describe the model."""


def likeness(folder: str) -> str | None:
    """Equal for two folders if an engine of one answers as the other's would, once it has the other's weights.

    Args:
        folder: a local Hugging Face folder.

    Returns:
        a digest; None: an engine of this model cannot take other weights, and its weights cannot be taken.
    """
    files = sorted(path for path in Path(folder).iterdir() if path.is_file() and path.name not in _UNREAD)
    weights = [path for path in files if path.suffix == ".safetensors"]
    config = json.loads((Path(folder) / "config.json").read_text(encoding="utf-8"))
    if not weights or "quantization_config" in config or not ARCHITECTURES.issuperset(config.get("architectures") or [""]):
        return None
    told = {key: value for key, value in config.items() if key not in _NAMES}
    digest = sha256(json.dumps(told, sort_keys=True).encode())
    for path in files:
        if path not in weights and path.name != "config.json":
            digest.update(f"{path.name}\0{sha256(path.read_bytes()).hexdigest()}\0".encode())
    try:
        tensors = dict(tensor for path in weights for tensor in _tensors(path).items())
    except (struct.error, ValueError, KeyError):  # a damaged file: the engine that is to load it will say so
        return None
    if config.get("tie_word_embeddings") or "lm_head.weight" not in tensors:
        return None
    digest.update(json.dumps(tensors, sort_keys=True).encode())
    return digest.hexdigest()


def _tensors(path: Path) -> dict[str, tuple[str, list[int]]]:
    """Name -> type and shape of a file's tensors: its header, by the format's own definition."""
    with path.open("rb") as file:
        (length,) = struct.unpack("<Q", file.read(8))
        header = json.loads(file.read(length))
    return {name: (entry["dtype"], entry["shape"]) for name, entry in header.items() if name != "__metadata__"}
