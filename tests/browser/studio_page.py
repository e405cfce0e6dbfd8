"""The panel in a page of a browser, in JupyterLab or alone: found by its CSS classes, used as by hand."""

from browsing import SECONDS


class Panel:
    """The panel that a page shows."""

    def __init__(self, page):
        self.page = page
        self.root = page.locator(".studio")
        self.state = self.root.locator(".studio-state")

    def find(self, name):
        """The widget of a setting, a button or an output, by its name, in the tab that is shown."""
        return self.root.locator(f".studio-{name}:visible")

    def tab(self, name):
        """Goes to a tab of this name, or number."""
        tabs = self.root.locator(".lm-TabBar-tab")
        (tabs.nth(name) if isinstance(name, int) else tabs.filter(has_text=name).first).click()

    def fill(self, name, value):
        """Types a setting's value, as it is typed by hand."""
        control = self.find(name).locator("input, textarea")
        control.fill(value)
        control.press("Tab")

    def value(self, name):
        """What a setting's control holds."""
        return self.find(name).locator("input, textarea, select").input_value()

    def speak(self, language):
        """Chooses the panel's language."""
        self.root.locator(".studio-locale select").select_option(label=language)

    def wait_for_state(self, *states, seconds=SECONDS):
        """Waits until the run is in one of the states. Raises RuntimeError, with what is shown, if it fails instead."""
        found = self.page.wait_for_function(
            """states => [document.querySelector('.studio-state')?.dataset.state].find(
                state => [...states, 'failed', 'lost'].includes(state))""",
            arg=list(states),
            timeout=1000 * seconds,
        )
        if found.json_value() not in states:
            raise RuntimeError(self.state.text_content())

    @property
    def last_step(self):
        """The last step that the chart of the loss shows; -1 while there is no chart."""
        chart = self.root.locator(".studio-chart svg").first
        return int(chart.get_attribute("data-last-step")) if chart.count() else -1

    def wait_for_step(self, above):
        """Waits until the chart of the loss shows a later step."""
        self.page.wait_for_function(
            "above => +(document.querySelector('.studio-chart svg')?.dataset.lastStep ?? -1) > above", arg=above
        )

    def press(self, name):
        """Presses a button once it can be pressed."""
        self.find(name).click()

    def copy_code(self):
        """Copies the cells of the code pane, as one text, to the clipboard."""
        self.find("code-cells").evaluate("pane => getSelection().selectAllChildren(pane)")
        self.page.keyboard.press("Control+c")
