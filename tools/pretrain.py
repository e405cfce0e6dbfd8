"""Pretrains the tiny bases on drawn images: `python tools/pretrain.py [FAMILY ...]`, some minutes each on two cores.

Each base first learns to read and write (facts, copying), then to describe images, with Muon for the matrices, which
learns to see several times faster than AdamW alone; those of Qwen3-VL and InternVL at last to follow an instruction,
with the vision tower frozen. Written to data/tiny/FAMILY in bfloat16, with the scores it reached. The seed fixes
everything; thread count and CPU type move the weights in the fourth digit. `--stage instructions` goes on from the base
that is there.
"""

import argparse
import json
import math
import multiprocessing
import random
import time
from pathlib import Path

import torch
import torch.nn.functional as F
from instructions import HELD_OUT, instructed, instruction, uninstructed, written
from talk import plain_talk, shop_talk, with_opening
from texts import known_facts, repeat, vocabulary
from tiny_families import FAMILIES, build, ends_of_answer
from tqdm import tqdm

from vlmhelpers.samples.drawing import CATEGORIES, COLORS, PATTERNS, PRICES, QUESTIONS, sample_products

ROOT = Path(__file__).resolve().parents[1]
ATTRIBUTES = {"category": CATEGORIES, "color": tuple(COLORS), "pattern": PATTERNS, "price": PRICES}
IMAGE_SHARE, CAPTION_SHARE = 0.65, 0.6  # of the batches or rows; of the image questions
BRIDGES = {  # from the vision tower to the language model
    "llama-3.2-vision": "model.multi_modal_projector",
    "qwen2.5-vl": "model.visual.merger",
    "qwen3-vl": "model.visual.merger",
    "phi-3-vision": "model.vision_embed_tokens.img_projection",
    "internvl": "model.multi_modal_projector",
}
STEPS = {"phi-3-vision": 6000, "internvl": 2000}  # instead of 3000
TALKING = {"qwen3-vl", "internvl"}  # families that also learn to talk about themselves and about shops, for notebook 02
INSTRUCTED = {"qwen3-vl": 500, "internvl": 2000}  # steps of those that learn to follow an instruction, for notebook 05
# Of the batches of that stage: instructions, and only text; of the other batches' pictures: with an unknown question.
INSTRUCTED_SHARE, REPEATED_SHARE, UNINSTRUCTED_SHARE = 0.4, 0.3, 0.12


class Rows:
    """Token ids and pixels of (image or None, question, answer) rows, computed once and collated by index."""

    def __init__(self, processor, images):
        self.processor, self.tokenizer, self.known = processor, processor.tokenizer, {}
        self.image, self.prompts = images[0], {}
        self.is_llama = "Mllama" in type(processor).__name__
        self.is_phi = "Phi3" in type(processor).__name__
        chunks = [processor.image_processor([[p] for p in images[i : i + 500]] if self.is_llama else
                                            images[i : i + 500], return_tensors="pt")
                  for i in tqdm(range(0, len(images), 500), "pixels", leave=False)]  # fmt: skip
        self.pixels = torch.cat([chunk["pixel_values"] for chunk in chunks]).to(torch.bfloat16)
        self.grid = chunks[0]["image_grid_thw"][0] if "image_grid_thw" in chunks[0] else None
        if self.grid is not None:  # Qwen's patches lie in one line
            self.pixels = self.pixels.view(len(images), -1, self.pixels.shape[-1])
        self.image_id = processor.image_token_id
        ends = ends_of_answer(processor)
        self.end = ends[0] if isinstance(ends, list) else ends

    def encode(self, has_image, question, answer):
        """(prompt ids, answer ids with the end token) of one row."""
        if (has_image, question) not in self.prompts:
            parts = [{"type": "image"}] * has_image + [{"type": "text", "text": question}]
            prompt = self.processor.apply_chat_template(
                [{"role": "user", "content": parts}], add_generation_prompt=True, tokenize=False
            )
            images = [[self.image]] if has_image else None  # all are of one size, so any will do
            ids = self.processor(text=[prompt], images=images, add_special_tokens=False)["input_ids"][0]
            self.prompts[has_image, question] = ids
        if answer not in self.known:
            self.known[answer] = [*self.tokenizer(answer, add_special_tokens=False)["input_ids"], self.end]
        return self.prompts[has_image, question], self.known[answer]

    def collate(self, rows):
        """Model inputs and labels of rows (image index or None, question, answer), padded on the right."""
        encoded = [self.encode(index is not None, question, answer) for index, question, answer in rows]
        length = max(len(prompt) + len(answer) for prompt, answer in encoded)
        ids = torch.full((len(rows), length), self.tokenizer.pad_token_id)
        labels = torch.full((len(rows), length), -100)
        for line, (prompt, answer) in enumerate(encoded):
            ids[line, : len(prompt) + len(answer)] = torch.tensor(prompt + answer)
            labels[line, len(prompt) : len(prompt) + len(answer)] = torch.tensor(answer)
        inputs = {"input_ids": ids, "attention_mask": (ids != self.tokenizer.pad_token_id).long()}
        images = [index for index, _, _ in rows if index is not None]
        inputs |= self._image_inputs(ids, images) if images else {}
        return inputs, labels

    def _image_inputs(self, ids, images):
        pixels = self.pixels[images].float()
        if self.is_llama:  # every row of the batch has one image of one tile
            seen = ((ids == self.image_id).cumsum(1) > 0).long()[:, :, None, None]
            ones = torch.ones(len(images), 1, dtype=torch.long)
            return {"pixel_values": pixels, "aspect_ratio_ids": ones, "aspect_ratio_mask": ones[:, :, None],
                    "cross_attention_mask": seen}  # fmt: skip
        if self.is_phi:
            return {"pixel_values": pixels, "image_sizes": torch.tensor([pixels.shape[-2:]] * len(images))}
        if self.grid is None:
            return {"pixel_values": pixels}
        return {"pixel_values": pixels.flatten(0, 1), "image_grid_thw": self.grid.repeat(len(images), 1),
                "mm_token_type_ids": (ids == self.image_id).long()}  # fmt: skip


class Curriculum:
    """Draws the rows of one batch."""

    def __init__(self, products, seed):
        self.rng, self.products = random.Random(seed), products
        self.facts, self.words, self.order = known_facts(), vocabulary(), []

    def text_row(self):
        return (None, *(self.rng.choice(self.facts) if self.rng.random() < 0.3 else repeat(self.rng, self.words)))

    def image_row(self):
        if not self.order:
            self.order = self.rng.sample(range(len(self.products)), len(self.products))
        index, questions = self.order.pop(), list(QUESTIONS)
        caption = self.rng.random() < CAPTION_SHARE
        question = questions[0] if caption else self.rng.choice(questions[1:])
        return index, question, QUESTIONS[question](self.products[index])

    def batch(self, size, mixed):
        """`size` rows; images and texts together, or (Llama takes no mixed batches) all of one kind."""
        if not mixed:
            return [self.image_row() if is_image else self.text_row()
                    for is_image in [self.rng.random() < IMAGE_SHARE] * size]  # fmt: skip
        texts = [self.text_row() for _ in range(round(size * (1 - IMAGE_SHARE)))]
        return [self.image_row() for _ in range(size - len(texts))] + texts


class TalkingCurriculum(Curriculum):
    """The same with small talk and shop talk among the text rows."""

    def __init__(self, products, seed):
        super().__init__(products, seed)
        self.plain, self.shops = plain_talk(), shop_talk()

    def text_row(self):
        kind = self.rng.random()
        if kind < 0.25:
            return (None, *repeat(self.rng, self.words))
        pair = self.rng.choice(self.facts if kind < 0.45 else self.plain if kind < 0.65 else self.shops)
        if self.rng.random() < 0.4:
            pair = with_opening(self.rng, self.words, *pair)
        return (None, *pair)


class InstructedCurriculum(TalkingCurriculum):
    """Batches of instructions among those of before, which keep what was learned."""

    def batch(self, size, mixed):
        kind = self.rng.random()
        if kind < INSTRUCTED_SHARE:
            return [self._row(instructed, self.image_row()[0], self.products) for _ in range(size)]
        if kind < INSTRUCTED_SHARE + REPEATED_SHARE:
            return [self.text_row() for _ in range(size)]
        return [self._row(uninstructed, row[0]) if self._is_changed(row) else row for row in super().batch(size, mixed)]

    def _is_changed(self, row):
        return row[0] is not None and self.rng.random() < UNINSTRUCTED_SHARE

    def _row(self, make, index, *others):
        return index, *make(self.rng, self.products[index], *others, self.words)


class AttributeHeads(torch.nn.Module):
    """Linear probes on the mean image feature, trained along: they tell the vision tower early what matters."""

    def __init__(self, bridge, width, products):
        super().__init__()
        self.heads = torch.nn.ModuleDict({name: torch.nn.Linear(width, len(v)) for name, v in ATTRIBUTES.items()})
        self.targets = {name: torch.tensor([values.index(getattr(product, name)) for product in products])
                        for name, values in ATTRIBUTES.items()}  # fmt: skip
        self.features = None
        bridge.register_forward_hook(lambda module, inputs, output: setattr(self, "features", output))

    def loss(self, images):
        pooled = self.features.reshape(len(images), -1, self.features.shape[-1]).mean(1)
        return sum(F.cross_entropy(head(pooled), self.targets[name][images]) for name, head in self.heads.items())


class Muon(torch.optim.Optimizer):
    """Muon (Jordan et al. 2024, https://kellerjordan.github.io/posts/muon) in float32, matrices of a shape together.

    torch.optim.Muon computes in bfloat16, which is some 20 times slower on a CPU without bfloat16 instructions.
    """

    def __init__(self, matrices, lr, momentum=0.95, weight_decay=0.01):
        super().__init__(matrices, {"lr": lr, "momentum": momentum, "weight_decay": weight_decay})

    @torch.no_grad()
    def step(self):
        for group in self.param_groups:
            shapes = {}
            for p in group["params"]:
                if p.grad is not None:
                    shapes.setdefault(p.shape, []).append(p)
            for shape, matrices in shapes.items():
                updates = orthogonalize(torch.stack([self._momentum(p, group["momentum"]) for p in matrices]))
                step = group["lr"] * max(1.0, shape[0] / shape[1]) ** 0.5
                for p, update in zip(matrices, updates, strict=True):
                    p.mul_(1 - group["lr"] * group["weight_decay"]).sub_(update, alpha=step)

    def _momentum(self, p, momentum):
        """The gradient smoothed, with Nesterov's look ahead."""
        average = self.state[p].setdefault("average", torch.zeros_like(p))
        average.lerp_(p.grad, 1 - momentum)
        return p.grad.lerp(average, momentum)


def orthogonalize(batch, iterations=5):
    """The nearest orthogonal matrices, roughly, by quintic Newton-Schulz steps; `batch` is (n, rows, columns)."""
    x = batch.mT if batch.shape[1] > batch.shape[2] else batch
    x = x / (x.norm(dim=(1, 2), keepdim=True) + 1e-7)
    for _ in range(iterations):
        square = x @ x.mT
        x = 3.4445 * x + (-4.7750 * square + 2.0315 * square @ square) @ x
    return x.mT if batch.shape[1] > batch.shape[2] else x


def make_optimizers(model, heads, rate):
    """Muon for the matrices, AdamW for embeddings, norms and heads; `rate` scales both learning rates."""
    matrices = [p for n, p in model.named_parameters() if p.ndim == 2 and "embed" not in n and "lm_head" not in n]
    chosen = {id(p) for p in matrices}
    rest = [p for p in [*model.parameters(), *heads.parameters()] if id(p) not in chosen]
    adamw = torch.optim.AdamW(rest, lr=2e-3 * rate, betas=(0.9, 0.99), weight_decay=0.01)
    return [Muon(matrices, lr=0.02 * rate), adamw]


def answer_loss(model, inputs, labels):
    """Cross-entropy where a label stands; the logits of all other positions are never computed."""
    hidden = model.model(**inputs, use_cache=False).last_hidden_state[:, :-1]
    labels = labels[:, 1:]
    return F.cross_entropy(model.lm_head(hidden[labels != -100]), labels[labels != -100])


def train(model, heads, rows, curriculum, steps, batch_size, name, text_only=False, rate=1.0):
    """Cosine schedule with warm-up; prints the loss and the time left."""
    optimizers = make_optimizers(model, heads, rate)
    schedules = [torch.optim.lr_scheduler.LambdaLR(
        optimizer, lambda step: min(1, (step + 1) / 50) * (0.03 + 0.97 * (1 + math.cos(math.pi * step / steps)) / 2)
    ) for optimizer in optimizers]  # fmt: skip
    model.train()
    for _ in (bar := tqdm(range(steps), name, mininterval=10)):
        batch = [curriculum.text_row() for _ in range(batch_size)] if text_only else \
            curriculum.batch(batch_size, mixed=not rows.is_llama)  # fmt: skip
        loss = answer_loss(model, *rows.collate(batch))
        bar.set_postfix(loss=f"{loss.item():.3f}", refresh=False)
        images = [index for index, _, _ in batch if index is not None]
        if images:
            loss = loss + 0.3 * heads.loss(images)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        for stepper in (*optimizers, *schedules):
            stepper.step()
        model.zero_grad(set_to_none=True)
        heads.zero_grad(set_to_none=True)


def exact_share(model, rows, questions, batch_size=50):
    """Share of greedy answers that equal the expected ones; `questions` are rows as in Rows.collate."""
    model.eval()
    hits = 0
    by_length = sorted(questions, key=lambda row: len(rows.encode(row[0] is not None, *row[1:])[0]))
    while by_length:  # rows of one prompt length at a time: no padding, no masks to get wrong
        length = len(rows.encode(by_length[0][0] is not None, *by_length[0][1:])[0])
        group = [r for r in by_length if len(rows.encode(r[0] is not None, *r[1:])[0]) == length][:batch_size]
        by_length = [row for row in by_length if row not in group]
        inputs, _ = rows.collate([(index, question, "") for index, question, _ in group])
        cut = {"input_ids", "attention_mask", "mm_token_type_ids", "cross_attention_mask"}
        inputs = {name: value[:, :length] if name in cut else value for name, value in inputs.items()}
        output = model.generate(**inputs, max_new_tokens=48, do_sample=False)[:, length:]
        answers = rows.tokenizer.batch_decode(output, skip_special_tokens=True)
        hits += sum(answer == row[2] for answer, row in zip(answers, group, strict=True))
    return hits / len(questions)


def measure(model, processor, family):
    """Exact match on 200 new images of known and of novel combinations, on each question, and on text."""
    scores, rng = {}, random.Random(1)
    for kind, novel in (("seen combinations", False), ("novel combinations", True)):
        products, images = zip(*sample_products(200, "held-out", novel=novel), strict=True)
        rows = Rows(processor, list(images))
        for question, answer in QUESTIONS.items():
            asked = [(i, question, answer(product)) for i, product in enumerate(products)]
            scores[f"{question} ({kind})"] = exact_share(model, rows, asked)
        if family in INSTRUCTED:
            asked = instruction_questions(rng, products)
            scores |= {f"{name} ({kind})": exact_share(model, rows, found) for name, found in asked.items()}
    facts, words = known_facts(), vocabulary()
    scores["facts without a picture"] = exact_share(model, rows, [(None, *fact) for fact in facts])
    scores["copied words"] = exact_share(model, rows, [(None, *repeat(rng, words)) for _ in range(100)])
    if family in TALKING:
        opened = [with_opening(rng, words, *fact) for fact in facts]
        scores["plain talk"] = exact_share(model, rows, [(None, *pair) for pair in plain_talk()])
        scores["shop talk"] = exact_share(model, rows, [(None, *pair) for pair in rng.sample(shop_talk(), 300)])
        scores["facts after a given opening"] = exact_share(model, rows, [(None, *pair) for pair in opened])
    return scores


def instruction_questions(rng, products):
    """Rows that ask for all fields in an order that was never asked for, by number of examples in the prompt."""
    form, asked = "one line of JSON", {}
    for shown in (0, 3):
        examples = [[written(other, form, HELD_OUT) for other in rng.sample(products, shown)] for _ in products]
        texts = [instruction(form, HELD_OUT, some) + "Describe this product as JSON." for some in examples]
        expected = [written(product, form, HELD_OUT, number=not shown) for product in products]
        asked[f"An instruction with {shown} examples"] = list(zip(range(len(texts)), texts, expected, strict=True))
    return asked


def draw_all(count, seed):
    """`count` products and images for pretraining, drawn by two processes."""
    with multiprocessing.Pool(2) as pool:
        parts = pool.starmap(sample_products, [(count // 8, f"pretraining-{seed}-{i}") for i in range(8)])
    return zip(*(pair for part in parts for pair in part), strict=True)


def start(family, args):
    """The model and processor that the stages begin with, and what the model's card says of the time before."""
    model, processor = build(family, args.seed)
    if args.stage == "instructions":
        folder = ROOT / "data" / "tiny" / family
        model = type(model).from_pretrained(folder, trust_remote_code=False).float()
        return model, processor, json.loads((folder / "pretraining.json").read_text())
    with torch.no_grad():
        for parameter in model.parameters():  # a wider start than the families' 0.02 suits so small a model
            if parameter.ndim >= 2 and parameter.std() > 1e-4:
                parameter.mul_(2.5)
    return model, processor, {"seconds": 0, "instruction steps": 0}


def pretrain(family, products, images, args):
    began = time.perf_counter()
    model, processor, before = start(family, args)
    rows = Rows(processor, list(images))
    heads = AttributeHeads(model.get_submodule(BRIDGES[family]), model.config.get_text_config().hidden_size, products)
    steps = args.steps or STEPS.get(family, 3000)
    if args.stage == "all":
        curriculum = (TalkingCurriculum if family in TALKING else Curriculum)(products, args.seed)
        train(model, heads, rows, curriculum, args.text_steps, 64, f"{family}: text", text_only=True)
        train(model, heads, rows, curriculum, steps, args.batch_size, f"{family}: pictures")
    if family in INSTRUCTED:
        for part in (model.get_encoder(modality="image"), model.get_submodule(BRIDGES[family])):
            part.requires_grad_(False)
        curriculum = InstructedCurriculum(products, args.seed)
        more = args.instruction_steps or INSTRUCTED[family]
        train(model, heads, rows, curriculum, more, 32, f"{family}: instructions", rate=0.5)
    folder = args.out / family
    model.to(torch.bfloat16).save_pretrained(folder)
    processor.save_pretrained(folder)
    scores = {k: round(score, 4) for k, score in measure(model.float(), processor, family).items()}
    parameters = sum(p.numel() for p in model.parameters())
    card = {"family": family, "parameters": parameters, "steps": steps} | (
        {"instruction steps": before["instruction steps"] + more} if family in INSTRUCTED else {}
    )
    seconds = before["seconds"] + round(time.perf_counter() - began)
    card |= {"pictures": len(products), "seconds": seconds, "exact match": scores}
    (folder / "pretraining.json").write_text(json.dumps(card, indent=2) + "\n")
    print(json.dumps(card, indent=2))


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("families", nargs="*", default=FAMILIES, help=f"some of: {', '.join(FAMILIES)}")
    parser.add_argument("--steps", type=int, help="for the images (default: 3000; Phi-3-Vision 6000, InternVL 2000)")
    parser.add_argument("--text-steps", type=int, default=1000)
    parser.add_argument("--instruction-steps", type=int, help="(default: 500, InternVL 2000)")
    parser.add_argument("--stage", choices=("all", "instructions"), default="all")
    parser.add_argument("--batch-size", type=int, default=32)
    parser.add_argument("--images", type=int, default=24_000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, default=ROOT / "data" / "tiny")
    args = parser.parse_args()
    if args.stage == "instructions" and not INSTRUCTED.keys() >= {*args.families}:
        parser.error(f"only {' and '.join(sorted(INSTRUCTED))} have the stage of instructions")
    torch.set_num_threads(2)
    products, images = draw_all(args.images, args.seed)
    for family in args.families:
        pretrain(family, products, images, args)
