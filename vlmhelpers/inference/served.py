"""Rows are answered by vLLM: a server of it, or in this process. They are asked as `generate` asks a loaded model."""

import base64
import io
import time
from collections.abc import Callable, Iterator
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial

import requests
from datasets import Dataset
from requests.adapters import HTTPAdapter
from transformers import ProcessorMixin
from urllib3.util import Retry

from vlmhelpers.batches.collator import VisionCollator
from vlmhelpers.batches.conversation import to_answer
from vlmhelpers.data.given import decoded_row
from vlmhelpers.data.schema import count_images
from vlmhelpers.families import family_of
from vlmhelpers.inference.answer_log import Answer
from vlmhelpers.models.identity import processor_identity

_BACKOFF = 0.5  # seconds, doubled each time
_SECONDS = 10, 600  # to connect, and to answer
_PASSING = (429, 500, 502, 503, 504)  # states of a server that is starting, or has too much to do


class Served:
    """A model that vLLM runs, with or without an adapter; `generate` takes it in the place of a loaded one."""

    def batches(
        self, processor: ProcessorMixin, dataset: Dataset, rows: list[int], together: int, options: dict
    ) -> Iterator[dict[int, Answer]]:
        """Answers to the rows at some indices, as they come; `options`: as of `generate`."""
        raise NotImplementedError

    @property
    def identity(self) -> dict[str, str | None]:
        """What decides the answers, by name."""
        raise NotImplementedError

    @contextmanager
    def disable_adapter(self) -> Iterator[None]:
        """While it lasts, the base answers."""
        base = self._of_base
        tuned = {name: getattr(self, name) for name in base}
        vars(self).update(base)
        try:
            yield
        finally:
            vars(self).update(tuned)


@dataclass
class VllmServer(Served):
    """A model called `name` at the `address` of a server, such as http://localhost:8000/v1, and its base there.

    `weights`: a digest of what is served under that name, if known.
    """

    address: str
    name: str
    base: str | None = None
    key: str | None = field(default=None, repr=False)
    weights: str = ""

    @property
    def identity(self):
        return {"engine": "vllm", "served model": self.name, "weights": self.weights}

    @property
    def _of_base(self):
        if self.base is None:
            raise ValueError(f"{self.address} does not say of which model {self.name} was made: ask without the base")
        return {"name": self.base, "weights": ""}

    def batches(self, processor, dataset, rows, together, options):
        """As many requests as `together` says are on their way. Raises OSError, with the row, where one fails for good.

        One that the server refuses for the moment, or that gets lost, is sent up to four times again.
        """
        prompt, fixed = _prompts(dataset, processor), {"model": self.name, **_sampling(options)}
        fixed |= {"mm_processor_kwargs": limits} if (limits := pixel_limits(processor)) else {}
        with open_session(self.key, together) as session, ThreadPoolExecutor(together) as pool:
            try:
                ask = partial(pool.submit, self._ask, session, prompt, fixed, together)
                yield from map(dict, _window(rows, together, ask))
            finally:
                pool.shutdown(cancel_futures=True)

    def _ask(self, session, prompt, fixed, together, i):
        start = time.perf_counter()
        name, messages = prompt(i)
        found = request_json(session, f"{self.address}/chat/completions", fixed | {"messages": messages}, name)
        try:
            choice, tokens = found["choices"][0], found["usage"]["completion_tokens"]
            text, cut = choice["message"]["content"] or "", choice["finish_reason"] == "length"
        except (LookupError, TypeError):
            raise OSError(f"{name}: {self.address} answers in no form of OpenAI's: {str(found)[:200]}") from None
        how = tokens, round(time.perf_counter() - start, 4), together, f"vLLM at {self.address}"
        return i, Answer(text.strip(), cut, *how)


def open_session(key: str | None, together: int = 1) -> requests.Session:
    """A session of so many connections, with the server's key, which tries again what fails for the moment."""
    session, again = requests.Session(), {"status_forcelist": _PASSING, "allowed_methods": None}
    retries = Retry(4, backoff_factor=_BACKOFF, raise_on_status=False, **again)
    for start in ("http://", "https://"):
        session.mount(start, HTTPAdapter(pool_maxsize=together, max_retries=retries))
    session.trust_env = False  # neither a proxy nor a password of .netrc is for this server
    if key:
        session.headers["Authorization"] = f"Bearer {key}"
    return session


def request_json(session: requests.Session, url: str, body: dict | None, name: str) -> dict:
    """The JSON that a server answers to `body`, or to a request without one. Raises OSError, beginning with `name`."""
    try:
        method = "POST" if body else "GET"
        response = session.request(method, url, json=body, timeout=_SECONDS, allow_redirects=False)
        if response.status_code != 200:
            raise OSError(f"{name}: {url} answers {response.status_code}: {response.text[:300]}")
        return response.json()
    except requests.RequestException as error:
        raise OSError(f"{name}: {url} gives no answer: {error}") from error


def _window(rows, together, submit: Callable[[int], Future]):
    """Lists of results, as they come; at most `together` rows are submitted and have none yet."""
    waiting = set()
    for i in [*rows, *[None] * together]:
        if len(waiting) >= together or (waiting and i is None):
            done, waiting = wait(waiting, return_when=FIRST_COMPLETED)
            yield [future.result() for future in done]
        if i is not None:
            waiting.add(submit(i))


@dataclass
class VllmEngine(Served):
    """A model in this process: a folder or hub id, with the folder of an adapter. `arguments`: more for `vllm.LLM`."""

    model: str
    adapter: str | None = None
    arguments: dict = field(default_factory=dict)
    weights: str = ""
    _llm: object = field(default=None, repr=False)  # loaded for the first rows

    @property
    def identity(self):
        return {"engine": "vllm", "served model": self.model, "adapter": self.adapter, "weights": self.weights}

    @property
    def _of_base(self):
        return {"adapter": None, "weights": ""}

    def batches(self, processor, dataset, rows, together, options):
        """The rows go to vLLM in lists of `together`. Raises ValueError where it is not installed."""
        vllm, make_adapter = _import_vllm()
        prompt, sampling = _prompts(dataset, processor), vllm.SamplingParams(**_sampling(options))
        adapter = make_adapter("tuned", 1, self.adapter) if self.adapter else None
        if self._llm is None:
            most = max(map(count_images, dataset.with_format(None)["messages"]))
            limits = {"limit_mm_per_prompt": {"image": most}, "mm_processor_kwargs": pixel_limits(processor)}
            self._llm = vllm.LLM(model=self.model, **limits, **self.arguments)
        for start in range(0, len(rows), together):
            batch, began = rows[start : start + together], time.perf_counter()
            asked = [prompt(i)[1] for i in batch]
            outputs = self._llm.chat(asked, sampling, use_tqdm=False, lora_request=adapter)
            how = round(time.perf_counter() - began, 4), len(batch), "vLLM"
            found = [output.outputs[0] for output in outputs]
            answers = [Answer(a.text.strip(), a.finish_reason == "length", len(a.token_ids), *how) for a in found]
            yield dict(zip(batch, answers, strict=True))


def _import_vllm():
    try:
        import vllm
        from vllm.lora.request import LoRARequest
    except ImportError as error:
        remedy = "`pip install vllm`, or start a server of it elsewhere and name its address as `server`"
        raise ValueError(f"vLLM cannot be imported here ({error}): {remedy}") from None
    return vllm, LoRARequest


def served_settings(model: Served, processor: ProcessorMixin, options: dict) -> dict:
    """What decides the answers, as `answer_settings` tells it of a loaded model."""
    return model.identity | processor_identity(processor) | options


def pixel_limits(processor: ProcessorMixin) -> dict[str, int]:
    """Arguments of vLLM's processor: the limits of an image's pixels that this one has; none where it has none."""
    size = dict(processor.image_processor.size or {}) if family_of(processor).has_pixel_cap else {}
    names = {"min_pixels": "shortest_edge", "max_pixels": "longest_edge"}  # one alone is a side
    return {name: size[key] for name, key in names.items()} if size.keys() >= {*names.values()} else {}


def _sampling(options):
    """The arguments of vLLM for options of `generate`; all are named, as the model's own would count else."""
    if unknown := options.keys() - {"max_new_tokens", "do_sample", "temperature", "top_p", "top_k"}:
        raise ValueError(f"vLLM is not asked with {', '.join(sorted(unknown))}: leave it out")
    usual = {"temperature": 0.0, "top_p": 1.0, "top_k": -1, "repetition_penalty": 1.0}
    sampled = {"temperature": 1.0} | {name: options[name] for name in usual if options.get(name)}
    return usual | (sampled if options.get("do_sample") else {}) | {"max_tokens": options["max_new_tokens"]}


def _prompts(dataset, processor):
    """A function of a row's index -> (its name, the messages before its answer, in OpenAI's form)."""
    control = VisionCollator(processor).template.control

    def prompt(i):
        row = decoded_row(dataset, i)
        asked = to_answer(row | {"row": row.get("row") or i + 1}, i, control)
        as_part = partial(_as_part, iter(asked.images))
        return asked.name, [message | {"content": _content(message["content"], as_part)} for message in asked.messages]

    return prompt


def _content(content, as_part):
    return content if isinstance(content, str) else list(map(as_part, content))


def _as_part(images, part):
    """A part of a message; an image becomes a PNG, which loses nothing, in a data URI."""
    if part["type"] != "image":
        return part
    buffer = io.BytesIO()
    next(images).save(buffer, "PNG", compress_level=1)
    uri = f"data:image/png;base64,{base64.b64encode(buffer.getvalue()).decode()}"
    return {"type": "image_url", "image_url": {"url": uri}}
