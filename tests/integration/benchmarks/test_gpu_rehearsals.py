"""The GPU benchmarks, rehearsed on a CPU as on a bare machine: nothing is importable but what it has and what `pack.py` packs."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).resolve().parents[3] / "benchmarks" / "gpu"))

import pack

ROOT = pack.ROOT


def rehearse(tmp_path: Path, name: str, *more: str) -> dict:
    out = tmp_path / f"{name}.json"
    recorded = ROOT / "reports" / "benchmarks" / f"gpu_{name}.json"
    before = recorded.read_bytes() if recorded.exists() else None
    lists = [",".join(pack.BARE), ",".join((*pack.NEEDED, *pack.LORA))]
    script = [str(ROOT / "benchmarks" / "gpu" / f"{name}.py"), "--rehearse", "--json", str(out), *more]
    command = [sys.executable, str(ROOT / "tests" / "planted" / "bare.py"), *lists, *script]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    assert (recorded.read_bytes() if recorded.exists() else None) == before, "a rehearsal is not a result"
    return json.loads(out.read_text())


def test_correctness(tmp_path):
    found = rehearse(tmp_path, "correctness")
    assert all(row["holds"] for row in found["rows"]) and len(found["rows"]) >= 25
    full, resumed = found["curves"]["full"], found["curves"]["resume"]
    assert full["ours"] == pytest.approx(full["plain"], abs=5e-3) and full["ours"] != full["plain"]
    assert full["ours"][-1] < full["ours"][0] - 0.3
    assert resumed["repeats_are_bit_equal"] and resumed["resumed"] == resumed["uninterrupted"]
    frozen = next(row for row in found["rows"] if row["what"].startswith("LF_H2: frozen rows"))
    assert frozen["value"] == 0


def test_train_step(tmp_path):
    found = rehearse(tmp_path, "train_step", "--steps", "1")
    rows = {(row["method"], row["contender"], row["batch"]): row for row in found["rows"]}
    for method in ("full", "LoRA"):
        for batch in ("study", "8192"):
            mine, peer = rows[method, "ours", batch], rows[method, "plain", batch]
            assert mine["tokens/s"] > 0 and peer["tokens/s"] > 0
            assert mine["loss"] == pytest.approx(peer["loss"], abs=0.02)  # the same rows and weights
    assert rows["full", "ours", "8192"]["estimate GB"] > 0


def test_insight(tmp_path):
    found = rehearse(tmp_path, "insight")
    rows = {row["measure"]: row for row in found["rows"]}
    assert set(rows) == {"drift", "activations", "KL"}
    assert rows["drift"]["rate"] > 0 and rows["drift"]["ratio"] == pytest.approx(rows["drift"]["rate"] / rows["drift"]["bound"])
    assert rows["activations"]["tokens/s"] > 0
    assert rows["KL"]["kl"] > 0
