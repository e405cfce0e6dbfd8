"""Settings that the configurations of several families share. Every width divides by 64, as 4-bit blocks need."""

WIDTH = 128  # of the language model
VISION_WIDTH = 64
PATCH = 14  # pixels
TILE = 56  # pixels: four patches

VISION = {
    "hidden_size": VISION_WIDTH, "intermediate_size": 2 * VISION_WIDTH, "num_hidden_layers": 2,
    "num_attention_heads": 2, "image_size": TILE, "patch_size": PATCH,
}  # fmt: skip
EXPERTS = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 64}
SLIDING = {"sliding_window": 16, "layer_types": ["sliding_attention", "sliding_attention", "full_attention"]}
SQUARE = {"height": TILE, "width": TILE}
GRIDS = [[TILE, 2 * TILE], [2 * TILE, TILE], [2 * TILE, 2 * TILE]]


def text(tokenizer, **more):
    """A small language model of Llama's kind; `more` are the settings in which it differs."""
    return {
        "vocab_size": len(tokenizer), "hidden_size": WIDTH, "intermediate_size": 2 * WIDTH, "num_hidden_layers": 3,
        "num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 4096,
        "bos_token_id": tokenizer.bos_token_id, "eos_token_id": tokenizer.eos_token_id,
        "pad_token_id": tokenizer.pad_token_id,
    } | more  # fmt: skip


def rope(*sections, **more):
    """Positions of time, height and width, each in that many of a head's frequencies."""
    parameters = {"rope_type": "default", "rope_theta": 1e4, "mrope_section": list(sections)}
    return {"rope_parameters": parameters | more}


def ids(tokenizer, **tokens):
    """`image_token_id=...` and so on, from the tokens themselves."""
    return {f"{name}_id": tokenizer.convert_tokens_to_ids(token) for name, token in tokens.items()}
