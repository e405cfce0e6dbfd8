"""Runs LLaMA-Factory and ms-swift on files that `vlm.interchange` writes, and compares what they train on with ours.

    python tools/run_interchange.py                     both, each in an environment under .interchange/
    python tools/run_interchange.py --only ms-swift     one of them; the other's rows of the table stay
    python tools/run_interchange.py --llamafactory PYTHON --ms-swift PYTHON     in environments that are there

Three steps of every method on the tiny Qwen2.5-VL: the token ids and what of them is learned, and the first loss, which
is compared with the one here on the tokens that they learn. An adapter that was trained there is merged, scored and
checked here, and ours is merged there. Writes versions and outcome into docs/interchange.md. What fails there is in the
table; exit code 1 where something fails that is not known to, or differs.
"""

import argparse
import json
import math
import os
import re
import shutil
import subprocess
import sys
import tempfile
from dataclasses import dataclass, field
from pathlib import Path

import torch
from interchange_page import OUTCOMES, ROOT, write_section
from safetensors.torch import load_file
from transformers import AutoModelForImageTextToText, BitsAndBytesConfig

import vlmhelpers as vlm
from vlmhelpers.batches.chat_template import IGNORED
from vlmhelpers.batches.preference import PreferenceCollator, RatedCollator
from vlmhelpers.data.readers.recognition import read_rows
from vlmhelpers.families import tiny_model
from vlmhelpers.interchange.keys import value_of
from vlmhelpers.models.loading import load_processor
from vlmhelpers.samples.drawing import caption, caption_without_price, sample_products
from vlmhelpers.training.methods.catalog import METHODS
from vlmhelpers.training.methods.preference import cpo_loss, orpo_loss, simpo_loss

HERE = ROOT / "tools" / "interchange"
PINS = {
    "LLaMA-Factory": "llamafactory==0.9.5 torch==2.14.1 torchvision==0.29.1 bitsandbytes==0.50.0",
    "ms-swift": "ms-swift==4.6.0 torch==2.14.1 torchvision==0.29.1 qwen-vl-utils==0.0.14 bitsandbytes==0.50.0 "
    "msgspec==0.23.0",
}
SHOWN = {
    "LLaMA-Factory": "llamafactory transformers trl peft torch",
    "ms-swift": "ms-swift transformers trl peft torch",
}
RUNS = {  # method, form of the weights, settings
    "sft, LoRA": ("sft", {}),
    "sft, QLoRA": ("sft", {"bits": 4}),
    "sft, full": ("sft", {"weights": "full"}),
    "sft, freeze": ("sft", {"weights": "freeze"}),
    "dpo": ("dpo", {}),
    "kto": ("kto", {}),
    "orpo": ("orpo", {}),
    "simpo": ("simpo", {}),
    "cpo": ("cpo", {}),
    "reward": ("reward", {}),
    "ppo": ("ppo", {}),
    "grpo": ("grpo", {"rewards": "exact_match", "num_generations": 4, "max_completion_length": 16}),
}
LACKS = {"LLaMA-Factory": {"cpo", "grpo"}, "ms-swift": {"ppo"}}
ROWS, SIDE = 4, 112  # a side that both programs, and the tiny model, take as it is
TOLERANCE = 1e-3  # of the first loss
MOVED, STEPS = "moved", 60  # the run whose adapter is moved: long enough that its answers are others than the base's
KNOWN = {("LLaMA-Factory", "ppo")}  # fail with the versions that are pinned
QUESTION = "Describe this product."


@dataclass
class Outcome:
    """One line of the table."""

    run: str
    ids: str = ""
    learned: str = ""
    losses: str = ""
    steps: str = ""
    sound: bool = True
    notes: list[str] = field(default_factory=list)


class Program:
    """One of the two: the Python that has it, and its commands."""

    def __init__(self, name: str, python: Path, work: Path):
        self.name, self.python, self.work = name, Path(python).absolute(), work / name
        self.work.mkdir(parents=True, exist_ok=True)

    def versions(self) -> str:
        """Those of the packages that decide a run."""
        code = "import importlib.metadata as m, sys; print(', '.join(f'{p} {m.version(p)}' for p in sys.argv[1:]))"
        return self.call("versions", "-c", code, *SHOWN[self.name].split()).strip().splitlines()[-1]

    def call(self, name: str, *arguments: object) -> str:
        """What its Python prints; RuntimeError with the last error where it fails."""
        environment = {**os.environ, "CUDA_VISIBLE_DEVICES": "", "HF_HUB_OFFLINE": "1", "MODELSCOPE_OFFLINE": "1"}
        environment.pop("PYTHONPATH", None)
        command = [self.python, *map(str, arguments)]
        done = subprocess.run(command, capture_output=True, text=True, env=environment, cwd=self.work)
        (self.work / f"{name}.log").write_text(done.stdout + done.stderr)
        if done.returncode:
            raise RuntimeError(last_error(done.stdout + done.stderr))
        return done.stdout

    def train(self, settings: Path, method: str) -> float:
        """Three steps; the first loss."""
        return first_loss(self._train(settings, method))


class LlamaFactory(Program):
    write = staticmethod(vlm.interchange.to_llama_factory)

    def _train(self, settings, method):
        self.call(f"train {settings.stem}", "-m", "llamafactory.cli", "train", settings)
        return self.output(settings) / "trainer_log.jsonl"

    def output(self, settings: Path) -> Path:
        """Where a run left its weights."""
        return Path(vlm.interchange.from_llama_factory(settings).config.output_dir)

    adapter = output

    def probe(self, settings: Path, method: str, output: Path) -> None:
        """Writes the rows as token ids and labels."""
        self.call(f"probe {settings.stem}", HERE / "probe_llama_factory.py", settings, output)

    def merge(self, adapter: Path, model: Path, output: Path) -> None:
        """Merges an adapter of ours."""
        keys = {"model_name_or_path": str(model), "adapter_name_or_path": str(adapter), "template": "qwen2_vl"}
        keys |= {"export_dir": str(output), "trust_remote_code": False, "infer_dtype": "bfloat16"}
        (self.work / "merge.yaml").write_text(json.dumps(keys))
        self.call("merge", "-m", "llamafactory.cli", "export", self.work / "merge.yaml")


class Swift(Program):
    write = staticmethod(vlm.interchange.to_swift)
    plugin = ("--external_plugins", HERE / "tiny_swift.py")  # else it sees no image token
    quick = ("--check_model", "false")  # else it asks a hub about the folder

    def _train(self, settings, method):
        command = "sft" if method == "sft" else "rlhf"
        rewards = settings.parent.glob(f"{settings.stem}_rewards.py")  # an argument replaces what the file names
        options = (*self.plugin, *rewards, *self.quick)
        self.call(f"train {settings.stem}", "-m", "swift.cli.main", command, settings, *options)
        return Path(vlm.interchange.from_swift(settings).config.output_dir) / "logging.jsonl"

    def adapter(self, settings: Path) -> Path:
        """Where a run left its weights."""
        config = vlm.interchange.from_swift(settings).config
        return Path(config.output_dir) / f"checkpoint-{config.max_steps}"

    def probe(self, settings: Path, method: str, output: Path) -> None:
        """Writes the rows as token ids and labels."""
        command = "sft" if method == "sft" else "rlhf"
        script = (HERE / "probe_swift.py", command, settings, self.plugin[1], output)
        self.call(f"probe {settings.stem}", *script)

    def merge(self, adapter: Path, model: Path, output: Path) -> None:
        """Merges an adapter of ours."""
        keys = {"model": model, "model_type": "qwen2_5_vl", "template": "qwen2_5_vl", "adapters": adapter}
        keys |= {"merge_lora": "true", "output_dir": output, "use_hf": "true", "torch_dtype": "bfloat16"}
        arguments = [part for name, value in keys.items() for part in (f"--{name}", value)]
        self.call("merge", "-m", "swift.cli.main", "export", *arguments, *self.plugin)


KINDS = {"LLaMA-Factory": LlamaFactory, "ms-swift": Swift}


def last_error(text: str) -> str:
    """The last line of a log that names an error."""
    lines = [line.strip() for line in text.splitlines() if re.match(r"\s*[\w.]*(Error|Exception)\b.*", line)]
    return (lines or text.strip().splitlines() or ["no output"])[-1][:300]


def first_loss(log: Path) -> float:
    """The first one in a log of JSON lines."""
    return next(line["loss"] for line in map(json.loads, log.read_text().splitlines()) if "loss" in line)


def file_name(run: str) -> str:
    """Of what a run leaves."""
    return run.replace(", ", "_")


def make_python(name: str) -> Path:
    """The Python of an environment of the program's own, made once."""
    folder = ROOT / ".interchange" / name
    python, made = folder / "bin" / "python", folder / "made"
    if not made.is_file() or made.read_text() != PINS[name]:
        uv = [sys.executable, "-m", "uv"]
        subprocess.run([*uv, "venv", "--clear", "--python", sys.executable, folder], check=True)
        subprocess.run([*uv, "pip", "install", "--python", python, *PINS[name].split()], check=True)
        made.write_text(PINS[name])
    return python


def make_model(folder: Path) -> Path:
    """The tiny model with a processor that leaves images of SIDE as they are, as both programs do, in 32 bits."""
    model = folder / "model"
    shutil.copytree(tiny_model("qwen2.5-vl"), model)
    for name in ("processor_config.json", "config.json"):
        settings = json.loads((model / name).read_text())
        if name == "config.json":
            settings["dtype"] = "float32"  # LLaMA-Factory computes in the bits that are named here
        else:
            settings["image_processor"]["size"] = {"shortest_edge": 56**2, "longest_edge": 16384 * 28**2}
        (model / name).write_text(json.dumps(settings))
    return model


def make_rows(folder: Path) -> dict[str, Path]:
    """A file of ROWS rows of each kind."""
    rows = {"messages": [], "pairs": [], "rated": [], "prompts": []}
    folder.mkdir()
    for number, (product, image) in enumerate(sample_products(ROWS, "interchange", SIDE)):
        image.save(folder / f"{number}.png")
        shown, long, short = {"images": [f"{number}.png"]}, caption(product), caption_without_price(product)
        rows["messages"].append({"text": QUESTION, "image": f"{number}.png", "response": short})
        rows["pairs"].append({"prompt": QUESTION, "chosen": short, "rejected": long} | shown)
        rated = {"completion": short if number % 2 else long, "label": bool(number % 2)}
        rows["rated"].append({"prompt": QUESTION} | rated | shown)
        rows["prompts"].append({"prompt": QUESTION, "answer": short} | shown)
    for kind, of_kind in rows.items():
        (folder / f"{kind}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in of_kind))
    return {kind: folder / f"{kind}.jsonl" for kind in rows}


def all_in_4_bits(folder: Path) -> torch.nn.Module:
    """The model with its vision encoder in 4 bits, too, as LLaMA-Factory loads it."""
    four = BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_use_double_quant=True)
    options = {"quantization_config": four, "dtype": torch.float32, "device_map": {"": "cpu"}}
    model = AutoModelForImageTextToText.from_pretrained(folder, trust_remote_code=False, **options)
    return model.train()  # else bitsandbytes packs it for a kernel that takes no such shapes


class Ours:
    """The same runs here."""

    def __init__(self, folder: Path):
        self.folder, self.model_folder, self.files = folder, make_model(folder), make_rows(folder / "rows")
        self.models = {bits: vlm.load_model(str(self.model_folder), bits)[0] for bits in (16, 4)}
        self.models["all in 4"] = all_in_4_bits(self.model_folder)
        self.processor = load_processor(str(self.model_folder))
        self._losses = {}

    def config(self, run: str, output: Path, **more: object) -> vlm.RunConfig:
        """The settings of a run, all rows in each of three batches."""
        method, changes = RUNS[run]
        usual = {"bits": 16, "max_steps": 3, "batch_size": ROWS, "gradient_accumulation_steps": 1, "lora_r": 8}
        usual |= {"max_length": 512, "logging_steps": 1, "save_steps": 3, "warmup_steps": 1}
        file = str(self.files[METHODS[method].rows])
        return vlm.RunConfig(str(self.model_folder), file, str(output), method, **usual | changes | more)

    def moved(self, output: Path) -> vlm.RunConfig:
        """The settings of the run whose adapter is moved."""
        return self.config("sft, LoRA", output, max_steps=STEPS, save_steps=STEPS, lora_r=16, logging_steps=20)

    def own_adapter(self) -> Path:
        """That run here."""
        output = self.folder / "ours_moved"
        if not output.exists():
            vlm.train(self.moved(output))
        return output / "adapter"

    def rows(self, run: str):
        """Those of the method, as the readers make them."""
        kind = METHODS[RUNS[run][0]].rows
        return read_rows(self.files[kind], kind)

    def first_loss(self, run: str) -> float:
        """Of three steps of training here."""
        if run not in self._losses:
            output = self.folder / f"ours_{file_name(run)}"
            vlm.train(self.config(run, output))
            state = json.loads((output / "checkpoint-3" / "trainer_state.json").read_text())
            self._losses[run] = next(line["loss"] for line in state["log_history"] if "loss" in line)
        return self._losses[run]

    def batch(self, run: str) -> dict:
        """One batch of all rows, with labels, the chosen sides first."""
        kind, rows = METHODS[RUNS[run][0]].rows, list(self.rows(run))
        if kind == "messages":
            return vlm.VisionCollator(self.processor)(rows)
        collator = PreferenceCollator if kind == "pairs" else RatedCollator
        batch = collator(self.processor)(rows)
        learned = batch.pop("completion_mask").bool()
        batch["labels"] = batch["input_ids"].masked_fill(~learned, IGNORED)
        return {name: values for name, values in batch.items() if not name.startswith("KL_") and name != "label"}

    def expected(self, run: str, batch: dict, labels: torch.Tensor, program: str) -> float | None:
        """The first loss where `labels` are learned, by the formulas here; None where a head of their own decides."""
        method, config = RUNS[run][0], self.config(run, self.folder / "x")
        if method == "kto":
            return 0.5  # all rewards are 0 before the first step
        if method not in ("sft", "dpo", "orpo", "simpo", "cpo"):
            return None
        inputs = {name: values for name, values in batch.items() if name != "labels"}
        theirs = program == "LLaMA-Factory"
        bits = "all in 4" if theirs and config.bits == 4 else config.bits
        with torch.no_grad():
            logps = self.models[bits](**inputs).logits.float().log_softmax(-1)[:, :-1]
        kept = labels[:, 1:] != IGNORED
        picked = logps.gather(-1, labels[:, 1:].clamp(min=0)[..., None])[..., 0] * kept
        return loss_of(method, config, picked.sum(1), kept.sum(1), theirs).item()


def loss_of(method, config, sums, counts, mean_of_means):
    """Of summed log-probabilities (n,) and their numbers of tokens, the chosen ones first."""
    if method == "sft":
        return -sums.sum() / counts.sum()
    (chosen, rejected), (tokens, _) = sums.chunk(2), counts.chunk(2)
    likelihood = -(chosen / tokens).mean() if mean_of_means else -chosen.sum() / tokens.sum()
    beta, weight = value_of(config, "beta"), value_of(config, "nll_coef")
    if method == "dpo":
        return math.log(2) + likelihood
    if method == "cpo":
        return cpo_loss(chosen, rejected, beta).mean() + weight * likelihood
    means = (sums / counts).chunk(2)
    gamma = value_of(config, "simpo_gamma")
    loss = orpo_loss(*means, beta) if method == "orpo" else simpo_loss(*means, beta, gamma)
    return loss.mean() + weight * likelihood


def their_sequences(path: Path, method: str) -> list[tuple[list[int], list[int]]]:
    """(ids, labels) of every conversation that they train on; no labels where a head reads the last token."""
    sides = ("chosen_", "rejected_") if METHODS[method].rows == "pairs" else ("", "chosen_")
    rows = [(side, row) for side in sides for row in json.loads(path.read_text()) if f"{side}input_ids" in row]
    return [(row[f"{side}input_ids"], row.get(f"{side}labels", [])) for side, row in rows]


def compare(ours: Ours, program: Program, run: str, theirs: list, outcome: Outcome):
    """Notes which ids are the same, and what is learned there alone; the batch here with the labels there."""
    batch = ours.batch(run)
    ids = [row[mask.bool()].tolist() for row, mask in zip(batch["input_ids"], batch["attention_mask"], strict=True)]
    known = {tuple(found): labels for found, labels in theirs}
    same = sum(tuple(row) in known for row in ids)
    outcome.ids = f"{same} of {len(ids)} the same"
    outcome.sound &= same == len(ids)
    labels, more, fewer = batch["labels"].clone(), set(), 0
    for index, row in enumerate(ids):
        for place, label in enumerate(known.get(tuple(row), ())):
            mine = batch["labels"][index, place].item()
            more |= {ours.processor.tokenizer.decode([label])} if mine == IGNORED and label != IGNORED else set()
            fewer += mine != IGNORED and label == IGNORED
            labels[index, place] = label
    if METHODS[RUNS[run][0]].module == "reward":
        outcome.learned = "a head on the last token"
        return batch, labels
    outcome.learned = f"also {', '.join(map(repr, sorted(more)))}" if more else "the same"
    outcome.learned += f", {fewer} tokens not" if fewer else ""
    return batch, labels


def try_run(ours: Ours, program: Program, run: str) -> Outcome:
    """Three steps of a run there and here."""
    method, outcome = RUNS[run][0], Outcome(run)
    name = file_name(run)
    try:
        config = ours.config(run, program.work / f"out_{name}", **reward_of(program, run))
        settings = program.write(ours.rows(run), program.work, config, name)
        there = program.train(settings, method)
        outcome.steps = "3"
        if METHODS[method].rows != "prompts":
            program.probe(settings, method, program.work / f"{name}.json")
            theirs = their_sequences(program.work / f"{name}.json", method)
            batch, labels = compare(ours, program, run, theirs, outcome)
            expected = ours.expected(run, batch, labels, program.name)
            note_losses(outcome, there, ours.first_loss(run), expected)
    except (RuntimeError, ValueError, OSError) as error:
        outcome.steps, outcome.sound = "fails", False
        outcome.notes.append(" ".join(str(error).split())[:300])
    return outcome


def reward_of(program, run):
    """A reward model that was trained there, for PPO."""
    return {"reward_model": str(program.work / "out_reward")} if run == "ppo" else {}


def note_losses(outcome, there, here, expected):
    outcome.losses = f"{there:.4f} / {here:.4f}"
    if expected is None:
        outcome.losses += " / a head of its own"
        return
    outcome.losses += f" / {expected:.4f}"
    if abs(there - expected) > TOLERANCE:
        outcome.sound = False
        outcome.notes.append(f"further apart than {TOLERANCE}")


def move_adapters(ours: Ours, program: Program) -> list[str]:
    """What becomes of adapters that move, a sentence each."""
    settings = program.write(ours.rows("sft, LoRA"), program.work, ours.moved(program.work / "out_moved"), MOVED)
    program.train(settings, "sft")
    trained = program.adapter(settings)
    merged = vlm.merge(trained, program.work / "merged here")
    rows = ours.rows("sft, LoRA")
    checked = vlm.check_export(merged, trained, rows)
    tuned, processor = vlm.load_model(str(merged), 16)
    score = vlm.evaluate(vlm.generate(tuned, processor, rows, max_new_tokens=16), rows)
    if not checked.ok:
        raise ValueError(repr(checked))
    lines = [f"Its SFT adapter, after {STEPS} steps, here: merged, {first_line(score)}; {first_line(checked)}"]
    own = ours.own_adapter()
    program.merge(own, ours.model_folder, program.work / "merged there")
    mine = vlm.merge(own, program.work / "merged own")
    most = difference(mine, program)
    lines.append(
        f"Our SFT adapter, after {STEPS} steps, there: merged; a weight is at most {most} from ours, in bfloat16"
    )
    return lines


def first_line(shown: object) -> str:
    return next(line.strip() for line in repr(shown).splitlines() if line.strip())


def difference(mine: Path, program: Program) -> str:
    """The largest difference of a weight in two merged models."""
    here, there = (
        {name: tensor for file in sorted(folder.glob("*.safetensors")) for name, tensor in load_file(file).items()}
        for folder in (mine, program.work / "merged there")
    )
    if here.keys() != there.keys():
        return f"unknown: {len(here.keys() ^ there.keys())} names differ"
    return f"{max((here[name].float() - there[name].float()).abs().max().item() for name in here):.1e}"


def try_program(name: str, python: Path, work: Path, ours: Ours, runs: list[str]) -> tuple[list[str], bool]:
    """The section of the page about one program, and whether all went as it should."""
    program = KINDS[name](name, python, work)
    outcomes = []
    for run in (run for run in runs if RUNS[run][0] not in LACKS[name]):
        outcomes.append(try_run(ours, program, run))
        print(f"{name}: {outcomes[-1]}", flush=True)
    sound = all(one.sound or (name, one.run) in KNOWN for one in outcomes)
    try:
        moved = move_adapters(ours, program)
    except (RuntimeError, ValueError, OSError) as error:
        sound, moved = False, [f"An adapter that moves fails: {' '.join(str(error).split())[:300]}"]
    print(*moved, sep="\n", flush=True)
    return [f"{program.versions()}.", "", *table(outcomes), "", *(f"- {line}" for line in moved)], sound


def table(outcomes: list[Outcome]) -> list[str]:
    """As Markdown."""
    lines = ["| run | steps | token ids | learned there | first loss: there / here / here on their tokens | |"]
    lines.append("| --- | --- | --- | --- | --- | --- |")
    for one in outcomes:
        cells = (one.run, one.steps, one.ids, one.learned, one.losses, "; ".join(one.notes).replace("|", "\\|"))
        lines.append(f"| {' | '.join(cells)} |")
    return lines


def main(arguments: list[str] | None = None) -> int:
    """Runs both, or one, and writes the page."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--llamafactory", metavar="PYTHON", help="the Python that LLaMA-Factory is installed for")
    parser.add_argument("--ms-swift", metavar="PYTHON", help="the Python that ms-swift is installed for")
    parser.add_argument("--only", choices=KINDS, help="one of the programs")
    parser.add_argument("--runs", nargs="+", choices=RUNS, help="some of the runs; nothing is written then")
    options = parser.parse_args(arguments)
    given = {"LLaMA-Factory": options.llamafactory, "ms-swift": options.ms_swift}
    with tempfile.TemporaryDirectory() as folder:
        ours, sound = Ours(Path(folder)), True
        for name in [options.only] if options.only else KINDS:
            python, runs = given[name] or make_python(name), options.runs or list(RUNS)
            section, well = try_program(name, python, Path(folder), ours, runs)
            sound &= well
            if not options.runs:
                write_section(OUTCOMES, name, section)
    return int(not sound)


if __name__ == "__main__":
    sys.exit(main())
