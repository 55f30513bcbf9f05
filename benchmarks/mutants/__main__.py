"""Try small wrong changes in one room and count which its tests notice: ``make mutants ROOM=metrics``.

Writes ``reports/benchmarks/mutants.json``, of which it renews the room's part. A change that nobody can notice, because it
changes no result, stands in ``equivalent.yaml`` with the reason. The tests of a room are those of ``tests/unit/ROOM`` and
``tests/integration/ROOM`` that start no Ray, or those named in ``TESTS``. After tests were added, ``--again`` tries only what
the last trial of the room had not noticed, wherever the code still has it.

Run it from the checkout with ``PYTHONPATH=benchmarks python -m mutants ROOM``.
"""

import argparse
import json
import time
from pathlib import Path
from typing import Any

import yaml
from record import REPORTS, ROOT, commit, record

from mutants.changes import Change, changes_of, sample
from mutants.swapped import Session
from mutants.trial import baseline, copy_of, noticed

LEFT_OUT = {
    "execute": (
        ["cluster.py", "run.py", "trial.py", "hosts.py", "environment.py"],
        "run in a Ray cluster alone: tests/e2e, tests/faults",
    ),
    "evaluation": (
        ["vllm_model.py", "hf_model.py", "models.py", "alpaca_eval/local.py"],
        "run in vLLM or transformers: tests/integration/evaluation",
    ),
    "generation": (["engine.py", "single.py", "batches.py"], "run in vLLM: tests/integration/generation and replay"),
    "models": (["architectures.py"], "the sizes of the tiny models that the table in docs/models.md is made on"),
    "report": (["figures/*.py"], "how drawings look; that the right numbers are drawn is tested by tests/unit/report"),
    "stages": (
        ["remote.py", "evaluate.py", "judged.py", "replay_quality.py"],
        "run in Ray or vLLM: tests/integration/evaluation, replay and replay_quality, tests/faults",
    ),
    "training": (
        [
            *("zero.py", "engine.py", "group.py", "loop.py", "whole.py", "checkpoint.py", "probe.py", "job.py", "__main__.py"),
            *("contract.py", "verdicts.py"),
        ],
        "run in a training, or make the table in docs/models.md: tests/integration/training, tests/faults, tests/unit/models",
    ),
    "metrics": (["reporter.py"], "its class Reporter runs in a Ray cluster: tests/integration/metrics"),
}
"""Room -> modules that its quick tests cannot reach, and what tests them."""
TESTS = {
    "artifacts": [
        *("tests/unit/artifacts", "tests/faults/test_publishing.py"),
        "tests/integration/execute/test_object_store.py",
    ],
    # Their other tests load engines, train, or start a process for each command.
    "evaluation": [
        "tests/unit/evaluation",
        "tests/faults/test_judging_faults.py",
        "tests/integration/evaluation/test_real_benchmarks.py",
    ],
    "fetch": ["tests/unit/fetch"],
    "generation": ["tests/unit/generation"],
    # Of the rooms that stages use, the tests of the stages alone.
    "stages": [
        *("tests/unit/stages", "tests/unit/metrics/test_row_accounts.py", "tests/unit/generation/test_generation_settings.py"),
        "tests/integration/drift/test_drift.py::test_the_stage_writes_its_tables",
        "tests/integration/divergence/test_divergence.py::test_the_stage_writes_its_tables_in_process_and_under_ray",
        *(
            f"tests/integration/activations/test_activations.py::test_{name}"
            for name in ("the_stage_writes_activations_and_layers", "covariance_between_two_models", "models_of_other_shapes")
        ),
        *(
            f"tests/integration/embedding/test_embed_stage.py::test_{name}"
            for name in (
                *("vectors_are_the_models_in_the_data_sets_order", "answers_are_embedded_where_asked_for"),
                *("sample_is_drawn_with_the_seed_and_a_small_data_set_is_taken_whole", "long_and_empty_texts_are_counted"),
                *("finished_blocks_are_not_embedded_again", "data_sets_embedded_in_different_ways_are_not_compared"),
            )
        ),
        *(
            f"tests/integration/data/test_dataset_stage.py::test_{name}"
            for name in (
                *("rows_that_teach_nothing_are_left_out_and_counted", "toy_rows_are_counted"),
                *("a_sample_is_seeded_keeps_order_and_is_part_of_a_larger_one", "ids_that_occur_twice_are_refused"),
                *("sampling_is_per_language_and_asks_for_no_more_than_there_is", "files_changed_since_the_plan_are_refused"),
                *(
                    "priorities_are_these_numbers_on_every_machine",
                    "canonical_rows_can_be_read_again_and_other_languages_are_counted",
                ),
            )
        ),
    ],
    "training": ["tests/unit/training"],
}
"""Room -> its tests, where they are others than those of its folders."""
EQUIVALENT = Path(__file__).with_name("equivalent.yaml")


def main() -> None:
    """Read the command line, run the trial, write it down."""
    parser = argparse.ArgumentParser(prog="python -m mutants", description=__doc__)
    parser.add_argument("room", help="a folder of cft_ray, e.g. metrics")
    parser.add_argument("--size", type=int, default=60, help="how many changes of a seed (default 60)")
    parser.add_argument("--minutes", type=float, default=10, help="begin no further change after trying for so long (default 10)")
    parser.add_argument("--seed", type=int, nargs="+", default=[0], help="which changes are drawn, several in turn (default 0)")
    parser.add_argument("--tests", nargs="+", help="folders of tests, where the room's own are not meant")
    parser.add_argument("--modules", default="*.py", help="only modules of this name, e.g. 'stor*.py'")
    parser.add_argument("--again", action="store_true", help="only what the last trial had not noticed")
    options = parser.parse_args()
    before = _rooms().get(options.room) if options.again else None
    if options.again and before is None:
        parser.error(f"there is no trial of {options.room} to repeat")
    begun = time.monotonic()
    with copy_of(ROOT) as tree:
        folders = [f"tests/unit/{options.room}", f"tests/integration/{options.room}"]
        tests = options.tests or TESTS.get(options.room) or [folder for folder in folders if (tree / folder).is_dir()]
        if before is None:
            left_out = LEFT_OUT.get(options.room, ([], ""))[0]
            package = tree / "cft_ray" / options.room
            draws = [sample(package, options.modules, left_out, tree, options.size, seed) for seed in options.seed]
            drawn = list(dict.fromkeys(change for draw in draws for change in draw))
            found = trial(tree, options.room, tests, drawn, options.minutes)
            found |= {"size": options.size, "seeds": options.seed, "tests": tests, "seconds": round(time.monotonic() - begun)}
        else:
            drawn = _survivors(tree, before["survivors"])
            found = _joined(before, trial(tree, options.room, tests, drawn, float("inf")), len(drawn))
    found["commit"] = commit()
    rooms = _rooms() | {options.room: found}
    record("mutants", "make mutants ROOM=" + options.room, {"rooms": dict(sorted(rooms.items()))})
    print(f"{options.room}: {found['noticed']} of {found['tried']} noticed, in {round(time.monotonic() - begun)} s")


def _survivors(tree: Path, survivors: list[dict[str, Any]]) -> list[Change]:
    """The changes that an earlier trial did not notice, where the code still has them."""
    found = []
    for survivor in survivors:
        path, text = survivor["at"].rpartition(":")[0], survivor.get("line")
        source = (tree / path).read_text(encoding="utf-8") if (tree / path).is_file() else ""
        lines = source.splitlines()
        for change in (each for place in changes_of(path, source) for each in place):
            if change.operator != survivor["operator"] or (text and lines[change.line - 1].strip() != text):
                continue
            if change not in found and _shown(tree, change)[1] == survivor["change"]:
                found.append(change)
                break
    return found


def _joined(before: dict[str, Any], found: dict[str, Any], tried: int) -> dict[str, Any]:
    """An earlier trial with what became of its survivors; those that the code no longer has do not count."""
    noticed = before["noticed"] + found["noticed"]
    whole = noticed + len(found["survivors"])
    return before | {
        "tried": whole,
        "noticed": noticed,
        "share_noticed": round(noticed / whole, 4) if whole else None,
        "survivors": found["survivors"],
        "equivalent": before["equivalent"] + found["equivalent"],
        "gone": before.get("gone", 0) + len(before["survivors"]) - tried,
        "whole_trial": before.get("whole_trial", before["commit"]),
    }


def trial(tree: Path, room: str, tests: list[str], drawn: list[Change], minutes: float) -> dict[str, Any]:
    """Try changes of a room until the time is up; what was noticed and what was not, as it is kept.

    Args:
        tree: copy of the checkout.
        room: folder of the package.
        tests: files and folders.
        drawn: what is tried.
        minutes: after which no further change is begun; the tests' first run is not counted.
    """
    package = tree / "cft_ray" / room
    left_out, reason = LEFT_OUT.get(room, ([], ""))
    known = baseline(tree, package, tests)
    for test in known.broken:
        print(f"left out, since it fails without a change: {test}")
    reasons = {
        (e["file"], e["line"], e["change"]): e["reason"] for e in yaml.safe_load(EQUIVALENT.read_text(encoding="utf-8")) or ()
    }
    session = Session(tree, tests, known)
    survivors, equivalent = [], []
    done, ends = 0, time.monotonic() + 60 * minutes
    for number, change in enumerate(drawn, 1):
        if time.monotonic() > ends:
            print(f"the time is up after {done} of {len(drawn)} changes")
            break
        done = number
        began = time.monotonic()
        line, after = _shown(tree, change)
        where = {"file": change.path, "line": line, "change": after}
        known_reason = reasons.get((change.path, line, after))
        if known_reason:
            equivalent.append({**where, "reason": known_reason})
            said = "equivalent"
        else:
            by = noticed(tree, tests, change, known, session)
            said = by or "NOT NOTICED"
            if by is None:
                survivors.append({"at": f"{change.path}:{change.line}", "operator": change.operator, **where})
        said += f" ({time.monotonic() - began:.0f} s)"
        print(f"{number:4}/{len(drawn)} {change.path}:{change.line} {change.operator}: {after}  | {said}", flush=True)
    session.close()
    tried = done - len(equivalent)
    return {
        "drawn": done,
        "tried": tried,
        "noticed": tried - len(survivors),
        "share_noticed": round((tried - len(survivors)) / tried, 4) if tried else None,
        "survivors": survivors,
        "equivalent": equivalent,
        "modules_left_out": {"modules": left_out, "reason": reason} if left_out else None,
        "tests_left_out": known.broken,
    }


def _shown(tree: Path, change: Change) -> tuple[str, str]:
    """The changed line, before and after; the whole line, so that it is found again when others moved it."""
    source = (tree / change.path).read_text(encoding="utf-8")
    old, new = source.splitlines(), change.applied(source).splitlines()
    first = next((i for i, (a, b) in enumerate(zip(old, new, strict=False)) if a != b), min(len(old), len(new)) - 1)
    return old[first].strip(), new[first].strip()


def _rooms() -> dict[str, Any]:
    """What is known of all rooms so far."""
    path = REPORTS / "mutants.json"
    return json.loads(path.read_text(encoding="utf-8"))["figures"]["rooms"] if path.exists() else {}


if __name__ == "__main__":
    main()
