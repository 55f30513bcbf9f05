"""YAML text to values: limits at their border, places of values, numbers and characters."""

# ruff: noqa: E501 - tables read best with one case a line

import pytest

from cft_ray.errors import UserError
from cft_ray.grid.problems import nearest
from cft_ray.grid.source import MAX_BYTES, parse, read
from cft_ray.grid.tree import MAX_DEPTH, MAX_VALUES, Source, Tree, dotted, hidden


def loaded(text: str) -> tuple[object, Source]:
    source = Source("x.yaml")
    return Tree(source).load(text), source


def refused(text: str) -> UserError:
    with pytest.raises(UserError) as raised:
        loaded(text)
    return raised.value


def test_every_value_and_key_knows_its_line():
    value, source = loaded("a: 1\nb:\n  - x\n  - c: y\n    d: z\ne: {f: 1}\n")
    assert value == {"a": 1, "b": ["x", {"c": "y", "d": "z"}], "e": {"f": 1}}
    assert source.lines == {
        (): 1, ("a",): 1, ("b",): 2, ("b", 0): 3, ("b", 1): 4, ("b", 1, "c"): 4, ("b", 1, "d"): 5, ("e",): 6, ("e", "f"): 6,
    }  # fmt: skip


def test_what_an_alias_copies_has_the_lines_of_the_copied():
    value, source = loaded("a: &x\n  k: [1, 2]\nb: *x\nc: [*x]\n")
    assert value == {"a": {"k": [1, 2]}, "b": {"k": [1, 2]}, "c": [{"k": [1, 2]}]}
    assert source.lines[("b",)] == 3 and source.lines[("b", "k")] == 2 and source.lines[("b", "k", 1)] == 2
    assert source.lines[("c", 0)] == 4 and source.lines[("c", 0, "k", 0)] == 2
    # An alias of what holds an alias.
    _, source = loaded("a: &x {k: 1}\nb: &y\n  z: *x\nc: *y\n")
    assert source.lines[("c", "z", "k")] == 1 and source.lines[("c", "z")] == 3


def test_a_place_is_said_with_the_nearest_line_or_as_set():
    source = Source("x.yaml", {(): 1, ("a",): 2, ("a", "b"): 3}, {("c", "d"), ("e",)})
    assert source.where(("a", "b")) == "x.yaml: a.b (line 3)"
    assert source.where(("a", "z", 0)) == "x.yaml: a.z[0] (line 2)"
    assert source.where(("z",)) == "x.yaml: z" and source.where(()) == "x.yaml"
    assert source.where(("c", "d", "f")) == "x.yaml: c.d.f (--set)" and source.where(("c",)) == "x.yaml: c"
    assert Source("x", {}, {()}).where(()) == "x (--set)"
    assert source.gives(("a", "b")) and source.gives(["c", "d"]) and not source.gives(("c",)) and not source.gives(("a", "z"))


def test_dotted_escapes_what_cannot_be_printed():
    assert dotted(("a", 0, "b\x07", 1, 2)) == "a[0].'b\\x07'[1][2]" and dotted((0, "a")) == "[0].a" and dotted(()) == ""


@pytest.mark.parametrize("text", ["plain", "a\tb\nc\r", "ä", "日本", "🙂", "a\u00a0b", "e\u0301", "\u00ad", "\u200b"])
def test_text_that_may_stand_in_a_grid(text):
    assert hidden(text) is None


@pytest.mark.parametrize(
    ("text", "found"),
    [("a\x07", "U+0007"), ("\x7f", "U+007F"), ("a\u202eb", "U+202E (RIGHT-TO-LEFT OVERRIDE)"), ("\ud800", "U+D800"),
     ("ok\u2069", "U+2069 (POP DIRECTIONAL ISOLATE)")],
    ids=ascii,
)  # fmt: skip
def test_text_that_hides_something(text, found):
    assert hidden(text) == found


def test_as_many_values_as_are_allowed():
    # The list itself, and its items.
    value, _ = loaded("[" + "1," * (MAX_VALUES - 1) + "]")
    assert value == [1] * (MAX_VALUES - 1) and MAX_VALUES == 200_000
    assert "too many values" in refused("[" + "1," * MAX_VALUES + "]").what


def test_as_many_values_as_aliases_may_unfold_to():
    # 1 list, 1 list of n items, n items, and as many again for each alias (and itself).
    items = 49_998
    anchor = "&a [" + "1," * items + "]"
    value, _ = loaded(f"[{anchor}, *a, *a, *a]")
    assert value == [[1] * items] * 4  # 1 + 4 * (1 + 49,998) = 199,997
    assert "too many" in refused(f"[{anchor}, *a, *a, *a, 1, 1, 1, 1]").what
    assert loaded(f"[{anchor}, *a, *a, *a, 1, 1, 1]")
    assert refused(f"[1, 1, 1, 1, {anchor}, *a, *a, *a]").what == "its aliases unfold to too many values"


def test_as_deep_as_is_allowed():
    assert MAX_DEPTH == 40
    assert loaded("[" * 41 + "]" * 41)[0] and "deeply" in refused("[" * 42 + "]" * 42).what
    # Through an alias: the list under a holds 20 levels below it.
    deep = "[" * 20 + "1" + "]" * 20
    assert loaded(f"a: &x {deep}\nb: {'[' * 19}*x{']' * 19}\n")
    error = refused(f"a: &x {deep}\nb: {'[' * 20}*x{']' * 20}\n")
    assert error.what == "is nested too deeply" and "(line 2)" in str(error.where)


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("0", 0), ("-7", -7), ("+7", 7), ("010", 10), ("18446744073709551615", 2**64 - 1), ("-9223372036854775808", -(2**63)),
        ("1.", 1.0), (".5", 0.5), ("1e3", 1000.0), ("1E-5", 1e-5), ("-1.5e+2", -150.0), ("1e", "1e"), ("0x10", "0x10"), ("1_000", "1_000"),
        ("'5'", "5"), ("true", True), ("True", True), ("FALSE", False), ("no", "no"), ("~", None), ("", None), ("null", None),
        ("!!str 5", "5"), ("!!float 5", 5.0), ("!!bool true", True), ("inf", "inf"), ("1e308", 1e308),
    ],
)  # fmt: skip
def test_a_scalar(text, value):
    found, _ = loaded(f"a: {text}\n")
    assert found == {"a": value} and type(found["a"]) is type(value)  # pyright: ignore[reportIndexIssue]


@pytest.mark.parametrize(
    "text",
    [
        "18446744073709551616",
        "-9223372036854775809",
        ".inf",
        "-.INF",
        ".nan",
        "1e309",
        "9" * 29,
        "9" * 30,
        "9" * 40,
        "9" * 41,
        "9" * 400,
    ],
)
def test_a_number_that_counts_nothing(text):
    error = refused(f"a: 1\nb: {text}\n")
    shown = text if len(text) <= 40 else text[:40] + "…"
    assert error.where == "x.yaml: b (line 2)" and error.what == f"found {shown}, which is not a number that counts anything"


def test_a_long_word_called_a_number_is_cut():
    assert refused(f"a: !!int {'x' * 50}\n").what == f"'{'x' * 40}' is no number"


def test_a_key_twice_names_both_lines():
    error = refused("a: 1\nb: 2\nc: 3\nb: 4\n")
    assert error.what == "'b' is given twice, first in line 2" and error.where == "x.yaml: b (line 4)"


def test_what_is_no_yaml_names_the_line():
    assert refused("a: 1\nb: [1\n").where in ("x.yaml (line 3)", "x.yaml (line 2)")
    assert refused("a: 1\nb: 2\n---\nc: 3\n").where == "x.yaml (line 3)"
    assert refused("a: 1\nb: \x07\n").where == "x.yaml (line 2)"
    assert refused("\x07").where == "x.yaml (line 1)"
    assert loaded("\ufeffa: 1\n")[0] == {"a": 1} and loaded("")[0] is None


def test_a_file_of_a_million_bytes_and_no_more(tmp_path):
    path = tmp_path / "grid.yaml"
    text = "name: x\n# "
    path.write_text(text + "x" * (MAX_BYTES - len(text)))
    assert MAX_BYTES == 1_048_576 and read(path)[0] == {"name": "x"}
    path.write_text(text + "x" * (MAX_BYTES - len(text) + 1))
    with pytest.raises(UserError, match="too many for a grid"):
        read(path)


def test_what_is_no_file_is_named_as_what_it_is(tmp_path):
    for path, what in (
        (tmp_path, "this is a folder"),
        ("/dev/null", "this is no regular file"),
        (tmp_path / "no", "no such file"),
    ):
        with pytest.raises(UserError, match=what):
            read(path)
    (tmp_path / "grid.yaml").write_bytes(b"a: 1\nb: \xe4\n")
    with pytest.raises(UserError, match="0xe4") as raised:
        read(tmp_path / "grid.yaml")
    assert str(raised.value.where).endswith("grid.yaml (line 2)")
    (tmp_path / "grid.yaml").write_bytes(b"\xe4")
    with pytest.raises(UserError) as raised:
        read(tmp_path / "grid.yaml")
    assert str(raised.value.where).endswith("grid.yaml (line 1)")


@pytest.mark.parametrize(
    ("text", "kind"),
    [("- a", "a list"), ("a", "text"), ("5", "a number"), ("1.5", "a number"), ("true", "a truth value"), ("", "empty")],
)
def test_a_grid_is_a_mapping(text, kind):
    with pytest.raises(UserError, match=f"a grid is a mapping, not {kind}"):
        parse(text, Source("x"))


TEXT = "name: x\ntraining:\n  steps: 5\nmodels: {llama-3.1: {base: {hub: a/b}}, llama-3: {}}\nstrategies: [none, {name: a.b, rank: 1}, 7]\n"


def change(*sets: str) -> tuple[dict[str, object], Source]:
    return parse(TEXT, Source("x"), sets)


def test_what_is_set_is_known_as_set_and_what_stood_there_is_gone():
    values, source = change("training={epochs: 2}", "models.llama-3.1.base.hub=c/d")
    assert values["training"] == {"epochs": 2}
    assert source.where(("training", "steps")) == "x: training.steps (--set)" and ("training", "steps") not in source.lines
    assert source.where(("training",)) == "x: training (--set)" and source.where(("name",)) == "x: name (line 1)"
    assert values["models"] == {"llama-3.1": {"base": {"hub": "c/d"}}, "llama-3": {}}
    assert source.where(("models", "llama-3.1", "base", "hub")).endswith("(--set)")
    assert source.where(("models", "llama-3.1", "base")).endswith("(line 4)")


def test_what_is_set_below_nothing_makes_it():
    values, _ = change("a.b.c=1", "strategies.a.b.rank=2", "strategies.0.rank=3", "strategies[2]=last")
    assert values["a"] == {"b": {"c": 1}}
    assert values["strategies"] == [{"name": "none", "rank": 3}, {"name": "a.b", "rank": 2}, "last"]
    assert change("training=", "training.epochs=2")[0]["training"] == {"epochs": 2}
    assert change("name=a=b")[0]["name"] == "a=b" and change(" name = y ")[0]["name"] == "y"


@pytest.mark.parametrize(
    ("text", "what", "fix"),
    [
        ("strategies.3.rank=1", "strategies has no item '3'", "an index from 0 to 2, or one of none, a.b, 7"),
        ("strategies.b=1", "strategies has no item 'b'", "an index from 0 to 2, or one of none, a.b, 7"),
        ("name.x=1", "name is text, nothing lies below it", "set it itself"),
        ("training.steps.x=1", "training.steps is a number, nothing lies below it", "set it itself"),
        ("strategies[2].x=1", "strategies[2] is a number, nothing lies below it", "set it itself"),
        ("=1", "is not path=value", "e.g. --set training.learning_rate=1e-5"),
        (" =1", "is not path=value", "e.g. --set training.learning_rate=1e-5"),
        ("name", "is not path=value", "e.g. --set training.learning_rate=1e-5"),
    ],
)
def test_a_change_that_fits_nowhere(text, what, fix):
    with pytest.raises(UserError) as raised:
        change(text)
    assert (raised.value.what, raised.value.where, raised.value.fix) == (what, f"--set {text}", fix)


def test_a_list_without_names_is_known_by_index():
    with pytest.raises(UserError) as raised:
        parse("pairs: [{phase1: a}]", Source("x"), ["pairs.5.phase1=b"])
    assert raised.value.fix == "an index from 0 to 0"


@pytest.mark.parametrize(
    ("key", "secret"),
    [
        ("password", True), ("db_passwd", True), ("SECRET", True), ("client_secret", True), ("api_key", True), ("apikey", True),
        ("aws.access_key", True), ("hf_token", True), ("hub_token", True), ("hftoken", True), ("access_token", True), ("token", True),
        ("tokens", False), ("end_token", False), ("passwords_file", False), ("key_env", False), ("secretary", False),
    ],
)  # fmt: skip
def test_a_secret_is_known_by_its_key(key, secret):
    text = f"a:\n- {{b: 1}}\n- {{{key}: abc}}\n"
    if secret:
        with pytest.raises(UserError, match="secret") as raised:
            parse(text, Source("x"))
        assert raised.value.where == f"x: a[1].{key} (line 3)"
    else:
        assert parse(text, Source("x"))
    assert parse(f"{key}: 5\n", Source("x")) and parse(f"{key}: ''\n", Source("x"))


@pytest.mark.parametrize(
    ("uri", "secret"),
    [("s3://me:pw@bucket/x", True), ("HTTPS://me:pw@host", True), ("s3://bucket/me:pw@x", False), ("https://host:80/x@y", False),
     ("see s3://me:pw@b", False), ("https://me@host", False)],
)  # fmt: skip
def test_a_password_in_an_address(uri, secret):
    text = f"a: [x, '{uri}']\n"
    if secret:
        with pytest.raises(UserError, match="password") as raised:
            parse(text, Source("x"))
        assert raised.value.where == "x: a[1] (line 1)"
    else:
        assert parse(text, Source("x"))


def test_what_may_have_been_meant():
    known = ["batch_size", "batch_sizes", "batch_sized", "steps", "LoRA"]
    assert nearest("batch_sise", known) == "did you mean batch_size or batch_sizes?"
    assert nearest("lora", known) == "did you mean LoRA?"
    assert nearest("xyz", known) == "known: batch_size, batch_sizes, batch_sized, steps, LoRA"
    assert nearest("xyz", []) == "nothing may be written here"
    # Half of the letters are not enough, a little more is.
    assert nearest("abcd", ["abxy"]) == "known: abxy" and nearest("abcde", ["abcxy"]) == "did you mean abcxy?"
