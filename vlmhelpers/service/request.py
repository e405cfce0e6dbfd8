"""What a client sends to start a job, and the settings of a run that it stands for."""

from typing import Any, ClassVar, Literal

from pydantic import Field
from pydantic.dataclasses import dataclass

from vlmhelpers.common.settings import Settings, shown
from vlmhelpers.service.places import Root
from vlmhelpers.training.config import MODEL_NAMES, PATHS, RunConfig

RENAMED = {"num_epochs": "epochs"}  # hyperparameters that have another name in `RunConfig`
BESIDE = {"model_id": "base_model", "dataset": "dataset_path", "output_dir": "output_dir"}  # not among them


@dataclass(frozen=True, kw_only=True)
class JobRequest(Settings):
    """The body of a request for a job."""

    other_names: ClassVar[dict[str, str]] = {"model": "base_model", "dataset": "dataset_path"}

    name: str = Field(min_length=1, max_length=64, description="what the job is called; its id is made of it")
    base_model: str = Field(min_length=1, description="a hub id, a folder under the root, or a family")
    dataset_path: str = Field(min_length=1, description="a file of rows under the root")
    output_dir: str | None = Field(None, description="a new folder under the root; none: jobs/ and the job's id")
    model_type: Literal["vision-language"] = Field("vision-language", description="every model here is one")
    hyperparameters: dict[str, Any] | None = Field(
        None, description="settings of the run, all by the names of RunConfig, but for num_epochs, which is its epochs"
    )


class UnusableRequest(ValueError):
    """A request that no job is made of. `problems`: a sentence for each setting that is to be changed."""

    def __init__(self, problems: dict[str, str]):
        super().__init__("; ".join(problems.values()))
        self.problems = problems


def read_request(body: object) -> JobRequest:
    """The request in a body. Raises UnusableRequest for another."""
    if not isinstance(body, dict):
        raise UnusableRequest({"": f"the body is {shown(body)}: send an object, {{name: value, ...}}"})
    if problems := JobRequest.problems(body):
        for name in problems.keys() & RunConfig.described().keys():
            problems[name] = f"{name} belongs into hyperparameters, where all settings of a run are"
        raise UnusableRequest(problems)
    return JobRequest(**body)


def as_config(request: JobRequest, root: Root, folder: str) -> RunConfig:
    """The settings of the run that a request asks for, in `folder`, with absolute paths under the root.

    Raises UnusableRequest for what the command line would refuse too, and for paths that lead elsewhere.
    """
    given = request.hyperparameters or {}
    values = _by_our_names(given) | {"model_id": request.base_model, "dataset": request.dataset_path}
    values |= {"output_dir": folder}
    if problems := RunConfig.problems(values):
        raise UnusableRequest(dict(_by_their_names(name, text, given) for name, text in problems.items()))
    config = RunConfig(**values)
    problems, paths = {}, {}
    for name in (*PATHS, *MODEL_NAMES):
        if value := getattr(config, name):
            try:
                paths[name] = _placed(root, name, value, config.streaming)
            except ValueError as error:
                problems[BESIDE.get(name, name)] = str(error)
    if problems:
        raise UnusableRequest(problems)
    return RunConfig(**values | paths)


def _by_our_names(given):
    values = {}
    for name, value in given.items():
        if name in BESIDE:
            raise UnusableRequest({name: f"{name} is no hyperparameter: it is given beside them, as {BESIDE[name]}"})
        if name in RENAMED and RENAMED[name] in given:
            raise UnusableRequest({name: f"{name} and {RENAMED[name]} are one setting: give one of them"})
        values[RENAMED.get(name, name)] = value
    return values


def _by_their_names(name, sentence, given):
    """A problem of a setting, by the name that the client gave it."""
    theirs = next((theirs for theirs, ours in RENAMED.items() if ours == name and theirs in given), name)
    return theirs, theirs + sentence.removeprefix(name) if sentence.startswith(f"{name} ") else sentence


def _placed(root, name, value, streaming):
    shown_as = BESIDE.get(name, name)
    if name in MODEL_NAMES:
        return root.model(shown_as, value)
    if name == "output_dir":
        return str(root.path(shown_as, value))
    find = root.shards if name == "dataset" and streaming else root.existing
    return str(find(shown_as, value))
