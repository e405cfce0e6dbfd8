"""Chat: questions about images of one's own, answered by the tuned model and, beside it, by the base."""

import ipywidgets as widgets
from markupsafe import Markup
from PIL import Image

from vlmhelpers.common.image_workers import open_apart
from vlmhelpers.common.images import UnusableImage, repair
from vlmhelpers.studio.fields import Form
from vlmhelpers.studio.tabs.tab import Tab


class ChatTab(Tab):
    name = "chat"

    def build(self):
        self.form = Form.of("chatting")
        self.side_by_side = widgets.Checkbox(indent=False)
        self.question = widgets.Textarea(rows=2, layout=widgets.Layout(width="auto"))
        self.upload = widgets.FileUpload(accept="image/*", multiple=True)
        self.talk = widgets.HTML()
        for widget, name in ((self.question, "question"), (self.upload, "upload"), (self.talk, "talk")):
            widget.add_class(f"studio-{name}")
        self.side_by_side.add_class("studio-side_by_side")
        yield self.form.grid()
        yield from (self.side_by_side, self.talk, self.question)
        yield self.row(
            self.upload,
            self.button("send", self._send),
            self.button("clear", lambda: self.work("clear", self.studio.clear)),
            self.button("unload", lambda: self.work("unload", self.studio.free)),
        )
        yield self.out

    def speak(self, texts):
        super().speak(texts)
        self.form.speak(texts)
        self.question.description = texts["label.question"]
        self.upload.description = texts["label.image"]
        self.side_by_side.description = texts["label.side_by_side"]
        self._draw()

    def _send(self):
        question = self.question.value.strip()
        options = self.form.values | {"base": self.side_by_side.value, "write": self._draw}

        def ask():
            images, self.question.value = uploaded(self.upload), ""
            try:
                self.studio.chat(question, images, **options)
            except BaseException:
                self.question.value = question  # to be sent again
                raise
            empty(self.upload)

        if question:
            self.work("send", ask)
        else:
            self.fail(ValueError(self.studio.texts["no_question"]))

    def show(self, found):
        self.out.value = ""
        self._draw()

    def fail(self, error):
        super().fail(error)
        self._draw()

    def refresh(self):
        """Takes away a chat whose model is unloaded, as a start does."""
        if self.talk.value and not self.studio.turns:
            self._draw()

    def _draw(self):
        """Shows the conversation, with what has been written of the answer so far."""
        texts, parts = self.studio.texts, []
        for turn in self.studio.turns:
            parts.append(_TURN.format("you", texts["you"], turn.thumbnails, turn.question))
            sides = (_TURN.format(name, texts[name], "", answer) for name, answer in turn.answers.items())
            parts.append(Markup('<div class="studio-sides">{}</div>').format(Markup("").join(sides)))
        self.talk.value = Markup("").join(parts)


_TURN = Markup('<div class="studio-turn" data-by="{}"><b>{}</b><br>{}<div style="white-space:pre-wrap">{}</div></div>')


def uploaded(upload: widgets.FileUpload) -> list[Image.Image]:
    """The images in an upload, of ipywidgets 7 or 8. Raises ValueError for a file that is no image."""
    files = upload.value.values() if isinstance(upload.value, dict) else upload.value
    images = []
    for number, file in enumerate(files, 1):
        name = file.get("name") or file.get("metadata", {}).get("name", f"file {number}")
        try:
            images.append(repair(open_apart(bytes(file["content"]))))
        except UnusableImage as error:
            raise ValueError(f"{name}: {error}") from None
    return images


def empty(upload: widgets.FileUpload) -> None:
    """Takes the files out of an upload."""
    if isinstance(upload.value, dict):
        upload.metadata, upload.data, upload._counter = [], [], 0  # its value follows the counter
    else:
        upload.value = ()
