"""Architectures of transformers that have a chat template, or may be given one, and still cannot be trained by chat."""

UNTRAINABLE = {  # model type -> why, as the end of a sentence about it
    "diffusion_gemma": "writes by block diffusion: it has no loss of an answer's tokens",
    "evolla": "reads proteins, not images",
    "instructblipvideo": "reads videos, not images",
    "mistral4": "reads text alone: with images it is the decoder of mistral3",
    "pi0": "answers with the actions of a robot, not with text",
    "pp_chart2table": "has a chat template that writes the same question whatever the user asks",
    "shieldgemma2": "classifies images: its processor writes its own questions in place of the user's",
}
