"""Settings in a file: read with care, converted where that is safe, and written back."""

import json
import pickle
from dataclasses import FrozenInstanceError, fields, replace

import pytest
import yaml

from vlmhelpers.training.config import RunConfig
from vlmhelpers.training.methods.catalog import METHODS, OWN_SETTINGS

NEEDED = {"model_id": "qwen2.5-vl", "dataset": "rows.jsonl", "output_dir": "out"}


@pytest.fixture
def file(tmp_path):
    """Writes settings besides the needed ones to a file of that name, and gives its path."""

    def write(name="run.yaml", **settings):
        path = tmp_path / name
        path.write_text((yaml.safe_dump if path.suffix != ".json" else json.dumps)(NEEDED | settings))
        return path

    return write


def test_numbers_and_words_as_files_hold_them(tmp_path):
    path = tmp_path / "run.yaml"
    path.write_text(
        "model_id: some/model\ndataset: a.jsonl\noutput_dir: out\nlearning_rate: 1e-4\nepochs: 2\nbatch_size: '4'\n"
        "lora_r: 8.0\nbits: none\nvision: 'Yes'\nmax_length: null\ngradient_checkpointing: off\nreport_to: none\n"
    )
    config = RunConfig.read(path)
    assert (config.learning_rate, config.epochs, config.batch_size, config.lora_r) == (1e-4, 2.0, 4, 8)
    assert isinstance(config.epochs, float) and isinstance(config.lora_r, int)
    assert (config.bits, config.vision, config.max_length, config.gradient_checkpointing) == (None, True, None, False)
    assert config.report_to == "none" and config.model_id == "some/model"


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"batch_size": "four"}, "batch_size is 'four': it should be a valid integer"),
        ({"batch_size": 1.5}, "batch_size is 1.5: it should be a valid integer"),
        ({"batch_size": True}, "batch_size is True"),
        ({"batch_size": 0}, "batch_size is 0: it should be greater than or equal to 1"),
        ({"learning_rate": "fast"}, "learning_rate is 'fast': it should be a valid number"),
        ({"learning_rate": float("nan")}, "learning_rate is nan"),
        ({"learning_rate": [1e-4]}, "learning_rate is"),
        ({"vision": 1}, "vision is 1: it should be a valid boolean"),
        ({"text_field": 7}, "text_field is 7: it should be a valid string"),
        ({"image_field": ""}, "image_field is '': it should have at least 1 character"),
        ({"max_length": "long"}, "max_length is 'long': it should be a valid integer"),
        ({"bits": 8}, "bits is 8: it should be 4, 16 or None"),
        ({"backend": "jax"}, "backend is 'jax': it should be 'auto', 'transformers' or 'unsloth'"),
        ({"adam_beta2": 1}, "adam_beta2 is 1: it should be less than 1"),
        ({"output_dir": ""}, "output_dir is '': it should have at least 1 character"),
        ({"batch_size": 0, "epoch": 1}, "equal to 1; there is no setting 'epoch'. Did you mean 'epochs'?"),
        ({"max_steps": 0}, "max_steps is 0"),
        ({"language": False}, "nothing would be trained"),
        ({"learning_rat": 1}, "there is no setting 'learning_rat'. Did you mean 'learning_rate'?"),
        ({"base_model": "x"}, "there is no setting 'base_model'. Did you mean 'model_id'?"),
        *(
            ({name: 1}, f"there is no setting '{name}'. Did you mean '{meant}'?")
            for name, meant in [
                ("lr", "learning_rate"),
                ("num_train_epochs", "epochs"),
                ("eval_dataset", "validation_rows"),
                ("model_name_or_path", "model_id"),
                ("cutoff_len", "max_length"),
                ("load_in_4bit", "bits"),
                ("gradient_acumulation_step", "gradient_accumulation_steps"),
            ]
        ),
        *(
            ({name: 1}, f"there is no setting '{name}': leave it out")
            for name in "weight_decay target_modules system_prompt resume_from_checkpoint adam_beta1 ref_model".split()
        ),
        ({"dataset": None}, "dataset is None: it should be a valid string"),
        ({"dataset": "a\0b"}, "it should be without the NUL character"),
        ({"seed": -1}, "seed is -1"),
        ({"lora_r": 10**30}, "lora_r is 1000"),
        ({"batch_size": 1e300}, "it should be a smaller number"),
        ({"epochs": 10**400}, "epochs is 1000"),
        ({"text_field": [["x" * 50 for _ in range(20)] for _ in range(20)]}, "it should be a valid string"),
        ({"x" * 20_000: 1}, "there is no setting 'xxx"),
    ],
)
@pytest.mark.parametrize("name", ["run.yaml", "run.json"])
def test_what_is_wrong_is_named_with_the_file(file, settings, message, name):
    path = file(name, **settings)
    with pytest.raises(ValueError) as error:
        RunConfig.read(path)
    assert message in str(error.value) and str(path) in str(error.value) and len(str(error.value)) < 1000


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"method": "dpoo"}, "'sft', 'dpo', 'kto',"),
        ({"simpo_gamma": 1}, "simpo_gamma is a setting of simpo, and method is 'sft'"),
        ({"method": "orpo", "loss": "ipo"}, "loss is a setting of dpo, kto, and method is 'orpo'"),
        ({"method": "kto", "loss": "ipo"}, "kto has no 'ipo'; choose kto, apo_zero_unpaired"),
        ({"method": "kto", "loss": "kto+apo_zero_unpaired"}, "KTO has one loss at a time: choose kto or apo_zero"),
        ({"method": "dpo", "loss": "sigmoid+"}, "loss is 'sigmoid+': dpo has no ''; choose sigmoid, hinge,"),
        ({"method": "kto", "batch_size": 1}, "batch_size is 1, and KTO compares"),
        ({"method": "dpo", "cache": "pixels"}, "cache is 'pixels', which is for method='sft'"),
        ({"method": "dpo", "backend": "unsloth"}, "backend is 'unsloth', which has no method='dpo': choose 'auto'"),
        ({"early_stopping_patience": 3}, "early_stopping_patience is 3, and no row is held out for validation: choose"),
        ({"load_best_model_at_end": True, "test_rows": 4}, "load_best_model_at_end is True, and no row is held out"),
        ({"eval_steps": 5}, "eval_steps is 5, and no row is held out for validation: choose validation_rows"),
        ({"sample_answers": 3}, "sample_answers is 3, and no row is held out: choose validation_rows or test_rows"),
        ({"chat_template": "chat.txt"}, "chat_template is 'chat.txt': name a .jinja file"),
        ({"method": "grpo"}, "rewards is missing, and method 'grpo' needs some, such as exact_match"),
        ({"method": "distillation"}, "teacher is missing, and method 'distillation' needs one"),
        ({"method": "ppo", "rewards": "exact_match", "weights": "full"}, "choose 'lora'"),
        ({"weights": "full", "bits": 4}, "weights of 4 bits cannot be trained: choose bits=16"),
        ({"weights": "freeze", "backend": "unsloth"}, "which has no weights='freeze'"),
        ({"weights": "full", "use_dora": True}, "use_dora is for adapters, and weights is 'full'"),
        ({"weights": "full", "last_layers": 2}, "last_layers is for weights='freeze', and weights is 'full'"),
        ({"init_lora_weights": "pissa", "bits": 4}, "rounds them in 4 bits: choose bits=16"),
        ({"init_lora_weights": "olora", "method": "dpo"}, "'dpo' compares with the base: choose 'default'"),
        ({"init_lora_weights": "pissa", "use_dora": True}, "without use_dora only"),
    ],
)
def test_settings_that_do_not_go_together_are_refused_with_what_does(settings, message):
    with pytest.raises(ValueError) as error:
        RunConfig(**NEEDED | settings)
    assert message in str(error.value)


def test_every_setting_of_a_method_is_one_of_a_run_and_free_until_somebody_chooses():
    free = {field.name for field in fields(RunConfig) if field.name in OWN_SETTINGS}
    assert free == set(OWN_SETTINGS)
    needed = {"rewards": "exact_match", "teacher": "qwen3-vl"}
    for name, method in METHODS.items():
        settings = {key: value for key, value in needed.items() if key in method.settings}
        config = RunConfig(**NEEDED, method=name, **settings)
        assert all(getattr(config, setting) is None for setting in free - settings.keys())
        assert config.runs_on == ("auto" if name == "sft" else "transformers")


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("run.toml", "", "no .json, .yaml or .yml file"),
        ("run.json", "{", "cannot be read"),
        ("run.yaml", "a: [", "cannot be read"),
        ("run.yaml", "just a text", "holds no settings"),
        ("run.yaml", "", "holds no settings"),
        ("run.yaml", "- a", "holds no settings"),
        ("run.yaml", b"model_id: \xff", "byte 11 is not UTF-8"),
        ("run.json", '{"a": 1}'.encode("utf-16"), "byte 1 is not UTF-8"),
        ("run.yaml", "vision: !!bool x", "a value does not fit its tag"),
        ("run.yaml", "seed: !!timestamp x", "a value does not fit its tag"),
        ("run.yaml", "a: !!python/object/apply:os.getcwd []", "could not determine a constructor"),
        ("run.yaml", "a: " + "[" * 20_000, "nested too deeply"),
        ("run.json", '{"a": ' + "[" * 20_000, "nested too deeply"),
        ("run.yaml", "a: &a [x]\nb: *a", "an alias"),
        ("run.yaml", "a: &a {k: v}\nb: {<<: [*a, *a]}", "an alias"),
        ("run.yaml", "seed: 1\nseed: 2", "'seed' is there twice"),
        ("run.json", '{"seed": 1, "seed": 2}', "'seed' is there twice"),
        ("run.yaml", "a: " + "9" * 5000, "4300"),
        ("run.yaml", "a\x1b: x", "cannot be read"),
        ("run.yaml", "a: " + "x" * 200_000, "too large for settings"),
        ("run.yaml", "output_dir: ~no-such-user/x", "output_dir is '~no-such-user/x': there is no such home"),
    ],
)
def test_files_that_hold_no_settings(tmp_path, name, text, message):
    (tmp_path / name).write_bytes(text if isinstance(text, bytes) else text.encode())
    with pytest.raises(ValueError, match=message) as error:
        RunConfig.read(tmp_path / name)
    assert str(tmp_path / name) in str(error.value) and len(str(error.value)) < 500 and "\x1b" not in str(error.value)
    (tmp_path / "folder.yaml").mkdir()
    with pytest.raises(OSError, match="folder.yaml"):
        RunConfig.read(tmp_path / "folder.yaml")
    with pytest.raises(FileNotFoundError):
        RunConfig.read(tmp_path / "gone.json")


def test_an_integer_that_python_does_not_write_out(tmp_path):
    (tmp_path / "run.yaml").write_text("model_id: a\ndataset: b\noutput_dir: c\nlora_r: 0x" + "f" * 6000)
    with pytest.raises(ValueError, match="lora_r is a huge number: it should be a smaller number"):
        RunConfig.read(tmp_path / "run.yaml")


def test_changes_may_have_any_name(file):
    for name in ("path", "cls", "self"):
        with pytest.raises((ValueError, TypeError), match=name):
            RunConfig.read(file(), **{name: "x"})


def test_paths_of_a_file_start_at_its_folder_and_changes_at_the_working_directory(file, tmp_path, monkeypatch):
    (tmp_path / "model").mkdir()
    others = {"method": "ppo", "reward_model": "rewards/adapter", "chat_template": "chat.jinja"}
    path = file(model_id="model", dataset="rows/a.jsonl", image_root="../pictures", **others)
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    monkeypatch.chdir(elsewhere)
    config = RunConfig.read("../run.yaml", output_dir="other", seed="3")
    assert config.dataset == str(tmp_path / "rows" / "a.jsonl")
    assert config.image_root == str(tmp_path.parent / "pictures")
    assert config.model_id == str(tmp_path / "model")
    assert config.reward_model == str(tmp_path / "rewards" / "adapter")
    assert config.chat_template == str(tmp_path / "chat.jinja")
    for teacher, expected in (("model", str(tmp_path / "model")), ("qwen3-vl", "qwen3-vl")):
        other = RunConfig.read(file("other.yaml", method="distillation", teacher=teacher))
        assert other.teacher == expected
    assert (config.output_dir, config.seed) == ("other", 3)
    assert RunConfig.read(path).output_dir == str(tmp_path / "out")
    with pytest.raises(ValueError, match="no setting 'sed'. Did you mean 'seed'"):
        RunConfig.read(path, sed=1)


@pytest.mark.parametrize("name", ["saved/run.json", "saved/run.yaml"])
def test_what_is_saved_reads_back_the_same_and_moves_along(file, tmp_path, name):
    config = RunConfig.read(file(learning_rate="3e-5", bits=16, text_field="größe"))
    config.save(tmp_path / name)
    assert RunConfig.read(tmp_path / name) == config
    assert str(tmp_path) not in (tmp_path / name).read_text()


def test_a_setting_that_is_missing_is_named(tmp_path):
    (tmp_path / "run.yaml").write_text("model_id: qwen2.5-vl\n1: 2\n")
    with pytest.raises(ValueError) as error:
        RunConfig.read(tmp_path / "run.yaml")
    assert "dataset is missing: add a line for it; output_dir is missing" in str(error.value)
    assert "there is no setting '1'" in str(error.value)


def test_a_change_of_a_setting_is_checked_and_nothing_else_changes_one():
    config = RunConfig("qwen2.5-vl", "rows.jsonl", "out")
    assert replace(config, bits="none", epochs="2").epochs == 2.0
    with pytest.raises(ValueError, match="batch_size"):
        replace(config, batch_size=0)
    with pytest.raises(FrozenInstanceError):
        config.seed = 1


def test_it_shows_itself_as_a_table_and_can_be_sent_to_another_process():
    config = RunConfig("<b>", "rows.jsonl", "out")
    table = config._repr_html_()
    assert table.count("<tr>") == 1 + len(fields(config)) and "&lt;b&gt;" in table and "learning_rate" in table
    assert pickle.loads(pickle.dumps(config)) == config


@pytest.mark.parametrize(
    ("text", "problem"),
    [("seed: 010", 10), ("seed: 0x10", 16), ("seed: 1:30", "seed is '1:30': it should be a valid integer")],
)
def test_numbers_are_those_of_yaml_1_2(tmp_path, text, problem):
    (tmp_path / "run.yaml").write_text(f"model_id: a\ndataset: b\noutput_dir: c\nlearning_rate: 1e-4\n{text}\n")
    if isinstance(problem, int):
        config = RunConfig.read(tmp_path / "run.yaml")
        assert (config.seed, config.learning_rate) == (problem, 1e-4)
    else:
        with pytest.raises(ValueError, match=problem):
            RunConfig.read(tmp_path / "run.yaml")


def test_many_wrong_names_are_one_short_sentence(tmp_path):
    (tmp_path / "run.yaml").write_text("".join(f"zzz{number}: 1\n" for number in range(500)))
    with pytest.raises(ValueError) as error:
        RunConfig.read(tmp_path / "run.yaml")
    assert str(error.value).endswith("output_dir is missing: add a line for it; and 500 more")
