"""Phi-3-Vision and Phi-3.5-Vision on current transformers, which does not contain them.

Importing it makes the Auto classes take the published files as they are; no code from the hub is run. Written from the
published shapes and answers; `tests/families/test_phi3_vision_reference.py` compares with those of the original code.
"""

from transformers import (
    AutoConfig,
    AutoImageProcessor,
    AutoModel,
    AutoModelForCausalLM,
    AutoModelForImageTextToText,
    AutoProcessor,
    AutoTokenizer,
    PreTrainedTokenizerFast,
)
from transformers.models.auto.tokenization_auto import TOKENIZER_MAPPING_NAMES

from vlmhelpers.families.phi3_vision.family import PHI_3_VISION
from vlmhelpers.families.phi3_vision.image_processing import Phi3VImageProcessor
from vlmhelpers.families.phi3_vision.modeling import Phi3VConfig, Phi3VForCausalLM, Phi3VModel
from vlmhelpers.families.phi3_vision.processing import Phi3VProcessor

AutoConfig.register(Phi3VConfig.model_type, Phi3VConfig)
AutoModel.register(Phi3VConfig, Phi3VModel)
AutoModelForImageTextToText.register(Phi3VConfig, Phi3VForCausalLM)
AutoModelForCausalLM.register(Phi3VConfig, Phi3VForCausalLM)
AutoImageProcessor.register(
    Phi3VConfig, image_processor_classes=dict.fromkeys(("pil", "torchvision"), Phi3VImageProcessor)
)
AutoProcessor.register(Phi3VConfig, Phi3VProcessor)
AutoTokenizer.register(Phi3VConfig, fast_tokenizer_class=PreTrainedTokenizerFast)
# The published files name LlamaTokenizer, which (transformers 5.17) does not read the rules of tokenizer.json, and so
# drops the blank token that this model expects after a control token.
TOKENIZER_MAPPING_NAMES[Phi3VConfig.model_type] = "PreTrainedTokenizerFast"

__all__ = ["PHI_3_VISION", "Phi3VConfig", "Phi3VForCausalLM", "Phi3VImageProcessor", "Phi3VModel", "Phi3VProcessor"]
