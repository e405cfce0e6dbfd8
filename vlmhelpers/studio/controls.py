"""The panel's controls: one for each setting of a run, and two of the panel's own."""

from vlmhelpers.common.settings import Setting
from vlmhelpers.families.published import NAMES, PUBLISHED
from vlmhelpers.studio.fields import Field, Form
from vlmhelpers.training.config import RunConfig
from vlmhelpers.training.methods.catalog import METHODS

# To choose from, where the type of a setting does not say it; others may be typed.
_OFFERED = {
    "model_id": (*NAMES, *PUBLISHED),
    "loss": tuple(dict.fromkeys(loss for method in METHODS.values() for loss in method.losses)),
    "rewards": ("exact_match", "json_fields"),
    **dict.fromkeys(("dataset", "output_dir", "text_field", "image_field", "response_field"), ()),
}

_GPUS = ("T4", "L4", "A100 40", "A100 80", "H200")  # as `estimation.find_gpu` finds them


def make_controls() -> tuple[Form, Field, Field]:
    """(the controls of RunConfig's settings, that of the GPU to plan for, that of the folder with data)."""
    described = RunConfig.described().values()
    form = Form(Field(setting, _OFFERED.get(setting.name, ()), free=setting.name in _OFFERED) for setting in described)
    return form, Field(_own("gpu", is_optional=True), _GPUS), Field(_own("data_folder"))


def make_switch(name: str) -> Field:
    """A control of the panel's own that is on or off."""
    switch = Field(Setting(name, bool, (), False, False, False, "", "bool"))
    switch.value = False
    return switch


def _own(name, is_optional=False):
    return Setting(name, str, (), is_optional, None, False, "", "str")
