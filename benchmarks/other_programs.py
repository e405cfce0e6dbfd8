"""The work of training_loop.py in other programs, each from the Python that it is installed for.

They start anew for each run. What counts is the training loop, whose seconds they write down themselves.
"""

import json
import os
import shutil
import subprocess
from pathlib import Path

LORA = {"lora_rank": 8, "lora_alpha": 8, "lora_dropout": 0.0}

# ms-swift looks for the image token by the id that it has in the published Qwen2.5-VL, and without it sees no picture.
START_MS_SWIFT = """
import sys
import swift.pipelines
from swift.template.templates.qwen import Qwen2VLTemplate
Qwen2VLTemplate.image_token_id = int(sys.argv.pop(1))
getattr(swift.pipelines, sys.argv.pop(1))()
"""


def add_options(parser, rows, side, batch, pairs):
    """Adds what every script that times these programs takes, with its defaults."""
    parser.add_argument("--rows", type=int, default=rows, help="drawn pictures, one per row")
    parser.add_argument("--side", type=int, default=side, help="their sides in pixels")
    parser.add_argument("--vocabulary", type=int, default=0, help="151936 is Qwen2.5-VL's own; 0 the tiny model's")
    parser.add_argument("--batch", type=int, default=batch, help="rows together: in a step, or answered")
    parser.add_argument("--pairs", type=int, default=pairs, help="rounds in which every way runs once")
    parser.add_argument("--ms-swift", metavar="PYTHON", help="the Python for which ms-swift is installed")
    parser.add_argument("--llamafactory", metavar="PYTHON", help="the Python for which LLaMA-Factory is installed")


class Program:
    """One of them: `command` without its configuration, the folder of the work, and what the last run reported."""

    def __init__(self, name, python, options, folder):
        self.name, self.python, self.options, self.folder = name, python, options, Path(folder)

    def run(self):
        """One training from the beginning: the seconds of its loop."""
        output = self.folder / f"output of {self.name}"
        shutil.rmtree(output, ignore_errors=True)
        self.execute(self.command(output))
        result = self.result(output)
        self.loss = result["train_loss"]
        return result["train_runtime"]

    def execute(self, command):
        """Runs a command of it to its end."""
        environment = {**os.environ, "MAX_PIXELS": str(self.options.side**2), "MIN_PIXELS": str(self.options.side**2)}
        environment |= {"CUDA_VISIBLE_DEVICES": "", "HF_HUB_OFFLINE": "1", "MODELSCOPE_OFFLINE": "1"}
        environment.pop("PYTHONPATH", None)
        log = self.folder / f"log of {self.name}"
        with open(log, "w") as file:
            child = subprocess.Popen(command, stdout=file, stderr=file, env=environment, cwd=self.folder)
            _, status, usage = os.wait4(child.pid, 0)
        if status:
            raise RuntimeError(f"{self.name} ended with status {status}:\n{log.read_text()[-3000:]}")
        self.peak_mb = usage.ru_maxrss / 1024


class MsSwift(Program):
    def command(self, output):
        o = self.options
        arguments = {
            "model": self.folder / "model", "model_type": "qwen2_5_vl", "template": "qwen2_5_vl",
            "dataset": self.folder / "rows.jsonl",
            "tuner_type": "lora", **LORA, "target_modules": "all-linear", "torch_dtype": "float32",
            "per_device_train_batch_size": o.batch, "gradient_accumulation_steps": 1, "max_steps": o.steps,
            "learning_rate": 1e-3, "lr_scheduler_type": "linear", "warmup_ratio": 0, "weight_decay": 0,
            "gradient_checkpointing": "false", "split_dataset_ratio": 0, "save_strategy": o.save_strategy,
            "logging_steps": 10, "output_dir": output, "add_version": "false", "seed": 0, "dataloader_num_workers": 0,
            "use_hf": "true", "check_model": "false", "report_to": "none", "use_cpu": "true", "bf16": "false",
            "max_length": 4096, "attn_impl": "sdpa", "dataset_num_proc": 1,
        }  # fmt: skip
        return self.start("sft_main", arguments)

    def start(self, function, arguments):
        return [self.python, "-c", START_MS_SWIFT, str(self.options.image_token_id), function, *flags(arguments)]

    def result(self, output):
        lines = [json.loads(line) for line in (output / "logging.jsonl").read_text().splitlines()]
        return next(line for line in reversed(lines) if "train_runtime" in line)


class LlamaFactory(Program):
    def command(self, output):
        o = self.options
        columns = {"messages": "messages", "images": "images"}
        tags = {"role_tag": "role", "content_tag": "content", "user_tag": "user", "assistant_tag": "assistant"}
        rows = {"file_name": "rows.jsonl", "formatting": "sharegpt", "columns": columns, "tags": tags}
        (self.folder / "dataset_info.json").write_text(json.dumps({"rows": rows}))
        arguments = {
            "stage": "sft", "do_train": True, "finetuning_type": "lora", **LORA, "lora_target": "all",
            "model_name_or_path": str(self.folder / "model"), "template": "qwen2_vl", "dataset": "rows",
            "dataset_dir": str(self.folder), "cutoff_len": 4096, "image_max_pixels": o.side**2,
            "image_min_pixels": o.side**2, "per_device_train_batch_size": o.batch, "max_steps": o.steps,
            "learning_rate": 1e-3, "lr_scheduler_type": "linear", "warmup_ratio": 0.0, "use_cpu": True, "bf16": False,
            "disable_gradient_checkpointing": True, "save_strategy": o.save_strategy, "logging_steps": 10,
            "report_to": "none", "output_dir": str(output), "overwrite_output_dir": True, "seed": 0,
            "flash_attn": "sdpa",
        }  # fmt: skip
        return self.start("train", arguments)

    def start(self, command, arguments):
        (self.folder / f"{command}.yaml").write_text(json.dumps(arguments))  # JSON is YAML, too
        return [self.python, "-m", "llamafactory.cli", command, str(self.folder / f"{command}.yaml")]

    def result(self, output):
        return json.loads((output / "train_results.json").read_text())


def flags(arguments):
    return [str(x) for name, value in arguments.items() for x in (f"--{name}", value)]


def write_rows(rows, folder):
    """The rows as JSONL that both read: messages with `<image>` in the user's text, and paths of the images."""
    with open(Path(folder) / "rows.jsonl", "w", encoding="utf-8") as file:
        for row in rows:
            question, answer = ("".join(part["text"] or "" for part in turn["content"]) for turn in row["messages"])
            messages = [{"role": "user", "content": f"<image>{question}"}, {"role": "assistant", "content": answer}]
            print(json.dumps({"messages": messages, "images": [i["path"] for i in row["images"]]}), file=file)
