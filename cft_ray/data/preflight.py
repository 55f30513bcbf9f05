"""A look into the plan's local files before anything starts, so that a wrong column does not show an hour later."""

from collections import Counter
from collections.abc import Iterable

from cft_ray.data.languages import names_language
from cft_ray.data.sources import read
from cft_ray.errors import UserError
from cft_ray.plan.specs import DatasetSpec
from cft_ray.plan.stage import Stage


def check_files(stages: Iterable[Stage]) -> None:
    """See that every data set in local files can be read and has a usable row in each of its languages.

    Reads no further than that. Files in object stores and on the hub are left to the `dataset` stage.

    Raises:
        UserError: as the `dataset` stage would.
    """
    for stage in stages:
        spec = stage.spec
        if not isinstance(spec, DatasetSpec) or spec.files is None or "://" in spec.files:
            continue
        # A file for each language: only its beginning is needed. One for all: as much of it as shows them all.
        parts = [(language,) for language in spec.languages] if names_language(spec.files) else [spec.languages]
        for languages in parts:
            _check(spec.model_copy(update={"languages": languages}), stage.label)


def _check(spec: DatasetSpec, label: str) -> None:
    missing, dropped = set(spec.languages), Counter[str]()
    for batch in read(spec, dropped):
        missing -= set(batch.column("language").to_pylist())
        if not missing:
            return
    lost = ", ".join(f"{count} with {reason}" for reason, count in sorted(dropped.items()))
    raise UserError(
        f"data set {label} has no usable row in language {min(missing)!r}" + (f" (left out: {lost})" if lost else ""),
        where=spec.files,
        fix="check the files, the column mapping and the languages",
    )
