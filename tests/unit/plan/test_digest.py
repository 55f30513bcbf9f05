"""Local files and models are known by their content."""

import os
from hashlib import sha256

import pytest

from cft_ray.errors import UserError
from cft_ray.plan.digest import Digests
from cft_ray.storage import files
from cft_ray.storage.files import Found


def digest_of(folder, cache, pattern="{language}.jsonl", languages=("de", "es")):
    digests = Digests(cache)
    found = digests.files(str(folder / pattern), languages, where="here")
    digests.save()
    return found


@pytest.fixture
def folder(tmp_path):
    data = tmp_path / "data"
    data.mkdir()
    for language in ("de", "es"):
        (data / f"{language}.jsonl").write_text(language)
    return data


def test_content_counts_and_place_does_not(folder, tmp_path):
    first = digest_of(folder, tmp_path / "cache")
    moved = folder.rename(tmp_path / "moved")
    assert digest_of(moved, tmp_path / "cache") == first == digest_of(moved, tmp_path / "other-cache")
    (moved / "de.jsonl").write_text("other")
    assert digest_of(moved, tmp_path / "cache") != first


def test_language_of_a_file_counts(folder, tmp_path):
    assert digest_of(folder, tmp_path / "c", languages=("de", "es")) != digest_of(folder, tmp_path / "c", languages=("es", "de"))


def test_pattern_takes_all_its_files(folder, tmp_path):
    before = digest_of(folder, tmp_path / "c", "*.jsonl", ("en",))
    (folder / "fr.jsonl").write_text("fr")
    assert digest_of(folder, tmp_path / "c", "*.jsonl", ("en",)) != before


def test_cache_that_is_broken_or_cannot_be_written_costs_nothing_but_time(folder, tmp_path):
    first = digest_of(folder, tmp_path / "cache")
    (tmp_path / "cache").write_text("{broken")
    assert digest_of(folder, tmp_path / "cache") == first
    assert digest_of(folder, folder / "de.jsonl" / "below-a-file") == first


def test_address_that_cannot_be_read_is_the_users_to_mend(tmp_path):
    with pytest.raises(UserError) as raised:
        Digests(tmp_path / "c").files("nowhere://bucket/x.jsonl", ["en"], where="here")
    assert raised.value.where == "here"


def test_model_folder(tmp_path):
    model = tmp_path / "model"
    with pytest.raises(UserError):
        Digests(tmp_path / "c").folder(str(model), where="here")
    (model / "sub").mkdir(parents=True)
    (model / "sub" / "config.json").write_text("{}")
    (model / "weights").write_text("1")
    first = Digests(tmp_path / "c").folder(str(model), where="here")
    (model / "weights").write_text("2 other")
    assert Digests(tmp_path / "c").folder(str(model), where="here") != first


def test_a_model_in_a_bucket_is_known_as_its_copy_on_this_machine(tmp_path, bucket):
    local = tmp_path / "model"
    (local / "sub").mkdir(parents=True)
    for name in ("config.json", "sub/b", "a"):
        (local / name).write_text(name)
        bucket.put(f"models/{name}", name.encode())
    here, there = (Digests(tmp_path / "c").folder(place, where="here") for place in (str(local), "s3://bucket/models"))
    assert here == there
    bucket.put("models/sub/b", b"other")
    assert Digests(tmp_path / "c").folder("s3://bucket/models", where="here") != there
    with pytest.raises(UserError, match="does not exist, or is empty"):
        Digests(tmp_path / "c").folder("s3://bucket/absent", where="here")


def test_a_folder_without_its_mark_is_none(tmp_path):
    (tmp_path / "weights").write_text("1")
    with pytest.raises(UserError, match=r"holds no config\.json"):
        Digests(tmp_path / "c").folder(str(tmp_path), where="here")
    assert Digests(tmp_path / "c").folder(str(tmp_path), where="here", mark="weights")


def test_names_below_the_folder_count_and_its_own_does_not(tmp_path):
    for name in ("one", "two"):
        (tmp_path / name / "sub").mkdir(parents=True)
        (tmp_path / name / "config.json").write_text("{}")
        (tmp_path / name / "sub" / "a").write_text("1")
    digests = Digests(tmp_path / "c")
    first, second = (digests.folder(str(tmp_path / name), where="here") for name in ("one", "two"))
    assert first == second
    (tmp_path / "two" / "sub" / "a").rename(tmp_path / "two" / "a")
    assert digests.folder(str(tmp_path / "two"), where="here") != first


def test_the_digest_is_over_names_and_contents(tmp_path):
    """By hand: a line of name and content's SHA-256 for each file, in order."""
    (tmp_path / "data").mkdir()
    for language in ("de", "es"):
        (tmp_path / "data" / f"{language}.jsonl").write_text(language * 700_000)  # more than a block
    lines = [f"{name}/{name}.jsonl\0{sha256((name * 700_000).encode()).hexdigest()}\n" for name in ("de", "es")]
    wanted = sha256("".join(lines).encode()).hexdigest()
    assert digest_of(tmp_path / "data", tmp_path / "c") == wanted == digest_of(tmp_path / "data", tmp_path / "c")


def test_what_is_known_of_a_file_is_not_read_again_until_it_changes(folder, tmp_path):
    first = digest_of(folder, tmp_path / "cache")
    file = folder / "de.jsonl"
    status = file.stat()
    file.write_text("ed")  # as long, and of the same time: the cache believes it
    os.utime(file, ns=(status.st_atime_ns, status.st_mtime_ns))
    assert digest_of(folder, tmp_path / "cache") == first != digest_of(folder, tmp_path / "other")
    os.utime(file, ns=(status.st_atime_ns, status.st_mtime_ns + 1))
    assert digest_of(folder, tmp_path / "cache") != first


def test_a_file_of_unknown_time_is_read_each_time(tmp_path):
    file = tmp_path / "a"
    digests = Digests(tmp_path / "cache")
    found = []
    for text in ("1", "2"):
        file.write_text(text)
        found.append(digests._file(Found(str(file), str(file), 1, 0), "here"))
    assert found == [sha256(text.encode()).hexdigest() for text in ("1", "2")]


def test_a_file_that_may_not_be_read_is_the_users_to_mend(folder, tmp_path, monkeypatch):
    def refuse(*_):
        raise PermissionError("not yours")

    monkeypatch.setattr(files, "digest", refuse)
    with pytest.raises(UserError, match="not yours") as raised:
        digest_of(folder, tmp_path / "cache")
    assert raised.value.where == "here" and "de.jsonl" in raised.value.what
