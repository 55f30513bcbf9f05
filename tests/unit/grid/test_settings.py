"""What a setting is where a grid does not give it, and the least and most that it may be: a grid file of today means the same
tomorrow, and what it left open is in the fingerprints of what was paid for."""

# ruff: noqa: E501 - the table reads best with one setting a line

import math
from collections.abc import Iterator, Sequence
from typing import Annotated, Any

import pytest
from pydantic import BaseModel, ValidationError

from cft_ray.grid import insight, schema, sections, settings
from cft_ray.grid.problems import adapter
from tests.planted.fullgrid import members

# default, least, most; `>` and `<`: the limit itself is refused; `computed`: decides no result, so it is in no fingerprint
NUMBERS = """
ActivationSettings.sample                 None       >0      1_000_000_000
ActivationSettings.max_length             2048       >0      1_000_000_000
ActivationSettings.seed                   0          0       4_294_967_295
ActivationSettings.batch_tokens           8192       >0      1_000_000_000   computed
BenchmarkChoice.limit                     None       >0      1_000_000_000
Cluster.price_per_device_hour             None       0       1_000_000_000
Cluster.max_devices                       None       >0      1_000_000_000
Cluster.mfu                               0.4        >0      1
Cluster.characters_per_token              4          >0      1_000
DatasetSource.rows                        None       >0      1_000_000_000
DatasetSource.allow_left_out              None       0       1
DivergenceSettings.sample                 200        >0      1_000_000_000
DivergenceSettings.max_length             1024       >0      1_000_000_000
DivergenceSettings.seed                   0          0       4_294_967_295
DivergenceSettings.batch_tokens           8192       >0      1_000_000_000   computed
EmbeddingPart.resamples                   1000       >0      1_000_000_000
EmbeddingSettings.sample                  500        >0      1_000_000_000
EmbeddingSettings.max_length              None       >0      1_000_000_000
EmbeddingSettings.seed                    0          0       4_294_967_295
EmbeddingSettings.batch_size              32         >0      1_000_000_000   computed
EmbeddingSettings.block_rows              2048       >0      1_000_000_000   computed
EngineSettings.sequences                  None       >0      1_000_000_000   computed
EngineSettings.batch_tokens               None       >0      1_000_000_000   computed
EngineSettings.gpu_memory                 0.85       >0      1               computed
Evaluation.limit                          None       >0      1_000_000_000
GenerationSettings.max_new_tokens         None       >0      1_000_000_000
GenerationSettings.temperature            0          0       100
GenerationSettings.max_length             4096       >0      1_000_000_000
Grid.allow_left_out                       0.05       0       1
Grid.max_cells                            100_000    >0      1_000_000_000
Grid.max_parallel                         None       >0      1_000_000_000
JudgeSettings.attempts                    3          >0      1_000
JudgeSettings.tolerate                    0.02       0       <1
JudgeSettings.max_length                  8192       >0      1_000_000_000
JudgeSettings.max_concurrency             8          >0      10_000          computed
JudgeSettings.timeout                     120        >0      86_400          computed
JudgeSettings.retries                     10         0       1_000           computed
JudgeSettings.prompt_price                None       0       1_000_000_000   computed
JudgeSettings.completion_price            None       0       1_000_000_000   computed
ReplayQualityPart.max_length              2048       >0      1_000_000_000
ReplayQualityPart.seed                    0          0       4_294_967_295
ReplaySampling.temperature                1          0       100
ReplaySampling.top_p                      1          >0      1
ReplaySampling.max_new_tokens             1024       >0      1_000_000_000
ReplaySampling.max_length                 2048       >0      1_000_000_000
ScratchModel.hidden_size                  128        >0      65_536
ScratchModel.layers                       4          >0      1_000
ScratchModel.heads                        4          >0      1_000
ScratchModel.kv_heads                     2          >0      1_000
ScratchModel.intermediate_size            384        >0      1_000_000
ScratchModel.max_positions                512        >0      1_000_000_000
SizeHint.rows                             required   >0      1_000_000_000_000
SizeHint.tokens_per_row                   None       >0      1_000_000_000
StageResources.workers                    1          >0      10_000
StageResources.cpus                       1          0.001   10_000
StageResources.gpus                       0          0       1_000
StageResources.hours                      None       >0      10_000
StageResources.still_minutes              60         >0      1_000_000
TrainingSettings.learning_rate            1e-6       >0      100
TrainingSettings.epochs                   4          >0      1_000_000_000
TrainingSettings.steps                    None       >0      1_000_000_000
TrainingSettings.batch_size               16         >0      1_000_000_000
TrainingSettings.warmup_steps             10         0       1_000_000_000
TrainingSettings.weight_decay             0          0       100
TrainingSettings.beta1                    0.9        0       <1
TrainingSettings.beta2                    0.999      0       <1
TrainingSettings.epsilon                  1e-8       >0      1
TrainingSettings.max_grad_norm            1          >0      1_000_000_000
TrainingSettings.max_length               None       >0      1_000_000_000
TrainingSettings.packing                  None       >0      1_000_000_000
TrainingSettings.micro_batch_tokens       8192       >0      1_000_000_000   computed
TrainingSettings.checkpoint_every         None       >0      1_000_000_000   computed
"""
# What may be left open and is no number; None where nothing is said.
OTHERS = """
ActivationPart       prompts=None parallel=None template='grid' parallel_template=None
ActivationSettings   dtype='auto'
Cluster              device=None currency='USD'
DatasetSource        split='train' format=None columns=None english=None
DivergenceSettings   dtype='auto'
Embedder             lexical=False
EmbeddingPart        model=None replay_text='answer'
EmbeddingSettings    text='instruction'
Evaluation           backend='vllm' template='model' judge=None evaluate_base=True
GenerationSettings   stop=() dtype='auto'
Grid                 seeds=[0] fetched=None insight=None training={} replay={} include=[] exclude=[] loggers=[]
Insight              drift=('phases','datasets')
Judge                insecure=False
JudgeSettings        annotator='alpaca_eval_gpt4' parameters={} dtype='auto'
ReplaySampling       dtype='auto'
ScratchModel         architecture='mistral'
Template             system=None date='2024-07-26'
TrainingSettings     schedule='cosine' precision='bf16' long_rows='drop' train_on_prompt=False padding='free' gradient_checkpointing=False offload='none'
"""
COMPUTED = {
    *("TrainingSettings.padding", "TrainingSettings.gradient_checkpointing", "TrainingSettings.offload"),
    *("JudgeSettings.base_url", "JudgeSettings.key_env"),
}


def models() -> dict[str, type[BaseModel]]:
    """Every model of the schema by its name."""
    found: dict[str, type[BaseModel]] = {
        name: item
        for module in (settings, sections, insight, schema)
        for name, item in vars(module).items()
        if isinstance(item, type) and issubclass(item, settings.Settings)
    }
    return found


def rows() -> Iterator[tuple[type[BaseModel], str, Sequence[str]]]:
    for line in NUMBERS.strip().splitlines():
        name, *said = line.split()
        model, _, key = name.partition(".")
        yield models()[model], key, said


ROWS = list(rows())


def taken(model: type[BaseModel], key: str, value: Any) -> bool:
    try:
        return adapter(model, key).validate_python(value) == value
    except ValidationError:
        return False


@pytest.mark.parametrize(("model", "key", "said"), ROWS, ids=[f"{model.__name__}.{key}" for model, key, _ in ROWS])
def test_a_number_has_its_default_and_limits(model, key, said):
    default, least, most, *computed = said
    field = model.model_fields[key]
    if default == "required":
        assert field.is_required()
    else:
        assert field.get_default(call_default_factory=True) == (None if default == "None" else float(default))
    assert (field.json_schema_extra == {"identity": False}) == (computed == ["computed"])
    whole = int in members(Annotated[field.annotation, *field.metadata])

    def beside(value: float, direction: int) -> float:
        return int(value) + direction if whole else math.nextafter(value, direction * math.inf)

    for text, inwards in ((least, 1), (most, -1)):
        limit = float(text.lstrip("<>"))
        limit = int(limit) if whole else limit
        assert taken(model, key, limit) == (text == text.lstrip("<>")), limit
        assert taken(model, key, beside(limit, inwards)) and not taken(model, key, beside(limit, -inwards)), limit


def test_every_number_is_in_the_table():
    def limited(annotation: Any) -> bool:
        return bool({int, float} & set(members(annotation)))

    inherited = {
        name: {key for base in model.__mro__[1:-1] for key in getattr(base, "model_fields", {})}
        for name, model in models().items()
    }
    found = {
        f"{name}.{key}"
        for name, model in models().items()
        for key, field in model.model_fields.items()
        if limited(field.annotation) and key not in inherited[name]
    }
    assert found == {f"{model.__name__}.{key}" for model, key, _ in ROWS}


@pytest.mark.parametrize("line", OTHERS.strip().splitlines(), ids=lambda line: line.split()[0])
def test_what_else_may_be_left_open(line):
    name, said = line.split(maxsplit=1)
    expected: dict[str, Any] = eval(f"dict({said.replace(' ', ',')})")
    fields = models()[name].model_fields
    assert {key: fields[key].get_default(call_default_factory=True) for key in expected} == expected


def test_what_decides_no_result_is_marked():
    marked = {
        f"{model.__name__}.{key}"
        for model in (settings.TrainingSettings, settings.JudgeSettings)
        for key, field in model.model_fields.items()
        if field.json_schema_extra == {"identity": False}
    }
    numbers = {f"{model.__name__}.{key}" for model, key, said in ROWS if said[3:]}
    assert marked == COMPUTED | {name for name in numbers if name.startswith(("TrainingSettings", "JudgeSettings"))}


def test_settings_do_not_change_and_take_no_other_key():
    training = settings.TrainingSettings()
    with pytest.raises(ValidationError):
        training.learning_rate = 1.0  # pyright: ignore[reportAttributeAccessIssue]
    with pytest.raises(ValidationError):
        settings.TrainingSettings.model_validate({"learning_rat": 1.0})


def test_steps_stand_for_epochs_and_one_of_them_must_be_there():
    assert (settings.TrainingSettings(steps=5).epochs, settings.TrainingSettings(steps=5).steps) == (None, 5)
    assert settings.TrainingSettings.model_validate({"steps": None}).epochs == 4
    for both in ({"steps": 5, "epochs": 4}, {"epochs": None}, {"epochs": None, "steps": None}):
        with pytest.raises(ValidationError, match="twice" if both.get("steps") else "nowhere"):
            settings.TrainingSettings.model_validate(both)


@pytest.mark.parametrize(
    ("max_length", "positions", "longest"),
    [(None, None, 2048), (None, 512, 512), (None, 2048, 2048), (None, 131_072, 2048), (4096, 512, 4096), (100, None, 100)],
)
def test_the_longest_row(max_length, positions, longest):
    assert settings.TrainingSettings(max_length=max_length).longest(positions) == longest


def test_an_engine_has_room_for_a_multiple_of_4096():
    assert [settings.engine_length(n) for n in (1, 4095, 4096, 4097, 8192, 8193)] == [4096, 4096, 4096, 8192, 8192, 12288]


@pytest.mark.parametrize(
    ("changes", "fits"),
    [
        ({"hidden_size": 64, "heads": 2, "kv_heads": 1}, True),
        ({"hidden_size": 64, "heads": 2, "kv_heads": 2}, True),
        ({"hidden_size": 66, "heads": 2, "kv_heads": 1}, True),
        ({"hidden_size": 62, "heads": 2, "kv_heads": 1}, False),
        ({"hidden_size": 129, "heads": 2, "kv_heads": 1}, False),
        ({"hidden_size": 192, "heads": 6, "kv_heads": 4}, False),
        ({"hidden_size": 192, "heads": 6, "kv_heads": 3}, True),
    ],
    ids=str,
)
def test_a_scratch_models_heads(changes, fits):
    if fits:
        assert settings.ScratchModel(**changes).model_dump().items() >= changes.items()
    else:
        with pytest.raises(ValidationError):
            settings.ScratchModel(**changes)


@pytest.mark.parametrize(
    ("date", "fits"),
    [
        ("2024-02-29", True),
        ("1999-12-31", True),
        ("2024-13-01", False),
        ("2024-00-10", False),
        ("2024-01-32", False),
        ("26 Jul 2024", False),
    ],
)
def test_a_templates_date(date, fits):
    assert taken(settings.Template, "date", date) == fits


@pytest.mark.parametrize(("gpus", "fits"), [(0, True), (0.25, True), (1, True), (1.5, False), (2, True), (2.5, False), (8, True)])
def test_devices_are_whole_or_a_share_of_one(gpus, fits):
    if fits:
        assert sections.StageResources(gpus=gpus).gpus == gpus
    else:
        with pytest.raises(ValidationError):
            sections.StageResources(gpus=gpus)
