"""Why a name of transformers' image-text-to-text mapping has nothing to train by chat, or cannot be tried here."""

_ENCODER_DECODER = "is an encoder-decoder and has no chat template"
_CAPTIONS = "writes captions: it has no chat template, and its prompts have no place for an image"
_NO_TEMPLATE = "has no chat template"
_NO_TIMM = "its vision tower is a model of the package timm, which is not installed"
_WANTS_IMAGES = "has no chat template, and its processor refuses rows without an image"

REFUSED: dict[str, str] = {
    "blip": _CAPTIONS,
    "blip-2": _NO_TEMPLATE,
    "chameleon": _NO_TEMPLATE,
    "deepseek_ocr2": _WANTS_IMAGES,
    "diffusion_gemma": "writes by block diffusion: it has no loss of an answer's tokens",
    "evolla": "reads proteins, not images",
    "fast_vlm": _NO_TIMM,
    "florence2": _ENCODER_DECODER,
    "fuyu": _NO_TEMPLATE,
    "gemma3n": _NO_TIMM,
    "git": _CAPTIONS,
    "got_ocr2": _WANTS_IMAGES,
    "idefics": "has no chat template: its prompts are lists of texts and images",
    "instructblip": _NO_TEMPLATE,
    "instructblipvideo": "has no chat template, and reads videos, not images",
    "kosmos-2": _NO_TEMPLATE,
    "kosmos-2.5": _NO_TEMPLATE,
    "mistral4": "reads text alone: with images it is the decoder of mistral3",
    "perception_lm": _NO_TIMM,
    "pi0": "answers with the actions of a robot, not with text",
    "pix2struct": _ENCODER_DECODER,
    "pp_chart2table": "its chat template writes the same question whatever the user asks",
    "pp_formulanet": _ENCODER_DECODER,
    "shieldgemma2": "classifies images: its processor writes its own questions in place of the user's",
    "t5gemma2": _ENCODER_DECODER,
    "udop": _ENCODER_DECODER,
    "vision-encoder-decoder": _ENCODER_DECODER,
}
