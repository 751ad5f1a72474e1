"""Prompts of the needle test: exact lengths, line ends, and a control without the needle."""

from itertools import repeat

import pytest
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, trainers

from fox.corpus import Document
from fox.eval.haystack import Haystack, Key, Prompt, Riddle
from fox.eval.riddles import CANDIDATES, Assignment, Statement

EASY = Statement("The river is silver.", "What is the river?", "The river is", easy=True)
STANDARD = Statement("The river is silver.", "What is the river?", "The river is", easy=False)


@pytest.fixture(scope="module")
def haystack(tokenizer: Tokenizer, documents: list[Document]) -> Haystack:
    return Haystack(tokenizer, documents)


@pytest.fixture(scope="module")
def assignment(haystack: Haystack) -> Assignment:
    return Assignment(haystack)


def assign(
    haystack: Haystack, length: int, depth: float, seed: int, planted: bool = True
) -> Prompt:
    key = Key("assignment", length, depth, seed, planted)
    return haystack.prompt(key, Assignment(haystack)(key))


@pytest.mark.parametrize("length", [200, 201, 1000])
@pytest.mark.parametrize("depth", [0.0, 0.37, 1.0])
@pytest.mark.parametrize("planted", [True, False])
def test_prompts_have_exactly_the_length_asked_for(
    tokenizer: Tokenizer,
    documents: list[Document],
    assignment: Assignment,
    length: int,
    depth: float,
    planted: bool,
) -> None:
    for bos in (None, 0):
        haystack = Haystack(tokenizer, documents, bos)
        for seed in range(3):
            for task in (assignment, STANDARD, EASY):
                key = Key("task", length, depth, seed, planted)
                prompt = haystack.prompt(key, task(key))
                assert len(prompt.ids) == length
                assert bos is None or prompt.ids[0] == bos


@pytest.mark.parametrize("depth", [0.0, 0.5, 1.0])
def test_the_answer_follows_the_question_where_the_needle_stands(
    haystack: Haystack, tokenizer: Tokenizer, depth: float
) -> None:
    prompt = assign(haystack, 200, depth, 3)
    text = tokenizer.decode(prompt.ids)
    question = text[text.rindex("\n") :]
    word = tokenizer.decode(prompt.answer)
    assert text.count(question) == 2
    assert f'{question}{word}"' in text


def test_the_needle_is_a_line_of_its_own_at_or_before_its_depth(
    haystack: Haystack, tokenizer: Tokenizer
) -> None:
    for seed in range(5):
        prompt = assign(haystack, 300, 0.5, seed)
        assert prompt.position is not None
        assert 100 < prompt.position <= 150
        needle, rest = tokenizer.decode(prompt.ids[prompt.position :])[1:].split("\n", 1)
        name, value = needle.split(" = ")
        assert name.isupper()
        assert value.strip('"') == tokenizer.decode(prompt.answer)
        assert rest.split("\n")[-1] == f'{name} = "'


def test_prose_is_parted_at_the_ends_of_sentences(tokenizer: Tokenizer) -> None:
    prose = Document("prose.txt", "The river is 4.5 long. It was cold! " * 99)
    haystack = Haystack(tokenizer, [prose])
    for depth in (0.3, 0.4, 0.5, 0.6):
        key = Key("task", 400, depth, 0, True)
        prompt = haystack.prompt(key, STANDARD(key))
        assert prompt.position is not None
        assert tokenizer.decode(prompt.ids[: prompt.position]).endswith((" long.", " cold!"))
        assert 0 < 400 * depth - prompt.position < 150


def test_words_that_begin_with_a_mark_instead_of_a_space_begin_sentences_too() -> None:
    tokenizer = Tokenizer(models.BPE())
    tokenizer.normalizer = normalizers.Replace(" ", "▁")
    tokenizer.pre_tokenizer = pre_tokenizers.Split("▁", "merged_with_next")
    text = "The river is 4.5 long. It was cold! " * 99
    tokenizer.train_from_iterator([text], trainers.BpeTrainer(show_progress=False))
    haystack = Haystack(tokenizer, [Document("prose.txt", text)])
    ids = haystack.ids(text)
    ends = [
        tokenizer.decode(ids[: place + 1], skip_special_tokens=False)[-1]
        for place in range(20)
        if haystack._parted(ids[place], ids[place + 1])
    ]
    assert set(ends) == {".", "!"}


def test_depth_0_is_the_first_line_and_depth_1_the_last(haystack: Haystack) -> None:
    first, last = assign(haystack, 200, 0.0, 0), assign(haystack, 200, 1.0, 0)
    assert first.position == 0
    assert last.position is not None
    assert last.position > 170


def test_the_control_has_the_same_question_and_no_needle(
    haystack: Haystack, tokenizer: Tokenizer
) -> None:
    planted, control = (assign(haystack, 200, 0.5, 0, planted) for planted in (True, False))
    text = tokenizer.decode(control.ids)
    assert text.count(text[text.rindex("\n") :]) == 1
    assert (control.answer, control.candidates) == (planted.answer, planted.candidates)
    assert control.position is None


def test_needles_keep_their_order_even_where_they_meet(
    haystack: Haystack, tokenizer: Tokenizer
) -> None:
    riddle = Riddle(["one", "two", "three"], [0.3, 0.3, 0.9], "\nlast", " four", ["four"])
    text = tokenizer.decode(haystack.prompt(Key("task", 200, None, 0, True), riddle).ids)
    assert "\none\n\ntwo\n" in text
    assert text.index("\ntwo\n") < text.index("\nthree\n")
    assert text.endswith("\nlast")


def test_lines_take_the_place_of_documents(haystack: Haystack, tokenizer: Tokenizer) -> None:
    riddle = Riddle(["gold"], [0.5], "\nlast", " four", ["four"], lines=repeat("hay and straw"))
    text = tokenizer.decode(haystack.prompt(Key("task", 200, None, 0, True), riddle).ids)
    assert {*text.split("\n")[2:-3]} == {"hay and straw", "gold", ""}


def test_the_easy_needle_holds_the_end_of_the_prompt(
    haystack: Haystack, tokenizer: Tokenizer
) -> None:
    key = Key("easy", 300, 0.5, 0, True)
    cue = "What is the river? Answer: The river is"
    for task, times in ((EASY, 2), (STANDARD, 1)):
        prompt = haystack.prompt(key, task(key))
        text = tokenizer.decode(prompt.ids)
        assert text.endswith(cue)
        assert text.count(cue) == times
        assert "\nThe river is silver.\n" in text or task is EASY
        assert tokenizer.decode(prompt.answer) == " silver"


def test_an_answer_that_merges_with_the_question_is_still_all_there(
    haystack: Haystack, tokenizer: Tokenizer
) -> None:
    riddle = Riddle([], [], "\nthe riv", "er and the stone", ["stone"])
    prompt = haystack.prompt(Key("task", 100, None, 0, False), riddle)
    assert tokenizer.decode(prompt.ids + prompt.answer).endswith("\nthe river and the stone")
    assert prompt.answer == haystack.ids("\nthe river and the stone")[-len(prompt.answer) :]


def test_candidates_are_different_and_the_answer_is_one_of_them(haystack: Haystack) -> None:
    for seed in range(20):
        prompt = assign(haystack, 64, 0.5, seed)
        assert len(set(prompt.candidates)) == CANDIDATES
        assert prompt.answer[0] in prompt.candidates


def test_sixteen_seeds_of_a_cell_ask_for_each_candidate_once(haystack: Haystack) -> None:
    prompts = [assign(haystack, 64, 0.5, seed) for seed in range(CANDIDATES)]
    assert sorted(prompt.answer[0] for prompt in prompts) == sorted(prompts[0].candidates)


def test_prompts_are_the_same_every_time(haystack: Haystack) -> None:
    again = Haystack(haystack.tokenizer, haystack.documents)
    assert assign(haystack, 100, 0.25, 7) == assign(again, 100, 0.25, 7)


def test_a_length_without_room_for_text_is_refused(haystack: Haystack) -> None:
    with pytest.raises(ValueError, match=r"longer than needles and questions.* got length 10: rai"):
        assign(haystack, 10, 0.5, 0)


def test_a_length_beyond_the_text_is_refused(haystack: Haystack) -> None:
    with pytest.raises(ValueError, match=r"at least 1,000,000 tokens.*lower --lengths"):
        haystack.check(1_000_000)
    haystack.check(1000)


def test_a_tokenizer_without_words_is_refused(documents: list[Document]) -> None:
    with pytest.raises(ValueError, match="tokenizer with 16 words of one token, but found 0"):
        assign(Haystack(Tokenizer(models.BPE()), documents), 100, 0.5, 0)


@pytest.mark.parametrize("needle", ["A river is silver.", "The river is."])
def test_a_needle_that_does_not_continue_its_cue_is_refused(needle: str) -> None:
    with pytest.raises(ValueError, match=r"begins with the cue and goes on.*set both --needle and"):
        Statement(needle, "What is the river?", "The river is", easy=False)
