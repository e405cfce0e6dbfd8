import os
from pathlib import Path
from urllib.request import urlopen

REPOSITORY = os.environ.get("VLMHELPERS_REPOSITORY", "https://github.com/your_name/vlm-notebooks")


class Stop(Exception):
    def _render_traceback_(self):  # the sentence in place of a traceback
        return [str(self)]


places = "../tools/hosted.py", "vlm-notebooks/tools/hosted.py"  # in a checkout; fetched by this cell before
source = next((Path(place).resolve().as_uri() for place in places if os.path.isfile(place)), None)
if source is None and "your_name" in REPOSITORY:
    raise Stop(f"{REPOSITORY} is a placeholder: put the address of the project, or of your fork, into REPOSITORY.")
try:
    code = urlopen(source or f"{REPOSITORY}/raw/main/tools/hosted.py", timeout=60).read()
except OSError as error:
    raise Stop(f"{REPOSITORY}: {error}. On Kaggle switch Internet on in the settings; run this cell again.") from None
names = {"__name__": "hosted"}
exec(code, names)
names["set_up"](REPOSITORY)
