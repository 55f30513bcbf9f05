"""``torchrun --nproc-per-node N -m cft_ray.training job.json …``: trainings without Ray, one after the other."""

import json
import sys
from pathlib import Path

from cft_ray.errors import StageFailed, UserError
from cft_ray.training.group import joined
from cft_ray.training.job import Job
from cft_ray.training.loop import train


def main() -> int:
    """Train the jobs named on the command line; exit code 0, 1 (a training failed) or 2 (the user can mend it)."""
    try:
        with joined():  # once for all
            for path in sys.argv[1:]:
                train(Job.read(Path(path)), lambda row, steps: print(json.dumps({**row, "steps": steps}), flush=True))  # noqa: T201
    except (UserError, StageFailed) as error:
        print(error, file=sys.stderr)  # noqa: T201
        return 2 if isinstance(error, UserError) else 1
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
