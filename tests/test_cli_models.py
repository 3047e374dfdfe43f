"""The commands that run a model: generate, run, chat, convert."""

import io
import json
import os
import re
import select
import signal
import subprocess
import sys
import time

import pytest

from tests.compat.tiny_folders import tiny_folder
from workbench.cli import main
from workbench.compat.pipelines import pipeline

COMMAND = [sys.executable, "-m", "workbench.cli"]
PROMPT = "Plants create energy"
LONG = {"max_position_embeddings": 1 << 20, "eos_token_id": None}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return str(tiny_folder(tmp_path_factory.mktemp("tiny")))


@pytest.fixture(scope="module")
def endless(tmp_path_factory):
    """A model that does not end by itself within a test."""
    return str(tiny_folder(tmp_path_factory.mktemp("endless"), **LONG))


@pytest.fixture
def typed(monkeypatch):
    def give(text):
        data = text if isinstance(text, bytes) else text.encode()
        monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(data), encoding="utf-8"))

    return give


def expected(folder, prompt=PROMPT, **options):
    options = {"do_sample": False, "max_new_tokens": 8, **options}
    return pipeline("text-generation", folder, device="cpu")(prompt, **options)[0]["generated_text"]


def run(arguments, text="", **options):
    return subprocess.run([*COMMAND, *arguments], input=text, capture_output=True, text=True, timeout=120, **options)


# generate -------------------------------------------------------------------------------------------------------------


def test_generate_as_documented(folder):
    """`echo "Plants create energy" | workbench generate --model … --device …`."""
    result = run(["generate", "--model", folder, "--device", "cpu", "--max-new-tokens", "8"], PROMPT + "\n")
    assert result.returncode == 0, result.stderr
    assert result.stdout == expected(folder) + "\n"
    assert result.stderr == ""


@pytest.mark.parametrize("stream", ["--stream", "--no-stream"])
@pytest.mark.parametrize(
    ("arguments", "options"),
    [
        ([], {}),
        (["--temperature", "0"], {}),
        (["--temperature", "0.8", "--seed", "3"], {"do_sample": True, "temperature": 0.8, "seed": 3}),
        (["--top-k", "4", "--top-p", "0.5", "--seed", "4"],
         {"do_sample": True, "temperature": 1.0, "top_k": 4, "top_p": 0.5, "seed": 4}),
        (["--cache-implementation", "static"], {"cache_implementation": "static"}),
        (["--device", "-1", "--dtype", "float32"], {}),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)  # fmt: skip
def test_generate_takes_the_options_of_generation(arguments, options, stream, folder, capsys):
    assert main(["generate", PROMPT, "--model", folder, "--max-new-tokens", "8", stream, *arguments]) == 0
    assert capsys.readouterr().out == expected(folder, **options) + "\n"


def test_generate_reads_the_argument_or_standard_input(folder, capsys, typed):
    typed(f"{PROMPT}\n\nsecond line\n")
    assert main(["generate", "--model", folder, "--max-new-tokens", "8"]) == 0
    assert capsys.readouterr().out == expected(folder, f"{PROMPT}\n\nsecond line") + "\n"
    typed(b"\xff\xfe")
    assert main(["generate", "--model", folder]) == 1
    assert capsys.readouterr().err == (
        "workbench generate: Standard input is not UTF-8 (byte 0). Convert it, for example with iconv.\n"
    )


def test_the_streamed_words_arrive_while_the_model_works(endless):
    command = [*COMMAND, "generate", PROMPT, "--model", endless, "--max-new-tokens", "100000"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        assert process.stdout.read(len(PROMPT)).decode() == PROMPT
        assert process.poll() is None
        process.stdout.close()  # as `head` does
        assert process.wait(60) == 1
        assert process.stderr.read() == b""


def test_interrupting_generate_ends_it_without_a_traceback(endless):
    command = [*COMMAND, "generate", PROMPT, "--model", endless, "--max-new-tokens", "100000"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        process.stdout.read(len(PROMPT))
        process.send_signal(signal.SIGINT)
        _, errors = process.communicate(timeout=60)
    assert process.returncode == 130
    assert errors == b"\n"


def test_the_default_model_continues_the_documented_prompt():
    result = run(["generate", "--max-new-tokens", "6"], PROMPT)
    assert result.returncode == 0, result.stderr
    assert result.stdout.startswith(PROMPT)
    assert len(result.stdout.split()) >= 6


# run ------------------------------------------------------------------------------------------------------------------


def test_run_as_documented(folder):
    """`echo -e "…" | workbench run --task text-generation --model … --device 0`."""
    result = run(["run", "--task", "text-generation", "--model", folder, "--device", "0"], PROMPT + "\n")
    assert result.returncode == 0, result.stderr
    (record,) = json.loads(result.stdout)
    assert record["generated_text"].startswith(PROMPT)
    assert len(record["generated_text"]) > len(PROMPT)


def test_run_gives_a_line_of_json_for_each_line(tmp_path, capsys, typed):
    labels = {0: "BAD", 1: "GOOD"}
    source = tiny_folder(tmp_path / "classes", "LlamaForSequenceClassification", id2label=labels)
    typed("hello\nworld\n")
    assert main(["run", "--task", "text-classification", "--model", str(source), "--device", "cpu"]) == 0
    lines = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert lines == pipeline("text-classification", source, device="cpu")(["hello", "world"])

    source = tiny_folder(tmp_path / "reader", "LlamaForQuestionAnswering")
    questions = tmp_path / "questions.txt"
    questions.write_text("who?\thello world\nwhat?\ta world\n")
    command = ["run", "--task", "question-answering", "--model", str(source), "--input", str(questions)]
    assert main(command) == 0
    lines = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert lines[1] == pipeline("question-answering", source, device="cpu")(question="what?", context="a world")
    questions.write_text("no tab\n")
    assert main(command) == 1
    assert "the line 'no tab' has no tab; each line is a question, a tab and its context." in capsys.readouterr().err


# chat -----------------------------------------------------------------------------------------------------------------


def test_chat_on_a_pipe(folder, tmp_path, capsys, typed):
    saved = tmp_path / "talk.json"
    typed(f"hello\n\nand more\n/save {saved}\n")
    command = ["chat", "--model", folder, "--system", "be brief", "--max-new-tokens", "4"]
    assert main(command) == 0
    messages = json.loads(saved.read_text())
    assert [message["role"] for message in messages] == ["system", "user", "assistant", "user", "assistant"]
    assert [messages[index]["content"] for index in (0, 1, 3)] == ["be brief", "hello", "and more"]
    pipe = pipeline("text-generation", folder, device="cpu")
    for index in (2, 4):
        asked = messages[:index]
        assert pipe(asked, do_sample=False, max_new_tokens=4)[0]["generated_text"][-1] == messages[index]
    out, err = capsys.readouterr()
    assert out == f"{messages[2]['content']}\n{messages[4]['content']}\n"
    assert err == ""


def test_the_commands_of_chat(folder, tmp_path, capsys, typed):
    saved = tmp_path / "talk.json"
    lines = ["hello", "/reset", "/system now long", f"/save {saved}", "/what", "/save", f"/save {tmp_path}/no/file",
             "/help", "/system", "hello", f"/save {saved}.2", "/exit", "never read"]  # fmt: skip
    typed("\n".join(lines))
    assert main(["chat", "--model", folder, "--max-new-tokens", "3"]) == 0
    assert json.loads(saved.read_text()) == [{"role": "system", "content": "now long"}]
    assert [message["role"] for message in json.loads((tmp_path / "talk.json.2").read_text())] == ["user", "assistant"]
    errors = capsys.readouterr().err.splitlines()
    assert errors[0].endswith("there is no command /what; there are /reset, /system, /save, /help, /exit.")
    assert errors[1].endswith("/save needs a file: /save FILE.")
    assert "No such file or directory" in errors[2]
    assert errors[3].startswith("/reset forgets the conversation")
    assert len(errors) == 4


def test_interrupting_chat_stops_the_answer_and_not_the_program(endless, tmp_path):
    saved = tmp_path / "talk.json"
    command = [*COMMAND, "chat", "--model", endless, "--max-new-tokens", "100000"]
    pipes = dict.fromkeys(("stdin", "stdout", "stderr"), subprocess.PIPE)
    with subprocess.Popen(command, **pipes) as process:
        process.stdin.write(b"hello\n")
        process.stdin.flush()
        process.stdout.read(1)
        process.send_signal(signal.SIGINT)
        _, errors = process.communicate(f"/save {saved}\n".encode(), timeout=60)
    assert process.returncode == 0
    assert errors == b"\n(stopped)\n"
    asked, answer = json.loads(saved.read_text())
    assert asked == {"role": "user", "content": "hello"}
    assert answer["content"]


# Makes its terminal the one whose Ctrl-C it gets, then becomes the command. (`preexec_fn` may hang where threads run.)
AT_TERMINAL = """
import fcntl, os, sys, termios
fcntl.ioctl(0, termios.TIOCSCTTY, 0)
os.execv(sys.executable, [sys.executable, *sys.argv[1:]])
"""


@pytest.mark.skipif(os.name != "posix", reason="needs a pseudo-terminal")
def test_chat_at_a_terminal(folder):
    import pty

    ours, theirs = pty.openpty()
    command = [sys.executable, "-c", AT_TERMINAL, *COMMAND[1:], "chat", "--model", folder, "--max-new-tokens", "3"]
    process = subprocess.Popen(command, stdin=theirs, stdout=theirs, stderr=theirs, start_new_session=True)
    os.close(theirs)
    seen = b""

    def until(text, again=b""):
        nonlocal seen
        limit = time.monotonic() + 60
        while text not in seen:
            assert time.monotonic() < limit, seen
            if select.select([ours], [], [], 0.5)[0]:
                seen += os.read(ours, 4096)
            else:
                os.write(ours, again)
        seen = seen.split(text, 1)[1]

    try:
        until(b"Ctrl-C stops an answer.")
        until(b"> ")
        os.write(ours, b"\x03")
        # Python sees a signal that comes between the prompt and its wait for a key at the next one only.
        until(b"(/exit or Ctrl-D ends)", again=b"\x03")
        until(b"> ")
        os.write(ours, b"hello\n")
        until(b"> ")
        os.write(ours, b"\x04")
        assert process.wait(60) == 0
    finally:
        process.kill()
        process.wait()
        os.close(ours)


# convert --------------------------------------------------------------------------------------------------------------


def test_convert_writes_a_folder_that_loads(folder, tmp_path, capsys):
    target = tmp_path / "converted"
    assert main(["convert", folder, str(target), "--kv-heads", "4", "--dtype", "float32"]) == 0
    assert capsys.readouterr().err == f"wrote {target}\n"
    assert json.loads((target / "config.json").read_text())["num_key_value_heads"] == 4
    assert expected(str(target)) == expected(folder)  # each of the two heads was repeated
    assert main(["convert", folder, str(tmp_path / "half"), "--dtype", "bfloat16"]) == 0
    assert json.loads((tmp_path / "half" / "config.json").read_text())["dtype"] == "bfloat16"


# Errors ---------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "status", "match"),
    [
        (["generate", "x", "--model", "/nowhere/model"], 1, "/nowhere/model"),
        (
            ["generate", "x", "--device", "tpu9", "--model", "FOLDER"],
            1,
            "device is 'tpu9', which torch cannot use here",
        ),
        (["generate", "x", "--model", "FOLDER", "--top-p", "3"], 1, "top_p is 3.0"),
        (["generate", "x", "--model", "FOLDER", "--temperature", "-1"], 1, "temperature is -1.0"),
        (["generate", "x", "--model", "FOLDER", "--group-size", "32"], 2, "--group-size belongs to --quantize int4"),
        (["run", "--task", "ner", "--input", "/nowhere.txt", "--model", "FOLDER"], 1, "No such file .* '/nowhere.txt'"),
        (["run", "--task", "ner"], 1, "model was not given, and the default model has not learnt token-classification"),
        (["chat", "--model", "/nowhere/model"], 1, "/nowhere/model"),
        (["convert", "FOLDER", "TARGET", "--kv-heads", "3"], 1, "4 query heads"),
        (["convert", "/nowhere/model", "TARGET"], 1, "/nowhere/model"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_what_cannot_be_done_is_said_in_one_line(arguments, status, match, folder, tmp_path, capsys, typed):
    typed("hello\n")
    names = {"FOLDER": folder, "TARGET": str(tmp_path / "target")}
    assert main([names.get(argument, argument) for argument in arguments]) == status
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    assert error.startswith(f"workbench {arguments[0]}: ")
    assert re.search(match, error)


def test_a_warning_is_one_line(folder, capsys, typed):
    """Such as that a causal model's folder has no head for labels."""
    typed("hello\n")
    assert main(["run", "--task", "ner", "--model", folder, "--device", "cpu"]) == 0
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    assert error.startswith("workbench run: LlamaForTokenClassification: not in ")


@pytest.mark.parametrize(
    ("arguments", "match"),
    [
        (["generate", "--max-new-tokens", "0"], "'0' is no whole number of at least 1"),
        (["generate", "--dtype", "int3"], "invalid choice: 'int3'"),
        (["generate", "--quantize", "int2"], "invalid choice: 'int2'"),
        (["generate", "--cache-implementation", "magic"], "invalid choice: 'magic'"),
        (["run", "--task", "translation"], "invalid choice: 'translation'"),
        (["run"], "required: --task"),
        (["convert", "a"], "required: target"),
        (["fly"], "invalid choice: 'fly'"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_a_wrong_use_is_status_2(arguments, match, capsys):
    with pytest.raises(SystemExit) as ended:
        main(arguments)
    assert ended.value.code == 2
    assert match in capsys.readouterr().err


def test_a_model_without_a_chat_template_cannot_chat(tmp_path, capsys, typed):
    source = tiny_folder(tmp_path / "m", tokenizer={"chat_template": None})
    typed("hello\n")
    assert main(["chat", "--model", str(source)]) == 1
    assert capsys.readouterr().err == (
        "workbench chat: this model has no chat template, so it cannot chat. Use workbench generate.\n"
    )


def test_help_does_not_wait_for_torch():
    code = "import sys; from workbench.cli import main; sys.modules['torch'] = None; main(['--help'])"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert result.returncode == 0
    for name in ("lab", "generate", "chat", "run", "convert"):
        assert name in result.stdout


def test_generate_at_a_terminal_without_a_text_is_a_usage_error(monkeypatch, capsys):
    monkeypatch.setattr(sys.stdin, "isatty", lambda: True, raising=False)
    assert main(["generate"]) == 2
    assert "there is no text. Use: workbench generate" in capsys.readouterr().err
