"""The model: transformers' own Phi-3, with a CLIP tower for images and position factors for each row."""

import torch
from torch import nn
from torch.nn.functional import pad
from transformers import CLIPVisionConfig, CLIPVisionModel, Phi3Config
from transformers import initialization as init
from transformers.conversion_mapping import get_model_conversion_mapping
from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS
from transformers.models.phi3.modeling_phi3 import Phi3ForCausalLM, Phi3Model, Phi3PreTrainedModel, Phi3RotaryEmbedding

from vlmhelpers.families.towers import no_grad_if_frozen

_ENDS_OF_ANSWER = [32007, 32000]  # <|end|> and <|endoftext|> of the published vocabulary
# CLIP ViT-L/14 at 336 pixels. The published config.json only names it.
_CLIP_L_14_336 = {
    "hidden_size": 1024,
    "intermediate_size": 4096,
    "num_hidden_layers": 24,
    "num_attention_heads": 16,
    "image_size": 336,
    "patch_size": 14,
    "projection_dim": 768,
}


class Phi3VConfig(Phi3Config):
    """As `Phi3Config`, with a `vision_config` and the `image_token_id` that stands for each token of an image.

    Published files load unchanged: rope scaling `su` becomes transformers' `longrope`, and flash attention is dropped.
    """

    model_type = "phi3_v"
    sub_configs = {"vision_config": CLIPVisionConfig}

    vision_config: dict | CLIPVisionConfig | None = None
    image_token_id: int = 32044  # <|image|>: in the vocabulary, and unused by the original

    def __post_init__(self, **kwargs):
        vision = _CLIP_L_14_336 if self.vision_config is None else self.vision_config
        self.vision_config = CLIPVisionConfig(**vision) if isinstance(vision, dict) else vision
        for name in ("rope_scaling", "rope_parameters"):
            rope = kwargs.get(name) or getattr(self, name, None)
            if isinstance(rope, dict) and "su" in (rope.get("type"), rope.get("rope_type")):
                factor = self.max_position_embeddings / self.original_max_position_embeddings
                rope = {k: v for k, v in rope.items() if k != "type"} | {"rope_type": "longrope", "factor": factor}
                kwargs["rope_scaling"] = rope
        kwargs.pop("_attn_implementation", None)
        super().__post_init__(**kwargs)


class Phi3VRotaryEmbedding(Phi3RotaryEmbedding):
    """LongRoPE that chooses between short and long factors for each row; transformers does for a whole batch."""

    @torch.no_grad()
    def forward(self, x, position_ids):
        original = self.config.rope_parameters["original_max_position_embeddings"]
        is_long = position_ids.max(dim=-1, keepdim=True).values >= original
        inverse = torch.where(is_long, self._long_inv_freq(x.device), self.original_inv_freq.to(x.device))
        angles = position_ids[:, :, None].float() * inverse[:, None, :].float()
        angles = torch.cat([angles, angles], dim=-1)
        return tuple((f(angles) * self.attention_scaling).to(x.dtype) for f in (torch.cos, torch.sin))

    def _long_inv_freq(self, device):
        """Made when first needed: a model is built without weights or buffers before its file is read."""
        if getattr(self, "_long", None) is None or self._long.device != device:
            original = self.config.rope_parameters["original_max_position_embeddings"]
            self._long, _ = ROPE_INIT_FUNCTIONS["longrope"](self.config, device, seq_len=original + 1)
        return self._long


class Phi3VImageEmbedding(nn.Module):
    """Tiles become tokens: CLIP's last but one layer, 2 x 2 patches merged, a separator after each line of them."""

    def __init__(self, config):
        super().__init__()
        width = 4 * config.vision_config.hidden_size
        self.img_processor = CLIPVisionModel._from_config(config.vision_config)
        self.glb_GN = nn.Parameter(torch.zeros(1, 1, width))  # between tiles and overview
        self.sub_GN = nn.Parameter(torch.zeros(1, 1, 1, width))  # after each line
        self.img_projection = nn.Sequential(
            nn.Linear(width, config.hidden_size), nn.GELU(), nn.Linear(config.hidden_size, config.hidden_size)
        )

    def forward(self, pixel_values, image_sizes):
        """What the image processor gives of n images -> their tokens: (tokens, hidden size of the language model)."""
        return self.project(*self.arrange(pixel_values, image_sizes))

    def arrange(self, pixel_values, image_sizes):
        """(overviews and tiles without padding, (n, 3, side, side); which of their merged patches is which token).

        Patches are counted over all tiles; -2 is the separator after a line, -1 the one before the overview.
        """
        side = pixel_values.shape[-1]
        m = side // self.img_processor.config.patch_size // 2
        grids = [(height // side, width // side) for height, width in image_sizes.tolist()]
        tiles, order, start = [], [], 0
        for pixels, (rows, columns) in zip(pixel_values, grids, strict=True):
            tiles.append(pixels[: 1 + rows * columns])
            order.append(_order(rows, columns, m, start))
            start += len(tiles[-1]) * m * m
        return torch.cat(tiles), torch.cat(order).to(pixel_values.device)

    def project(self, tiles, order):
        """What `arrange` gives -> tokens, as `forward`."""
        patches = self._merged_patches(tiles).flatten(0, 2)
        return self.img_projection(torch.cat([patches, self.sub_GN[0, 0], self.glb_GN[0]])[order])

    def _merged_patches(self, tiles):
        """(n, 3, side, side) pixels -> (n, m, m, 4 * width of CLIP): neighbors beside each other, row by row."""
        clip = self.img_processor
        with no_grad_if_frozen(clip):
            hidden = clip.pre_layrnorm(clip.embeddings(tiles.to(self.glb_GN.dtype)))
            for layer in clip.encoder.layers[:-1]:
                hidden = layer(hidden, attention_mask=None)
        hidden = hidden[:, 1:]  # without the class token
        m = int(hidden.shape[1] ** 0.5) // 2
        return hidden.unflatten(1, (m, 2, m, 2)).transpose(2, 3).flatten(3)


def _order(rows, columns, m, start):
    """The tokens of one image of rows x columns tiles, of m x m patches from `start` on, by patches: (tokens,)."""
    overview = torch.arange(start, start + m * m).view(m, m)
    tiles = torch.arange(rows * columns * m * m).view(rows, columns, m, m) + start + m * m
    whole = tiles.transpose(1, 2).reshape(rows * m, columns * m)
    whole, overview = (pad(grid, (0, 1), value=-2).flatten() for grid in (whole, overview))
    return torch.cat([whole, torch.tensor([-1]), overview])


class Phi3VPreTrainedModel(Phi3PreTrainedModel):
    config: Phi3VConfig
    input_modalities = ("image", "text")
    _no_split_modules = ["Phi3DecoderLayer", "Phi3VImageEmbedding"]

    def _init_weights(self, module):
        super()._init_weights(module)
        if isinstance(module, Phi3VImageEmbedding):
            init.zeros_(module.glb_GN)
            init.zeros_(module.sub_GN)


class Phi3VModel(Phi3VPreTrainedModel, Phi3Model):
    """Phi-3 without its head, with images in place of their tokens."""

    def __init__(self, config):
        super().__init__(config)
        self.vision_embed_tokens = Phi3VImageEmbedding(config)
        if config.rope_parameters["rope_type"] == "longrope":
            self.rotary_emb = Phi3VRotaryEmbedding(config)
        self.post_init()

    def get_encoder(self, modality=None):
        return self.vision_embed_tokens if modality == "image" else super().get_encoder(modality)

    def get_image_features(self, pixel_values, image_sizes):
        """As `Phi3VImageEmbedding.forward`."""
        if image_sizes is None:
            raise ValueError("pixel_values came without image_sizes: pass on all that the processor gives")
        return self.vision_embed_tokens(pixel_values, image_sizes)

    def forward(self, input_ids=None, pixel_values=None, image_sizes=None, attention_mask=None, **kwargs):
        inputs_embeds = kwargs.pop("inputs_embeds", None)
        if inputs_embeds is None:
            inputs_embeds = self.embed_tokens(input_ids)
            if pixel_values is not None:
                inputs_embeds = self._put_images(input_ids, inputs_embeds, pixel_values, image_sizes)
        if kwargs.get("position_ids") is None and attention_mask is not None and attention_mask.ndim == 2:
            # Counted without padding, so that a row is the same on either side of it, and alone.
            positions = (attention_mask.long().cumsum(-1) - 1).clamp(min=0)
            kwargs["position_ids"] = positions[:, -inputs_embeds.shape[1] :]
        return super().forward(attention_mask=attention_mask, inputs_embeds=inputs_embeds, **kwargs)

    def _put_images(self, input_ids, inputs_embeds, pixel_values, image_sizes):
        features = self.get_image_features(pixel_values, image_sizes).to(inputs_embeds)
        is_image = input_ids == self.config.image_token_id
        if is_image.sum() != len(features):
            raise ValueError(
                f"{is_image.sum()} image tokens in input_ids for images of {len(features)} tokens together: make both "
                "with one call of the processor, and do not cut the text afterwards"
            )
        return inputs_embeds.masked_scatter(is_image[:, :, None], features)


class Phi3VForCausalLM(Phi3VPreTrainedModel, Phi3ForCausalLM):
    """Phi-3-Vision and Phi-3.5-Vision, with the published names of the parameters."""

    def __init__(self, config):
        super(Phi3ForCausalLM, self).__init__(config)  # not through Phi3ForCausalLM: it would build a Phi3Model
        self.model = Phi3VModel(config)
        self.vocab_size = config.vocab_size
        self.lm_head = nn.Linear(config.hidden_size, config.vocab_size, bias=False)
        self.post_init()
        self._end_with_answer()

    def adjust_generation_fn(self, *args, **kwargs):
        super().adjust_generation_fn(*args, **kwargs)
        self._end_with_answer()

    def _end_with_answer(self):
        if self.generation_config.eos_token_id in (2, [2]) and self.vocab_size > max(_ENDS_OF_ANSWER):
            self.generation_config.eos_token_id = _ENDS_OF_ANSWER  # not </s> (2), which the model never writes
            self.generation_config.pad_token_id = _ENDS_OF_ANSWER[-1]

    def save_pretrained(self, *args, **kwargs):
        """As transformers', and under the published names also when the model was not read from files."""
        if getattr(self, "_weight_conversions", None) is None:
            self._weight_conversions = get_model_conversion_mapping(self, add_legacy=False)
        super().save_pretrained(*args, **kwargs)

    def get_image_features(self, pixel_values, image_sizes):
        """As `Phi3VImageEmbedding.forward`."""
        return self.model.get_image_features(pixel_values, image_sizes)

    def forward(
        self,
        input_ids=None,
        pixel_values=None,
        image_sizes=None,
        attention_mask=None,
        position_ids=None,
        inputs_embeds=None,
        labels=None,
        logits_to_keep=0,
        **kwargs,
    ):
        """As `Phi3ForCausalLM`, with what the processor gives of the images in `input_ids`, in reading order.

        Generation and trainers read off the signature what they may pass.
        """
        kwargs |= {"pixel_values": pixel_values, "image_sizes": image_sizes}
        kwargs |= {"inputs_embeds": inputs_embeds, "labels": labels, "logits_to_keep": logits_to_keep}
        return super().forward(input_ids, attention_mask, position_ids, **kwargs)

    def prepare_inputs_for_generation(
        self, input_ids, past_key_values=None, attention_mask=None, inputs_embeds=None, **kwargs
    ):
        """Drops the cache when a row grows beyond the short factors, since its keys were turned by other angles.

        Everything is then computed anew once. Raises ValueError where the images were not passed again for that.
        """
        if past_key_values is not None and self._crosses(input_ids, attention_mask, past_key_values):
            past_key_values = None
            kwargs |= {"next_sequence_length": None, "is_first_iteration": True, "position_ids": None}
            if inputs_embeds is not None:
                written = input_ids[:, input_ids.shape[1] + inputs_embeds.shape[1] - attention_mask.shape[1] :]
                inputs_embeds = torch.cat([inputs_embeds, self.get_input_embeddings()(written)], dim=1)
            elif kwargs.get("pixel_values") is None and (input_ids == self.config.image_token_id).any():
                raise ValueError(
                    "the conversation outgrows the short factors of its positions, so its cache is of no use any more "
                    "and its images are needed again: pass pixel_values and image_sizes, and no past_key_values"
                )
        kwargs |= {"past_key_values": past_key_values, "attention_mask": attention_mask, "inputs_embeds": inputs_embeds}
        return super(Phi3ForCausalLM, self).prepare_inputs_for_generation(input_ids, **kwargs)

    def _crosses(self, input_ids, attention_mask, past_key_values):
        """Whether some row was within the reach of the short factors when it was cached, and no longer is."""
        original = self.config.rope_parameters.get("original_max_position_embeddings", float("inf"))
        cached = past_key_values.get_seq_length()
        mask = torch.ones_like(input_ids) if attention_mask is None else attention_mask
        if cached == 0 or mask.shape[1] <= original:
            return False
        return bool(((mask[:, :cached].sum(dim=-1) <= original) & (mask.sum(dim=-1) > original)).any())
