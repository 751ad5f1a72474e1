"""LongBench's 14 English tasks: long prompts, short answers, one score per answer.

The paper's protocol: a prompt that is too long loses its middle, decoding is greedy, and only the
first line of the answer is scored. The prompts are those that lm-eval ships.

Source: Bai et al., LongBench, ACL 2024; the metrics follow its published definitions.
"""

import difflib
import json
import math
import re
import string
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from statistics import fmean, stdev
from typing import Any, NamedTuple

from fox.eval.models import EvalModel
from fox.eval.progress import progress

HUB = "Xnhyacinth/LongBench"
PROMPT_TOKENS = 15500
PREFIX = "longbench_"


def question_f1(answer: str, truth: str, classes: list[str]) -> float:
    """F1 of the words, without case, punctuation and articles."""
    answered, true = plain_words(answer), plain_words(truth)
    common = (Counter(answered) & Counter(true)).total()
    return 2 * common / (len(answered) + len(true)) if common else 0.0


def plain_words(text: str) -> list[str]:
    text = "".join(letter for letter in text.lower() if letter not in string.punctuation)
    return re.sub(r"\b(a|an|the)\b", " ", text).split()


def rouge_l(answer: str, truth: str, classes: list[str]) -> float:
    """F1 of the longest common subsequence of words."""
    from rouge_score.rouge_scorer import RougeScorer

    class Words:
        def tokenize(self, text: str) -> list[str]:
            return text.split()

    return RougeScorer(["rougeL"], tokenizer=Words()).score(truth, answer)["rougeL"].fmeasure


def class_match(answer: str, truth: str, classes: list[str]) -> float:
    """1 / (number of classes that the answer names) if the true one is among them, else 0.

    A class whose name is a part of the true one's does not count.
    """
    named = [name for name in classes if name in answer and (name == truth or name not in truth)]
    return 1 / len(named) if truth in named else 0.0


def edit_similarity(answer: str, truth: str, classes: list[str]) -> float:
    """2 (matching characters) / (all characters), to whole percents."""
    return round(100 * difflib.SequenceMatcher(None, answer, truth).ratio()) / 100


def first_line(answer: str) -> str:
    return answer.lstrip("\n").split("\n")[0].strip()


def first_code_line(answer: str) -> str:
    """The first line that is neither empty nor has a comment or a backtick."""
    for line in answer.split("\n"):
        if line.strip() and not any(sign in line for sign in ("`", "#", "//")):
            return line
    return ""


class Kind(NamedTuple):
    """How tasks of a kind are answered and scored."""

    new_tokens: int
    score: Callable[[str, str, list[str]], float]
    cut: Callable[[str], str] = first_line


_QUESTION, _ROUGE = Kind(32, question_f1), Kind(512, rouge_l)
TASKS = {
    "narrativeqa": Kind(128, question_f1),
    "qasper": Kind(128, question_f1),
    "multifieldqa_en": Kind(64, question_f1),
    "hotpotqa": _QUESTION,
    "2wikimqa": _QUESTION,
    "musique": _QUESTION,
    "triviaqa": _QUESTION,
    "gov_report": _ROUGE,
    "qmsum": _ROUGE,
    "multi_news": _ROUGE,
    "samsum": Kind(128, rouge_l),
    "trec": Kind(64, class_match),
    "lcc": Kind(64, edit_similarity, first_code_line),
    "repobench-p": Kind(64, edit_similarity, first_code_line),
}


def longbench(
    model: EvalModel, task: str, records: list[dict[str, Any]], max_length: int
) -> dict[str, Any]:
    """Scores of one task.

    Args:
        model: under test.
        task: one of TASKS.
        records: of `read_records`.
        max_length: tokens of prompt and answer together; the prompt has 15,500 at most.

    Returns:
        metric, value in [0, 1], standard_error and samples.

    Raises:
        ValueError: max_length leaves no room for a prompt.
    """
    kind = TASKS[task]
    room = min(PROMPT_TOKENS, max_length - kind.new_tokens)
    if room < 2:
        raise ValueError(
            f"max_length must leave room for a prompt beside the {kind.new_tokens} new tokens of "
            f"{task}, but got {max_length}"
        )
    template, scores = prompt_template(task), []
    bos = [] if model.bos is None else [model.bos]
    with progress(f"{PREFIX}{task}, {model.name}", len(records)) as advance:
        for record in records:
            prompt = template.format_map(record)
            ids = model.tokenizer.encode(prompt, add_special_tokens=False).ids
            new = model.generate(bos + without_middle(ids, room - len(bos)), kind.new_tokens)
            answer = kind.cut(model.tokenizer.decode(new))
            classes = record["all_classes"] or []
            scores.append(max(kind.score(answer, true, classes) for true in record["answers"]))
            advance(f"mean {fmean(scores):.1%}")
    error = stdev(scores) / math.sqrt(len(scores)) if len(scores) > 1 else None
    return {
        "metric": kind.score.__name__,
        "value": fmean(scores),
        "standard_error": error,
        "samples": len(scores),
    }


def without_middle(ids: list[int], room: int) -> list[int]:
    """The first and the last room / 2 tokens of a text that is too long."""
    if len(ids) <= room:
        return ids
    return ids[: room - room // 2] + ids[len(ids) - room // 2 :]


def prompt_template(task: str) -> str:
    """The task's prompt with {context} and {question}, from lm-eval's file."""
    import lm_eval.tasks
    import yaml

    class Loader(yaml.SafeLoader):
        """Keeps the names of functions, which need further packages to run."""

    Loader.add_constructor("!function", lambda loader, node: loader.construct_scalar(node))
    file = Path(lm_eval.tasks.__file__).parent / "longbench" / f"{task}.yaml"
    text: str = yaml.load(file.read_text(encoding="utf-8"), Loader)["doc_to_text"]
    return re.sub(r"\{\{(\w+)\}\}", r"{\1}", text)


def read_records(task: str, data: str | None) -> list[dict[str, Any]]:
    """context, question, answers and all_classes of every record.

    Args:
        task: one of TASKS.
        data: folder with LongBench's <task>.jsonl; the hub's cache if None.

    Raises:
        OSError: the data is not there.
        ValueError: it is not LongBench's.
    """
    if data is None:
        from datasets import load_dataset

        rows = [dict(row) for row in load_dataset(HUB, task, split="test")]
    else:
        with (Path(data) / f"{task}.jsonl").open(encoding="utf-8") as file:
            rows = [json.loads(line) for line in file if line.strip()]
    if not rows:
        raise ValueError(f"{task} has no records")
    for number, row in enumerate(rows, start=1):
        row.setdefault("question", row.get("input"))  # its name in the first edition
        row.setdefault("all_classes", None)
        lacking = [name for name in ("context", "question", "answers") if row.get(name) is None]
        if lacking:
            raise ValueError(f"{task}, record {number}, lacks {', '.join(lacking)}")
        if not isinstance(row["answers"], list) or not row["answers"]:
            raise ValueError(
                f"{task}, record {number}: expected a list of answers, but got {row['answers']!r}"
            )
    return rows
