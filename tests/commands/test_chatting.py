"""A conversation: its turns and images are asked with the next question, and an error changes nothing."""

import zlib

import pytest
from PIL import Image

from vlmhelpers.commands.answering import rows_to_answer
from vlmhelpers.commands.chatting import Conversation
from vlmhelpers.commands.settings import Answering, Generating
from vlmhelpers.commands.tuned import load_tuned
from vlmhelpers.common.images import UnusableImage
from vlmhelpers.data.schema import count_images

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def tuned(trained):
    return load_tuned(trained)


def test_turns_and_images_stay_until_they_are_cleared(tuned, picture, monkeypatch):
    seen = []

    def stream(model, processor, messages, images, write=None, **options):
        seen.append((messages, images, options))
        return f"Answer {len(seen)}."

    monkeypatch.setattr("vlmhelpers.commands.chatting.stream_conversation", stream)
    talk = Conversation(tuned, Answering(system="Be brief.", max_new_tokens=5))
    assert [talk.ask("What?", [picture]), talk.ask("And?")] == ["Answer 1.", "Answer 2."]
    messages, images, options = seen[1]
    assert [message["role"] for message in messages] == ["system", "user", "assistant", "user"]
    assert count_images(messages) == len(images) == 1 and options == {"max_new_tokens": 5}
    talk.clear()
    talk.ask("Again?")
    assert len(seen[2][0]) == 2 and seen[2][1] == []


def test_tuned_model_and_base_answer_each_in_its_own_way(tuned, picture):
    pieces, answering = [], Answering(max_new_tokens=20)
    learned = Conversation(tuned, answering).ask("Describe this product.", [picture], pieces.append)
    assert learned == "".join(pieces) == "Sold out."
    assert Conversation(tuned, base=True).ask("Describe this product.", [picture], pieces.append) != learned


def test_an_unusable_image_leaves_the_conversation_as_it_was(tuned, tmp_path):
    talk = Conversation(tuned)
    (tmp_path / "text.png").write_text("no image")
    for name in ("gone.png", "text.png"):
        with pytest.raises((UnusableImage, OSError)):
            talk.ask("What?", [tmp_path / name])
    assert talk.turns == talk.images == []


def test_an_image_that_takes_too_long_is_refused_wherever_a_user_hands_it_over(tuned, tmp_path):
    Image.new("RGB", (8, 8)).save(tmp_path / "slow.png")
    data, chunk = (tmp_path / "slow.png").read_bytes(), bytes(4) + b"abCd" + zlib.crc32(b"abCd").to_bytes(4, "big")
    (tmp_path / "slow.png").write_bytes(data[:-12] + chunk * 5_000_000 + data[-12:])
    with pytest.raises(UnusableImage, match="too slow to decode"):
        Conversation(tuned).ask("What?", [tmp_path / "slow.png"])
    with pytest.raises(UnusableImage, match="too slow to decode"):
        rows_to_answer(Generating(model="a run", prompt="What?"), images=[tmp_path / "slow.png"])
