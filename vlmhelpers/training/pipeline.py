"""The parts of a run: its arguments, its rows, and its trainer with model, adapters and collator."""

import math
import os
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from importlib import import_module
from pathlib import Path

import torch
from datasets import Dataset, IterableDataset, concatenate_datasets
from peft import LoraConfig, PeftModel
from transformers import PreTrainedModel, ProcessorMixin, Trainer, TrainingArguments, set_seed

from vlmhelpers.batches.validation import check_dataset, rules_of
from vlmhelpers.common.distributed import is_sharded, on_main
from vlmhelpers.common.environment import compute_dtype
from vlmhelpers.data.report import Report
from vlmhelpers.data.rows import first_rows, store_rows, stream_plain_rows
from vlmhelpers.data.schema import FEATURES, KINDS, REJECTED_IMAGES, conversations, images_of, kind_of, message_text
from vlmhelpers.data.splitting import hold_out, split
from vlmhelpers.estimation.memory import Gpu, this_gpu
from vlmhelpers.estimation.suggestion import Values, suggest
from vlmhelpers.families import TINY_BASES, family_of
from vlmhelpers.families.received import read_object
from vlmhelpers.models.freezing import train_only
from vlmhelpers.models.loading import choose_model, load_model, load_processor, set_max_pixels
from vlmhelpers.models.lora import expert_parameters, keep_adapters_float32, lora_targets
from vlmhelpers.models.template_trial import check_template
from vlmhelpers.training.callbacks import BestValidation, report_to, validate_apart, watch
from vlmhelpers.training.config import REJECTED, RunConfig
from vlmhelpers.training.methods.catalog import METHODS
from vlmhelpers.training.methods.parts import Parts
from vlmhelpers.training.methods.sft import logits_for
from vlmhelpers.training.rewards import parse_rewards

ADAPTER_CONFIG = "adapter_config.json"
_UPDATES = 2  # of PPO, in one pass over a rollout batch
_MEASURED = 100  # rows of a stream
_LARGEST_TEMPLATE = 1_000_000  # bytes; those of published models take some thousand


def refuse_early(config: RunConfig) -> None:
    """Raises ValueError, before anything is loaded, for what the model, a reward or this machine makes impossible."""
    family = family_of(config.model_id)
    if METHODS[config.method].samples and family.not_sampled:
        raise ValueError(f"method {config.method!r} cannot train {family.name}: {family.not_sampled}. Choose another")
    if config.changes_base and is_sharded():
        raise ValueError(f"init_lora_weights={config.init_lora_weights!r} needs the whole model on each GPU, not FSDP")
    parse_rewards(config.rewards or "")
    if config.chat_template:
        _read_template(config.chat_template)
    folder = Path(config.reward_model or "")
    if config.reward_model and not any((folder / name).is_file() for name in (ADAPTER_CONFIG, "config.json")):
        raise ValueError(f"reward_model is {folder}, which holds no adapter and no model: name such a folder of a run")


def training_arguments(config: RunConfig) -> dict[str, object]:
    """What the trainers of all methods take; joins the processes. Their own defaults stand for None.

    Raises ValueError for what FSDP cannot do.
    """
    if is_sharded():
        _refuse_sharded(config)
    dtype, gpu = compute_dtype(), torch.cuda.is_available()
    if not gpu:
        os.environ.setdefault("ACCELERATE_TORCH_DEVICE", "cpu")  # else "cpu:0", where torch loads no checkpoint to
    settings = _as_arguments(config) | {
        "remove_unused_columns": False,  # keeps `row`, so that errors can name it
        "gradient_checkpointing": gpu if config.gradient_checkpointing is None else config.gradient_checkpointing,
        "gradient_checkpointing_kwargs": {"use_reentrant": False},
        "bf16": dtype == torch.bfloat16,
        "fp16": dtype == torch.float16,
        "use_cpu": not gpu,
        "ddp_timeout": 7200,  # seconds: the other processes wait while the main one checks every image
        "load_best_model_at_end": False,  # TRL's rewards are no metrics to transformers: see BestValidation, load_best
        "save_total_limit": 2 + config.tracks_best,  # the last but one stays until the last is complete, and the best
        "report_to": report_to(config.report_to),
        "run_name": Path(config.output_dir).name,
    }
    TrainingArguments(**settings)  # joins the processes
    return settings


def _refuse_sharded(config):
    if config.cache == "features":
        raise ValueError('cache="features" is for models that are whole on each GPU: with FSDP choose cache="pixels"')
    # peft 0.21 finds no adapter inside the layers that accelerate wraps for this.
    if os.environ.get("FSDP_ACTIVATION_CHECKPOINTING", "false") == "true":
        remedy = "turn it off there, and gradient_checkpointing on in the run's settings"
        raise ValueError(f"with fsdp_activation_checkpointing the adapter would be saved empty: {remedy}")


def _as_arguments(config):
    """Those of the settings that transformers has, too, by its names."""
    found = {name: value for name, value in asdict(config).items() if name in TrainingArguments.__dataclass_fields__}
    found |= {"num_train_epochs": config.epochs, "per_device_train_batch_size": config.batch_size}
    found = {name: value for name, value in found.items() if value is not None}
    if config.validation_rows:
        found |= {"eval_strategy": "steps", "eval_steps": config.validated_every, "prediction_loss_only": True}
        found["per_device_eval_batch_size"] = found.get("per_device_train_batch_size", 1)
    return found


@dataclass(frozen=True)
class Rows:
    """The rows of a run: `parts` are "train" and, where they are asked for, "test" and "validation".

    The report is that of the main process; a stream has none.
    """

    parts: dict[str, Dataset | IterableDataset]
    counts: dict[str, int]
    report: Report | None


def load_rows(config: RunConfig, dataset: Dataset | IterableDataset, processor: ProcessorMixin | None = None) -> Rows:
    """The sound ones of all rows, split. Writes nothing but, where there is none, why: that raises ValueError.

    `processor`: rows that it does not take are not sound. Of a stream the first rows are held out.
    """
    if config.streaming:
        dataset.check.more_rules = processor and rules_of(processor)
        return _load_stream(config, dataset)
    reports = []
    rejected = on_main(lambda: _rejected(dataset, config, reports, processor))
    kept = dataset.select([index for index in range(len(dataset)) if index not in rejected])
    _refuse_too_few(config, len(kept))
    parts = dict(split(kept, config.test_rows, seed=config.seed)) if config.test_rows else {"train": kept}
    if config.validation_rows:
        more = split(parts["train"], config.validation_rows, seed=config.seed)
        parts |= {"train": more["train"], "validation": more["test"]}
    counts = {"read": len(dataset), "rejected": len(rejected), "trained": len(parts["train"])}
    return Rows(parts, counts | {"test": len(parts.get("test", ()))}, *reports or [None])


def _load_stream(config, stream):
    held, others = hold_out(stream, config.test_rows + config.validation_rows)
    sides = {"test": range(len(held))[: config.test_rows], "validation": range(len(held))[config.test_rows :]}
    parts = {"train": others} | {name: held.select(rows) for name, rows in sides.items() if rows}
    counts = dict.fromkeys(("read", "rejected", "trained"), 0)  # known when it is trained
    return Rows(parts, counts | {"test": config.test_rows}, None)


def _refuse_too_few(config, rows):
    held = {name: number for name in ("test_rows", "validation_rows") if (number := getattr(config, name))}
    if sum(held.values()) >= rows:
        named = " and ".join(f"{name}={number}" for name, number in held.items())
        raise ValueError(f"{config.dataset} has {rows} sound rows, and {named} leave none to train on: choose fewer")


def _rejected(dataset, config, reports, processor):
    report = check_dataset(dataset, processor)
    reports.append(report)
    if not report.counts["kept"]:
        file = Path(config.output_dir) / REJECTED
        report.save_rejected(file)
        raise ValueError(f"{config.dataset} has no row that can be used: the reasons are in {file}")
    return {record["index"] for record in report.rejected}


def fill_in(config: RunConfig, model_id: str, parts: dict[str, Dataset]) -> RunConfig:
    """The settings with what suits the model, the rows and the device, for all that is None.

    Raises ValueError where the rows do not fit on the device, and for a batch that no whole groups of samples fill.
    """
    # FSDP holds a part of the model on each GPU: the estimate is of all of it.
    gpu = None if is_sharded() else this_gpu()
    processor = with_template(config, load_processor(model_id))
    values = fit_values(config, model_id, measured_rows(parts), gpu, processor)
    return fill_from(config, values)


def fit_values(config: RunConfig, model_id: str, rows: Dataset, gpu: Gpu | None, processor: ProcessorMixin) -> Values:
    """The `Values` that suit the model, `measured_rows` and a GPU; None: memory is not looked at.

    The estimate of memory is that of the trained model, and of its reference; a teacher, a reward model and what is
    sampled are not in it. Raises ValueError where the rows do not fit on the GPU.
    """
    text_only = not any(rows.with_format("arrow")["images"].to_pylist())
    values = suggest_for(config, model_id, text_only)
    return replace(values, gpu=gpu).fit(rows, processor, logits_for(config.runs_on), **config.memory_options)


def suggest_for(config: RunConfig, model_id: str, text_only: bool = False) -> Values:
    """The `Values` that suit the model, before a look at the rows, with what the settings choose."""
    chosen = config.chosen | ({"bits": 16} if config.changes_base else {})
    return suggest(model_id, text_only, method=config.method, weights=config.weights, **chosen)


def fill_from(config: RunConfig, values: Values) -> RunConfig:
    """The settings with the values for all that is None, and a batch that the method can take."""
    filled = config.filled(values)
    if not values.is_tiny and METHODS[config.method].rows in ("pairs", "rated"):  # two answers of each row at once
        filled = _with_batch(config, filled, max(filled.batch_size // 2, 1))
    if config.method == "kto":
        filled = _with_batch(config, filled, max(filled.batch_size, 2))
    return _in_groups(config, filled)


def measured_rows(parts: dict[str, Dataset]) -> Dataset:
    """The rows of training and validation, of any kind, as rows of messages that have to fit; of a stream the first."""
    return concatenate_datasets([_longest_sides(parts[name]) for name in ("train", "validation") if name in parts])


def _longest_sides(dataset):
    """Rows of any kind as rows of messages, each with its longest conversation, which has to fit."""
    if (kind := kind_of(dataset.column_names)) == "messages":
        return first_rows(dataset, _MEASURED) if isinstance(dataset, IterableDataset) else dataset
    names = [name for name in (*KINDS[kind], *REJECTED_IMAGES) if name in dataset.column_names]
    return store_rows(map(_longest_side, stream_plain_rows(dataset, names, "measuring rows")), FEATURES)


def _longest_side(row):
    sides = conversations(row)
    side = max(sides, key=lambda name: sum(len(message_text(message)) for message in sides[name]))
    return {"messages": sides[side], "images": images_of(row, side)}


def _with_batch(config, filled, batch_size):
    """The settings with that batch, and as many rows in a step as before, where nobody chose another."""
    if config.batch_size:
        return filled
    steps = config.gradient_accumulation_steps or math.ceil(
        filled.batch_size * filled.gradient_accumulation_steps / batch_size
    )
    return replace(filled, batch_size=batch_size, gradient_accumulation_steps=steps)


def _in_groups(config, filled):
    """The settings with steps of whole groups of samples; ValueError where somebody chose others."""
    if not METHODS[config.method].group:
        return filled
    group, world = filled.num_generations or METHODS[config.method].group, int(os.environ.get("WORLD_SIZE", 1))
    rows, steps = filled.batch_size * world, filled.gradient_accumulation_steps
    good = {
        "gradient_accumulation_steps": _next_multiple(steps, group // math.gcd(group, rows)),
        "batch_size": _next_multiple(filled.batch_size, group // math.gcd(group, steps * world)),
    }
    if rows * steps % group == 0:
        return filled
    if free := [name for name in good if getattr(config, name) is None]:
        return replace(filled, **{free[0]: good[free[0]]})
    remedy = " or ".join(f"{name}={number}" for name, number in good.items())
    raise ValueError(f"a step has {rows * steps} samples, no multiple of num_generations={group}: choose {remedy}")


def _next_multiple(number, unit):
    return math.ceil(number / unit) * unit


def make_trainer(config: RunConfig, model_id: str, parts: dict[str, Dataset]) -> Trainer:
    """The trainer of a run whose settings are all filled in, with the model, what is trained of it and the processor.

    Raises ValueError for settings that the method refuses.
    """
    arguments, method = training_arguments(config) | _of_sampling(config), METHODS[config.method]
    template = _read_template(config.chat_template) if config.chat_template else None
    model, processor = load_model(model_id, config.bits, config.max_pixels, config.runs_on, template)
    processor = with_template(config, processor)
    set_seed(config.seed)  # the adapters start at random, before the trainer sets its own seed
    if not config.trains_adapters:
        _choose_weights(config, model)
    # DDP has to search for adapters outside a step: those that only images reach, a vision encoder's unused layers, and
    # PPO's critic.
    all_have_images = not config.streaming and all(parts["train"].with_format("arrow")["images"].to_pylist())
    arguments["ddp_find_unused_parameters"] = config.vision or config.method == "ppo" or not all_have_images
    trainer = import_module(f"vlmhelpers.training.methods.{method.module}").make_trainer(
        Parts(
            config,
            arguments,
            model,
            processor,
            _lora(config, model) if config.trains_adapters else None,
            parts["train"].shuffle(config.seed) if config.streaming else parts["train"],  # in a buffer of 1,000 rows
            parts.get("validation"),
            _loader(config, model_id),
        )
    )
    if method.samples and not len(trainer._get_train_sampler()):
        number = len(parts["train"])
        remedy = "add some, or choose a smaller batch_size or fewer gradient_accumulation_steps"
        raise ValueError(f"{number} prompts are fewer than those that are sampled for at once: {remedy}")
    if config.trains_adapters:
        keep_adapters_float32(trainer.model)
    watch(trainer)
    validate_apart(trainer)
    if config.tracks_best:
        metric = "eval_reward" if "rewards" in method.settings else "eval_loss"
        trainer.add_callback(BestValidation(metric, config.early_stopping_patience, config.load_best_model_at_end))
    return trainer


def _of_sampling(config):
    """Arguments that follow from how the method samples; what is evaluated has whole groups of samples, too."""
    if config.method == "ppo":
        steps = _UPDATES * config.gradient_accumulation_steps
        return {"steps_per_generation": steps, "per_device_eval_batch_size": _next_multiple(config.batch_size, 2)}
    if not METHODS[config.method].group:
        return {}
    group = config.num_generations or METHODS[config.method].group
    evaluated = {"per_device_eval_batch_size": _next_multiple(config.batch_size, group)}
    # TRL loads the reference of a model without adapters itself.
    return evaluated | ({} if config.trains_adapters else {"model_init_kwargs": {"dtype": compute_dtype()}})


def _choose_weights(config, model):
    towers = ("language", "head") * config.language + ("vision", "projector") * config.vision
    if config.weights == "freeze":
        towers = [tower for tower in towers if tower != "head"]
        train_only(model, towers, config.last_layers or 1)
    else:
        train_only(model, towers)


def _lora(config, model):
    return LoraConfig(
        r=config.lora_r,
        lora_alpha=config.lora_alpha,
        lora_dropout=config.lora_dropout,
        use_rslora=config.use_rslora,
        use_dora=config.use_dora,
        init_lora_weights=True if config.init_lora_weights == "default" else config.init_lora_weights,
        target_modules=lora_targets(model, config.language, config.vision, attention=config.attention, mlp=config.mlp),
        target_parameters=_experts(model) if config.experts else None,
        task_type="CAUSAL_LM",
    )


def _experts(model):
    if found := expert_parameters(model):
        return found
    raise ValueError("experts is true, and the model has none: leave it out")


def _loader(config, model_id) -> Callable[[str], tuple[PreTrainedModel, ProcessorMixin]]:
    def load(name: str) -> tuple[PreTrainedModel, ProcessorMixin]:
        """A frozen model by its id, folder or family, or an adapter's folder on its base, in the run's bits.

        Its processor is its own, with the pixels that it was trained for.
        """
        adapter = (Path(name) / ADAPTER_CONFIG).is_file()
        base = str(read_object(Path(name) / ADAPTER_CONFIG).get("base_model_name_or_path")) if adapter else name
        if base in TINY_BASES or not Path(base).is_dir():
            base = model_id if base == config.model_id else choose_model(base)
        model, processor = load_model(base, config.bits, backend=config.runs_on)
        if adapter:
            model = _with_adapter(model, name)
            processor = load_processor(name) if any(Path(name).glob("*processor_config.json")) else processor
        return model.eval().requires_grad_(False), processor

    return load


def _with_adapter(model, folder):
    tuned = PeftModel.from_pretrained(model, folder)
    found = tuned.load_adapter(folder, "default")  # once more, for what it returns
    if wrong := [*found.unexpected_keys, *found.missing_keys]:
        raise ValueError(f"the adapter in {folder} does not fit its base, as {wrong[0]}: train it again")
    return tuned


def fresh_processor(config: RunConfig, model_id: str) -> ProcessorMixin:
    """The processor as a run begins with it: trainers change theirs."""
    processor = load_processor(model_id)
    if config.max_pixels is not None:
        set_max_pixels(processor, config.max_pixels)
    return with_template(config, processor)


def with_template(config: RunConfig, processor: ProcessorMixin) -> ProcessorMixin:
    """The processor, which from now on has the chat template that the settings name, if they name one.

    Raises ValueError for a file that holds no such template, or one that cannot be rendered in bounds.
    """
    if config.chat_template:
        processor.chat_template = processor.tokenizer.chat_template = _read_template(config.chat_template)
        check_template(processor, config.chat_template)
    return processor


def _read_template(file):
    try:
        if os.path.getsize(file) > _LARGEST_TEMPLATE:
            raise ValueError("it is too large for a template")
        return Path(file).read_text(encoding="utf-8")
    except (OSError, ValueError) as error:
        raise ValueError(f"chat_template is {file}, which cannot be read ({error}): name a .jinja file") from None
