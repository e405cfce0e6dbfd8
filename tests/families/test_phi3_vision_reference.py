"""The native Phi-3-Vision gives the answers of the original code, which were recorded with transformers 4.43.4."""

import pytest
import torch
import torch.nn.functional as F
from phi3_vision_parts import REFERENCE, reference_image, reference_model

from vlmhelpers.families.phi3_vision import Phi3VConfig, Phi3VForCausalLM, Phi3VImageProcessor

CLOSE = 1e-5  # the largest difference between logits
EVERY, PLACE, ANSWER = 2004, 150, 5  # recorded: every 2004th logit, at 150 and at the end; the loss of 5 tokens


@pytest.fixture(scope="module", params=["eager", "sdpa"])
def model(request):
    return reference_model(request.param)


@pytest.mark.slow
@pytest.mark.parametrize("num_crops", [1, 4])
def test_same_pixels_logits_and_loss(model, num_crops):
    case = REFERENCE["cases"][str(num_crops)]
    pixels = Phi3VImageProcessor(num_crops=num_crops)(reference_image(), return_tensors="pt")
    assert pixels["image_sizes"].tolist() == case["image_sizes"]
    assert pixels["pixel_values"].double().sum().item() == pytest.approx(case["pixel_sum"], abs=1e-3)
    assert pixels["pixel_values"].double().abs().sum().item() == pytest.approx(case["pixel_abs"], abs=1e-3)
    assert pixels.pop("num_img_tokens").tolist() == [case["n_image"]]
    text, at = case["text_ids"], REFERENCE["image_at"]
    ids = torch.tensor([text[:at] + [32044] * case["n_image"] + text[at:]])
    assert ids.shape[1] == case["n_tokens"]
    with torch.no_grad():
        logits = model(input_ids=ids, **pixels).logits[0]
    for place, name in ((-1, "logits_last"), (PLACE, "logits_mid")):
        assert (logits[place, ::EVERY][:16] - torch.tensor(case[name])).abs().max() < CLOSE
    assert logits[-8:].argmax(-1).tolist() == case["argmax_tail"]
    assert logits[-1].std().item() == pytest.approx(case["logit_std"], abs=CLOSE)
    loss = F.cross_entropy(logits[-ANSWER - 1 : -1], ids[0, -ANSWER:]).item()
    assert loss == pytest.approx(case["loss"], abs=CLOSE)
    labels = torch.full_like(ids, -100)
    labels[0, -ANSWER:] = ids[0, -ANSWER:]
    assert model(input_ids=ids, **pixels, labels=labels).loss.item() == pytest.approx(case["loss"], abs=CLOSE)


def test_the_published_shape_has_the_published_size():
    factors = {"short_factor": [1.0] * 48, "long_factor": [2.0] * 48}
    sizes = {"max_position_embeddings": 131072, "original_max_position_embeddings": 4096, "sliding_window": 131072}
    config = Phi3VConfig(rope_scaling={"type": "su", **factors}, eos_token_id=2, **sizes)
    with torch.device("meta"):
        model = Phi3VForCausalLM(config)
    assert sum(parameter.numel() for parameter in model.parameters()) == 4_146_621_440
    assert len(model.state_dict()) == 592
    clip = sum(p.numel() for n, p in model.named_parameters() if "img_processor" in n)
    assert round(clip / 1e6, 1) == 303.5
    assert model.generation_config.eos_token_id == [32007, 32000]  # the files say 2, which the model never writes
    # 1.19 is sqrt(1 + ln(131072 / 4096) / ln(4096))
    assert model.model.rotary_emb.attention_scaling == pytest.approx(1.1902, abs=1e-4)


@pytest.mark.parametrize("num_crops, tokens", [(1, 313), (4, 757), (16, 2509)])
def test_tokens_of_a_square_picture(num_crops, tokens):
    assert Phi3VImageProcessor(num_crops=num_crops).count_tokens(640, 640) == tokens
