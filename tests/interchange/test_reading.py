"""Files of other programs as settings here: defaults, keys without a counterpart, data sets, and what is wrong."""

import json

import pytest

from vlmhelpers.interchange import from_llama_factory, from_swift

YAML = """\
model_name_or_path: Qwen/Qwen2.5-VL-7B-Instruct
stage: sft
finetuning_type: lora
dataset: shop
dataset_dir: data
template: qwen2_vl
output_dir: saves/shop
learning_rate: 1.0e-4
"""
SWIFT = """\
model: Qwen/Qwen2.5-VL-7B-Instruct
dataset: [data/shop.jsonl]
output_dir: output/shop
"""
MESSAGES = {"messages": [{"role": "user", "content": "<image>What?"}, {"role": "assistant", "content": "A hat."}]}
SHAREGPT = {"conversations": [{"from": "human", "value": "What?"}, {"from": "gpt", "value": "A hat."}]}
PAIR = {"conversations": SHAREGPT["conversations"][:1], "chosen": SHAREGPT["conversations"][1]}
PAIR |= {"rejected": {"from": "gpt", "value": "A boot."}}


@pytest.fixture
def theirs(tmp_path, monkeypatch):
    """Writes a file of LLaMA-Factory, its data beside it, and reads it."""
    monkeypatch.chdir(tmp_path)

    def read(more="", rows=None, **entry):
        data = tmp_path / "data"
        data.mkdir(exist_ok=True)
        rows = rows or [MESSAGES | {"images": ["a.png"]}]
        (data / "shop.json").write_text(json.dumps(rows))
        usual = {"formatting": "sharegpt", "columns": {"messages": "messages", "images": "images"}}
        info = {"shop": {"file_name": "shop.json"} | usual | entry}
        (data / "dataset_info.json").write_text(json.dumps(info))
        (tmp_path / "their.yaml").write_text(YAML + more)
        return from_llama_factory("their.yaml")

    return read


@pytest.fixture
def swift(tmp_path, monkeypatch):
    """Writes a file of ms-swift, its data beside it, and reads it."""
    monkeypatch.chdir(tmp_path)

    def read(more="", text=SWIFT, rows=None):
        (tmp_path / "data").mkdir(exist_ok=True)
        rows = rows or [MESSAGES | {"images": ["a.png"]}]
        (tmp_path / "data" / "shop.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
        (tmp_path / "their.yaml").write_text(text + more)
        return from_swift("their.yaml")

    return read


# Defaults


def test_defaults_of_llama_factory_are_taken_over_and_named(theirs):
    found = theirs()
    expected = {
        "lora_rank": ("lora_r", 8),
        "lora_alpha": ("lora_alpha", 16),
        "cutoff_len": ("max_length", 2048),
        "image_max_pixels": ("max_pixels", 589_824),
        "seed": ("seed", 42),
        "per_device_train_batch_size": ("batch_size", 8),
        "lr_scheduler_type": ("lr_scheduler_type", "linear"),
        "quantization_bit": ("bits", 16),
        "warmup_steps": ("warmup_steps", 0),
        "num_train_epochs": ("epochs", 3.0),
    }
    assert expected.items() <= found.defaults.items()
    assert "learning_rate" not in found.defaults and found.config.learning_rate == 1e-4
    assert all(getattr(found.config, name) == value for name, value in expected.values())
    assert "pref_beta" not in found.defaults and found.config.beta is None
    assert found.unmapped.keys() == {"template"}


def test_defaults_of_swift_are_taken_over_and_named(swift):
    found = swift()
    expected = {
        "lora_alpha": ("lora_alpha", 32),
        "lora_dropout": ("lora_dropout", 0.05),
        "lora_rank": ("lora_r", 8),
        "adam_beta2": ("adam_beta2", 0.95),
        "seed": ("seed", 42),
        "gradient_accumulation_steps": ("gradient_accumulation_steps", 16),
        "learning_rate": ("learning_rate", 1e-4),
        "report_to": ("report_to", "tensorboard"),
    }
    assert expected.items() <= found.defaults.items()
    assert all(getattr(found.config, name) == value for name, value in expected.values())
    assert "0.1 there" in found.unmapped["weight_decay"]


def test_defaults_that_follow_from_other_keys(theirs, swift):
    assert theirs("lora_rank: 64\n").config.lora_alpha == 128
    assert theirs("lora_rank: 64\nlora_alpha: 8\n").config.lora_alpha == 8
    found = swift("tuner_type: full\nper_device_train_batch_size: 8\n").config
    assert (found.weights, found.learning_rate, found.gradient_accumulation_steps, found.lora_r) == (
        "full",
        1e-5,
        2,
        None,
    )


def test_defaults_of_a_method(theirs, swift):
    found = theirs("pref_loss: simpo\n")
    assert found.config.method == "sft" and "sft" in found.unmapped["pref_loss"]
    found = swift("rlhf_type: simpo\n")
    assert (found.config.method, found.config.nll_coef, found.config.simpo_gamma) == ("simpo", 1.0, None)
    assert found.defaults["cpo_alpha"] == ("nll_coef", 1.0) and "beta" not in found.defaults


@pytest.mark.parametrize(
    ("more", "method", "settings"),
    [
        ("stage: dpo\npref_loss: simpo\n", "simpo", {"beta": 0.1, "simpo_gamma": 0.5, "nll_coef": None}),
        ("stage: dpo\npref_loss: orpo\npref_beta: 0.2\n", "orpo", {"beta": 0.2, "loss": None}),
        ("stage: dpo\npref_ftx: 1.0\n", "dpo", {"loss": None, "beta": None}),  # sigmoid+sft, as here
        ("stage: dpo\npref_loss: ipo\n", "dpo", {"loss": "ipo"}),
        ("stage: dpo\n", "dpo", {"loss": "sigmoid"}),
        ("stage: rm\n", "reward", {}),
    ],
)
def test_methods_of_llama_factory(more, method, settings, theirs, monkeypatch):
    monkeypatch.setitem(globals(), "YAML", YAML.replace("stage: sft\n", ""))
    found = theirs(more, [PAIR], ranking=True, columns={"messages": "conversations", "chosen": "chosen"}).config
    assert found.method == method
    assert {name: getattr(found, name) for name in settings} == settings


# Keys without a counterpart


def test_keys_without_a_counterpart_are_named_with_the_reason(theirs):
    more = "packing: true\noptim: adamw_8bit\nmax_samples: 100\nlearning_rte: 0.1\nplot_loss: false\ndeepspeed: null\n"
    found = theirs(more)
    assert found.unmapped.keys() == {"template", "packing", "optim", "max_samples", "learning_rte"}
    assert found.unmapped["packing"] == "rows are not packed here"
    assert "is learning_rate meant?" in found.unmapped["learning_rte"]
    shown = repr(found)
    assert "packing" in shown and "lora_r = 8" in shown and "<td" in found._repr_html_()


def test_values_without_a_counterpart_are_named_with_what_was_taken(theirs):
    more = (
        "quantization_bit: 8\nlora_target: q_proj,v_proj\nlr_scheduler_type: warmup_stable_decay\nwarmup_ratio: 0.1\n"
        "val_size: 0.1\nreport_to: [wandb, swanlab]\nfreeze_multi_modal_projector: false\nweight_decay: 0.01\n"
    )
    found = theirs(more)
    assert (found.config.bits, found.config.attention, found.config.mlp) == (16, True, False)
    assert (found.config.report_to, found.config.vision, found.config.warmup_steps) == ("wandb", False, None)
    keys = [line.partition(":")[0] for line in more.splitlines()]
    assert found.unmapped.keys() == {"template", *keys}
    assert "k_proj" in found.unmapped["lora_target"]


def test_a_share_of_known_steps_is_a_number_of_them(theirs):
    found = theirs("warmup_ratio: 0.1\nmax_steps: 45\n")
    assert found.config.warmup_steps == 5 and "warmup_ratio" not in found.unmapped


def test_validation_that_takes_rows_out_of_the_data(theirs):
    found = theirs("val_size: 20\neval_strategy: steps\neval_steps: 50\nearly_stopping_steps: 3\n").config
    assert (found.validation_rows, found.eval_steps, found.early_stopping_patience) == (20, 50, 3)


def test_controls_in_a_file_do_not_reach_the_terminal(theirs):
    assert "\x1b" not in repr(theirs('"odd\\x1b[2J": 1\n'))


# Data sets


def test_the_file_is_found_by_dataset_info(theirs, tmp_path):
    found = theirs().config
    assert found.dataset == str(tmp_path / "data" / "shop.json") and found.image_root is None
    (tmp_path / "media").mkdir()
    assert theirs("media_dir: media\n").config.image_root == str(tmp_path / "media")


def test_pairs_and_other_names_of_columns(theirs):
    columns = {"messages": "conversations", "images": "picture"}
    found = theirs(rows=[SHAREGPT | {"picture": ["a.png"]}], columns=columns)
    assert found.config.image_field == "picture" and "dataset" not in found.unmapped
    found = theirs(rows=[PAIR], columns={"messages": "conversations"}, ranking=True)
    assert "holds pairs, as the readers here see it, and sft takes messages" in found.unmapped["dataset"]


def test_alpaca_rows(theirs):
    rows = [{"instruction": "Say hat.", "input": "", "output": "Hat."}]
    found = theirs(rows=rows, formatting="alpaca", columns={})
    assert "dataset" not in found.unmapped and found.config.text_field == "text"


@pytest.mark.parametrize(
    ("entry", "why"),
    [
        ({"tags": {"role_tag": "speaker"}}, "role_tag 'speaker', which no reader here knows"),
        ({"columns": {"messages": "messages", "videos": "clips"}}, "the column videos"),
        ({"file_name": "gone.json"}, "there is no file"),
    ],
)
def test_what_no_reader_takes_is_said(entry, why, theirs):
    assert why in theirs(**entry).unmapped["dataset"]


def test_data_that_is_elsewhere(tmp_path):
    (tmp_path / "away.yaml").write_text(YAML.replace("dataset_dir: data", "dataset_dir: nowhere"))
    found = from_llama_factory(tmp_path / "away.yaml")
    assert found.config.dataset == "shop" and "name the file itself" in found.unmapped["dataset_dir"]


def test_swift_data_with_a_count_and_a_root(swift, tmp_path):
    text = SWIFT.replace("shop.jsonl]", "shop.jsonl#100]") + f"ENV:\n  ROOT_IMAGE_DIR: {tmp_path}\n  OTHER: 1\n"
    found = swift(text=text)
    assert found.config.dataset == str(tmp_path / "data" / "shop.jsonl")
    assert found.config.image_root == str(tmp_path)
    assert "100 of its rows" in found.unmapped["dataset"] and "OTHER" in found.unmapped["ENV"]
    text = SWIFT.replace("[data/shop.jsonl]", "AI-ModelScope/LaTeX_OCR:human_handwrite#20")
    assert "download it" in swift(text=text).unmapped["dataset"]


# What is wrong


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("", "holds no settings"),
        ("- a\n", "holds no settings"),
        ("a: [", "cannot be read"),
        ("a: &x 1\nb: *x\n", "an alias"),
        ("a: 1\na: 2\n", "there twice"),
        ("stage: sft\n", "there is no model_name_or_path: add a line for it; there is no dataset"),
        (YAML.replace("sft", "pt"), "stage is 'pt': here are sft, dpo, kto, rm, ppo"),
        (YAML.replace("lora", "oft"), "finetuning_type is 'oft': here are lora, full, freeze"),
        (YAML.replace("sft", "dpo") + "pref_loss: kto_pair\n", "pref_loss is kto_pair, which has no counterpart"),
        (YAML + "lora_dropout: 2\n", "lora_dropout is 2"),
        (YAML + "!!python/object/apply:os.system [echo]\n", "cannot be read"),
    ],
)
def test_a_wrong_file_is_an_error_that_names_it(text, why, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "wrong.yaml").write_text(text)
    with pytest.raises(ValueError, match="wrong.yaml") as caught:
        from_llama_factory("wrong.yaml")
    assert why in str(caught.value)


def test_a_file_that_is_none(tmp_path):
    with pytest.raises(ValueError, match="is no .json, .yaml or .yml file"):
        from_swift(tmp_path / "settings.txt")
    with pytest.raises(FileNotFoundError):
        from_swift(tmp_path / "settings.yaml")
    (tmp_path / "gkd.yaml").write_text(SWIFT + "rlhf_type: gkd\n")
    with pytest.raises(ValueError, match="rlhf_type is 'gkd': here are dpo"):
        from_swift(tmp_path / "gkd.yaml")


def test_kto_with_one_row_a_batch_takes_two(swift):
    rows = [MESSAGES | {"label": True, "images": ["a.png"]}]
    found = swift("rlhf_type: kto\n", rows=rows)
    assert found.config.batch_size == 2 and "2 was taken" in found.unmapped["per_device_train_batch_size"]
