"""Prompts of the needle test: exact lengths, line ends, and a control without the needle."""

import pytest
from tokenizers import Tokenizer, models

from fox.corpus import Document
from fox.eval.haystack import CANDIDATES, Haystack


@pytest.fixture(scope="module")
def haystack(tokenizer: Tokenizer, documents: list[Document]) -> Haystack:
    return Haystack(tokenizer, documents)


@pytest.mark.parametrize("length", [64, 101, 1000])
@pytest.mark.parametrize("depth", [0.0, 0.37, 1.0])
@pytest.mark.parametrize("planted", [True, False])
def test_prompts_have_exactly_the_length_asked_for(
    haystack: Haystack, length: int, depth: float, planted: bool
) -> None:
    for seed in range(5):
        assert len(haystack.prompt((length, depth, seed, planted)).ids) == length


@pytest.mark.parametrize("depth", [0.0, 0.5, 1.0])
def test_the_answer_follows_the_question_where_the_needle_stands(
    haystack: Haystack, tokenizer: Tokenizer, depth: float
) -> None:
    prompt = haystack.prompt((200, depth, 3, True))
    text = tokenizer.decode(prompt.ids)
    question = text[text.rindex("\n") :]
    word = tokenizer.decode([prompt.answer])
    assert text.count(question) == 2
    assert f'{question}{word}"' in text


def test_the_needle_is_a_line_of_its_own_at_or_before_its_depth(
    haystack: Haystack, tokenizer: Tokenizer
) -> None:
    for seed in range(5):
        prompt = haystack.prompt((300, 0.5, seed, True))
        assert prompt.position is not None
        assert 100 < prompt.position <= 150
        needle, rest = tokenizer.decode(prompt.ids[prompt.position :])[1:].split("\n", 1)
        name, value = needle.split(" = ")
        assert name.isupper()
        assert value.strip('"') == tokenizer.decode([prompt.answer])
        assert rest.split("\n")[-1] == f'{name} = "'


def test_depth_0_is_the_first_line_and_depth_1_the_last(haystack: Haystack) -> None:
    first = haystack.prompt((200, 0.0, 0, True))
    last = haystack.prompt((200, 1.0, 0, True))
    assert first.position == 0
    assert last.position is not None
    assert last.position > 170


def test_the_control_has_the_same_question_and_no_needle(
    haystack: Haystack, tokenizer: Tokenizer
) -> None:
    planted = haystack.prompt((200, 0.5, 0, True))
    control = haystack.prompt((200, 0.5, 0, False))
    text = tokenizer.decode(control.ids)
    assert text.count(text[text.rindex("\n") :]) == 1
    assert (control.answer, control.candidates) == (planted.answer, planted.candidates)
    assert control.position is None


def test_candidates_are_different_and_the_answer_is_one_of_them(haystack: Haystack) -> None:
    for seed in range(20):
        prompt = haystack.prompt((64, 0.5, seed, True))
        assert len(set(prompt.candidates)) == CANDIDATES
        assert prompt.answer in prompt.candidates


def test_sixteen_seeds_of_a_cell_ask_for_each_candidate_once(haystack: Haystack) -> None:
    prompts = [haystack.prompt((64, 0.5, seed, True)) for seed in range(CANDIDATES)]
    assert sorted(prompt.answer for prompt in prompts) == sorted(prompts[0].candidates)


def test_prompts_are_the_same_every_time(haystack: Haystack) -> None:
    key = (100, 0.25, 7, True)
    assert haystack.prompt(key) == Haystack(haystack.tokenizer, haystack.documents).prompt(key)


def test_a_length_without_room_for_text_is_refused(haystack: Haystack) -> None:
    with pytest.raises(ValueError, match=r"longer than needle and question.* got length 10"):
        haystack.prompt((10, 0.5, 0, True))


def test_a_length_beyond_the_text_is_refused(haystack: Haystack) -> None:
    with pytest.raises(ValueError, match=r"at least 1,000,000 tokens.*lower --lengths"):
        haystack.check(1_000_000)
    haystack.check(1000)


def test_a_tokenizer_without_words_is_refused(documents: list[Document]) -> None:
    haystack = Haystack(Tokenizer(models.BPE()), documents)
    with pytest.raises(ValueError, match="tokenizer with 16 words of one token, but found 0"):
        haystack.prompt((100, 0.5, 0, True))
