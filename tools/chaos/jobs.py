"""What is attacked: small jobs, each as a user starts it, with the working directory as its place to write to."""

import csv
import json
import os
import shutil
import sys
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from misbehaving_server import misbehaving_server
from peft import LoraConfig, get_peft_model
from transformers import AutoProcessor, set_seed

from vlmhelpers.batches.collator import VisionCollator
from vlmhelpers.batches.pixel_cache import precompute
from vlmhelpers.cli import main
from vlmhelpers.common.digests import digest, tensors_digest
from vlmhelpers.common.files import atomic_file
from vlmhelpers.data.download.downloader import download_images
from vlmhelpers.data.readers.jsonl_reader import read_jsonl
from vlmhelpers.evaluation.scoring import by_slice, evaluate
from vlmhelpers.export.adapters import attach, merge, save_adapter
from vlmhelpers.export.serving import to_gguf
from vlmhelpers.families import tiny_model
from vlmhelpers.inference.generation import generate
from vlmhelpers.models.loading import load_model
from vlmhelpers.models.lora import lora_targets
from vlmhelpers.models.vision import cache_vision_features
from vlmhelpers.samples.sample_data import write_sample
from vlmhelpers.training.run import RunResult

FAMILY = "qwen2.5-vl"
ROWS, LINES, IMAGES = 24, 2000, 40  # of the model's jobs, of a file to convert, to download
RUN = f"""
model_id: {FAMILY}
dataset: sample.jsonl
output_dir: out
bits: none
backend: transformers
lora_r: 4
test_rows: 4
batch_size: 4
gradient_accumulation_steps: 1
max_steps: 8
warmup_steps: 0
logging_steps: 1
save_steps: 2
learning_rate: 1e-3
"""
# Stands in for llama.cpp's script: it writes slowly.
CONVERTER = """
import sys, time
with open(sys.argv[sys.argv.index("--outfile") + 1], "wb") as file:
    for number in range(40):
        file.write(bytes([number]) * 10_000)
        file.flush()
        time.sleep(0.01)
"""


@dataclass(frozen=True)
class Job:
    """One of them. In its folder, `results` maps what it leaves to the paths that hold it."""

    name: str
    run: Callable[[], int | None]
    results: dict[str, str]
    prepare: Callable[[], object] = lambda: None  # what is there before, in the working directory
    inputs: tuple[str, ...] = ()  # of that, what it reads
    varying: tuple[str, ...] = ()  # names of files in its results that differ from run to run, or may be edited
    may_refuse: bool = False  # where a file that an earlier attempt left is damaged; the others make it anew


def found(job: Job, folder: Path) -> dict[str, dict[str, str]]:
    """The results of `job` that are in `folder`: the digests of their files, by result and by file."""
    paths = {name: folder / path for name, path in job.results.items()}
    return {name: _digests(path, job.varying) for name, path in paths.items() if path.exists()}


def _digests(path, varying):
    if path.name == "results.json":
        return {"": _run_digest(path.parent)}
    files = [file for file in sorted(path.rglob("*")) if file.is_file()] if path.is_dir() else [path]
    return {f"{file.relative_to(path)}": digest(file.read_bytes()) for file in files if file.name not in varying}


def _run_digest(folder):
    try:
        run = RunResult.read(folder)
    except (OSError, ValueError, TypeError, KeyError):
        return "unreadable"
    return digest(run.steps, run.rows, [(line["step"], line["loss"]) for line in run.history if "loss" in line])


def script(run: Callable[..., object]) -> Callable[..., int]:
    """A job without the command line: what a call of the package is documented to raise ends it with a sentence."""

    def scripted(*arguments):
        try:
            run(*arguments)
        except (ValueError, OSError, RuntimeError, MemoryError) as error:
            print(f"{type(error).__name__}: {' '.join(str(error).split())}", file=sys.stderr)
            return 2
        except KeyboardInterrupt:
            return 130
        return 0

    return scripted


def _keep(value):
    with atomic_file("result.json") as file:
        json.dump(value, file)


def make_source(source: Path, url: str) -> None:
    """Writes what the jobs read. url: of the server of pictures."""
    write_sample(source / "sample.jsonl", ROWS, size=48)
    (source / "run.yaml").write_text(RUN)
    (source / "llama.cpp").mkdir()
    (source / "llama.cpp" / "convert_hf_to_gguf.py").write_text(CONVERTER)
    learned = (source / "sample.jsonl").read_text().replace('"response": "', '"response": "Sold out: ')
    (source / "sample.jsonl").write_text(learned)  # which the base does not know
    samples = list(map(json.loads, learned.splitlines()))
    rows = [samples[n % ROWS] | {"text": f"Number {n}: {samples[n % ROWS]['text']}"} for n in range(LINES)]
    (source / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    with open(source / "rows.csv", "w", newline="") as file:
        names = {"image_path": "image", "instruction": "text", "description": "response"}
        csv.writer(file).writerows([list(names), *([row[name] for name in names.values()] for row in rows)])
    with open(source / "products.csv", "w", newline="") as file:
        csv.writer(file).writerows(
            [["imageurl", "title"], *([link, f"Number {n}"] for n, link in enumerate(links(url)))]
        )
    for name, seed in (("older", 1), ("adapter", 2)):
        model, processor = _adapted(seed)
        save_adapter(model, processor, source / name, notes=f"Of seed {seed}.")
    merge(source / "adapter", source / "merged")


def _adapted(seed):
    model, processor = load_model(tiny_model(FAMILY), bits=16, backend="transformers")
    set_seed(seed)
    lora = LoraConfig(r=16, target_modules=lora_targets(model), init_lora_weights=False, task_type="CAUSAL_LM")
    return get_peft_model(model, lora), processor


def make_jobs(source: Path, url: str) -> list[Job]:
    """All jobs, which read `source`, made by `make_source`, and get pictures from a server."""
    rows, jsonl = {"rows": "out.jsonl"}, str(source / "sample.jsonl")

    def earlier(*names):
        for name in names:
            Path(name).parent.mkdir(exist_ok=True)
            Path(name).write_text("of an earlier call\n")

    def convert(reader, *arguments):
        return main([reader, "-o", "out.jsonl", *arguments])

    def rows_of(reader, file):  # without links to its images: to cut one would cut what the job reads
        return convert(reader, "-i", str(source / file), "--image-root", str(source))

    def products():
        options = "--cache-dir pictures --private-hosts 127.0.0.1 --response {title} --image-field imageurl".split()
        return convert("products", "-i", str(source / "products.csv"), *options)

    @script
    def download():
        found = download_images(links(url), "pictures", private_hosts=("127.0.0.1",))
        if reasons := [result[0] for result in found.values() if isinstance(result, tuple)]:
            raise OSError(reasons[0])
        _keep([digest(Path(path).read_bytes()) for path in found.values()])

    @script
    def pixels():
        processor = AutoProcessor.from_pretrained(tiny_model(FAMILY), trust_remote_code=False)
        dataset = precompute(read_jsonl(jsonl), processor, "pixels")
        _keep(tensors_digest(VisionCollator(processor)(list(dataset)).items()))

    @script
    def features():
        model, processor = load_model(tiny_model(FAMILY), bits=16, backend="transformers")
        for parameter in model.parameters():
            parameter.requires_grad_(False)
        cache_vision_features(model, "features")
        collator, dataset = VisionCollator(processor), read_jsonl(jsonl)
        batches = (collator([dataset[i], dataset[i + 1]]) for i in range(0, ROWS, 2))
        _keep([tensors_digest([("logits", model(**batch).logits)]) for batch in batches])

    def answers(adapter=None):
        model, processor = load_model(tiny_model(FAMILY), bits=16, backend="transformers")
        model = attach(model, adapter) if adapter else model
        dataset = read_jsonl(jsonl)
        return dataset, generate(model, processor, dataset, 4, 24, save_to=f"{'tuned' if adapter else 'base'}.jsonl")

    @script
    def answer():
        _keep(answers()[1])

    @script
    def score():
        dataset, base = answers()
        evaluations = {"base": evaluate(base, dataset, "all"), "tuned": evaluate(answers("adapter")[1], dataset, "all")}
        table = by_slice(dataset, evaluations, "answer length")
        _keep([*map(str, evaluations.values()), table.to_csv()])

    def train(cache):
        return main(["train", str(source / "run.yaml"), "--set", "output_dir=out", f"cache={cache}"])

    @script
    def save():
        model, processor = load_model(tiny_model(FAMILY), bits=16, backend="transformers")
        save_adapter(attach(model, source / "adapter"), processor, "adapter", notes="Newer.")

    trained = {"adapter": "out/adapter", "held_out": "out/held_out", "results": "out/results.json"}
    edited = ("README.md", "training_args.bin", "state.json")  # the last has a random fingerprint
    copy_adapter = partial(shutil.copytree, source / "adapter", "adapter")
    gguf = {"model": "gguf/merged-f16.gguf", "mmproj": "gguf/mmproj-merged-f16.gguf"}
    kept = {"result": "result.json"}
    older = partial(shutil.copytree, source / "older", "adapter")
    merged, to_files = script(partial(merge, "adapter", "merged")), script(partial(to_gguf, source / "merged", "gguf"))
    return [
        Job("csv", partial(rows_of, "csv", "rows.csv"), rows, lambda: earlier("out.jsonl")),
        Job("jsonl", partial(rows_of, "jsonl", "rows.jsonl"), rows, lambda: earlier("out.jsonl")),
        Job("products", products, rows, lambda: earlier("out.jsonl")),
        Job("download", download, kept),
        Job("pixels", pixels, kept),
        Job("features", features, kept),
        *(Job(f"train, cache {c}", partial(train, c), trained, varying=edited) for c in ("none", "pixels", "features")),
        Job("generate", answer, kept, may_refuse=True),
        Job("evaluate", score, kept, copy_adapter, ("adapter",), may_refuse=True),
        Job("merge", merged, {"merged": "merged"}, copy_adapter, ("adapter",), may_refuse=True),
        Job("save_adapter", save, {"adapter": "adapter"}, older),
        Job("to_gguf", partial(to_files, source / "llama.cpp"), gguf, lambda: earlier(*gguf.values())),
    ]


def links(url: str) -> list[str]:
    """Of pictures, some of which the server gives at the second attempt only."""
    bad = [f"{url}/{kind}?{n}" for kind in ("slow", "resetonce", "shortonce") for n in range(3)]
    return [f"{url}/jpeg?{n}" for n in range(IMAGES)] + bad


def serve() -> tuple[str, Callable[[], None]]:
    """The URL of a server of pictures in a process that ends with this one, and a function that makes it as new."""
    urls, orders = os.pipe(), os.pipe()
    if os.fork() == 0:
        os.close(orders[1])
        with misbehaving_server() as server:
            os.write(urls[1], server.url.encode())
            while os.read(orders[0], 1):
                server.requests.clear()
        os._exit(0)
    os.close(orders[0])
    return os.read(urls[0], 100).decode(), lambda: os.write(orders[1], b"1")
