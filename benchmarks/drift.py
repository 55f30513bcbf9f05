"""The drift measurement against plainly reading both checkpoints' files once, and its peak memory against the bound.

    python benchmarks/drift.py [--gib 4] [--threads 2] [--repeats 3] [--folder runs]

Makes two random bf16 checkpoints (together ``--gib``; tensor shapes in Mistral-7B's proportions; 1 GiB shards) in a
temporary folder, and runs each measurement in a fresh process: *cold* after asking the kernel to drop the files' pages,
*warm* with the files in the page cache. The peer reads the same files with as many threads and does nothing with them.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from record import ROOT, record

READ_BYTES = 4 * 2**20
BOUND_BASE = 500e6


def main() -> None:
    arguments = _arguments()
    if arguments.role == "read":
        print(json.dumps(_measured(lambda: _read(arguments.pair, arguments.threads))))
        return
    if arguments.role == "drift":
        print(json.dumps(_measured(lambda: _drift(arguments.pair, arguments.threads))))
        return
    with tempfile.TemporaryDirectory(dir=arguments.folder, prefix="drift-") as folder:
        largest = _make(Path(folder), int(arguments.gib * 2**30))
        runs = {f"{cache}_{role}": [] for cache in ("cold", "warm") for role in ("read", "drift")}
        size = sum(file.stat().st_size for file in _files(folder))
        for cache in ("cold", "warm"):
            for _ in range(arguments.repeats):
                for role in ("read", "drift"):  # alternating, so that a noisy neighbour meets both
                    runs[f"{cache}_{role}"].append(_run(role, folder, arguments.threads, cold=cache == "cold"))
    seconds = {name: statistics.median(run["seconds"] for run in found) for name, found in runs.items()}
    peak = max(run["peak_bytes"] for name, found in runs.items() if name.endswith("drift") for run in found)
    bound = 4 * largest + BOUND_BASE
    figures = {
        "checkpoint_pair_bytes": size,
        "largest_tensor_bytes": largest,
        "threads": arguments.threads,
        "repeats": arguments.repeats,
        **{f"{name}_gb_per_second": size / value / 1e9 for name, value in seconds.items()},
        "cold_bandwidth_ratio": seconds["cold_read"] / seconds["cold_drift"],
        "warm_bandwidth_ratio": seconds["warm_read"] / seconds["warm_drift"],
        "peak_memory_bytes": peak,
        "peak_memory_bound_bytes": bound,
        "peak_memory_ratio": peak / bound,
    }
    command = f"python benchmarks/drift.py --gib {arguments.gib:g} --threads {arguments.threads} --repeats {arguments.repeats}"
    print(json.dumps(figures, indent=2))
    print(record("drift", command, figures).relative_to(ROOT))


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--gib", type=float, default=4.0, help="size of both checkpoints together")
    parser.add_argument("--threads", type=int, default=min(2, os.cpu_count() or 1), help="of the drift and of the reader")
    parser.add_argument("--repeats", type=int, default=3, help="runs of each; the median counts")
    parser.add_argument("--folder", help="where the temporary checkpoints go; the system's temporary folder if not given")
    parser.add_argument("--role", choices=("read", "drift"), help=argparse.SUPPRESS)
    parser.add_argument("--pair", help=argparse.SUPPRESS)
    return parser.parse_args()


def _run(role: str, folder: str, threads: int, *, cold: bool) -> dict[str, float]:
    for file in _files(folder):
        _drop(file) if cold else _touch(file)
    command = [sys.executable, __file__, "--role", role, "--pair", folder, "--threads", str(threads)]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    return json.loads(subprocess.run(command, capture_output=True, text=True, check=True, env=environment).stdout)


def _measured(work) -> dict[str, float]:  # noqa: ANN001
    """Seconds of the work itself (imports are done), and the process's peak resident memory, imports included.

    The peak is Linux' own of this program: `getrusage` would count the parent, as whose copy the process began.
    """
    import pyarrow as pa

    import cft_ray.drift.measure  # noqa: F401 - both processes carry it

    pa.array([0])  # imports pandas, where it is installed

    start = time.perf_counter()
    work()
    seconds = time.perf_counter() - start
    status = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
    return {"seconds": seconds, "peak_bytes": int(status["VmHWM"].split()[0]) * 1024}


def _drift(folder: str, threads: int) -> None:
    from cft_ray.drift.measure import measure_drift

    drift = measure_drift(Path(folder) / "left", Path(folder) / "right", threads=threads)
    assert drift.summary["l2"] > 0


def _read(folder: str, threads: int) -> None:
    with ThreadPoolExecutor(threads) as pool:
        list(pool.map(_read_file, _files(folder)))


def _read_file(file: Path) -> None:
    buffer = bytearray(READ_BYTES)
    with file.open("rb", buffering=0) as stream:
        while stream.readinto(buffer):
            pass


_touch = _read_file


def _drop(file: Path) -> None:
    with file.open("rb") as stream:
        os.fsync(stream.fileno())
        os.posix_fadvise(stream.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def _files(folder: str) -> list[Path]:
    return sorted(Path(folder).glob("*/*.safetensors"))


def _make(folder: Path, size: int) -> int:
    """Two checkpoints of about ``size`` bytes together; returns the bytes of the largest tensor."""
    import torch
    from huggingface_hub import save_torch_state_dict

    hidden, layers = 2048, 1
    shapes = {
        "self_attn.q_proj": (hidden, hidden),
        "self_attn.k_proj": (hidden // 4, hidden),
        "self_attn.v_proj": (hidden // 4, hidden),
        "self_attn.o_proj": (hidden, hidden),
        "mlp.gate_proj": (hidden * 7 // 2, hidden),
        "mlp.up_proj": (hidden * 7 // 2, hidden),
        "mlp.down_proj": (hidden, hidden * 7 // 2),
    }
    outer = {"model.embed_tokens.weight": (32000, hidden), "lm_head.weight": (32000, hidden)}
    a_layer = sum(rows * columns for rows, columns in shapes.values())
    layers = max(1, round((size / 4 - sum(rows * columns for rows, columns in outer.values())) / a_layer))
    shapes = outer | {f"model.layers.{layer}.{name}.weight": shape for layer in range(layers) for name, shape in shapes.items()}
    config = {"num_attention_heads": 16, "num_key_value_heads": 4, "hidden_size": hidden, "num_hidden_layers": layers}
    generator = torch.Generator().manual_seed(0)
    for side in ("left", "right"):
        weights = {name: torch.randn(shape, generator=generator, dtype=torch.bfloat16) for name, shape in shapes.items()}
        (folder / side).mkdir()
        (folder / side / "config.json").write_text(json.dumps(config))
        save_torch_state_dict(weights, folder / side, max_shard_size="1GB")
    return max(rows * columns for rows, columns in shapes.values()) * 2


if __name__ == "__main__":
    main()
