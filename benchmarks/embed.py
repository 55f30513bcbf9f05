"""The `embed` stage against `SentenceTransformer.encode` in one process, and its memory over a long stream of texts.

    python benchmarks/embed.py [--texts 16384] [--repeats 3] [--stream 1000000] [--folder runs]

The model is a small transformer encoder with random weights, made on the spot. *Speed*: texts per second of ``encode`` over all
texts, of an actor's work on the same texts without Ray, and of the stage on Ray with one actor, from the first block that is
back to the last (its start takes seconds and is told apart); one thread each, taken in turns. *Memory*: resident bytes of
the driver and of the actor while ``--stream`` short texts go through the stage, at 10 % and at 100 % of them.
"""

import argparse
import os
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

os.environ.update(OMP_NUM_THREADS="1", TOKENIZERS_PARALLELISM="false", HF_HUB_OFFLINE="1", RAY_USAGE_STATS_ENABLED="0")

import numpy as np
import psutil
import ray
import torch
from record import record
from sentence_transformers import SentenceTransformer
from sentence_transformers.base.modules import Transformer
from sentence_transformers.sentence_transformer.modules import Pooling
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import Whitespace
from transformers import BertConfig, BertModel, PreTrainedTokenizerFast

from cft_ray.data.rows import FILE, table, write_rows
from cft_ray.embedding.work import Block, Locate, embedded
from cft_ray.grid.settings import EmbeddingSettings
from cft_ray.plan.specs import Checkpoint, EmbedSpec
from cft_ray.plan.stage import Resources, Stage
from cft_ray.stages.embed import run

BLOCK = EmbeddingSettings().block_rows

WORDS = [f"word{number}" for number in range(2000)]
BATCH = 32


class Context:
    """A stage's world without an executor."""

    attempt, checkpoints, loggers = 1, "", ()
    host: str | None = None

    def prove(self) -> None:
        """Nobody else works on it."""

    def __init__(self, folder: Path, data: Path, model: Path) -> None:
        settings = EmbeddingSettings(sample=None, batch_size=BATCH)
        spec = EmbedSpec(checkpoints={"embedder": Checkpoint(path=str(model), digest="d")}, settings=settings)
        self.stage = Stage(spec, {"data": "d"}, resources=Resources(workers=1, cpus=1))
        self.output, self.scratch = folder / "output", folder / "scratch"
        self.output.mkdir(parents=True)
        self.scratch.mkdir()
        self._data, self._model = data, model
        self.seen: list[tuple[int, int]] = []

    def input(self, role: str) -> Path:
        """The data set."""
        return self._data

    def summary(self, role: str) -> dict[str, Any]:
        """No input has any."""
        raise KeyError(role)

    def model(self, role: str) -> str:
        """The encoder."""
        return str(self._model)

    def report(self, table: str, rows: Any, sequence: int) -> None:
        """Nothing is sent."""
        raise AssertionError

    def progress(self, **values: Any) -> None:
        """Notes how much memory is held."""
        self.seen.append((int(values["done"]), _resident()))


def main() -> None:
    """Measure, print and record."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--texts", type=int, default=8 * BLOCK, help=f"for the speeds; 3 blocks of {BLOCK:,} at least")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--stream", type=int, default=1_000_000, help="texts for the memory; 0: leave it out")
    parser.add_argument("--folder", help="where to put the texts; default: the system's temporary folder")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory(dir=arguments.folder, prefix="embed-") as name:
        folder = Path(name)
        ray.init(address="local", num_cpus=2, object_store_memory=200 * 2**20, include_dashboard=False, log_to_driver=False)
        figures = _speed(folder, arguments.texts, arguments.repeats)
        if arguments.stream:
            figures |= _memory(folder, arguments.stream)
        ray.shutdown()
    for key, value in figures.items():
        print(f"{key}: {value}")
    command = f"python benchmarks/embed.py --texts {arguments.texts} --repeats {arguments.repeats} --stream {arguments.stream}"
    record("embed", command, figures)


def _speed(folder: Path, count: int, repeats: int) -> dict[str, Any]:
    model, data = _model(folder / "encoder", hidden=256, layers=4), _texts(folder / "texts", count, most=48)
    texts = [row["instruction"] for row in _rows(count, most=48)]
    peer = SentenceTransformer(str(model), device="cpu")
    peer.encode(texts[:256], batch_size=BATCH)
    rates: dict[str, list[float]] = {"encode": [], "actor": [], "ray": []}
    cpu: list[float] = []
    starts: list[float] = []
    settings = EmbeddingSettings(sample=None, batch_size=BATCH)
    for _ in range(repeats):
        wall, own = _timed(lambda: peer.encode(texts, batch_size=BATCH))
        work = Block(settings, 1, lambda: (data, str(model)))
        numbers = range(len(work.blocks))
        work.embedder.encode(texts[:256], BATCH)
        actor_wall, actor_own = _timed(lambda work=work, numbers=numbers: [work.block(number) for number in numbers])
        rates["encode"].append(count / wall)
        rates["actor"].append(count / actor_wall)
        cpu.append(own / actor_own)
        first, rate = _ray_rate(settings, lambda: (data, str(model)), count)
        starts.append(first)
        rates["ray"].append(rate)
    median = {name: statistics.median(found) for name, found in rates.items()}
    return {
        "texts": count,
        "repeats": repeats,
        **{f"{name}_texts_per_second": round(value, 1) for name, value in median.items()},
        "actor_over_encode": round(median["actor"] / median["encode"], 3),
        "actor_over_encode_by_cpu_seconds": round(statistics.median(cpu), 3),
        "ray_over_encode": round(median["ray"] / median["encode"], 3),
        "ray_seconds_to_first_block": round(statistics.median(starts), 2),
    }


def _timed(call: Callable[[], object]) -> tuple[float, float]:
    """Wall seconds, and CPU seconds of this process, which busy neighbours do not lengthen."""
    wall, own = time.perf_counter(), time.process_time()
    call()
    return time.perf_counter() - wall, time.process_time() - own


def _ray_rate(settings: EmbeddingSettings, locate: Locate, count: int) -> tuple[float, float]:
    """(seconds until the first block is back, texts per second after it)."""
    start = time.perf_counter()
    numbers = range(-(-count // BLOCK))
    times = [time.perf_counter() for _ in embedded(settings, Resources(workers=1, cpus=1), locate, numbers)]
    return times[0] - start, (count - BLOCK) / (times[-1] - times[0])


def _memory(folder: Path, count: int) -> dict[str, Any]:
    model, data = _model(folder / "tiny", hidden=32, layers=1), _texts(folder / "stream", count, most=4)
    context = Context(folder / "stream-run", data, model)
    start = time.perf_counter()
    run(context)
    seconds = time.perf_counter() - start
    at = {share: next(size for done, size in context.seen if done >= count * share) for share in (0.1, 1.0)}
    return {
        "stream_texts": count,
        "stream_seconds": round(seconds, 1),
        "stream_resident_mib_at_10_percent": round(at[0.1] / 2**20, 1),
        "stream_resident_mib_at_100_percent": round(at[1.0] / 2**20, 1),
        "stream_growth": round(at[1.0] / at[0.1], 3),
    }


def _resident() -> int:
    """Resident bytes of this process and of the actors that it has Ray run."""
    me = psutil.Process()
    actors = [
        child for child in me.children(recursive=True) if "MapWorker" in child.name() or "MapWorker" in " ".join(_line(child))
    ]
    return sum(_size(process) for process in [me, *actors])


def _line(process: psutil.Process) -> list[str]:
    try:
        return process.cmdline()
    except psutil.Error:
        return []


def _size(process: psutil.Process) -> int:
    try:
        return process.memory_info().rss
    except psutil.Error:
        return 0


def _rows(count: int, most: int):  # noqa: ANN202 - a generator of rows
    draws = np.random.default_rng(0)
    for number in range(count):
        words = draws.integers(0, len(WORDS), draws.integers(1, most))
        yield {"id": str(number), "language": "en", "instruction": " ".join(WORDS[word] for word in words)}


def _texts(folder: Path, count: int, most: int) -> Path:
    folder.mkdir()
    rows = _rows(count, most)

    def batches():  # noqa: ANN202 - a generator of tables
        done = 0
        while done < count:
            size = min(8192, count - done)
            yield table(next(rows) for _ in range(size))
            done += size

    write_rows(folder / FILE, batches())
    return folder


def _model(folder: Path, hidden: int, layers: int) -> Path:
    tokenizer = Tokenizer(WordLevel({word: n for n, word in enumerate(["[PAD]", "[UNK]", *WORDS])}, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = Whitespace()
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, pad_token="[PAD]", unk_token="[UNK]", model_max_length=128)
    torch.manual_seed(0)
    config = BertConfig(
        vocab_size=len(fast),
        hidden_size=hidden,
        num_hidden_layers=layers,
        num_attention_heads=max(1, hidden // 32),
        intermediate_size=4 * hidden,
        max_position_embeddings=128,
    )
    BertModel(config).save_pretrained(folder / "bert")
    fast.save_pretrained(folder / "bert")
    modules = [Transformer(str(folder / "bert"), max_seq_length=128), Pooling(hidden)]
    SentenceTransformer(modules=modules, device="cpu").save(str(folder / "model"))
    return folder / "model"


if __name__ == "__main__":
    main()
