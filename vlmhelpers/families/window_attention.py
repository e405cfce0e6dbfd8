"""Qwen's vision attention with one call for all windows of a length, instead of one call per window.

Without FlashAttention, transformers (5.17) cuts the patches of a batch into windows and attends to each in a Python
loop: Qwen2.5-VL's windows hold at most 64 patches, so a photo has hundreds. Windows of one length form a batch.
"""

import torch
from torch.nn.functional import scaled_dot_product_attention
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

# "flash" in the name is how a vision tower of transformers is asked to hand over all windows at once.
_NAME = "sdpa_of_windows_like_flash"


def group_windows(model):
    """Makes the vision tower of a Qwen2.5-VL that uses PyTorch's attention (sdpa) attend to its windows in groups.

    The outputs stay the same to rounding. Returns whether it applies: not to other families, which have no windows,
    nor to other kinds of attention.
    """
    tower = getattr(getattr(model, "base_model", model), "visual", None)
    config = getattr(tower, "config", None)
    if not hasattr(config, "fullatt_block_indexes") or config._attn_implementation not in ("sdpa", _NAME):
        return False
    ALL_ATTENTION_FUNCTIONS.register(_NAME, attend_in_groups)
    config._attn_implementation = _NAME
    return True


def attend_in_groups(module, query, key, value, attention_mask=None, *, cu_seq_lens_q, scaling, dropout=0.0, **_):
    """Attention within windows, as one of transformers' attention functions: (output, None).

    `query`, `key` and `value` are (1, heads, patches, head size), the output is (1, patches, heads, head size).
    `cu_seq_lens_q` (windows + 1,) are the borders of the windows, in patches.
    """
    starts, lengths = cu_seq_lens_q[:-1], cu_seq_lens_q.diff()
    places, outputs = [], []
    for length in lengths.unique().tolist():
        place = starts[lengths == length][:, None] + torch.arange(length, device=starts.device)
        windows = (states[0].transpose(0, 1)[place].transpose(1, 2) for states in (query, key, value))
        output = scaled_dot_product_attention(*windows, dropout_p=dropout, scale=scaling)
        places.append(place.flatten())
        outputs.append(output.transpose(1, 2).flatten(0, 1))
    order = torch.cat(places).argsort()
    return torch.cat(outputs)[order][None], None
