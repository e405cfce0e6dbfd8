"""The settings of each step after a training, declared once for the command line and the panel.

Imports nothing heavy: a help and a panel have to appear at once.
"""

from typing import Literal

from pydantic import Field
from pydantic.dataclasses import dataclass

from vlmhelpers.common.settings import Settings

_MODEL = "a run's folder, an adapter's, a model's, a hub id or a family"
_DATASET = "a file of rows, in any form that is read here"
_IMAGE_ROOT = "folder that image paths start from; none: that of the dataset"


@dataclass(frozen=True)
class Loading(Settings):
    """How a model is loaded that is to answer."""

    bits: Literal[4, 16, None] = Field(None, description="none: the run's own; else 16 for a tiny model, 4 for others")
    backend: Literal["auto", "transformers", "unsloth"] = Field("auto", description="library that runs the model")


@dataclass(frozen=True)
class Answering(Settings):
    """How a model answers."""

    max_new_tokens: int | None = Field(
        None, ge=1, description="tokens of an answer at most; none: by the longest expected one, 256 in a chat"
    )
    temperature: float = Field(0.0, ge=0, description="0: always the likeliest token; more: sampled, and more freely")
    top_p: float = Field(1.0, gt=0, le=1, description="sampled from the likeliest tokens that make up this probability")
    system: str | None = Field(None, description="a system prompt, in place of the rows' own")

    @property
    def options(self) -> dict[str, object]:
        """Keyword arguments for `stream_conversation` and `generate`; without a limit where none is set."""
        found = {"max_new_tokens": self.max_new_tokens} if self.max_new_tokens else {}
        if self.temperature:
            found |= {"do_sample": True, "temperature": self.temperature, "top_p": self.top_p, "top_k": 0}
        return found


@dataclass(frozen=True)
class Rows(Settings):
    """Which rows of a file are answered, and how many together."""

    rows: int | None = Field(None, ge=1, description="the first so many rows; none: all")
    batch_size: int | None = Field(None, ge=1, description="rows that are answered together; none: what fits")
    image_root: str | None = Field(None, description=_IMAGE_ROOT)


@dataclass(frozen=True)
class Engine(Settings):
    """What runs a model that answers rows."""

    engine: Literal["transformers", "vllm"] = Field("transformers", description="what runs the model")
    server: str | None = Field(
        None, description="a vLLM server, as http://localhost:8000/v1, with its key in VLLM_API_KEY; none: this process"
    )
    served_as: str | None = Field(None, description="the model's name at the server; none: found by its folder there")


@dataclass(frozen=True, kw_only=True)
class Generating(Loading, Engine, Answering, Rows):
    """Settings of `generate_answers`."""

    model: str = Field(min_length=1, description=_MODEL)
    dataset: str | None = Field(None, description=f"{_DATASET}; none: the run's held-out rows")
    prompt: str | None = Field(None, description="one question, in place of a dataset")
    output: str | None = Field(
        None,
        description="JSONL file of prompts, images, answers and expected ones; the same command goes on; none: printed",
    )


@dataclass(frozen=True, kw_only=True)
class Evaluating(Loading, Engine, Answering, Rows):
    """Settings of `evaluate_run`."""

    model: str = Field(min_length=1, description=_MODEL)
    dataset: str | None = Field(None, description=f"{_DATASET}; none: the run's held-out rows")
    base: bool = Field(True, description="the untuned model answers, too")
    prompted: bool = Field(False, description="so does the untuned model with a better prompt")
    instruction: str | None = Field(
        None, description="what the better prompt begins with; none: to answer as examples do"
    )
    ablation: bool = Field(False, description="the same questions with blank, exchanged and noise images")
    metrics: str | None = Field(None, description="besides exact matches, with commas between: ANLS, BLEU, ... or all")
    output: str | None = Field(None, description="folder of answers and scores; none: evaluation, in the run's folder")


@dataclass(frozen=True, kw_only=True)
class Chatting(Loading, Answering):
    """Settings of a chat."""

    model: str = Field(min_length=1, description=_MODEL)
    base: bool = Field(False, description="the untuned model answers instead")


@dataclass(frozen=True, kw_only=True)
class Merging(Settings):
    """Settings that exports of every form have."""

    model: str = Field(min_length=1, description="a run's folder, or an adapter's")
    output: str | None = Field(None, description="folder to write to; none: one for its form, in the run's folder")
    base: str | None = Field(None, description="the model that the adapter is for; none: as the adapter says")
    dtype: Literal["bfloat16", "float16", "float32"] = Field("bfloat16", description="of the merged weights")
    check: bool = Field(
        True, description="held-out rows are answered, to see that the merged model does as the adapter"
    )


@dataclass(frozen=True, kw_only=True)
class Exporting(Merging):
    """Settings of `export_run`."""

    form: Literal["merged", "gguf", "onnx", "adapter"] = Field(
        "merged",
        description="a whole model; files for llama.cpp and Ollama; graphs for onnxruntime; the adapter with its card",
    )
    outtype: Literal["f16", "bf16", "f32", "q8_0"] = Field("f16", description="of the weights, with form=gguf")
    llama_cpp: str | None = Field(None, description="a checkout of llama.cpp, with form=gguf; none: searched for")


@dataclass(frozen=True, kw_only=True)
class Pushing(Settings):
    """Settings of `push_run`."""

    folder: str = Field(min_length=1, description="of an exported adapter or merged model, with its card")
    repo_id: str = Field(min_length=1, description="where to, as owner/name")
    private: bool = Field(True, description="a new repository is private")
    send: bool = Field(False, description="without it, what would be sent is shown and nothing is sent")


def grouped(kind: type[Settings]) -> dict[str, list[str]]:
    """The names of a step's settings by what they are about: "" for its own, rows, answers, engine, loading."""
    parts = {"rows": Rows, "answers": Answering, "engine": Engine, "loading": Loading}
    shared = {about: list(part.described()) for about, part in parts.items() if issubclass(kind, part)}
    others = {name for names in shared.values() for name in names}
    return {"": [name for name in kind.described() if name not in others]} | shared
