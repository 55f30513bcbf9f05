"""From a grid to the exported model: what is trained is what is asked, on a tokenizer, a template and rows that tempt.

The tokenizer marks a word's beginning at the start of a text only and writes its beginning-of-sequence token through the chat
template alone, which has no place for a system text, asks for today's date, and ends a turn with another token than the end of
sequence. The rows spell control tokens, have several turns, and no column `input`. Phase 2 takes all its rows at each step, so
that its first loss says on which tokens of which ids it was taken.
"""

import json
import os
import subprocess
import sys
from datetime import date
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
TALKS = [
    [("user", "One"), ("assistant", "Hello"), ("user", "Two"), ("assistant", "world")],
    [("user", "Say hello"), ("assistant", "It ends with a dot."), ("user", "Say more\n"), ("assistant", "Hello there, world.")],
]
"""said in turns; both as often"""
GRID = {
    "name": "asked",
    "storage": {"uri": "storage"},
    "models": {"tiny": {"base": {"path": "model"}}},
    "datasets": {
        "en": {"files": "en.jsonl", "format": "alpaca", "languages": ["en"]},
        "de": {"files": "de.jsonl", "languages": ["de"], "english": "en", "allow_left_out": 0.5},
    },
    "pairs": [{"phase1": "en", "phase2": "de"}],
    "strategies": ["none", {"name": "GR_all", "use": "GR", "ratio": 1.0}],
    "template": TEMPLATE,
    "training": {
        "learning_rate": 1e-3,
        "steps": 2,
        "batch_size": 4,
        "max_length": 250,
        "precision": "fp32",
        "warmup_steps": 0,
        "phase2": {"batch_size": ROWS},
    },
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
    german = [{"messages": messages(TALKS[number % 2])} for number in range(ROWS)]
    for name, rows in (("en", english), ("de", german)):
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (folder / "grid.yaml").write_text(yaml.safe_dump(GRID, sort_keys=False))
    environment = os.environ | {"CFT_RAY_CACHE": str(folder / "cache"), "XDG_CACHE_HOME": str(folder / "home")}
    environment.pop("RAY_ADDRESS", None)
    command = [str(CFT_RAY), "run", "grid.yaml"]
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, timeout=580, check=False)
    assert done.returncode == 0, done.stderr[-8000:]
    return folder, done.stderr


def messages(turns: list[tuple[str, str]]) -> list[dict[str, str]]:
    return [{"role": role, "content": text} for role, text in turns]


def trainings(folder: Path) -> dict[str, tuple[dict[str, Any], Path]]:
    """Data set -> outputs and exported folder of the training on it; `mixed`: with replay."""
    found = {}
    for path in (folder / "storage" / "artifacts" / "finetune").glob("*/manifest.json"):
        manifest = json.loads(path.read_text())
        data = "mixed" if "replay" in manifest["inputs"] else "de" if "model" in manifest["inputs"] else "en"
        found[data] = manifest["outputs"], path.parent / manifest["folder"] / "model"
    assert found.keys() == {"en", "de", "mixed"}
    return found


def test_rows_that_spell_control_tokens_are_counted_and_shown(ran):
    folder, said = ran
    account = trainings(folder)["en"][0]["account"]
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
    account = trainings(folder)["mixed"][0]["account"]
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


def test_of_several_turns_all_answers_are_taught_in_the_ids_of_the_chat_template(ran):
    """The first loss is that of plain transformers on `apply_chat_template`'s ids, on the assistant's turns and their ends."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    folder, _ = ran
    done = trainings(folder)
    outputs, _ = done["de"]
    before = AutoModelForCausalLM.from_pretrained(done["en"][1], attn_implementation="eager").eval()
    plain: Any = AutoTokenizer.from_pretrained(folder / "model")

    def ids(said: list[dict[str, str]], *, ask: bool) -> list[int]:
        opened = [said[0] | {"content": f"{TEMPLATE['system']}\n\n{said[0]['content']}"}, *said[1:]]  # it has no place for it
        day = date.fromisoformat(TEMPLATE["date"])
        return plain.apply_chat_template(
            opened, tokenize=True, return_dict=False, add_generation_prompt=ask, strftime_now=day.strftime
        )

    losses, tokens = [], 0
    for talk in TALKS:
        said = messages(talk)
        whole = ids(said, ask=False)
        labels = torch.full((len(whole),), -100)
        for place in range(1, len(said), 2):
            begin, stop = len(ids(said[:place], ask=True)), len(ids(said[: place + 1], ask=False))
            assert plain.decode(whole[begin:stop]).strip() == f"{said[place]['content']}<|im_end|>"
            labels[begin:stop] = torch.tensor(whole[begin:stop])
        with torch.no_grad():
            logits = before(input_ids=torch.tensor([whole])).logits[0, :-1]
        losses.append(torch.nn.functional.cross_entropy(logits, labels[1:], reduction="none")[labels[1:] != -100])
        tokens += len(whole)
    assert outputs["account"]["used"] == ROWS and outputs["account"]["noted"].get("earlier_untaught", 0) == 0
    assert outputs["tokens"] == outputs["steps"] * tokens * ROWS // 2
    assert outputs["loss_first"] == pytest.approx(float(torch.cat(losses).mean()), abs=1e-5)
