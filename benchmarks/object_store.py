"""A real mini grid in a folder and in a bucket, one run after the other: what the storage costs.

    python benchmarks/object_store.py --repeats 2

The bucket is moto's server on loopback, behind no proxy: a server in Python, so its answers cost CPU that the grid lacks.
Reported is the ratio of the whole command's times, which is to be 1.3 at most, with the order of the two changing from one
repeat to the next.
"""

import argparse
import os
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from chaos import grid, prepared
from outcome import differences, real
from record import record

LIMIT = 1.3


def seconds(folder: Path, uri: str) -> float:
    """Of the grid's command."""
    folder.mkdir()
    made = grid("real", folder, uri)
    start = time.perf_counter()
    environment = os.environ | {"CFT_RAY_CACHE": str(folder / "cache")}
    done = subprocess.run(made.command, env=environment, cwd=folder, capture_output=True, text=True, check=False)
    taken = time.perf_counter() - start
    assert done.returncode == 0, done.stderr[-4000:]
    return taken


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=1)
    arguments = parser.parse_args()
    root = Path(tempfile.mkdtemp(prefix="object-store-"))
    taken: dict[str, list[float]] = {"folder": [], "bucket": []}
    try:
        with prepared() as double:
            os.environ["AWS_ENDPOINT_URL"] = double.direct
            for repeat in range(arguments.repeats):
                uris = {"folder": str(root / f"storage-{repeat}"), "bucket": f"s3://{double.bucket()}/run"}
                for where in sorted(uris, reverse=repeat % 2 == 0):
                    taken[where].append(seconds(root / f"{where}-{repeat}", uris[where]))
                    print(f"{where}: {taken[where][-1]:.1f} s", flush=True)
                left = [real(uri, grid("real", root / f"{where}-{repeat}", uri).stages) for where, uri in uris.items()]
                assert not differences(*left), differences(*left)
    finally:
        shutil.rmtree(root, ignore_errors=True)
    ratio = min(taken["bucket"]) / min(taken["folder"])
    figures = {f"{where}_seconds": times for where, times in taken.items()} | {"ratio": ratio, "limit": LIMIT}
    print(record("object_store", " ".join(["python", "benchmarks/object_store.py", *sys.argv[1:]]), figures).read_text())
    sys.exit(ratio > LIMIT)


if __name__ == "__main__":
    main()
