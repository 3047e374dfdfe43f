"""A bare tokenizer.model: the ids are those of the sentencepiece package itself."""

import io
import itertools
import time

import pytest
import sentencepiece
from hypothesis import example, given, settings
from hypothesis import strategies as st

from tests.tokenizer.llama2 import FOLDER, MODEL, needs_llama2
from tests.tokenizer.mixed_text import LINES, RUNS, mixed_text
from workbench.tokenizer import LlamaTokenizer, TokenizerError
from workbench.tokenizer.sentencepiece import read_model

TEXT = st.text(st.characters(exclude_categories=["Cs"]))
REPEATS = st.lists(st.tuples(st.sampled_from([*RUNS, "a", "ab", "aba", "{", "x ", " the"]), st.integers(1, 40)))


@pytest.fixture(scope="module")
def llama2():
    return LlamaTokenizer.from_folder(FOLDER), sentencepiece.SentencePieceProcessor(model_file=str(MODEL))


def same(pair, text):
    ours, theirs = pair
    expected = theirs.encode(text)
    # A text that names a special token is one here, as in transformers, unless asked not to.
    assert ours.encode(text, add_special_tokens=False, split_special_tokens=True) == expected
    assert ours.encode(text, split_special_tokens=True) == [ours.bos_token_id, *expected]
    if not any(token in text for token in ours.all_special_tokens):
        assert ours.encode(text, add_special_tokens=False) == expected


@needs_llama2
def test_the_documented_example(llama2):
    assert llama2[0].encode("Hello this is a test") == [1, 15043, 445, 338, 263, 1243]
    assert LlamaTokenizer(vocab_file=MODEL).encode("Hello this is a test") == [1, 15043, 445, 338, 263, 1243]


@needs_llama2
def test_200_000_characters(llama2):
    text = mixed_text()
    assert len(text) == 200_000
    assert len(set(text)) > 10_000
    start = time.perf_counter()
    llama2[0].encode(text)
    assert time.perf_counter() - start < 5
    same(llama2, text)


@needs_llama2
@pytest.mark.parametrize(
    "line", [*LINES, "", " ", "  ", "   a", "a ", " a  b", "\n a", "▁", "▁▁a", "<s>", "</s> <unk>"]
)
def test_lines(llama2, line):
    same(llama2, line)


@needs_llama2
@given(TEXT)
@example("▁ \0<s>")
@settings(max_examples=1000, deadline=None)
def test_any_text(llama2, text):
    same(llama2, text)


@needs_llama2
@given(REPEATS)
@settings(max_examples=300, deadline=None)
def test_runs(llama2, parts):
    same(llama2, "".join(part * count for part, count in parts))


@needs_llama2
def test_pieces_that_can_be_made_in_two_overlapping_ways(llama2):
    """X + Y = Y + Z is a piece: which of the two is joined in XYZ depends on the order of equals."""
    pieces = {piece for piece, _, kind in read_model(MODEL).pieces if kind == 1}
    found = 0
    for piece in pieces:
        for cut in range(1, len(piece)):
            first, second = piece[:cut], piece[cut:]
            third = piece[len(second) :]
            if first != second and {first, second, third} <= pieces and second + third == piece:
                found += 1
                for text in (first + second + third, (first + second + third) * 3, "x" + first + second + third):
                    same(llama2, text.replace("▁", " "))
    assert found > 100


@needs_llama2
def test_every_piece_by_itself(llama2):
    for piece, _, kind in read_model(MODEL).pieces:
        if kind == 1:
            same(llama2, piece)


@needs_llama2
def test_loading_is_fast():
    start = time.perf_counter()
    LlamaTokenizer.from_folder(FOLDER)
    assert time.perf_counter() - start < 2


@needs_llama2
def test_decoding(llama2):
    ours, theirs = llama2
    for text in ["Banana", "Hello this is a test", "é 你好 🙂", "  two spaces", "\0\x01", "a\n\nb"]:
        ids = ours.encode(text)
        assert ours.decode(ids, skip_special_tokens=True) == text == theirs.decode(ids[1:])
    assert ours.decode(ours.encode("Banana", add_special_tokens=False)) == "Banana"
    assert ours.decode(ours.convert_tokens_to_ids("▁Ban")) == "Ban"
    assert ours.decode(3 + 0x41) == "A"
    assert ours.decode([3 + 0xF0, 3 + 0x9F, 3 + 0x99, 3 + 0x82]) == "🙂"
    assert ours.decode([3 + 0xF0, 3 + 0x9F]) == "��"


# Other models, trained here -------------------------------------------------------------------------------------------

CORPUS = [
    "the quick brown fox jumps over the lazy dog",
    "<tool> call <tool> end the <sep> then",
    "aaaa aaaaa aaaaaa abab ababab   spaces    and more     spaces",
    "日本語 テキスト 日本 語",
] * 20


def train(path, **changes):
    options = dict(
        vocab_size=400,
        model_type="bpe",
        normalization_rule_name="identity",
        remove_extra_whitespaces=False,
        byte_fallback=True,
        character_coverage=0.99,
        user_defined_symbols=["<tool>"],
        control_symbols=["<sep>"],
        hard_vocab_limit=False,
        minloglevel=2,
    )
    stream = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(CORPUS), model_writer=stream, **{**options, **changes}
    )
    path.write_bytes(stream.getvalue())
    return path


CASES = {
    "plain": {},
    "no dummy prefix": {"add_dummy_prefix": False},
    "no byte fallback": {"byte_fallback": False, "vocab_size": 120},
    "padding token": {"pad_id": 3},
    "split digits": {"split_digits": True},
    "whitespace only pieces": {"allow_whitespace_only_pieces": True},
}


@pytest.fixture(scope="module", params=CASES)
def trained(request, tmp_path_factory):
    path = train(tmp_path_factory.mktemp("trained") / "tokenizer.model", **CASES[request.param])
    return LlamaTokenizer(vocab_file=path), sentencepiece.SentencePieceProcessor(model_file=str(path))


WORDS = ["the", "quick", " ", "  ", "aa", "a", "ab", "日本", "語", "x", "é", "\n", "▁", "12", "🙂"]


@given(TEXT | st.lists(st.sampled_from(WORDS)).map("".join))
@settings(max_examples=200, deadline=None)
def test_trained(trained, text):
    ours, theirs = trained
    assert ours.encode(text, add_special_tokens=False, split_special_tokens=True) == theirs.encode(text)


def test_user_defined_pieces_are_matched_whole(trained):
    ours, theirs = trained
    for text in ["the <tool>fox", "the<tool><tool> fox ", "a <tool> b"]:
        assert ours.encode(text, add_special_tokens=False) == theirs.encode(text)
    tool = theirs.piece_to_id("<tool>")
    assert tool not in ours.all_special_ids
    # A control piece is one here, as in transformers; SentencePiece spells it.
    assert theirs.piece_to_id("<sep>") in ours.encode("the <sep> fox")
    assert ours.encode("<sep>", split_special_tokens=True, add_special_tokens=False) == theirs.encode("<sep>")
    # Before a user-defined piece that begins the text, SentencePiece puts its space, transformers and this do not.
    assert (
        theirs.encode("<tool>a")[-2:]
        == ours.encode("<tool>a", add_special_tokens=False)
        == [
            tool,
            theirs.piece_to_id("a"),
        ]
    )


def test_special_tokens_of_a_trained_model(trained):
    ours, theirs = trained
    assert (ours.unk_token_id, ours.bos_token_id, ours.eos_token_id) == (0, 1, 2)
    assert ours.pad_token_id == (3 if theirs.pad_id() == 3 else None)
    assert len(ours) == theirs.get_piece_size()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"model_type": "unigram"}, "is of model type 1; only BPE models"),
        ({"model_type": "char"}, "is of model type 4; only BPE models"),
        ({"normalization_rule_name": "nmt_nfkc"}, "it normalises the text"),
        ({"remove_extra_whitespaces": True}, "it normalises the text"),
        ({"treat_whitespace_as_suffix": True}, "it normalises the text"),
    ],
)
def test_models_whose_ids_could_not_be_the_same(tmp_path, changes, message):
    with pytest.raises(TokenizerError, match=rf"tokenizer\.model is not a SentencePiece model .*{message}"):
        LlamaTokenizer(vocab_file=train(tmp_path / "tokenizer.model", **changes))


# Damaged files --------------------------------------------------------------------------------------------------------


def field(number, payload):
    return bytes([number << 3 | 2, len(payload)]) + payload


def piece(text, score=b"", kind=None):
    return field(1, field(1, text) + score + (bytes([3 << 3, kind]) if kind else b""))


NORMALIZER = field(3, bytes([4 << 3, 0]))
TRAINER = field(2, bytes([3 << 3, 2]))
UNKNOWN = piece(b"<unk>", kind=2)


def test_a_model_written_by_hand(tmp_path):
    path = tmp_path / "tokenizer.model"
    score = bytes([2 << 3 | 5]) + b"\0\0\x80\xbf"
    extra = bytes([9 << 3 | 1]) + bytes(8) + bytes([10 << 3 | 5]) + bytes(4)  # fields that are skipped
    pieces = [UNKNOWN, piece("▁".encode()), piece(b"a"), piece("▁a".encode(), score)]
    path.write_bytes(b"".join([*pieces, TRAINER, NORMALIZER, extra]))
    theirs = sentencepiece.SentencePieceProcessor(model_file=str(path))
    ours = LlamaTokenizer(vocab_file=path)
    for text in ["a", "aa", " a", "b", "ab ba", "bb"]:
        assert ours.encode(text) == theirs.encode(text)


def test_equal_scores_and_control_pieces(tmp_path):
    """Of equals the leftmost are joined first; what would make a control piece is not joined."""
    path = tmp_path / "tokenizer.model"
    pieces = [UNKNOWN, piece(b"ba", kind=3), *(piece(text) for text in ("▁".encode(), b"a", b"b", b"aa", b"aaa"))]
    path.write_bytes(b"".join([*pieces, TRAINER, NORMALIZER]))
    theirs = sentencepiece.SentencePieceProcessor(model_file=str(path))
    ours = LlamaTokenizer(vocab_file=path)
    for text in ["aaaa", "a" * 8, "ba", "abaaab a"]:
        assert ours.encode(text, split_special_tokens=True) == theirs.encode(text)
    assert len(theirs.encode("aaaa")) == 3


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"", "it holds no pieces"),
        (b"\x0a", "ends inside a number"),
        (b"\x0a\xff\xff\xff\xff\x0f", r"a field of 4294967295 bytes begins where 0 are left"),
        (b"\xff" * 20, "a number takes more than ten bytes"),
        (b"\x0b", "a field of the unknown kind 3"),
        (b"\x08\x01", "a number stands where a text or a message is expected"),
        (field(1, field(1, b"\xff")), r"the piece b'\\xff' is not UTF-8"),
        (field(1, bytes([2 << 3, 1])), "a piece's score is not a 32-bit float"),
        (field(1, field(3, b"x")), "a text stands where a number is expected"),
        (field(1, b""), "a piece has no text"),
        (UNKNOWN * 2, "the piece '<unk>' is there twice"),
        (piece(b"a"), "it has 0 unknown pieces where there must be one"),
        (piece(b"a", kind=9), "the piece 'a' has the kind 9"),
        (piece(b"a", bytes([2 << 3 | 5]) + b"\0\0\xc0\x7f"), "has the kind 1 and the score nan"),
        (UNKNOWN + TRAINER + piece(b"a", kind=5), "has unused pieces"),
        (
            UNKNOWN + piece(b"ab") + TRAINER + NORMALIZER,
            "the piece 'ab' has the character 'a', which is no piece itself",
        ),
        (
            UNKNOWN + field(2, bytes([3 << 3, 2, 0x98, 2, 1])) + NORMALIZER,
            "falls back to bytes but has no piece <0x00>",
        ),
        (UNKNOWN + field(1, field(1, b"x" * 120)) * 2, "the piece 'xxx.* is there twice"),
    ],
    ids=itertools.count(),
)
def test_damaged_models(tmp_path, data, message):
    path = tmp_path / "tokenizer.model"
    path.write_bytes(data)
    with pytest.raises(
        TokenizerError, match=f"tokenizer.model is not a SentencePiece model that can be read.*{message}"
    ):
        LlamaTokenizer(vocab_file=path)


def test_a_very_long_piece(tmp_path):
    path = tmp_path / "tokenizer.model"
    inner = b"\x0a\x88\x27" + b"x" * 5000
    path.write_bytes(UNKNOWN + b"\x0a" + bytes([len(inner) & 0x7F | 0x80, len(inner) >> 7]) + inner)
    with pytest.raises(TokenizerError, match="a piece has 5000 characters; at most 512 are allowed"):
        LlamaTokenizer(vocab_file=path)
    with pytest.raises(TokenizerError, match=r"vocab_file is '.*none.model', but there is no such file"):
        LlamaTokenizer(vocab_file=tmp_path / "none.model")
