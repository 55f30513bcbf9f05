"""Pack the wheels that a bare GPU machine with Python, torch and transformers lacks for the scripts beside this one.

    python benchmarks/gpu/pack.py wheels            # on a machine with the network
    pip install --no-deps wheels/*.whl              # on the GPU machine, beside a checkout

Versions are those of `requirements/gpu.lock`. No Ray, DeepSpeed, vLLM or data set library is among them. `--trl` packs
instead what TRL's `SFTTrainer` needs beside them: a second load. A wheel, and all of them together, may have `LIMIT` bytes.
"""

import argparse
import re
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
NEEDED = (
    "annotated-types",
    "markdown-it-py",
    "mdurl",
    "pyarrow",
    "pydantic",
    "pydantic-core",
    "pygments",
    "rich",
    "typing-inspection",
)
"""what `cft_ray` imports on the road of a training in one process and of the measurements, with their dependencies"""
LORA = ("accelerate", "peft", "psutil")
TRL = ("datasets", "dill", "multiprocess", "pandas", "python-dateutil", "six", "trl", "xxhash")
BARE = (
    "torch",
    "transformers",
    "numpy",
    "safetensors",
    "tokenizers",
    "huggingface-hub",
    "packaging",
    "pyyaml",
    "typing-extensions",
    "jinja2",
)
"""what is there, or came with these"""
LIMIT = 64 * 2**20


def pinned(lock: str) -> dict[str, str]:
    """Distribution -> version of a file of pins."""
    return dict(re.findall(r"^([a-z0-9][a-z0-9._-]*)==([^\s;\\]+)", lock, flags=re.MULTILINE))


def wanted(trl: bool) -> list[str]:
    """``name==version`` of all that is packed."""
    pins = pinned((ROOT / "requirements" / "gpu.lock").read_text(encoding="utf-8"))
    return [f"{name}=={pins[name]}" for name in (TRL if trl else (*NEEDED, *LORA))]


def too_large(sizes: dict[str, int]) -> list[str]:
    """In words, what is over the limit."""
    found = [f"{name} has {size / 2**20:.1f} MiB" for name, size in sizes.items() if size > LIMIT]
    total = sum(sizes.values())
    return [*found, f"all together have {total / 2**20:.1f} MiB"] if total > LIMIT else found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--python", default="3.11", help="of the GPU machine")
    parser.add_argument("--platform", default="manylinux_2_28_x86_64", help="of the GPU machine")
    parser.add_argument("--trl", action="store_true", help="what the comparison with TRL needs beside, in a folder of its own")
    given = parser.parse_args()
    command = [
        sys.executable,
        "-m",
        "pip",
        "download",
        "--quiet",
        "--no-deps",
        "--only-binary=:all:",
        "--dest",
        str(given.folder),
    ]
    command += ["--python-version", given.python, "--platform", given.platform, "--platform", "manylinux2014_x86_64"]
    subprocess.run([*command, *wanted(given.trl)], check=True)
    sizes = {file.name: file.stat().st_size for file in sorted(given.folder.glob("*.whl"))}
    for name, size in sizes.items():
        print(f"{size / 2**20:7.2f} MiB  {name}")
    print(f"{sum(sizes.values()) / 2**20:7.2f} MiB  in all")
    if over := too_large(sizes):
        print(f"more than {LIMIT / 2**20:.0f} MiB: {'; '.join(over)}", file=sys.stderr)
        sys.exit(1)


if __name__ == "__main__":
    main()
