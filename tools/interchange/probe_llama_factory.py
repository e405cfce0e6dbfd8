"""Run by LLaMA-Factory's Python: writes what its batches are made of, `probe_llama_factory.py SETTINGS OUTPUT`."""

import json
import sys

import yaml
from llamafactory.data import get_dataset, get_template_and_fix_tokenizer
from llamafactory.hparams import get_train_args
from llamafactory.model import load_tokenizer

settings, output = sys.argv[1:]
with open(settings, encoding="utf-8") as file:
    model, data, training, tuning, _ = get_train_args(yaml.safe_load(file))
loaded = load_tokenizer(model)
template = get_template_and_fix_tokenizer(loaded["tokenizer"], data)
stage = "rm" if tuning.stage == "dpo" else tuning.stage  # as its own DPO does
rows = get_dataset(template, model, data, training, stage=stage, **loaded)["train_dataset"]
wanted = [name for name in rows.column_names if name.endswith(("input_ids", "labels")) and not name.startswith("kl_")]
with open(output, "w", encoding="utf-8") as file:
    json.dump([{name: row[name] for name in wanted} for row in rows], file)
