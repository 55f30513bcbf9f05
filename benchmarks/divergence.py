"""KL per token of two models: tokens per second against two bare forward passes, and the memory it adds against its bound.

    python benchmarks/divergence.py [--vocabulary 32000] [--hidden 512] [--layers 8] [--rows 64] [--batch-tokens 4096]

Random Mistrals on a CPU in float32. The peer runs both whole models, heads included, on the same batches and keeps no
result. The bound of added memory is what the decoders' own passes add, and three blocks of logits; each measurement is
taken in a fresh process from the peak of its resident memory, with the models loaded before.
"""

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from record import ROOT, record

ROLES = ("decoders", "forwards", "divergence")


def main() -> None:
    arguments = _arguments()
    if arguments.role:
        print(json.dumps(_measured(arguments)))
        return
    options = {
        key: getattr(arguments, key.replace("-", "_")) for key in ("vocabulary", "hidden", "layers", "rows", "batch-tokens")
    }
    given = [part for key, value in options.items() for part in (f"--{key}", str(value))]
    with tempfile.TemporaryDirectory() as folder:
        _make(Path(folder), arguments)
        runs: dict[str, list[dict[str, float]]] = {role: [] for role in ROLES}
        for _ in range(arguments.repeats):
            for role in ROLES:  # alternating, so that a noisy neighbour meets all
                command = [sys.executable, __file__, "--role", role, "--folder", folder, *given]
                out = subprocess.run(command, capture_output=True, text=True, check=True, env=_environment()).stdout
                runs[role].append(json.loads(out.splitlines()[-1]))
    speed = {role: statistics.median(run["tokens"] / run["seconds"] for run in found) for role, found in runs.items()}
    added = {role: max(run["added_bytes"] for run in found) for role, found in runs.items()}
    from cft_ray.divergence.kl import BLOCK

    bound = added["decoders"] + 3 * 4 * BLOCK
    figures = {
        **options,
        "tokens": runs["divergence"][0]["tokens"],
        "repeats": arguments.repeats,
        **{f"{role}_tokens_per_second": value for role, value in speed.items()},
        "speed_ratio_to_two_forwards": speed["divergence"] / speed["forwards"],
        **{f"{role}_added_bytes": value for role, value in added.items()},
        "added_bytes_bound": bound,
        "added_bytes_ratio": added["divergence"] / bound,
        "all_logits_of_a_batch_bytes": 2 * 4 * arguments.batch_tokens * arguments.vocabulary,
    }
    command = " ".join(["python benchmarks/divergence.py", *given, f"--repeats {arguments.repeats}"])
    print(json.dumps(figures, indent=2))
    print(record("divergence", command, figures).relative_to(ROOT))


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--vocabulary", type=int, default=32000)
    parser.add_argument("--hidden", type=int, default=512, help="a multiple of 64")
    parser.add_argument("--layers", type=int, default=8)
    parser.add_argument("--rows", type=int, default=64, help="of 100 to 400 tokens")
    parser.add_argument("--batch-tokens", type=int, default=4096)
    parser.add_argument("--repeats", type=int, default=3, help="processes of each; the median speed and the largest peak count")
    parser.add_argument("--role", choices=ROLES, help=argparse.SUPPRESS)
    parser.add_argument("--folder", help=argparse.SUPPRESS)
    return parser.parse_args()


def _environment() -> dict[str, str]:
    import os

    return {**os.environ, "PYTHONPATH": str(ROOT), "HF_HUB_OFFLINE": "1"}


def _make(folder: Path, arguments: argparse.Namespace) -> None:
    import torch
    from transformers import AutoModelForCausalLM, MistralConfig

    from cft_ray.training.model import byte_tokenizer

    heads = arguments.hidden // 64
    config = MistralConfig(
        vocab_size=arguments.vocabulary,
        hidden_size=arguments.hidden,
        intermediate_size=arguments.hidden * 7 // 2,
        num_hidden_layers=arguments.layers,
        num_attention_heads=heads,
        num_key_value_heads=heads,
        head_dim=64,
        sliding_window=None,
        bos_token_id=0,
        eos_token_id=1,
        pad_token_id=2,
    )
    for seed, side in enumerate(("left", "right")):
        torch.manual_seed(seed)
        AutoModelForCausalLM.from_config(config).save_pretrained(folder / side)
        byte_tokenizer(512).save_pretrained(folder / side)


def _measured(arguments: argparse.Namespace) -> dict[str, float]:
    import torch

    from cft_ray.data.rows import table
    from cft_ray.divergence.measure import compare
    from cft_ray.grid.settings import DivergenceSettings, Template, TrainingSettings
    from cft_ray.inference.batches import by_length, padded
    from cft_ray.inference.model import load
    from cft_ray.training.examples import encode

    models = [load(f"{arguments.folder}/{side}") for side in ("left", "right")]
    template = Template(name="plain")
    sizes = torch.Generator().manual_seed(0)
    rows = table(
        {
            "id": str(n),
            "language": "en",
            "instruction": "q" * 40,
            "output": "a" * int(torch.randint(56, 356, (), generator=sizes)),
        }
        for n in range(arguments.rows)
    )
    examples = encode(rows, template, models[0].tokenizer, TrainingSettings(max_length=512), where="rows")
    batches = by_length(examples.lengths.tolist(), arguments.batch_tokens)

    @torch.inference_mode()
    def passes(whole: bool) -> None:
        for batch in batches:
            input_ids = padded([examples.ids(row) for row in batch], 2)
            for model in models:
                (model.causal if whole else model.decoder)(input_ids=input_ids, use_cache=False)

    settings = DivergenceSettings(sample=None, max_length=512, batch_tokens=arguments.batch_tokens)
    work: dict[str, Callable[[], object]] = {
        "decoders": lambda: passes(whole=False),
        "forwards": lambda: passes(whole=True),
        "divergence": lambda: compare(models[0], models[1], rows, template, settings, where="rows"),
    }
    Path("/proc/self/clear_refs").write_text("5")  # the peak of resident memory starts from here
    before = _status("VmRSS")
    start = time.perf_counter()
    work[arguments.role]()
    seconds = time.perf_counter() - start
    return {"tokens": int(examples.lengths.sum()), "seconds": seconds, "added_bytes": _status("VmHWM") - before}


def _status(name: str) -> int:
    lines = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
    return int(lines[name].split()[0]) * 1024


if __name__ == "__main__":
    main()
