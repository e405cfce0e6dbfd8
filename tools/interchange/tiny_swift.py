"""A plugin of ms-swift for the tiny models: it has the id that image tokens have in the published ones written in."""

from swift.template.templates.qwen import Qwen2VLTemplate

_set_up = Qwen2VLTemplate.init_processor


def _with_own_token(self, processor):
    _set_up(self, processor)
    if processor is not None:
        self.image_token_id = self.processor.tokenizer.convert_tokens_to_ids("<|image_pad|>")


Qwen2VLTemplate.init_processor = _with_own_token
