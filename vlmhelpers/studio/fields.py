"""Controls of settings: one for each, made of what the setting says of itself, with its help and what is wrong with it.

Only what ipywidgets 7.7.1 and 8.1 share: Colab has the one, Kaggle and JupyterLab the other.
"""

from collections.abc import Callable, Iterable
from contextlib import contextmanager

import ipywidgets as widgets
from markupsafe import Markup

from vlmhelpers.common.settings import Setting, shown
from vlmhelpers.studio.texts import GROUPS, word

NONE = "none"  # a Dropdown cannot show None
_YES, _NO = "true", "false"
_HELP = Markup('<div class="studio-help">{}</div>')
_PROBLEM = Markup('<div class="studio-problem" role="alert">&#9888; {}</div>')


class Field:
    """A setting's control. `value`: what is in it; a text where one is typed, as `Settings` converts it."""

    def __init__(self, setting: Setting, options: Iterable[str] = (), free: bool = False, group: str = "run"):
        """`options`: values to choose from in place of the setting's own; `free`: others may be typed.

        `group`: a key of `texts.GROUPS`, where the setting is explained.
        """
        self.setting, self.name, self._group = setting, setting.name, group
        self._texts, self._free, self._listeners, self._quiet = {}, free, [], False
        self._options = [str(option) for option in options or setting.choices]
        self.control = self._make()
        self.control.add_class(f"studio-{self.name}")
        self.control.observe(self._notify, names="value")
        self._help, self._problem = widgets.HTML(), widgets.HTML()
        self.widget = widgets.VBox([self.control, self._help, self._problem])
        self.widget.add_class("studio-field")

    def _make(self):
        setting, layout = self.setting, widgets.Layout(width="auto")
        if setting.kind is bool and not setting.is_optional:
            return widgets.Checkbox(indent=False, layout=layout)
        if self._free:
            return widgets.Combobox(ensure_option=False, continuous_update=False, layout=layout)
        if self._options or setting.kind is bool:
            return widgets.Dropdown(layout=layout)
        return widgets.Text(continuous_update=False, layout=layout)

    @property
    def value(self) -> object:
        value = self.control.value
        return value.strip() if isinstance(value, str) else value  # a pasted name often ends with a blank

    @value.setter
    def value(self, value: object):
        before = self.control.value
        with self._quietly():
            if isinstance(self.control, widgets.Dropdown):
                self._list(value)
            elif isinstance(self.control, widgets.Checkbox):
                if (text := _as_text(value).lower()) not in (_YES, _NO):
                    raise ValueError(f"{self.name} is {shown(value)}: choose True or False")
                self.control.value = text == _YES
            else:
                self.control.value = "" if value is None else _as_text(value)
        if self.control.value != before:
            self._notify()

    @contextmanager
    def _quietly(self):
        """Changes of the control that are nobody's choice, and reach the page together."""
        before, self._quiet = self._quiet, True
        try:
            with self.control.hold_sync():
                yield
        finally:
            self._quiet = before

    def _notify(self, change=None):
        if not self._quiet:
            for act in self._listeners:
                act()

    def offer(self, options: Iterable[str]) -> None:
        """Other values to choose from; the chosen one stays."""
        self._options = [str(option) for option in options]
        if self._free:
            self.control.options = self._options
        else:
            self._list(self.value)

    def on_change(self, act: Callable[[], None]) -> None:
        """Calls `act` whenever the value has changed, by a hand or by code."""
        self._listeners.append(act)

    def speak(self, texts: dict[str, str]) -> None:
        """Shows label, help and options in another language; what was chosen stays."""
        self._texts = texts
        self.control.description = word(texts, "label", self.name, self._group)
        self._help.value = _HELP.format(word(texts, "help", self.name, self._group))
        self.hint(None)
        if isinstance(self.control, widgets.Dropdown):
            self._list(self.value)

    def _list(self, value):
        """Puts the options, in the panel's language, into the list; one of them is `value`."""
        values = self._options or [_YES, _NO]
        values = [NONE] * self.setting.is_optional + values
        if value is not None and (text := _as_text(value)) not in values:
            values.append(text)
        options, chosen = tuple((self._word(option), option) for option in values), _as_text(value)
        with self._quietly():
            if self.control.options != options:
                self.control.options = options
            self.control.value = chosen if chosen in values else values[0]

    def _word(self, option):
        general = {NONE: "choice.none", _YES: "choice.yes", _NO: "choice.no"}.get(option, "")
        keys = f"choice.{self.name}.{option}", f"{self.name}.{option}", general
        return next((self._texts[key] for key in keys if key in self._texts), option)

    def refuse(self, problem: str | None) -> None:
        """Shows what is wrong with the value, or that nothing is."""
        markup = _PROBLEM.format(problem) if problem else ""
        if self._problem.value != markup:
            self._problem.value = markup
            (self.widget.add_class if problem else self.widget.remove_class)("studio-refused")

    def hint(self, value: object) -> None:
        """What an empty field stands for; None: it is not known yet."""
        if self.setting.is_optional and not isinstance(self.control, widgets.Dropdown):
            self.control.placeholder = self._word(NONE) if value is None else _as_text(value)

    def show(self, visible: bool) -> None:
        if (display := None if visible else "none") != self.widget.layout.display:
            self.widget.layout.display = display


def _as_text(value):
    if value is None:
        return NONE
    if isinstance(value, bool):
        return _YES if value else _NO
    return str(value)


class Form:
    """Fields by name, with the values of their settings."""

    def __init__(self, fields: Iterable[Field]):
        self.fields = {field.name: field for field in fields}

    @property
    def values(self) -> dict[str, object]:
        return {name: field.value for name, field in self.fields.items()}

    @classmethod
    def of(cls, group: str) -> "Form":
        """The fields of a group of `texts.GROUPS`, each at its default; one that is changed is checked at once."""
        kind, names = GROUPS[group]
        settings = [kind.described()[name] for name in names]
        form = cls(Field(setting, group=group) for setting in settings)
        form.fill({setting.name: setting.default for setting in settings})
        for field in form.fields.values():
            field.on_change(lambda: form.refuse(kind.problems(form.values)))
        return form

    def refuse(self, problems: dict[str, str]) -> None:
        """Shows what is wrong at the fields that `problems` names, and that nothing is at others."""
        for name, field in self.fields.items():
            field.refuse(problems.get(name))

    def speak(self, texts: dict[str, str]) -> None:
        for field in self.fields.values():
            field.speak(texts)

    def fill(self, values: dict[str, object]) -> None:
        for name, value in values.items():
            if name in self.fields:
                self.fields[name].value = value

    def grid(self, *names: str) -> widgets.GridBox:
        """The fields of those names, as many beside each other as the window has room for."""
        columns = widgets.Layout(grid_template_columns="repeat(auto-fill, minmax(240px, 1fr))", grid_gap="4px 16px")
        box = widgets.GridBox([self.fields[name].widget for name in names or self.fields], layout=columns)
        box.add_class("studio-grid")
        return box
