"""Run by ms-swift's Python: writes what its batches are made of, `probe_swift.py COMMAND SETTINGS PLUGIN OUTPUT`."""

import json
import os
import sys

import yaml
from swift.pipelines.train.rlhf import SwiftRLHF
from swift.pipelines.train.sft import SwiftSft

command, settings, plugin, output = sys.argv[1:]
with open(settings, encoding="utf-8") as file:
    keys = yaml.safe_load(file)
os.environ.update({name: str(value) for name, value in keys.pop("ENV", {}).items()})
arguments = ["--check_model", "false", "--external_plugins", plugin]
for name, value in keys.items():
    arguments += [f"--{name}", *map(str, value if isinstance(value, list) else [value])]
pipeline = {"sft": SwiftSft, "rlhf": SwiftRLHF}[command](arguments)
rows, _ = pipeline._prepare_dataset()
encoded = [rows[index] for index in range(len(rows))]
wanted = [name for name in encoded[0] if name.endswith(("input_ids", "labels")) and "KL" not in name]
with open(output, "w", encoding="utf-8") as file:
    json.dump([{name: list(map(int, row[name])) for name in wanted} for row in encoded], file)
