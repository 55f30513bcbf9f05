"""A look into the plan's local files before anything starts, so that a wrong column does not show an hour later.

Files that are cheap to read are read whole, and every row is accounted for, as the `dataset` stage will do it; what was
found is kept in the user's cache folder under the stage's fingerprint, which names the files' contents. Of larger ones
the beginning is read. Files in object stores and on the hub are left to the stage.
"""

import contextlib
from collections import Counter
from collections.abc import Iterable, Mapping
from pathlib import Path

from pydantic import ValidationError

from cft_ray.data.accounts import RowAccount, Tally, refuse_lost
from cft_ray.data.cache import FileCache
from cft_ray.data.languages import filled, names_language
from cft_ray.data.paths import matching
from cft_ray.data.sources import read
from cft_ray.errors import UserError
from cft_ray.plan.specs import DatasetSpec
from cft_ray.plan.stage import Stage
from cft_ray.storage.location import is_uri

CHEAP = 256 * 2**20
"""bytes of a data set's files up to which they are read whole"""


def check_files(stages: Iterable[Stage], *, cheap: int = CHEAP, cache: Path | None = None) -> dict[str, RowAccount]:
    """See that every data set in local files can be read, and loses no more rows than the grid allows.

    Args:
        stages: of the plan; all but data sets are passed over.
        cheap: bytes up to which a data set is read whole.
        cache: file of what is known; none: ``rows.json`` in the user's cache folder.

    Returns:
        Fingerprint -> account, of the data sets that were read whole.

    Raises:
        UserError: as the `dataset` stage would.
    """
    known, found = FileCache("rows.json", cache), dict[str, RowAccount]()
    for stage in stages:
        spec = stage.spec
        if not isinstance(spec, DatasetSpec) or spec.files is None or is_uri(spec.files):
            continue
        if (account := _known(known, stage)) is not None:
            _refuse_lost(spec, account, stage.label, spec.files)
        elif _size(spec) <= cheap:
            account = _counted(spec, stage.label)
            known.put(stage.fingerprint, account.model_dump_json())
        else:
            _glance(spec, stage.label)
            continue
        found[stage.fingerprint] = account
    known.save()
    return found


def _known(cache: FileCache, stage: Stage) -> RowAccount | None:
    with contextlib.suppress(ValidationError):  # of an older version
        return RowAccount.model_validate_json(cache.get(stage.fingerprint) or "")
    return None


def refuse_unusable(spec: DatasetSpec, found: Mapping[str, int], account: RowAccount, name: str, where: str) -> None:
    """Refuse a data set without a row in one of its languages, or with more rows left out than the grid allows.

    Args:
        spec: of the data set.
        found: language -> usable rows.
        account: of its rows, before the sample.
        name: of the data set.
        where: its source.

    Raises:
        UserError: naming what was left out and why.
    """
    for language in spec.languages:
        if not found.get(language):
            lost = f" (left out: {account.reasons()})" if account.lost else ""
            aside = "".join(f"; {count:,} {reason}" for reason, count in account.set_aside.items())
            raise UserError(
                f"data set {name} has no usable row in language {language!r}{lost}{aside}",
                where=where,
                fix="check the files, the column mapping and the languages" + _spelling(account, language),
            )
    _refuse_lost(spec, account, name, where)


def _refuse_lost(spec: DatasetSpec, account: RowAccount, name: str, where: str) -> None:
    setting = f"datasets.{name}.allow_left_out" if name != where else "allow_left_out"
    fix = "mend the files or their column mapping" + _spelling(account, spec.languages[0])
    refuse_lost(account, spec.allow_left_out, what=f"data set {name}", where=where, setting=setting, fix=fix)


def _spelling(account: RowAccount, language: str) -> str:
    spelled = any(reason in account.left_out for reason in ("language_spelled_otherwise", "unknown_language"))
    return f" (the column of languages must hold ISO 639-1 codes: {language!r})" if spelled else ""


def _size(spec: DatasetSpec) -> int:
    assert spec.files is not None
    languages = spec.languages if names_language(spec.files) else ("",)
    return sum(file.size for language in languages for file in matching(filled(spec.files, language)))


def _counted(spec: DatasetSpec, name: str) -> RowAccount:
    tally, usable = Tally(), Counter[str]()
    for batch in read(spec, tally):
        usable.update(batch.column("language").to_pylist())
    assert spec.files is not None
    refuse_unusable(spec, usable, tally.account(usable.total()), name, spec.files)
    kept = usable.total() if spec.rows is None else sum(min(count, spec.rows) for count in usable.values())
    tally.set_aside["not_in_sample"] += usable.total() - kept
    return tally.account(kept).checked(name)


def _glance(spec: DatasetSpec, name: str) -> None:
    """See that there is a usable row in each language, and read no further than that."""
    # A file for each language: only its beginning is needed. One for all: as much of it as shows them all.
    assert spec.files is not None
    for languages in [(language,) for language in spec.languages] if names_language(spec.files) else [spec.languages]:
        missing, tally = set(languages), Tally()
        part = spec.model_copy(update={"languages": languages})
        for batch in read(part, tally):
            missing -= set(batch.column("language").to_pylist())
            if not missing:
                break
        else:
            found = {language: 1 for language in languages if language not in missing}
            refuse_unusable(part, found, tally.account(tally.came - tally.left_out.total()), name, spec.files)
