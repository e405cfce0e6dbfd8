"""Chat templates that TRL does not have. Each writes what the published one writes, its faults included.

`_each` is the loop over the messages of a family whose template says nothing else.
"""

import importlib.util
from pathlib import Path


def of_trl(name):
    """The template of that name in the installed TRL."""
    return (Path(importlib.util.find_spec("trl").origin).parent / "chat_templates" / f"{name}.jinja").read_text()


def _content(image):
    """A message's text: a string as it is, or the parts in their order, with `image` for each image."""
    return (
        "{% if message.content is string %}{{ message.content }}{% else %}{% for part in message.content %}"
        "{% if part.type == 'image' %}{{ '" + image + "' }}{% else %}{{ part.text }}{% endif %}{% endfor %}{% endif %}"
    )


def _images_first(image, text):
    """Of content in parts: all images, then all texts, each written by a Jinja expression."""
    return (
        "{% for part in message.content if part.type == 'image' %}{{ " + image + " }}{% endfor %}"
        "{% for part in message.content if part.type == 'text' %}{{ " + text + " }}{% endfor %}"
    )


def _each(message, prompt):
    """What `message` writes of every message, and the header of the next answer."""
    loop = "{% for message in messages %}" + message + "{% endfor %}"
    return loop + "{% if add_generation_prompt %}{{ '" + prompt + "' }}{% endif %}"


def chatml(image):
    """Turns between `<|im_start|>` and `<|im_end|>`, as of InternVL, with `image` for each image."""
    turn = "{{ '<|im_start|>' + message.role + '\n' }}" + _content(image) + "{{ '<|im_end|>\n' }}"
    return _each(turn, "<|im_start|>assistant\n")


# Ovis 2 writes its own system turn even before another.
OVIS2 = "<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n" + chatml("<image>\n")

# The published one writes "assistant " before an answer to learn and "assistant\n" where an answer is asked for, so
# nobody can train with it. This one has the line break in both.
LLAVA_ONEVISION = _each(
    "{{ '<|im_start|>' + message.role + '\n' }}{% if message.content is string %}{{ message.content }}{% else %}"
    + _images_first("'<image>\n'", "part.text")
    + "{% endif %}{{ '<|im_end|>\n' }}",
    "<|im_start|>assistant\n",
)

# No end after an answer, and a space after each text.
LLAVA = _each(
    "{% if message.role != 'system' %}{{ message.role.upper() + ': ' }}{% endif %}"
    + _images_first("'<image>\n'", "part.text + ' '"),
    "ASSISTANT:",
)

MISTRAL3 = (
    "{{ bos_token }}{% for message in messages %}{% if message.role == 'user' %}{{ '[INST]' }}"
    + _content("[IMG]")
    + "{{ '[/INST]' }}{% elif message.role == 'system' %}{{ '[SYSTEM_PROMPT]' }}"
    + _content("")
    + "{{ '[/SYSTEM_PROMPT]' }}{% else %}"
    + _content("")
    + "{{ eos_token }}{% endif %}{% endfor %}"
)

# A system turn, as a string, is put into the last user turn, but only where that is the last turn of all: so it is in
# a prompt, and not in the same conversation with its answer.
PIXTRAL = (
    "{% set system = messages[0].content if messages[0].role == 'system' %}"
    "{{ bos_token }}{% for message in messages if message.role != 'system' %}"
    "{% if message.role == 'user' %}{{ '[INST]' }}"
    "{% if loop.last and system %}{{ system + '\n\n' }}{% endif %}{% endif %}"
    + _content("[IMG]")
    + "{{ '[/INST]' if message.role == 'user' else eos_token }}{% endfor %}"
)

# Only a user's content may be in parts; of other turns a list would be written as Python does. An answer has no end:
# the model ends it with the header of the next turn. Named as the published one names them, as a repair looks for that.
GLM4V = (
    "[gMASK]<sop>{% for msg in messages %}{{ '<|' + msg.role + '|>\n' }}"
    "{% if msg.role == 'user' %}"
    + _content("<|begin_of_image|><|image|><|end_of_image|>").replace("message", "msg")
    + "{% else %}{{ msg.content }}{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|assistant|>\n' }}{% endif %}"
)

# The published models have none: a prompt is the text between the images and a line break.
PALIGEMMA = (
    "{% for message in messages %}{% if message.content is string %}{{ message.content }}{% else %}"
    + _images_first("'<image>'", "part.text")
    + "{% endif %}{{ '\n' if message.role == 'user' else '<eos>' }}{% endfor %}"
)

DEEPSEEK_VL = "{{ bos_token }}" + _each(
    "{% if message.role == 'user' %}{{ 'User: ' }}{% elif message.role == 'assistant' %}{{ 'Assistant: ' }}{% endif %}"
    + _content("<image_placeholder>")
    + "{{ eos_token if message.role == 'assistant' else '\n\n' }}",
    "Assistant:",
)

KIMI_K25 = _each(
    "{{ '<|im_' + message.role + '|>' + message.role + '<|im_middle|>' }}"
    + _content("<|media_begin|>image<|media_content|><|media_pad|><|media_end|>\n")
    + "{{ '<|im_end|>' }}",
    "<|im_assistant|>assistant<|im_middle|>",
)
