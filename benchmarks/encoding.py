"""Rows to token ids: ours against plain batch encoding by `tokenizers` of the same rows' whole texts.

The tokenizer is a byte-level BPE with Llama 3's split, trained here on the same rows. Ours does more with them: it words each
row, encodes question and answer apart, looks for control tokens' spellings and for tokens across the seam, counts, and
fills arrays. Both use the same number of threads.

    python benchmarks/encoding.py [ROWS.parquet]
"""

import argparse
import os
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
from record import ROOT, record

ALPACA = ROOT.parent / "shared" / "data" / "alpaca" / "train.parquet"
VOCABULARY = 32_000
SPLIT = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
CHAT = (
    "{{ bos_token }}{% for m in messages %}{{ '<|start_header_id|>' + m['role'] + '<|end_header_id|>\n\n' }}"
    "{{ m['content'] | trim + '<|eot_id|>' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|start_header_id|>assistant<|end_header_id|>\n\n' }}{% endif %}"
)
SPECIALS = ("<|begin_of_text|>", "<|end_of_text|>", "<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>")


def main() -> None:
    """Measure, print, record."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("rows", type=Path, nargs="?", default=ALPACA, help="Parquet file with instruction, input, output")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)))
    options = parser.parse_args()
    os.environ["RAYON_NUM_THREADS"] = str(options.threads)  # before tokenizers is imported
    os.environ["TOKENIZERS_PARALLELISM"] = "true"

    from cft_ray.data.encoding import Encoder
    from cft_ray.grid.settings import Template, TrainingSettings
    from cft_ray.training.examples import encode

    rows = canonical(pq.read_table(options.rows, columns=["instruction", "input", "output"]))
    given = rows.to_pylist()
    tokenizer = made([f"{row['instruction']}\n{row['input']}\n{row['output']}" for row in given])
    figures: dict[str, Any] = {"rows": rows.num_rows, "threads": options.threads, "vocabulary": len(tokenizer), "goal_ratio": 0.9}
    training = TrainingSettings(max_length=2048)
    for name in ("alpaca", "chat"):
        template = Template(name=name)
        encoder = Encoder(tokenizer, template)
        texts = [encoder.written(row) + row["output"] for row in given]

        def plain(texts: list[str] = texts, special: bool = name != "chat") -> int:
            found = tokenizer.backend_tokenizer.encode_batch_fast(texts, add_special_tokens=special)
            return sum(len(each.ids) for each in found)

        def ours(template: Template = template) -> int:
            return len(encode(rows, template, tokenizer, training, where="benchmark").tokens)

        seconds, tokens = alternately({"plain": plain, "ours": ours}, options.repeats)
        figures[name] = {"tokens": tokens}
        for clock, times in seconds.items():
            rounds = [plain_ / ours_ for plain_, ours_ in zip(times["plain"], times["ours"], strict=True)]
            figures[name][clock] = {
                "seconds": {way: [round(each, 3) for each in found] for way, found in times.items()},
                "rows_per_second": {way: round(rows.num_rows / statistics.median(found)) for way, found in times.items()},
                "ratio": round(statistics.median(rounds), 3),
            }
    command = f"python benchmarks/encoding.py {options.rows.name} --repeats {options.repeats} --threads {options.threads}"
    print(figures, record("encoding", command, figures), sep="\n")


def alternately(ways: dict[str, Callable[[], int]], repeats: int) -> tuple[dict[str, dict[str, list[float]]], dict[str, int]]:
    """Seconds by clock and way, one way after the other, after a round that is not counted; and tokens.

    The processor's clock counts the threads of this process alone, so it can be read on a machine that is not quiet.
    """
    clocks = {"wall": time.perf_counter, "processor": time.process_time}
    seconds: dict[str, dict[str, list[float]]] = {clock: {name: [] for name in ways} for clock in clocks}
    tokens: dict[str, int] = {}
    for number in range(repeats + 1):
        for name, way in ways.items():
            start = {clock: now() for clock, now in clocks.items()}
            tokens[name] = way()
            for clock, now in clocks.items():
                if number:
                    seconds[clock][name].append(now() - start[clock])
    return seconds, tokens


def canonical(rows: pa.Table) -> pa.Table:
    """Canonical rows of Alpaca's columns."""
    from cft_ray.data.rows import table

    return table(
        {"id": str(number), "language": "en", **{name: value or "" for name, value in row.items()}}
        for number, row in enumerate(rows.to_pylist())
    )


def made(texts: list[str]) -> Any:
    """A tokenizer with the split and the special tokens of Llama 3, its merges learned from texts."""
    from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, pre_tokenizers, processors, trainers
    from transformers import PreTrainedTokenizerFast

    tokenizer = Tokenizer(models.BPE(ignore_merges=True))
    split = pre_tokenizers.Split(Regex(SPLIT), "isolated")
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([split, pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)])
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    tokenizer.train_from_iterator(
        texts, trainers.BpeTrainer(vocab_size=VOCABULARY, initial_alphabet=alphabet, show_progress=False)
    )
    reserved = [f"<|reserved_special_token_{number}|>" for number in range(251)]
    tokenizer.add_special_tokens([AddedToken(text, special=True, normalized=False) for text in (*SPECIALS, *reserved)])
    begin = tokenizer.token_to_id(SPECIALS[0])
    tokenizer.post_processor = processors.TemplateProcessing(single=f"{SPECIALS[0]} $A", special_tokens=[(SPECIALS[0], begin)])
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token=SPECIALS[0],
        eos_token=SPECIALS[1],
        chat_template=CHAT,
        clean_up_tokenization_spaces=False,
    )


if __name__ == "__main__":
    main()
