"""A grid in which every section of the schema stands, and a walk over every setting that the schema has."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Annotated, Any, Union, get_args, get_origin

from pydantic import BaseModel

from cft_ray.grid.schema import Grid
from cft_ray.grid.settings import GenerationSettings, ReplaySampling, TrainingSettings
from cft_ray.strategies import REGISTRY, resolve

SCRATCH = {"hidden_size": 64, "layers": 4, "heads": 2, "kv_heads": 1, "intermediate_size": 128}
FULL: dict[str, Any] = {
    "name": "full",
    "storage": {"uri": "runs/full"},
    "seeds": [0, 1],
    "models": {
        "tiny": {
            "base": {"scratch": SCRATCH, "train": {"data": "mixture", "training": {"steps": 4}, "resources": {"workers": 1}}},
            "instruct": {"start": "base", "train": {"data": "alpaca"}, "template": {"name": "toy"}},
        },
        "large": {"base": {"hub": "owner/model", "revision": "main"}, "instruct": {"path": "models/instruct"}},
    },
    "datasets": {
        "mixture": {"toy": "mixture", "languages": ["en"], "rows": 8},
        "alpaca": {"toy": "alpaca", "languages": ["en"]},
        "many": {"toy": "multialpaca", "languages": ["de", "es"], "english": "alpaca", "template": {"name": "toy"}},
        "published": {"hub": "owner/rows", "format": "alpaca", "languages": ["de"], "size_hint": {"rows": 10}},
        "local": {
            "files": "{language}.jsonl",
            "columns": {"instruction": "q", "output": "a"},
            "languages": ["de"],
            "english": "alpaca",
        },
    },
    "pairs": [
        {"phase1": "alpaca", "phase2": "many"},
        {"phase1": "instruct", "phase2": "many"},
        {"phase1": "published", "phase2": "local"},
    ],
    "allow_left_out": 0.1,
    "strategies": [
        {"name": "none"},
        {"name": "LF_H1", "layers": 1},
        {"name": "LF_H2", "layers": 1},
        {"name": "GR", "ratio": 0.1},
        {"name": "ER", "ratio": 0.1},
        {"name": "LoRA", "rank": 4, "training": {"learning_rate": 1e-4}},
    ],
    "template": {"name": "alpaca"},
    "training": {"batch_size": 8, "phase1": {"learning_rate": 1e-5}, "phase2": {"steps": 8}},
    "replay": {"temperature": 0.9},
    "evaluation": {
        "benchmarks": [
            {"name": "toy_letters", "generation": {"temperature": 0.0}, "template": {"name": "toy"}},
            {"name": "xquad", "languages": ["de"]},
            {"name": "mlqa"},
            {"name": "alpaca_eval"},
        ],
        "generation": {"max_length": 256},
        "judge": {"model": "judge", "base_url": "https://judge.example/v1", "key_env": "JUDGE_KEY"},
        "data": {"xquad": "xquad/{language}.parquet"},
        "revisions": {"mlqa": "main"},
        "engine": {"sequences": 4},
    },
    "insight": {
        "embedding": {"sample": 8, "model": {"lexical": True}},
        "drift": ["phases"],
        "activations": {"sample": 8, "prompts": "mixture"},
        "divergence": {"sample": 8},
        "replay_quality": {"seed": 1},
    },
    "resources": {"finetune": {"workers": 2, "cpus": 1.0}},
    "cluster": {"device": "H100", "max_devices": 8},
    "loggers": [{"name": "tensorboard", "folder": "curves"}, {"name": "mlflow"}, {"name": "wandb", "mode": "offline"}],
    "include": [{"model": ["tiny", "large"]}],
    "exclude": [{"strategy": ["LoRA"], "seed": 1}],
}

Place = tuple[str | int, ...]


@dataclass(frozen=True)
class Setting:
    """A field of the schema at one place of `FULL`, which need not give it."""

    place: Place
    model: type[BaseModel]
    name: str

    @property
    def annotation(self) -> Any:
        """Type, with its limits."""
        field = self.model.model_fields[self.name]
        return Annotated[field.annotation, *field.metadata] if field.metadata else field.annotation

    @property
    def types(self) -> list[Any]:
        """What may stand there, unions and annotations taken apart."""
        return members(self.annotation)

    @property
    def limits(self) -> dict[str, float]:
        """`gt`, `ge`, `lt`, `le` of the number that may stand there."""
        return dict(_limits(self.annotation))


def members(annotation: Any) -> list[Any]:
    """The types that an annotation allows."""
    if get_origin(annotation) is Annotated:
        return members(get_args(annotation)[0])
    if get_origin(annotation) is Union or type(annotation).__name__ == "UnionType":
        return [member for argument in get_args(annotation) for member in members(argument)]
    return [annotation]


def _limits(annotation: Any) -> Iterator[tuple[str, float]]:
    if get_origin(annotation) is Annotated:
        for item in annotation.__metadata__:
            for whole in (item, *getattr(item, "metadata", ())):
                yield from ((name, getattr(whole, name)) for name in ("gt", "ge", "lt", "le") if hasattr(whole, name))
        yield from _limits(get_args(annotation)[0])
    elif get_origin(annotation) is Union or type(annotation).__name__ == "UnionType":
        for argument in get_args(annotation):
            yield from _limits(argument)


def settings(model: type[BaseModel] = Grid, raw: Any = FULL, place: Place = ()) -> Iterator[Setting]:
    """Every field of the models that stand somewhere in `FULL`; what a grid writes as a mapping of overrides is its model's."""
    for name in model.model_fields:
        setting = Setting((*place, name), model, name)
        yield setting
        if isinstance(raw, dict) and name in raw:
            yield from _below(setting.types, raw[name], setting.place)


def mappings(model: type[BaseModel] = Grid) -> Iterator[tuple[Place, type[BaseModel]]]:
    """Every place of `FULL` where one of the schema's models stands."""
    found = dict.fromkeys((setting.place[:-1], setting.model) for setting in settings(model))
    yield from found


_OVERRIDES: dict[str, type[BaseModel]] = {
    "training": TrainingSettings,
    "phase1": TrainingSettings,
    "phase2": TrainingSettings,
    "replay": ReplaySampling,
    "generation": GenerationSettings,
}


def _below(types: list[Any], raw: Any, place: Place) -> Iterator[Setting]:
    for kind in types:
        if isinstance(kind, type) and issubclass(kind, BaseModel) and isinstance(raw, dict):
            yield from settings(kind, raw, place)
            if place[0] == "strategies" and len(place) == 2:
                use = raw["name"] if raw["name"] in REGISTRY else raw["use"]
                yield from settings(resolve(use), raw, place)
        elif get_origin(kind) is dict and isinstance(raw, dict):
            if get_args(kind)[1] is Any and place[-1] in _OVERRIDES:
                yield from settings(_OVERRIDES[str(place[-1])], raw, place)
                if "phase2" in raw:  # `phase1` is alike
                    yield from settings(TrainingSettings, raw["phase2"], (*place, "phase2"))
            else:
                for key, item in raw.items():
                    yield from _below(members(get_args(kind)[1]), item, (*place, key))
        elif get_origin(kind) in (list, tuple) and isinstance(raw, list):
            for index, item in enumerate(raw):
                yield from _below(members(get_args(kind)[0]), item, (*place, index))
