"""The settings of one training run, as a Python object, a JSON or a YAML file."""

import json
import os
import re
from collections.abc import Iterator
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal

import yaml
from pydantic import Field, ValidationError, model_validator
from pydantic.dataclasses import dataclass

from vlmhelpers.common.files import atomic_file
from vlmhelpers.common.printable import one_line, printable, shortened
from vlmhelpers.common.settings import Settings, in_one_sentence, sentence_of, shown
from vlmhelpers.training.methods.catalog import METHODS, OWN_SETTINGS, methods_with

if TYPE_CHECKING:
    from vlmhelpers.estimation.suggestion import Values

# What a run leaves in its output_dir, besides checkpoints; a model is whole, with weights of its own trained.
ADAPTER, MODEL, HELD_OUT = "adapter", "model", "held_out"
REJECTED, RESULTS, SETTINGS = "rejected.csv", "results.json", "run_config.yaml"

_SUITABLE, _USUAL = "none: what suits the model", "none: as the method has it"
# What `suggest` fills in.
_SUGGESTED = (
    "learning_rate lora_r lora_alpha epochs max_steps batch_size gradient_accumulation_steps bits max_length "
    "max_pixels warmup_steps adam_beta2 max_grad_norm"
).split()
# In a file they start at the file's folder.
PATHS = ("dataset", "output_dir", "image_root", "reward_model", "chat_template")
MODEL_NAMES = ("model_id", "teacher")  # and so do these where that folder exists
# What changes how and where a run computes and writes, and not what it learns.
WITHOUT_EFFECT = tuple(
    "cache report_to backend gradient_checkpointing logging_steps eval_steps save_steps sample_answers".split()
)
_FIELDS = ("text_field", "image_field", "response_field")
# Those of transformers that need no more than this; some others end in an error without arguments of their own.
_SCHEDULES = (
    "cosine", "linear", "constant", "constant_with_warmup", "cosine_with_restarts", "polynomial", "inverse_sqrt"
)  # fmt: skip
_CHANGE_BASE = ("pissa", "olora")
# What others call a setting: transformers, TRL, peft, LLaMA-Factory and ms-swift.
_OTHER_NAMES = {
    "": "adam_beta1 bias num_iterations revision use_bdlora use_qalora",  # a letter or two away from other settings
    "beta": "pref_beta",
    "batch_size": "per_device_train_batch_size train_batch_size micro_batch_size",
    "bits": "load_in_4bit quantization_bit quant_bits",
    "chat_template": "chat_template_path",
    "dataset": "train_dataset train_file dataset_path dataset_name data_path",
    "epochs": "num_train_epochs num_epochs n_epochs",
    "gradient_accumulation_steps": "gradient_accumulation grad_accum grad_accumulation_steps accumulation_steps",
    "init_lora_weights": "init_weights",
    "label_smoothing": "dpo_label_smoothing label_smoothing_factor",
    "learning_rate": "lr",
    "loss": "loss_type pref_loss",
    "lora_alpha": "alpha",
    "lora_r": "r rank lora_rank",
    "lr_scheduler_type": "lr_scheduler scheduler",
    "max_completion_length": "max_new_tokens",
    "max_grad_norm": "gradient_clipping clip_grad_norm",
    "max_length": "cutoff_len max_seq_length max_seq_len model_max_length",
    "max_pixels": "image_max_pixels",
    "method": "stage rlhf_type trainer",
    "model_id": "model model_name model_path base_model model_name_or_path",
    "rewards": "reward_funcs",
    "test_rows": "test_size test_dataset",
    "validation_rows": "eval_dataset val_dataset validation_dataset val_size validation_split split_dataset_ratio",
    "warmup_steps": "warmup_ratio warmup",
    "weights": "finetuning_type tuner_type train_type",
}
_LARGEST_FILE = 100_000  # bytes; all settings of a run take two thousand


@dataclass(frozen=True)
class RunConfig(Settings):
    """The settings of one training run; a text such as "1e-4" or "none" is converted, others raise ValueError."""

    other_names: ClassVar[dict[str, str]] = {
        other: name for name, others in _OTHER_NAMES.items() for other in others.split()
    }

    model_id: str = Field(min_length=1, description="a hub id, a folder, or a family, which stands for its tiny base")
    dataset: str = Field(min_length=1, description="a file of the rows that the method takes")
    output_dir: str = Field(min_length=1, description="folder of the checkpoints and of all that the run leaves")
    method: Literal[tuple(METHODS)] = Field("sft", description="how the model is trained")

    # The data
    image_root: str | None = Field(None, description="folder that image paths start from; none: that of the dataset")
    text_field: str = Field("text", min_length=1, description="the dataset's field of questions")
    image_field: str = Field("image", min_length=1, description="the dataset's field of image paths")
    response_field: str = Field("response", min_length=1, description="the dataset's field of answers")
    streaming: bool = Field(
        False, description="dataset is a pattern of shards, read row by row while it trains; needs max_steps"
    )
    test_rows: int = Field(0, ge=0, description="rows held out of the training")
    validation_rows: int = Field(0, ge=0, description="rows whose loss is shown beside that of the training")
    max_length: int | None = Field(None, ge=1, description=f"tokens; a longer row is an error, not cut; {_SUITABLE}")
    max_pixels: int | None = Field(None, ge=1, description=f"of an image after resizing; {_SUITABLE}")
    chat_template: str | None = Field(None, description="a .jinja file in place of the model's own template")
    # The model and what is trained of it
    weights: Literal["lora", "full", "freeze"] = Field(
        "lora", description="adapters, all weights, or (freeze) those of the last layers"
    )
    last_layers: int | None = Field(None, ge=1, description="of the language model, with weights=freeze; none: 1")
    bits: Literal[4, 16, None] = Field(None, description=f"4: QLoRA; 16: the weights as they are; {_SUITABLE}")
    backend: Literal["auto", "transformers", "unsloth"] = Field("auto", description="library that runs the model")
    lora_r: int | None = Field(None, ge=1, description=f"rank of the adapters; {_SUITABLE}")
    lora_alpha: int | None = Field(None, ge=1, description="the adapters' scale is lora_alpha / lora_r; none: 1")
    lora_dropout: float = Field(0.0, ge=0, lt=1, description="share of the adapters' inputs left out at random")
    use_rslora: bool = Field(False, description="the adapters' scale is lora_alpha / sqrt(lora_r)")
    use_dora: bool = Field(False, description="the norm of the weights is trained, too (DoRA)")
    init_lora_weights: Literal["default", "gaussian", "pissa", "olora"] = Field(
        "default", description="start of the adapters; pissa, olora: from the weights, in 16 bits"
    )
    language: bool = Field(True, description="the language model is trained")
    vision: bool = Field(False, description="the vision encoder and the projector are trained")
    attention: bool = Field(True, description="adapters on the linear layers of the attention")
    mlp: bool = Field(True, description="adapters on the other linear layers")
    experts: bool = Field(False, description="adapters on the experts of a mixture, too")
    # The training
    epochs: float | None = Field(None, ge=0, description=f"passes over the data; {_SUITABLE}")
    max_steps: int | None = Field(
        None,
        ge=-1,
        description="optimizer steps in place of epochs; -1: train by epochs; none: by epochs if there are any",
    )
    batch_size: int | None = Field(None, ge=1, description=f"rows per device; {_SUITABLE}")
    gradient_accumulation_steps: int | None = Field(None, ge=1, description=f"batches per optimizer step; {_SUITABLE}")
    learning_rate: float | None = Field(None, ge=0, description=f"the highest one, after the warm-up; {_SUITABLE}")
    lr_scheduler_type: Literal[_SCHEDULES] = Field("cosine", description="a schedule of transformers, such as linear")
    warmup_steps: int | None = Field(None, ge=0, description=f"optimizer steps of rising learning rate; {_SUITABLE}")
    adam_beta2: float | None = Field(None, ge=0, lt=1, description=f"decay of AdamW's second moment; {_SUITABLE}")
    max_grad_norm: float | None = Field(
        None, ge=0, description=f"gradients are clipped to this norm; 0: never; {_SUITABLE}"
    )
    early_stopping_patience: int | None = Field(
        None, ge=1, description="validations in a row without a better one that end the training; none: never"
    )
    load_best_model_at_end: bool = Field(
        False, description="the weights of the best validation are kept, not the last; each better one is a checkpoint"
    )
    gradient_checkpointing: bool | None = Field(None, description="saves memory, costs time; none: on a GPU only")
    cache: Literal["none", "pixels", "features"] = Field("none", description="kept on disk; features: of frozen vision")
    seed: int = Field(0, ge=0, lt=2**32, description="of the split, the order of the rows and the adapters")
    # Settings that only some methods have: METHODS says which
    beta: float | None = Field(None, ge=0, description=f"weight of the reference, or scale of the margin; {_USUAL}")
    loss: str | None = Field(None, description=f"a variant of the method, for dpo several joined by +; {_USUAL}")
    label_smoothing: float | None = Field(None, ge=0, lt=0.5, description=f"share of pairs held for wrong; {_USUAL}")
    simpo_gamma: float | None = Field(None, ge=0, description=f"the margin that SimPO asks for; {_USUAL}")
    nll_coef: float | None = Field(None, ge=0, description=f"weight of the chosen answers' likelihood; {_USUAL}")
    center_rewards_coefficient: float | None = Field(None, ge=0, description="keeps rewards near zero; none: does not")
    num_generations: int | None = Field(None, ge=2, description=f"answers sampled for each prompt; {_USUAL}")
    max_completion_length: int | None = Field(None, ge=1, description=f"tokens of a sampled answer; {_USUAL}")
    temperature: float | None = Field(None, gt=0, description=f"of the sampling; {_USUAL}")
    rewards: str | None = Field(
        None, description="as parse_rewards reads them, ; between two: exact_match; 0.1*matches:A"
    )
    reward_model: str | None = Field(None, description="folder of an adapter or a model that method=reward trained")
    critic_learning_rate: float | None = Field(None, gt=0, description="none: learning_rate")
    teacher: str | None = Field(None, description="a hub id, a model's or adapter's folder, or a family")
    # What is written
    logging_steps: int = Field(10, ge=1, description="optimizer steps from one logged loss to the next")
    eval_steps: int | None = Field(
        None, ge=1, description="optimizer steps from one validation to the next; none: logging_steps"
    )
    sample_answers: int = Field(0, ge=0, description="held-out rows that are answered beside each validation")
    save_steps: int = Field(100, ge=1, description="optimizer steps from one checkpoint to the next")
    report_to: Literal["none", "tensorboard", "trackio", "wandb"] = Field("none", description="experiment tracker")

    @model_validator(mode="after")
    def _check(self) -> "RunConfig":
        if problem := next(_contradictions(self), None):
            raise ValueError(problem)
        return self

    @classmethod
    def read(cls, path: str | os.PathLike, /, **changes: Any) -> "RunConfig":
        """The settings in a .json or .yaml file, whose paths start at its folder, with `changes`.

        Raises ValueError, which names the file, for what is no such file or no such setting, and OSError.
        """
        path = Path(path)
        settings = {str(name): value for name, value in load_settings(path).items()}
        for name, value in settings.items():
            if _is_path(path.parent, name, value):
                settings[name] = _from_folder(path, name, value)
        try:
            return cls(**settings | changes)
        except ValidationError as error:
            problems = in_one_sentence(sentence_of(problem, cls) for problem in error.errors())
            raise ValueError(printable(f"{path}{', changed' * bool(changes)}: {problems}")) from None

    def save(self, path: str | os.PathLike) -> None:
        """Writes all settings to a .json, .yaml or .yml file, with paths relative to its folder."""
        path = Path(path)
        settings = {name: _to_folder(path.parent, name, value) for name, value in asdict(self).items()}
        with atomic_file(path, encoding="utf-8") as file:
            if _is_yaml(path):
                yaml.safe_dump(settings, file, sort_keys=False, allow_unicode=True)
            else:
                json.dump(settings, file, indent=1, ensure_ascii=False)

    @property
    def named_fields(self) -> dict[str, str]:
        """The names of the dataset's fields that are not the usual ones, by setting; the readers know those."""
        return {name: getattr(self, name) for name in _FIELDS if getattr(self, name) != _default(name)}

    @property
    def trains_adapters(self) -> bool:
        """False where the weights of the model itself are trained."""
        return self.weights == "lora"

    @property
    def changes_base(self) -> bool:
        """Whether the start of the adapters is taken out of the model's weights."""
        return self.trains_adapters and self.init_lora_weights in _CHANGE_BASE

    @property
    def tracks_best(self) -> bool:
        """Whether the run, or what is kept of it, depends on which validation was the best."""
        return bool(self.early_stopping_patience or self.load_best_model_at_end)

    @property
    def deciding(self) -> dict[str, object]:
        """What decides what the run ends with, by name: all settings but those without effect."""
        found = {name: value for name, value in asdict(self).items() if name not in WITHOUT_EFFECT}
        return found | ({"steps between validations": self.validated_every} if self.tracks_best else {})

    @property
    def validated_every(self) -> int:
        """Optimizer steps from one validation, and from one sample of answers, to the next."""
        return self.eval_steps or self.logging_steps

    @property
    def runs_on(self) -> str:
        """The backend: transformers in place of auto for what Unsloth does not train."""
        return "transformers" if self.backend == "auto" and any(_not_of_unsloth(self)) else self.backend

    @property
    def chosen(self) -> dict[str, object]:
        """The values, by name, that are left to `suggest` where they are None."""
        return {name: getattr(self, name) for name in _SUGGESTED}

    @property
    def memory_options(self) -> dict[str, object]:
        """Options of `estimate_memory` that follow from how the run trains, but for those that `suggest` fills in.

        With adapters the reference is the base without them. GRPO's own beta is 0, and then TRL loads none.
        """
        options = {"vision": self.vision, "gradient_checkpointing": self.gradient_checkpointing is not False}
        if self.trains_adapters:
            return options | {"experts": self.experts}
        method, last = METHODS[self.method], (self.last_layers or 1) if self.weights == "freeze" else None
        no_penalty = self.method == "grpo" if self.beta is None else self.beta == 0
        reference = method.refers and not (method.samples and no_penalty)
        return options | {"full": self.weights == "full", "last_layers": last, "reference": reference}

    def with_absolute_paths(self) -> "RunConfig":
        """The same settings, whichever the working directory is; of models, folders that are there are paths."""
        paths = {name: os.path.abspath(value) for name, value in asdict(self).items() if _is_path(Path(), name, value)}
        return replace(self, **paths)

    def filled(self, values: "Values") -> "RunConfig":
        """The same settings, with those of `values` for all that `suggest` fills in."""
        return replace(self, **{name: getattr(values, name) for name in _SUGGESTED})

    def _repr_html_(self):
        from vlmhelpers.common.display import html_table

        return html_table(["setting", "value"], asdict(self).items())


def _contradictions(config: RunConfig) -> Iterator[str]:
    """Why settings do not go together, a sentence each."""
    if config.max_steps == 0:
        yield "max_steps is 0: a number of steps, or -1 to train by epochs"
    if config.streaming:
        yield from _of_streams(config)
    if not (config.language or config.vision):
        yield "language and vision are both false: nothing would be trained"
    if config.vision and config.cache == "features":
        yield "cache is 'features', but vision is true: features change in training; choose 'pixels'"
    yield from _of_held_out_rows(config)
    if config.chat_template and not config.chat_template.lower().endswith(".jinja"):
        yield f"chat_template is {shown(config.chat_template)}: name a .jinja file, the template's text"
    yield from _of_method(config)
    yield from _of_weights(config)
    if config.backend == "unsloth":
        yield from (f"backend is 'unsloth', which has no {what}: choose 'auto'" for what in _not_of_unsloth(config))


def _of_streams(config):
    if (config.max_steps or 0) < 1:
        yield "streaming is true, and what is streamed has no known number of rows, so no epochs: choose max_steps"
    if config.cache != "none":
        yield f"cache is {config.cache!r}, and streaming is true: what may come but once is not kept; choose 'none'"
    if config.method != "sft":
        yield f"streaming is true, and method is {config.method!r}: only 'sft' trains on a stream"


def _of_held_out_rows(config):
    if config.sample_answers and not (config.validation_rows or config.test_rows):
        yield f"sample_answers is {config.sample_answers}, and no row is held out: choose validation_rows or test_rows"
    if config.validation_rows:
        return
    for name in ("early_stopping_patience", "load_best_model_at_end"):
        if value := getattr(config, name):
            yield f"{name} is {value}, and no row is held out for validation: choose validation_rows"
    if config.eval_steps and not config.sample_answers:
        yield f"eval_steps is {config.eval_steps}, and no row is held out for validation: choose validation_rows"


def _of_method(config):
    name, method = config.method, METHODS[config.method]
    for setting in OWN_SETTINGS:
        if getattr(config, setting) is not None and setting not in method.settings:
            yield f"{setting} is a setting of {', '.join(methods_with(setting))}, and method is {name!r}"
    if config.cache != "none" and name != "sft":
        yield f"cache is {config.cache!r}, which is for method='sft': choose 'none'"
    if unknown := set(config.loss.split("+") if config.loss else ()) - set(method.losses):
        yield f"loss is {config.loss!r}: {name} has no {unknown.pop()!r}; choose {', '.join(method.losses)}"
    elif name == "kto" and "+" in (config.loss or ""):
        yield f"loss is {config.loss!r}, and KTO has one loss at a time: choose {' or '.join(method.losses)}"
    if name == "kto" and config.batch_size == 1 and config.loss in (None, "kto"):
        remedy = "choose 2 or more, or loss='apo_zero_unpaired'"
        yield f"batch_size is 1, and KTO compares each row with the others of its batch: {remedy}"
    if "rewards" in method.settings and not ((config.rewards or "").strip("; ") or config.reward_model):
        yield f"rewards is missing, and method {name!r} needs some, such as exact_match, or a reward_model"
    if "teacher" in method.settings and not config.teacher:
        kinds = "a model's hub id or folder, an adapter's folder, or a family"
        yield f"teacher is missing, and method {name!r} needs one: {kinds}"


def _of_weights(config):
    name, weights = config.method, config.weights
    if config.last_layers and weights != "freeze":
        yield f"last_layers is for weights='freeze', and weights is {weights!r}"
    if not config.trains_adapters:
        if config.bits == 4:
            yield f"weights is {weights!r}, and weights of 4 bits cannot be trained: choose bits=16"
        if name == "ppo":
            yield f"weights is {weights!r}, and 'ppo' trains two adapters, the policy's and the critic's: choose 'lora'"
        own = ("lora_dropout", "use_rslora", "use_dora", "init_lora_weights", "attention", "mlp", "experts")
        if changed := [own_name for own_name in own if getattr(config, own_name) != _default(own_name)]:
            yield f"{changed[0]} is for adapters, and weights is {weights!r}"
    if config.experts and (config.use_dora or config.lora_dropout):
        yield "experts is true, and peft adapts experts without use_dora and lora_dropout: leave these out"
    if config.changes_base:
        start = f"init_lora_weights is {config.init_lora_weights!r}, which changes the base's weights"
        if config.bits == 4:
            yield f"{start}, and rounds them in 4 bits: choose bits=16"
        if METHODS[name].refers:
            yield f"{start}, and {name!r} compares with the base: choose 'default'"
        if config.use_dora:
            yield f"{start}: without use_dora only are the adapters saved for the base as it was"


def _not_of_unsloth(config):
    """What of the settings Unsloth does not train."""
    if config.method != "sft":
        yield f"method={config.method!r}"
    if not config.trains_adapters:
        yield f"weights={config.weights!r}"
    if config.init_lora_weights != "default":
        yield f"init_lora_weights={config.init_lora_weights!r}"
    if config.use_dora:
        yield "use_dora"
    if config.experts:
        yield "experts"


def _default(name):
    return RunConfig.described()[name].default


def _is_yaml(path):
    if path.suffix.lower() not in (".json", ".yaml", ".yml"):
        raise ValueError(printable(f"{path} is no .json, .yaml or .yml file. Name one that is."))
    return path.suffix.lower() != ".json"


class _Loader(yaml.SafeLoader):
    """YAML without aliases, with which a few lines can hold gigabytes, and with each name once.

    Numbers are those of YAML 1.2: 010 is not 8, 1:30 is not 90, and 1e-4 is a number.
    """

    def compose_node(self, parent, index):
        if self.check_event(yaml.AliasEvent):
            raise yaml.YAMLError("an alias (*name) stands for a value: write the value itself")
        return super().compose_node(parent, index)

    def construct_mapping(self, node, deep=False):
        _once([(str(key.value), value) for key, value in node.value])
        return super().construct_mapping(node, deep)


_NUMBERS = {
    "int": r"[-+]?(0|[1-9][0-9]*)|0x[0-9a-fA-F]+",
    "float": r"[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)([eE][-+]?[0-9]+)?|[-+]?\.(inf|Inf|INF)|\.(nan|NaN|NAN)",
}
_Loader.yaml_implicit_resolvers = {
    start: [(tag, pattern) for tag, pattern in found if tag.rpartition(":")[2] not in _NUMBERS]
    for start, found in yaml.SafeLoader.yaml_implicit_resolvers.items()
}
for _kind, _pattern in _NUMBERS.items():
    _Loader.add_implicit_resolver(f"tag:yaml.org,2002:{_kind}", re.compile(f"^({_pattern})$"), list("-+.0123456789"))


def _once(pairs):
    settings = dict(pairs)
    if len(settings) < len(pairs):
        names = [name for name, _ in pairs]
        raise ValueError(f"{shown(next(name for name in settings if names.count(name) > 1))} is there twice")
    return settings


def load_settings(path: Path) -> dict:
    """What a .json or .yaml file of settings holds, read with no more than plain values.

    Raises ValueError, which names the file, for another ending, for what is no such file or too large, and OSError.
    """
    is_yaml = _is_yaml(path)
    with open(path, "rb") as file:
        content = file.read(_LARGEST_FILE + 1)
    if len(content) > _LARGEST_FILE:
        raise ValueError(printable(f"{path} is too large for settings. Name the file that holds them, not the data."))
    try:
        text = content.decode("utf-8-sig")
        settings = yaml.load(text, _Loader) if is_yaml else json.loads(text, object_pairs_hook=_once)
    except Exception as error:  # where a tag does not fit its value, PyYAML raises whatever Python does
        if isinstance(error, UnicodeDecodeError):
            why = f"byte {error.start + 1} is not UTF-8. Save it as UTF-8 text."
        elif isinstance(error, ValueError | yaml.YAMLError):
            why = shortened(one_line(str(error).replace('in "<unicode string>", ', "in ")), 300)
        else:
            why = "a value does not fit its tag (!!), or the brackets are nested too deeply."
        raise ValueError(printable(f"{path} cannot be read: {why}")) from None
    if not isinstance(settings, dict):
        raise ValueError(printable(f"{path} holds no settings. Write one `name: value` for each."))
    return settings


def _is_path(folder, name, value):
    """Whether a setting is a path; a model's id is one only where that folder exists."""
    is_text = isinstance(value, str) and value
    return is_text and (name in PATHS or (name in MODEL_NAMES and os.path.isdir(folder / value)))


def _from_folder(path, name, value):
    try:
        return os.path.abspath(path.parent / Path(value).expanduser())
    except RuntimeError:
        problem = f"{name} is {shown(value)}: there is no such home folder"
        raise ValueError(printable(f"{path}: {problem}")) from None


def _to_folder(folder, name, value):
    try:
        return os.path.relpath(value, folder) if _is_path(Path(), name, value) else value
    except ValueError:  # on another drive
        return os.path.abspath(value)
