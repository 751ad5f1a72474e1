"""fox-generate: texts that grow by whole characters, every option, and one line per mistake."""

import io
import os
import random
import re
import signal
import subprocess
import sys
from subprocess import PIPE

import pytest
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

from fox.cli import TextStream, main

END = 0


@pytest.fixture(scope="module")
def tokenizer():
    """One token per byte: other characters than ASCII are several."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=257, special_tokens=["<|end|>"], initial_alphabet=alphabet, show_progress=False
    )
    tokenizer.train_from_iterator([], trainer)
    return tokenizer


@pytest.fixture
def model(fox_pro, build):
    return build(fox_pro.config.replace(vocab_size=257, eos_token_id=END), seed=3)


@pytest.fixture
def checkpoint(model, tokenizer, tmp_path):
    model.save_pretrained(tmp_path / "model")
    tokenizer.save(str(tmp_path / "model" / "tokenizer.json"))
    return str(tmp_path / "model")


@pytest.fixture
def continued(model, tokenizer):
    """The text that the model gives, as generate has it."""

    def continued(prompt, new_tokens, **options):
        ids = tokenizer.encode(prompt).ids
        out = model.generate(torch.tensor([ids]), new_tokens, **options)[0]
        return text_of(tokenizer, out)

    return continued


def text_of(tokenizer, row):
    """All whole characters."""
    text = tokenizer.decode([token for token in row.tolist() if token >= 0])
    return text.rstrip("\N{REPLACEMENT CHARACTER}")


def error_of(arguments, capsys):
    """The one line on stderr."""
    with pytest.raises(SystemExit) as exit_:
        main(arguments)
    assert exit_.value.code == 2
    (line,) = capsys.readouterr().err.splitlines()
    return line


def pieces_of(tokenizer, prompt, ids):
    grown = TextStream(tokenizer, prompt)
    return [grown.add(token) for token in ids]


def test_a_character_appears_with_its_last_token(tokenizer):
    ids = tokenizer.encode("aé€🦊b").ids
    expected = ["a", "", "é", "", "", "€", "", "", "", "🦊", "b"]
    assert pieces_of(tokenizer, [], ids) == expected


def test_pieces_of_any_bytes_add_up_to_the_whole_text(tokenizer):
    rng = random.Random(0)
    for _ in range(200):
        text = "".join(rng.choice("aé€🦊 ") for _ in range(20))
        ids = tokenizer.encode(text).ids
        for place in rng.sample(range(len(ids)), 5):
            ids[place] = rng.randrange(257)  # broken characters, and the end of text
        ids += tokenizer.encode("!").ids  # so that nothing is held back at the end
        n = rng.randrange(len(text.encode()))
        before = tokenizer.decode(ids[:n])
        if not before.endswith("\N{REPLACEMENT CHARACTER}"):
            assert before + "".join(pieces_of(tokenizer, ids[:n], ids[n:])) == tokenizer.decode(ids)


def test_a_space_at_the_beginning_of_a_token_is_kept():
    vocabulary = {"▁the": 0, "▁fox": 1, "es": 2}
    tokenizer = Tokenizer(models.WordLevel(vocabulary))
    tokenizer.decoder = decoders.Metaspace()
    assert pieces_of(tokenizer, [0], [1, 2, 0]) == [" fox", "es", " the"]


def test_special_tokens_are_not_shown_and_change_nothing():
    tokenizer = Tokenizer(models.WordLevel({"▁the": 0, "▁fox": 1, "<end>": 2}))
    tokenizer.add_special_tokens(["<end>"])
    tokenizer.decoder = decoders.Metaspace()
    assert pieces_of(tokenizer, [0], [1, 2, 0, 2, 2, 1]) == [" fox", "", " the", "", "", " fox"]
    assert pieces_of(tokenizer, [2], [1, 0]) == ["fox", " the"]


def test_prompts_are_continued_as_by_generate(checkpoint, continued, capsys):
    main(["--checkpoint", checkpoint, "--prompt", "Hä", "- a", "--max_new_tokens", "9"])
    out, err = capsys.readouterr()
    expected = [continued(prompt, 9, stop_token_ids=[END]) for prompt in ("Hä", "- a")]
    assert out == "".join(f"{text}\n" for text in expected)
    reports = err.splitlines()
    assert len(reports) == 2
    pattern = (
        r"fox-generate: read 3 tokens and wrote 9 in \S+ s \(\S+ new tokens/s\), cache of \S+ MiB"
    )
    assert all(re.fullmatch(pattern, line) for line in reports)


def test_every_option_reaches_the_model(checkpoint, continued, tokenizer, capsys):
    sampled = {"temperature": 1.5, "top_k": 90, "top_p": 0.9, "min_p": 0.01}
    sampled |= {"repetition_penalty": 1.3, "prefill_chunk": 4}
    options = [word for name, value in sampled.items() for word in (f"--{name}", str(value))]
    call = ["--checkpoint", checkpoint, "--prompt", "some text", "--max_new_tokens", "30"]
    free = None
    for seed in (0, 3):
        main([*call, *options, "--seed", str(seed)])
        generator = torch.Generator().manual_seed(seed)
        expected = continued("some text", 30, **sampled, generator=generator, stop_token_ids=[END])
        out = capsys.readouterr().out
        assert out == expected + "\n"
        assert out != free
        free = out


def test_texts_end_at_stop_tokens_and_strings(checkpoint, continued, tokenizer, model, capsys):
    ids = tokenizer.encode("some text").ids
    new = model.generate(torch.tensor([ids]), 30)[0, len(ids) :].tolist()
    call = ["--checkpoint", checkpoint, "--prompt", "some text", "--max_new_tokens", "30"]
    main([*call, "--stop_token_ids", str(new[5]), "256"])
    count = new.index(new[5]) + 1
    assert f"wrote {count} " in capsys.readouterr().err
    letters = [token for token in new if tokenizer.decode([token]).isascii()]
    assert letters
    main([*call, "--stop_strings", "nowhere", tokenizer.decode(letters[-1:])])
    assert f"wrote {new.index(letters[-1]) + 1} " in capsys.readouterr().err


def test_beams_and_forgetful_caches_can_be_asked_for(checkpoint, model, tokenizer, capsys):
    prompt = "some long text " * 20
    ids = torch.tensor([tokenizer.encode(prompt).ids])
    call = ["--checkpoint", checkpoint, "--prompt", prompt, "--max_new_tokens", "5"]
    main([*call, "--num_beams", "3", "--length_penalty", "0.5"])
    beams, _ = model.beam_search(ids, 5, 3, length_penalty=0.5, stop_token_ids=[END])
    assert capsys.readouterr().out == text_of(tokenizer, beams[0, 0]) + "\n"
    stop = str(beams[0, 0, -3].item())
    for length_penalty, length in (("-3", 3), ("3", 5)):
        options = ["--num_beams", "3", "--length_penalty", length_penalty]
        main([*call, *options, "--stop_token_ids", stop])
        assert f"wrote {length} " in capsys.readouterr().err
    main(call)
    whole = capsys.readouterr()
    main([*call, "--log_pruning_tolerance", "-15"])
    forgetful = capsys.readouterr()
    assert forgetful.out == whole.out
    assert memory(forgetful.err) < memory(whole.err)


def memory(line):
    return float(re.search(r"cache of (\S+) MiB", line).group(1))


def test_a_prompt_may_come_from_standard_input(checkpoint, continued, monkeypatch, capsys):
    monkeypatch.setattr(sys, "stdin", io.StringIO("line 1\nline 2"))
    main(["--checkpoint", checkpoint, "--prompt", "-", "--max_new_tokens", "4"])
    expected = continued("line 1\nline 2", 4, stop_token_ids=[END])
    assert capsys.readouterr().out == expected + "\n"


def test_the_command_prints_as_it_goes_and_ctrl_c_ends_it_cleanly(checkpoint):
    call = ["--checkpoint", checkpoint, "--prompt", "some täxt", "more", "--max_new_tokens", "9999"]
    # Tests that run in the background may have been told to ignore SIGINT, which is inherited.
    heed = "import signal; signal.signal(signal.SIGINT, signal.default_int_handler)"
    code = f"{heed}; from fox.cli import main; main()"
    buffered = {**os.environ, "PYTHONUNBUFFERED": ""}
    python = [sys.executable, "-c", code]
    run = subprocess.Popen([*python, *call], stdout=PIPE, stderr=PIPE, env=buffered)
    beginning = run.stdout.read(len("some täxt".encode()) + 20)
    run.send_signal(signal.SIGINT)
    rest, err = run.communicate(timeout=60)
    out = (beginning + rest).decode("utf-8")
    assert out.startswith("some täxt")
    assert out.endswith("\n")
    assert "more" not in out
    report = re.fullmatch(r"fox-generate: read 10 tokens and wrote (\d+) in .*\n", err.decode())
    assert 0 < int(report.group(1)) < 1000  # a full buffer would hold more
    assert run.returncode == 130


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "required: prompt, checkpoint; see fox-generate --help"),
        (["--prompt", "a"], "required: checkpoint; see"),
        (["--checkpoint", "nowhere", "--prompt", "a"], "no checkpoint at nowhere"),
        (["--checkpoint", "x", "--prompt", "a", "--temp", "1"], "unrecognized arguments: --temp 1"),
        (["--checkpoint", "x", "--prompt", "a", "--top_k", "many"], '"top_k"'),
    ],
)
def test_a_mistake_on_the_command_line_is_one_line(arguments, message, capsys):
    assert message in error_of(arguments, capsys)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--max_new_tokens", "0"], "max_new_tokens must be at least 1, but got 0"),
        (["--num_beams", "2", "--temperature", "0.5"], "num_beams searches and does not draw"),
        (["--length_penalty", "2"], "give num_beams with it"),
        (["--prompt", ""], "at least one token"),
        (["--prompt", os.fsdecode(b"caf\xe9")], "the prompt is no text: it holds bytes that"),
    ],
)
def test_a_wrong_option_is_one_line_and_nothing_is_printed(checkpoint, options, message, capsys):
    line = error_of(["--checkpoint", checkpoint, "--prompt", "some text", *options], capsys)
    assert message in line


def test_a_checkpoint_without_tokenizer_is_one_line(model, tmp_path, capsys):
    model.save_pretrained(tmp_path)
    line = error_of(["--checkpoint", str(tmp_path), "--prompt", "a"], capsys)
    assert "has no tokenizer: put the tokenizer.json" in line


def test_a_tokenizer_of_another_model_is_one_line(build, fox_pro, tokenizer, tmp_path, capsys):
    build(fox_pro.config.replace(vocab_size=50)).save_pretrained(tmp_path)
    tokenizer.save(str(tmp_path / "tokenizer.json"))
    line = error_of(["--checkpoint", str(tmp_path), "--prompt", "a~"], capsys)
    assert "the tokenizer gives token 94, but the model has 50: put the tokenizer.json" in line


def test_a_reader_that_leaves_ends_the_command_quietly(checkpoint):
    call = ["--checkpoint", checkpoint, "--prompt", "some text", "--max_new_tokens", "2000"]
    python = [sys.executable, "-c", "from fox.cli import main; main()"]
    run = subprocess.Popen([*python, *call], stdout=PIPE, stderr=PIPE)
    assert run.stdout.read(4) == b"some"
    run.stdout.close()
    assert run.stderr.read() == b""
    run.stderr.close()
    assert run.wait(timeout=60) == 141
