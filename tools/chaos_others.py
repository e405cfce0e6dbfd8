"""What other programs do when a run was killed in a save, its data changed, a checkpoint damaged, or it is finished.

Each program trains the tiny Qwen2.5-VL on the same rows of text, ten steps of a six-step epoch, in a process of its
own. Prints Markdown for docs/reliability.md: `python tools/chaos_others.py --llamafactory PYTHON`, where PYTHON is that
of an environment with LLaMA-Factory.
"""

import argparse
import hashlib
import json
import os
import shutil
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

from vlmhelpers.families import tiny_model

STEPS, EVERY, ROWS = 10, 2, 24
LAST, KILLED = f"checkpoint-{STEPS - EVERY}", f"checkpoint-{STEPS - 2 * EVERY}"
WEIGHTS = "adapter_model.safetensors"
# Read by every Python that starts with it on its path: dies where a file with that end of its path is about to be made.
KILLER = """
import os, signal, sys
def hook(event, arguments):
    if event == "open" and str(arguments[0]).endswith(os.environ["KILL_AT"]) and arguments[2] & os.O_CREAT:
        os.kill(os.getpid(), signal.SIGKILL)
if os.environ.get("KILL_AT"):
    sys.addaudithook(hook)
"""
TRL = f"""
from datasets import load_dataset
from peft import LoraConfig
from transformers import AutoModelForImageTextToText, AutoTokenizer, set_seed
from transformers.trainer_utils import get_last_checkpoint
from trl import SFTConfig, SFTTrainer
set_seed(0)
trainer = SFTTrainer(
    model=AutoModelForImageTextToText.from_pretrained("model"),
    args=SFTConfig("out", max_steps={STEPS}, save_steps={EVERY}, per_device_train_batch_size=4, learning_rate=1e-3,
        lr_scheduler_type="constant",
        use_cpu=True, bf16=False, gradient_checkpointing=False, report_to="none", disable_tqdm=True),
    train_dataset=load_dataset("json", data_files="rows.jsonl", split="train"),
    processing_class=AutoTokenizer.from_pretrained("model"),
    peft_config=LoraConfig(r=4, target_modules=["q_proj", "v_proj"], task_type="CAUSAL_LM"),
)
import os
os.makedirs("out", exist_ok=True)
trainer.train(resume_from_checkpoint=get_last_checkpoint("out") is not None)
trainer.save_model("out/adapter")
"""


@dataclass
class Program:
    """One of them: its command in a folder, and where it leaves the adapter."""

    name: str
    command: list[str]
    adapter: str

    def start(self, folder: Path, kill_at: str = "") -> subprocess.CompletedProcess:
        environment = {**os.environ, "KILL_AT": kill_at, "PYTHONPATH": str(folder.parent / "killer")}
        environment |= {"OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": "", "HF_HUB_OFFLINE": "1"}
        environment |= {"HF_HOME": str(folder.parent / "hf"), "XDG_CACHE_HOME": str(folder.parent / "cache")}
        return subprocess.run(self.command, cwd=folder, env=environment, capture_output=True, text=True)

    def result(self, folder: Path) -> str | None:
        file = folder / self.adapter / WEIGHTS
        return hashlib.sha256(file.read_bytes()).hexdigest() if file.exists() else None


def programs(llamafactory):
    this = sys.executable
    ours = [this, "-m", "vlmhelpers", "train", "run.yaml"]
    yield Program("vlmhelpers", ours, "out/adapter")
    yield Program("TRL's SFTTrainer (HF Trainer)", [this, "-c", TRL], "out/adapter")
    if llamafactory:
        yield Program("LLaMA-Factory", [llamafactory, "-m", "llamafactory.cli", "train", "llamafactory.yaml"], "out")


def prepare(folder):
    """The model, the rows, and the settings in each program's form."""
    folder.mkdir()
    (folder / "model").symlink_to(tiny_model("qwen2.5-vl"))
    write_rows(folder)
    settings = {
        "max_steps": STEPS,
        "save_steps": EVERY,
        "logging_steps": 1,
        "learning_rate": 1e-3,
        "lr_scheduler_type": "constant",
    }
    ours = {"model_id": "model", "dataset": "rows.jsonl", "output_dir": "out", "bits": 16, "lora_r": 4}
    ours |= {"backend": "transformers", "batch_size": 4, "gradient_accumulation_steps": 1, "warmup_steps": 0}
    (folder / "run.yaml").write_text(json.dumps(settings | ours))
    tags = {"role_tag": "role", "content_tag": "content", "user_tag": "user", "assistant_tag": "assistant"}
    info = {"file_name": "rows.jsonl", "formatting": "sharegpt", "columns": {"messages": "messages"}, "tags": tags}
    (folder / "dataset_info.json").write_text(json.dumps({"rows": info}))
    theirs = {
        "stage": "sft", "do_train": True, "finetuning_type": "lora", "lora_rank": 4, "lora_target": "q_proj,v_proj",
        "model_name_or_path": "model", "template": "qwen2_vl", "dataset": "rows", "dataset_dir": ".",
        "per_device_train_batch_size": 4, "use_cpu": True, "bf16": False, "disable_gradient_checkpointing": True,
        "report_to": "none", "output_dir": "out", "seed": 0, "preprocessing_num_workers": 1,
    }  # fmt: skip
    (folder / "llamafactory.yaml").write_text(json.dumps(settings | theirs))


def write_rows(folder, word="fine"):
    """`word` stands in the answers of two thirds of the rows."""
    with open(folder / "rows.jsonl", "w") as file:
        for n in range(ROWS):
            question, answer = f"What is number {n}?", f"It is {n * 7 % ROWS} and {word if n % 3 else 'fine'}."
            turns = [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]
            file.write(json.dumps({"messages": turns}) + "\n")


class Trial:
    """The folders of one program's runs."""

    def __init__(self, program, scratch):
        self.program, self.scratch = program, scratch
        self.whole = self.folder("whole")
        done = program.start(self.whole)
        if done.returncode:
            raise RuntimeError(f"{program.name} fails undisturbed:\n{done.stdout[-2000:]}{done.stderr[-3000:]}")
        self.expected = program.result(self.whole)

    def folder(self, name):
        folder = self.scratch / f"{name} of {self.program.name.split()[0]}"
        prepare(folder)
        return folder

    def stopped(self, name):
        """A copy of the whole run as if it had been killed after its last but one checkpoint."""
        folder = self.folder(name)
        shutil.copytree(self.whole / "out", folder / "out")
        shutil.rmtree(folder / "out" / f"checkpoint-{STEPS}")
        for path in ("adapter", WEIGHTS, "results.json"):
            path = folder / "out" / path
            shutil.rmtree(path) if path.is_dir() else path.unlink(missing_ok=True)
        return folder

    def outcome(self, folder):
        """What a start in `folder` comes to, and a second one where the first fails."""
        done = self.program.start(folder)
        if done.returncode:
            done = self.program.start(folder)
        if done.returncode:
            lines = [line for line in done.stderr.splitlines() if line.strip() and not line.startswith(" ")]
            kind = "every start fails" if "Traceback" in done.stderr else "refused"
            return f"{kind}: {lines[-1].replace(f'{folder}/', '')[:200]}"
        steps = max(int(path.name.rpartition("-")[2]) for path in folder.glob("out/checkpoint-*[0-9]"))
        same = "the same adapter" if self.program.result(folder) == self.expected else "another adapter, unnoticed"
        return same + (f", after {steps} steps instead of {STEPS}" if steps != STEPS else "")

    def killed(self, file):
        folder = self.folder(f"killed at {file}")
        code = self.program.start(folder, f"{KILLED}/{file}").returncode
        return self.outcome(folder) if code == -9 else f"(not killed: {code})"

    def changed_data(self):
        folder = self.stopped("changed data")
        write_rows(folder, "wholly other")
        return self.outcome(folder)

    def zeroed(self, file):
        folder = self.stopped(f"zeroed {file}")
        path = folder / "out" / LAST / file
        path.write_bytes(bytes(path.stat().st_size))
        return self.outcome(folder)

    def again(self):
        return self.outcome(self.whole)


TESTS = {
    "SIGKILL in a save, before the optimizer": lambda trial: trial.killed("tokenizer_config.json"),
    "SIGKILL in a save, before trainer_state.json": lambda trial: trial.killed("trainer_state.json"),
    "16 of 24 answers changed": Trial.changed_data,
    f"{LAST}/optimizer.pt zeroed": lambda trial: trial.zeroed("optimizer.pt"),
    f"{LAST}/{WEIGHTS} zeroed": lambda trial: trial.zeroed(WEIGHTS),
    f"{LAST}/trainer_state.json zeroed": lambda trial: trial.zeroed("trainer_state.json"),
    "finished, started again": Trial.again,
}


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--llamafactory", metavar="PYTHON", help="of an environment with LLaMA-Factory")
    scratch = Path(tempfile.mkdtemp(prefix="others-"))
    (scratch / "killer").mkdir()
    (scratch / "killer" / "sitecustomize.py").write_text(KILLER)
    lines = {"": []} | {name: [] for name in TESTS}
    try:
        for program in programs(parser.parse_args().llamafactory):
            lines[""].append(program.name)
            trial = Trial(program, scratch)
            for name, test in TESTS.items():
                lines[name].append(test(trial))
                print(f"{program.name}: {name}: {lines[name][-1]}", file=sys.stderr, flush=True)
    finally:
        shutil.rmtree(scratch)
    rule = ["---"] * len(lines[""])
    for name, cells in [*list(lines.items())[:1], ("---", rule), *list(lines.items())[1:]]:
        print(f"| {' | '.join([name, *cells])} |")


if __name__ == "__main__":
    main()
