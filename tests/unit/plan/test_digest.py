"""Local files and models are known by their content."""

import pytest

from cft_ray.errors import UserError
from cft_ray.plan.digest import Digests


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
