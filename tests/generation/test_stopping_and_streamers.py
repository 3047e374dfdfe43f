import queue
import threading

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.conftest import tiny_model
from workbench.generation import StopStringCriteria, TextIteratorStreamer, TextStreamer

IDS = torch.randint(1, 97, (1, 7), generator=torch.Generator().manual_seed(3))


class Bytes:
    """Token i is the byte i; 256 and up are longer texts."""

    LONG = (" stop", "opera", "é", "<|im_end|>", "\n", "word ")

    def decode(self, ids, skip_special_tokens=True, **options):
        pieces = [bytes([i]) if i < 256 else self.LONG[i - 256].encode() for i in ids]
        return b"".join(pieces).decode("utf-8", "replace")


@pytest.mark.parametrize(
    ("text", "newest", "stop", "ends"),
    [
        ("st", "op", "stop", True),
        ("", "stop", "stop", True),
        ("las", "topper", "stop", True),
        ("st", "opera", "stop", True),
        ("stop", "at", "stop", False),
        ("stop a", "nd stop", "stop", True),
        ("caf", "é", "é", True),
        ("x" * 500 + "s", "top", "stop", True),
        ("nothing", " here", "stop", False),
        ("aaa", "a", "aa", True),
    ],
)
def test_a_text_that_the_newest_token_completes(text, newest, stop, ends):
    class Pieces(Bytes):
        LONG = (newest,)

    ids = torch.tensor([[*text.encode(), 256]])
    assert StopStringCriteria(Pieces(), stop)(ids).tolist() == [ends]


def test_a_character_of_several_tokens():
    criterion = StopStringCriteria(Bytes(), ["é!", "日"])
    whole = "ab日é!".encode()
    found = [criterion(torch.tensor([list(whole[:n])])).item() for n in range(1, len(whole) + 1)]
    assert found == [False, False, False, False, True, False, False, True]


def test_each_row_for_itself_and_several_strings():
    rows = torch.tensor([list(b"xx stop"), list(b"xx opst"), list(b"xx  end")])
    assert StopStringCriteria(Bytes(), ["stop", "end"])(rows).tolist() == [True, False, True]


@settings(max_examples=150, deadline=None)
@given(st.lists(st.integers(97, 101) | st.integers(256, 261), min_size=1, max_size=40), st.text("abcdop ", min_size=1))
def test_it_is_the_decoded_text_that_decides(ids, stop):
    before, text = Bytes().decode(ids[:-1]), Bytes().decode(ids)
    expected = any(text.startswith(stop, i) and i + len(stop) > len(before) for i in range(len(text)))
    assert StopStringCriteria(Bytes(), stop)(torch.tensor([ids])).item() == expected


class Words:
    def decode(self, ids, **options):
        words = ["one ", "two ", "three", "\n", "日", "本"]
        return "".join(words[i % 6] for i in ids) + ("!" if options.get("loud") else "")


def streamed(streamer, *tokens):
    for token in tokens:
        streamer.put(torch.tensor([token]))
    streamer.end()


def test_words_are_printed_when_they_are_complete(capsys):
    seen = []

    class Recorder(TextStreamer):
        def on_finalized_text(self, text, stream_end=False):
            seen.append((text, stream_end))

    streamed(Recorder(Words()), 0, 2, 1, 3, 2, 4, 5, 2)
    assert seen == [
        ("one ", False),
        ("", False),
        ("threetwo ", False),
        ("\n", False),
        ("", False),
        ("three日", False),
        ("本", False),
        ("", False),
        ("three", True),
    ]
    streamed(TextStreamer(Words()), 0, 2)
    assert capsys.readouterr().out == "one three\n"
    streamed(TextStreamer(Words(), loud=True), 0, 2)
    assert capsys.readouterr().out == "one three!\n"


def test_the_prompt_is_left_out_each_time(capsys):
    streamer = TextStreamer(Words(), skip_prompt=True)
    for _ in range(2):
        streamer.put(torch.tensor([[0, 1, 0]]))
        streamed(streamer, 2)
        assert capsys.readouterr().out == "three\n"


def test_another_thread_reads_along():
    model = tiny_model(eos_token_id=None)
    streamer = TextIteratorStreamer(Words(), timeout=20)
    thread = threading.Thread(target=lambda: model.generate(IDS, streamer=streamer, max_new_tokens=20))
    thread.start()
    text = "".join(streamer)
    thread.join()
    assert text == Words().decode(model.generate(IDS, max_new_tokens=20)[0].tolist())


def test_waiting_for_ever_is_not_needed():
    with pytest.raises(queue.Empty, match=r"no text came within 0\.01 seconds; did generate fail in its thread"):
        next(TextIteratorStreamer(Words(), timeout=0.01))


def test_any_object_with_put_and_end():
    class Recorder:
        def __init__(self):
            self.seen, self.ended = [], 0

        def put(self, value):
            self.seen.append(value)

        def end(self):
            self.ended += 1

    recorder, model = Recorder(), tiny_model(eos_token_id=None)
    out = model.generate(IDS.expand(2, -1), streamer=recorder, max_new_tokens=4)
    assert recorder.seen[0].tolist() == IDS.expand(2, -1).tolist()
    assert torch.stack(recorder.seen[1:], 1).tolist() == out[:, 7:].tolist()
    assert recorder.ended == 1


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: TextStreamer(5), r"tokenizer is a int without decode\(\); give the model's tokenizer"),
        (lambda: TextIteratorStreamer(Words(), timeout=-1), r"timeout is -1; it must be a number of seconds"),
        (
            lambda: TextStreamer(Words()).put(torch.zeros(2, 3)),
            r"TextStreamer shows one text, but 2 rows are generated",
        ),
    ],
    ids=["tokenizer", "timeout", "rows"],
)
def test_what_cannot_be_streamed_is_refused(call, message):
    with pytest.raises((ValueError, TypeError), match=message):
        call()
