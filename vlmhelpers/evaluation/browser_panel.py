"""The live panel of the browser of answers, made of ipywidgets."""

import ipywidgets


def make_panel(browser):
    """A VBox: what to filter by and to search for, two buttons to turn pages, and the page with its rows."""
    kinds = [(f"{kind} ({len(rows)})", kind) for kind, rows in browser.kinds.items()]
    kind = ipywidgets.Dropdown(options=kinds, value=browser.kind, description="rows")
    search = ipywidgets.Text(value=browser.search, placeholder="search in the texts", continuous_update=False)
    back, on = (ipywidgets.Button(description=name) for name in ("previous", "next"))
    place, page = ipywidgets.Label(), ipywidgets.HTML()

    def draw():
        place.value = f"{len(browser.shown())} rows, page {browser.page + 1} of {browser.pages()}"
        page.value = browser.page_html()
        back.disabled, on.disabled = browser.page == 0, browser.page + 1 == browser.pages()

    def choose(change):
        browser.kind, browser.search, browser.page = kind.value, search.value, 0
        draw()

    def turn(button):
        browser.page = min(max(browser.page + (1 if button is on else -1), 0), browser.pages() - 1)
        draw()

    for control in (kind, search):
        control.observe(choose, names="value")
    for button in (back, on):
        button.on_click(turn)
    draw()
    lines = [ipywidgets.HBox([kind, search]), ipywidgets.HBox([back, on, place])]
    return ipywidgets.VBox([*lines, page])
