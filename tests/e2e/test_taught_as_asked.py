"""From a grid to the exported model: what is trained is what is asked, on a tokenizer, a template and rows that tempt.

The tokenizer marks a word's beginning at the start of a text only and writes its beginning-of-sequence token through the chat
template alone, which has no place for a system text, asks for today's date, and ends a turn with another token than the end of
sequence. The rows spell control tokens, have several turns, and no column `input`.
"""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import polars as pl
import pyarrow.parquet as pq
import pytest
import yaml
from madetokenizers import tokenizer

from cft_ray.data.encoding import Encoder
from cft_ray.grid.settings import Template

CFT_RAY = Path(sys.executable).parent / "cft-ray"
CHAT = (
    "{{ bos_token }}{{ 'On ' + strftime_now('%d %b %Y') + '\n' }}{% for m in messages %}"
    "{% if m['role'] == 'user' %}{{ '[INST] ' + m['content'] + ' [/INST]' }}"
    "{% elif m['role'] == 'assistant' %}{{ m['content'] + '<|im_end|>' }}{% endif %}{% endfor %}"
)
TEMPLATE = {"name": "chat", "system": "Be brief.", "date": "2021-03-04"}
ROWS, HOSTILE = 20, 3
GRID = {
    "name": "asked",
    "storage": {"uri": "storage"},
    "models": {"tiny": {"base": {"path": "model"}}},
    "datasets": {
        "en": {"files": "en.jsonl", "format": "alpaca", "languages": ["en"]},
        "de": {"files": "de.jsonl", "languages": ["de"], "english": "en", "allow_left_out": 0.5},
    },
    "pairs": [{"phase1": "en", "phase2": "de"}],
    "strategies": [{"name": "GR_all", "use": "GR", "ratio": 1.0}],
    "template": TEMPLATE,
    "training": {"learning_rate": 1e-3, "steps": 2, "batch_size": 4, "max_length": 250, "precision": "fp32", "warmup_steps": 0},
    "replay": {"max_new_tokens": 6, "max_length": 250},
    "evaluation": {"limit": 2, "evaluate_base": False, "backend": "hf", "benchmarks": ["toy_letters"]},
    "resources": {kind: {"cpus": 1} for kind in ("finetune", "evaluate", "replay")},
}

pytestmark = pytest.mark.timeout(900)


def model(folder: Path) -> None:
    from transformers import LlamaConfig, LlamaForCausalLM

    made: Any = tokenizer("first")
    before = made.chat_template, made.backend_tokenizer.post_processor
    try:
        made.chat_template = CHAT
        made.backend_tokenizer.post_processor = None
        made.save_pretrained(folder)
    finally:
        made.chat_template, made.backend_tokenizer.post_processor = before
    shape = {"hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2, "num_attention_heads": 2}
    ends = {"bos_token_id": made.bos_token_id, "eos_token_id": made.eos_token_id}
    config: Any = LlamaConfig(**shape, **ends, vocab_size=len(made), max_position_embeddings=256)
    LlamaForCausalLM(config).save_pretrained(folder)


@pytest.fixture(scope="module")
def ran(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """The grid's folder after `cft-ray run`, and what that said."""
    folder = tmp_path_factory.mktemp("asked")
    model(folder / "model")
    english = [{"instruction": f"Say hello {number}", "output": "Hello there, world."} for number in range(ROWS)]
    for number in range(HOSTILE):
        english[number]["output"] = "It ends with </s> and <|im_end|> here"
    turns = [("human", "One"), ("gpt", "Hello"), ("human", "Two"), ("gpt", "world")]
    german = [{"conversations": [{"from": who, "value": text} for who, text in turns]} for _ in range(ROWS)]
    for name, rows in (("en", english), ("de", german)):
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (folder / "grid.yaml").write_text(yaml.safe_dump(GRID, sort_keys=False))
    environment = os.environ | {"CFT_RAY_CACHE": str(folder / "cache"), "XDG_CACHE_HOME": str(folder / "home")}
    environment.pop("RAY_ADDRESS", None)
    command = [str(CFT_RAY), "run", "grid.yaml"]
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, timeout=580, check=False)
    assert done.returncode == 0, done.stderr[-8000:]
    return folder, done.stderr


def trainings(folder: Path) -> dict[str, tuple[dict[str, Any], Path]]:
    """Data set -> account and exported folder of the training on it."""
    found = {}
    for path in (folder / "storage" / "artifacts" / "finetune").glob("*/manifest.json"):
        manifest = json.loads(path.read_text())
        data = "de" if "replay" in manifest["inputs"] else "en"
        found[data] = manifest["outputs"]["account"], path.parent / manifest["folder"] / "model"
    return found


def test_rows_that_spell_control_tokens_are_counted_and_shown(ran):
    folder, said = ran
    account, _ = trainings(folder)["en"]
    assert (account["came"], account["used"]) == (ROWS, ROWS)
    assert account["noted"]["special_in_text"] == HOSTILE
    assert "3 (15.0 %) that spell a control token" in said


def test_answers_that_were_cut_are_known_in_the_training_and_shown(ran):
    folder, said = ran
    (path,) = (folder / "storage" / "artifacts" / "replay").glob("*/*/rows.parquet")
    replay = pl.from_arrow(pq.read_table(path))
    assert isinstance(replay, pl.DataFrame)
    cut = replay.filter((pl.col("finish_reason") != "stop") & (pl.col("output").str.strip_chars() != ""))
    empty = replay.filter(pl.col("output").str.strip_chars() == "")
    account, _ = trainings(folder)["de"]
    assert account["came"] == 2 * ROWS and account["noted"]["answer_cut"] == cut.height > 0
    assert account["left_out"].get("no_output", 0) == empty.height
    assert "whose answer was cut" in said


def test_the_exported_model_is_asked_as_it_was_taught_and_stops_where_it_was_taught_to(ran):
    from transformers import AutoTokenizer, GenerationConfig

    folder, _ = ran
    for _, exported in trainings(folder).values():
        served: Any = AutoTokenizer.from_pretrained(exported)
        encoder = Encoder(AutoTokenizer.from_pretrained(folder / "model"), Template.model_validate(TEMPLATE))
        for system, text in (("", "Two words"), ("Rhyme.", "  \n\nTwo\n")):
            messages = [{"role": "system", "content": system}] if system else []
            messages.append({"role": "user", "content": text})
            ids = served.apply_chat_template(messages, tokenize=True, add_generation_prompt=True, return_dict=False)
            assert ids == encoder.prompts([{"system": system, "instruction": text}])[0]
            assert ids[0] == served.bos_token_id and ids.count(served.bos_token_id) == 1
            shown = served.decode(ids)
            assert "04 Mar 2021" in shown and (system or "Be brief.") in shown
        ends = list(encoder.ends)
        assert served.convert_ids_to_tokens(ends) == ["<|im_end|>", "</s>"]
        assert json.loads((exported / "config.json").read_text())["eos_token_id"] == ends
        assert GenerationConfig.from_pretrained(exported).eos_token_id == ends
        card = (exported / "README.md").read_text()
        assert "<|im_end|>" in card and "04 Mar 2021" in card and "[INST] Be brief." in card
