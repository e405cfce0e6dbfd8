"""The tables of keys against what the programs have (arguments.json holds their arguments and defaults)."""

import json
from pathlib import Path
from types import SimpleNamespace

import pytest

from vlmhelpers.interchange.keys import USUAL
from vlmhelpers.interchange.llama_factory import LLAMA_FACTORY
from vlmhelpers.interchange.swift import SWIFT
from vlmhelpers.training.config import RunConfig
from vlmhelpers.training.methods.catalog import METHODS

ARGUMENTS = json.loads((Path(__file__).parent / "arguments.json").read_text(encoding="utf-8"))
PROGRAMS = {program.name: program for program in (LLAMA_FACTORY, SWIFT)}
OF_FILES = {"ENV"}  # ms-swift's reader of YAML takes it, and no argument has its name
WORDS = {"none": (None, "none"), "tensorboard": (["tensorboard"],)}  # of the tables -> of the programs
DERIVED = {  # None there: what it becomes is in the program's code, and in the tables
    "lora_alpha", "learning_rate", "beta", "loss_type", "gradient_accumulation_steps"
}  # fmt: skip
# No key of either stands for them: they say how a file is read, or nothing that the programs have.
ELSEWHERE = {
    "text_field", "image_field", "response_field", "streaming", "test_rows", "chat_template", "cache",
    "sample_answers", "critic_learning_rate", "teacher", "experts",
}  # fmt: skip


def arguments(program):
    return ARGUMENTS[f"{program.name} {program.version}"]


@pytest.mark.parametrize("name", PROGRAMS)
def test_every_key_is_an_argument_of_the_program(name):
    program = PROGRAMS[name]
    keys = [key.name for key in program.keys] + list(program.without)
    assert not set(keys) - arguments(program).keys() - OF_FILES
    assert len(keys) == len(set(keys))


@pytest.mark.parametrize("name", PROGRAMS)
def test_defaults_of_the_tables_are_those_of_the_program(name):
    program, known = PROGRAMS[name], arguments(PROGRAMS[name])
    for key in program.keys:
        if key.name not in DERIVED and (default := key.default_of({})) is not None:
            assert known[key.name] in WORDS.get(str(default), (default,)), key.name


@pytest.mark.parametrize("name", PROGRAMS)
def test_a_key_stands_for_settings_that_there_are(name):
    settings = RunConfig.described().keys()
    assert {setting for key in PROGRAMS[name].keys for setting in key.settings} <= settings


def test_a_key_of_theirs_in_a_file_of_ours_is_taken_for_no_setting_that_it_does_not_stand_for():
    for key in (key for program in PROGRAMS.values() for key in program.keys if key.name not in RunConfig.described()):
        sentence = RunConfig.problems({key.name: 1})[key.name]
        assert any(f"'{name}'?" in sentence for name in key.settings) or sentence.endswith(": leave it out"), sentence


def test_every_setting_has_a_key_in_one_program_or_none_is_to_be_expected():
    named = {setting for program in PROGRAMS.values() for key in program.keys for setting in key.settings}
    assert named == RunConfig.described().keys() - ELSEWHERE


@pytest.mark.parametrize("name", PROGRAMS)
def test_every_reason_is_a_sentence_of_plain_words(name):
    for reason in PROGRAMS[name].without.values():
        assert reason and reason == reason.strip() and not reason.endswith(".")


@pytest.mark.parametrize("method", [method for method in METHODS if method not in ("rloo", "distillation")])
@pytest.mark.slow
def test_what_stands_for_none_is_what_the_trainers_take(method, tmp_path):
    from trl import DPOConfig, GRPOConfig, KTOConfig

    from vlmhelpers.training.methods import dpo
    from vlmhelpers.training.methods.ppo import PPOConfig
    from vlmhelpers.training.methods.preference import PreferenceConfig

    quiet = {"output_dir": str(tmp_path), "report_to": "none", "use_cpu": True, "bf16": False}
    kinds = {"dpo": DPOConfig, "kto": KTOConfig, "grpo": GRPOConfig, "ppo": PPOConfig}
    more = {"gradient_accumulation_steps": 2} if method == "ppo" else {}
    if method in ("orpo", "simpo", "cpo"):
        config = PreferenceConfig(**quiet, preference_loss=method)
    else:
        config = kinds[method](**quiet, **more) if method in kinds else SimpleNamespace()
    for setting in METHODS[method].settings:
        if setting in USUAL and method in USUAL[setting] and setting != "loss":
            assert USUAL[setting][method] == getattr(config, setting), setting
    if method == "dpo":
        assert USUAL["loss"]["dpo"] == dpo.LOSS
    if method == "kto":
        assert USUAL["loss"]["kto"] == config.loss_type
