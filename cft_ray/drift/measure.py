"""How far two models lie apart: norms a tensor, a head, a layer and in all.

MPD, the study's distance (section 5), is the mean over the n named tensors of ‖w_left − w_right‖₂. Beside it stand the
norm over all parameters together and that norm per parameter (RMS), which do not depend on how weights are cut into
tensors.
"""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa

from cft_ray.drift.norms import Norms, stream_norms
from cft_ray.drift.pairs import TensorPair, pair_tensors
from cft_ray.drift.weights import stored_model

_TENSORS = pa.schema(
    [
        ("name", pa.string()),
        ("layer", pa.int32()),
        ("projection", pa.string()),
        ("rows", pa.int64()),
        ("columns", pa.int64()),
        ("parameters", pa.int64()),
        ("rows_left_out", pa.int64()),
        ("dtype", pa.string()),
        ("l2", pa.float64()),
        ("l2_left", pa.float64()),
        ("l2_right", pa.float64()),
        ("max_abs", pa.float64()),
    ]
)
_HEADS = pa.schema(
    [
        ("layer", pa.int32()),
        ("projection", pa.string()),
        ("head", pa.int32()),
        ("parameters", pa.int64()),
        ("l2", pa.float64()),
        ("l2_left", pa.float64()),
        ("l2_right", pa.float64()),
    ]
)


@dataclass(frozen=True)
class Drift:
    """The distance of two models.

    ``tensors`` has one row a named tensor. ``heads`` has one a decoder layer, projection (q, k, v) and head (KV heads for
    k and v), of the weights without biases; it is empty for architectures whose heads are not known.
    """

    tensors: pa.Table
    heads: pa.Table

    @property
    def summary(self) -> dict[str, float | int]:
        """``tensors``, ``parameters``, ``rows_left_out``, ``mpd``, ``rms``, ``l2``, ``max_abs`` of the whole model."""
        rows = self.tensors.to_pylist()
        return {
            "tensors": len(rows),
            "parameters": sum(row["parameters"] for row in rows),
            "rows_left_out": sum(row["rows_left_out"] for row in rows),
            **_distances(rows),
            "max_abs": max(row["max_abs"] for row in rows),
        }

    def similarity(self, left: str, right: str) -> list[dict[str, Any]]:
        """Rows of the table `similarity`: the model, its layers, their modules, their heads.

        Args:
            left: what the left model is called in the table.
            right: the right one.
        """
        tensors = self.tensors.to_pylist()
        groups: dict[tuple[int | None, str | None, int | None], list[dict[str, Any]]] = {(None, None, None): tensors}
        for row in tensors:
            if row["layer"] is not None:
                groups.setdefault((row["layer"], None, None), []).append(row)
            groups.setdefault((row["layer"], row["projection"], None), []).append(row)
        for row in self.heads.to_pylist():
            groups[row["layer"], row["projection"], row["head"]] = [row]
        return [
            {
                "measure": measure,
                "left": left,
                "right": right,
                "layer": layer,
                "projection": projection,
                "head": head,
                "value": value,
            }
            for (layer, projection, head), rows in groups.items()
            for measure, value in _distances(rows).items()
        ]


def measure_drift(
    left: Path, right: Path, *, threads: int = 1, progress: Callable[[int, int], None] = lambda done, total: None
) -> Drift:
    """Compare two Hugging Face folders (safetensors, sharded or not), reading both once.

    Args:
        left: folder of the one model.
        right: folder of the other, of the same architecture.
        threads: reading threads, about a core each.
        progress: called with the parameters done and in all.

    Raises:
        UserError: files or tensors that are missing, broken, not finite or do not fit each other.
    """
    pairs = pair_tensors(stored_model(left), stored_model(right))
    norms = stream_norms(pairs, threads=threads, progress=progress)
    tensors = [_tensor_row(pair, whole) for pair, (whole, _) in zip(pairs, norms, strict=True)]
    heads = [
        {
            "layer": part.layer,
            "projection": part.projection,
            "head": part.head,
            "parameters": (part.stop - part.start) * pair.columns,
            "l2": found.l2,
            "l2_left": found.l2_left,
            "l2_right": found.l2_right,
        }
        for pair, (_, by_head) in zip(pairs, norms, strict=True)
        if not pair.name.endswith("bias")
        for part, found in zip(pair.heads, by_head, strict=True)
    ]
    return Drift(pa.Table.from_pylist(tensors, schema=_TENSORS), pa.Table.from_pylist(heads, schema=_HEADS))


def _tensor_row(pair: TensorPair, norms: Norms) -> dict[str, Any]:
    left, right = pair.left.dtype, pair.right.dtype
    return {
        "name": pair.name,
        "layer": pair.layer,
        "projection": pair.projection,
        "rows": pair.rows,
        "columns": pair.columns,
        "parameters": pair.rows * pair.columns,
        "rows_left_out": pair.rows_left_out,
        "dtype": left if left == right else f"{left}, {right}",
        "l2": norms.l2,
        "l2_left": norms.l2_left,
        "l2_right": norms.l2_right,
        "max_abs": norms.max_abs,
    }


def _distances(rows: Iterable[dict[str, Any]]) -> dict[str, float]:
    rows = list(rows)
    norms = [row["l2"] for row in rows]
    l2 = sum(norm**2 for norm in norms) ** 0.5
    return {"mpd": sum(norms) / len(norms), "rms": (l2**2 / sum(row["parameters"] for row in rows)) ** 0.5, "l2": l2}
