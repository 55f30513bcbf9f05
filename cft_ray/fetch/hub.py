"""Which files of a hub repository a part consists of, at which commit.

A data set is taken as `datasets` would load it: its configuration and split name files, which are all that is copied. A
repository that is a loading script, which `datasets` no longer runs, is taken from the hub's own conversion to Parquet.
A model is taken without what transformers and vLLM do not read: weights in other formats than safetensors where it has
those, and exports for other programs.
"""

import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import PurePosixPath

from huggingface_hub import HfApi
from huggingface_hub.errors import RevisionNotFoundError
from huggingface_hub.hf_api import DatasetInfo, ModelInfo, RepoFile

from cft_ray.artifacts.fetched import Part
from cft_ray.artifacts.manifest import inside
from cft_ray.data.paths import named
from cft_ray.errors import UserError
from cft_ray.storage.hub import from_hub, transient

CONVERTED = "refs/convert/parquet"
"""Branch on which the hub keeps a data set as Parquet: ``{configuration}/{split}/0000.parquet``."""

_FOREIGN = (".h5", ".msgpack", ".onnx", ".ot", ".gguf", ".tflite", ".pth", ".mlmodel", ".nemo", ".llamafile")
_FOREIGN_FOLDERS = ("original", "onnx", "openvino", "coreml", "gguf")


@dataclass(frozen=True)
class Listing:
    """A part's files on the hub.

    Args:
        commit: they are of.
        converted: whether it is one of the hub's conversion to Parquet.
        files: path below the part's folder -> file in the repository.
    """

    commit: str
    converted: bool
    files: dict[str, RepoFile]


def listing(part: Part, commit: str | None = None, converted: bool = False) -> Listing:
    """The files of a part.

    Args:
        part: what is wanted.
        commit: that it is already known by; None: its revision is resolved.
        converted: whether that commit is one of the hub's conversion.

    Raises:
        UserError: the hub cannot be reached, knows no such repository or revision or does not give it to this user; the
            repository has no such configuration, split or files.
    """
    return from_hub(str(part), lambda: _listing(part, commit, converted))


def _listing(part: Part, commit: str | None, converted: bool) -> Listing:
    api = HfApi()
    if commit is None:
        commit, converted = _resolve(api, part)
    tree = api.list_repo_tree(part.repository, recursive=True, revision=commit, repo_type=part.kind)
    files = {_plain(entry.path, part): entry for entry in tree if isinstance(entry, RepoFile)}
    if part.kind == "model":
        chosen = {name: name for name in model_files(list(files))}
    else:
        chosen = _dataset_files(part, commit, converted, list(files))
    return Listing(commit, converted, {target: files[name] for target, name in chosen.items()})


def model_files(names: Sequence[str]) -> list[str]:
    """What of a model's repository is worth copying."""
    folders = {str(PurePosixPath(name).parent) for name in names if name.endswith(".safetensors")}
    sharded = any(name.startswith("model") and name.endswith(".safetensors") for name in names)

    def wanted(name: str) -> bool:
        path = PurePosixPath(name)
        if path.name == ".gitattributes" or path.suffix in _FOREIGN or path.parts[0] in _FOREIGN_FOLDERS:
            return False
        if path.suffix in (".bin", ".pt") or name.endswith(".bin.index.json"):
            return str(path.parent) not in folders
        # Mistral publishes the same weights twice, under its own names as well.
        return not (sharded and path.name.startswith("consolidated"))

    return [name for name in names if wanted(name)]


def _resolve(api: HfApi, part: Part) -> tuple[str, bool]:
    info = api.repo_info(part.repository, repo_type=part.kind, revision=part.revision)
    script = f"{part.repository.rpartition('/')[2]}.py"
    assert isinstance(info, ModelInfo | DatasetInfo)
    converted = part.split is not None and any(file.rfilename == script for file in info.siblings or ())
    if converted:
        if part.revision is not None:
            raise UserError(
                "at this revision the data set is a loading script, which is not run",
                where=str(part),
                fix=f"leave the revision out: the hub's conversion to Parquet ({CONVERTED}) is taken",
            )
        try:
            info = api.repo_info(part.repository, repo_type=part.kind, revision=CONVERTED)
        except RevisionNotFoundError:
            raise UserError(
                "the data set is a loading script, which is not run, and the hub has not converted it to Parquet",
                where=str(part),
                fix="give files of your own (`files`, `evaluation.data`)",
            ) from None
    assert info.sha is not None
    return info.sha, converted


def _plain(name: str, part: Part) -> str:
    """A file's name, which becomes a path of ours."""
    try:
        return inside(name)
    except ValueError as error:
        raise UserError(f"the repository has a file named {name!r} ({error})", where=str(part), fix="take another one") from None


def _dataset_files(part: Part, commit: str, converted: bool, names: Sequence[str]) -> dict[str, str]:
    """Path below the part's folder -> name in the repository; numbered, so that the order stays that of the repository."""
    chosen: dict[str, str] = {}
    for language in part.languages if part.by_language else ("",):
        if part.pattern is not None:
            pattern = part.filled(part.pattern, language)
            found = sorted(name for name in names if named(pattern, name))
        else:
            config = None if part.config is None else part.filled(part.config, language)
            found = _of_split(part, commit, config, None if not converted else names)
        if not found:
            which = part.filled(part.pattern or f"{part.config}, {part.split}", language)
            raise UserError(f"there is no file for {which}", where=str(part), fix="look at the repository's files")
        folder = f"{language}/" if language else ""
        for number, name in enumerate(found):
            chosen[f"{folder}{number:04d}-{PurePosixPath(name).name}"] = name
    return chosen


def _of_split(part: Part, commit: str, config: str | None, converted: Sequence[str] | None) -> list[str]:
    """The files of one configuration and split; ``converted``: all files, where the commit is a conversion."""
    if converted is not None:
        return sorted(name for name in converted if named(f"{config or '*'}/{part.split}/*.parquet", name))
    import datasets

    with tempfile.TemporaryDirectory() as cache:
        try:
            builder = datasets.load_dataset_builder(part.repository, config, revision=commit, cache_dir=cache)
        except ValueError as error:  # an unknown configuration; the message names those that exist
            if transient(error):
                raise
            raise UserError(str(error).splitlines()[0], where=str(part), fix="name a configuration of the data set") from None
    files: dict[str, list[str]] = {str(split): list(found) for split, found in (builder.config.data_files or {}).items()}
    assert part.split is not None
    if part.split not in files:
        known = ", ".join(files) or "none"
        raise UserError(f"there is no split {part.split!r}", where=str(part), fix=f"name one of {known}")
    return [location.split(f"@{commit}/", 1)[1] for location in files[part.split]]
