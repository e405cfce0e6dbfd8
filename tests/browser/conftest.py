"""JupyterLab and Chromium, each started once for all tests in a browser."""

import browsing
import pytest


@pytest.fixture(scope="session")
def browser():
    """A headless Chromium; skips where there is none."""
    try:
        with browsing.chromium() as found:
            yield found
    except (ImportError, FileNotFoundError) as error:
        pytest.skip(str(error))


@pytest.fixture(scope="session")
def lab(browser, tmp_path_factory):
    """JupyterLab in an empty folder."""
    lab = browsing.Lab(tmp_path_factory.mktemp("notebooks"), tmp_path_factory.mktemp("jupyter"))
    yield lab
    lab.close()


@pytest.fixture
def open_notebook(browser, lab):
    """Opens a notebook of the given cells: `open_notebook("a.ipynb", "1 + 1")`."""
    pages = []

    def opened(name, *cells):
        lab.write(name, *cells)
        pages.append(lab.open(browser, name))
        return pages[-1]

    yield opened
    for notebook in pages:
        notebook.page.screenshot(path=lab.place / f"{notebook.name}.png")  # to look at where a test failed
        notebook.page.close()
