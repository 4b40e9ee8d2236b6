"""Hand-made answers through the whole path: output, thinking told apart, verdict; beside what two other harnesses say of them."""

import re

import pytest
from support.answer_rules import gpt_oss_says, lm_eval_says
from support.eval_client import RuleClient
from support.integer_answers import MADE_ANSWERS
from support.tokenizers import tiny_tokenizer

from ms4_evals.clients.base import SampleAnswer
from ms4_evals.clients.servers.reader import AnswerReader
from ms4_evals.graders.integer import IntegerGrader
from ms4_evals.progress import Progress
from ms4_evals.runner import make_plans, run_evaluations
from ms4_evals.store.records import RunRecord
from ms4_evals.store.results import ResultStore
from ms4_evals.tasks.base import QuestionTask, TaskProblem
from ms4_train.chat import parse_answer
from ms4_train.config.evaluation import ModesSection


def tokens_of(output):
    """What a model generates for an output: its tags are single tokens."""
    tokenizer = tiny_tokenizer()
    ids = []
    for piece in re.split(r"(\[/?THINK\])", output):
        tag = {"[THINK]": tokenizer.think_id, "[/THINK]": tokenizer.end_think_id}.get(piece)
        ids += tokenizer.encode_text(piece) if tag is None else [tag]
    return ids


def final_answer(output):
    return parse_answer(tokens_of(output), tiny_tokenizer()).content


def graded(answer, made):
    return IntegerGrader().grade(TaskProblem("p/1", "?", made.gold), answer, is_truncated=made.finish_reason == "length")


def test_the_table_is_large_and_without_repetitions():
    assert len(MADE_ANSWERS) >= 180
    assert len({(made.output, made.gold, made.finish_reason) for made in MADE_ANSWERS}) == len(MADE_ANSWERS)
    assert {made.verdict for made in MADE_ANSWERS} == {"correct", "wrong", "no-answer", "truncated"}


@pytest.mark.parametrize("made", MADE_ANSWERS, ids=lambda made: f"{made.group}: {ascii(made.output)[:40]}")
def test_every_made_answer_is_graded_right(made):
    grade = graded(final_answer(made.output), made)
    assert grade.verdict == made.verdict, grade


def in_server_forms(made):
    """The same answer as servers send it: tags in the text, a field of its own, a list of parts; whole, and letter by letter."""
    answer = parse_answer(tokens_of(made.output), tiny_tokenizer())
    forms = [{"content": made.output}, {"content": answer.content, "reasoning_content": answer.thinking}]
    parts = [{"type": "thinking", "thinking": [{"type": "text", "text": answer.thinking}]}] if answer.thinking else []
    forms.append({"content": [*parts, {"type": "text", "text": answer.content}]})
    for form in forms:
        reader = AnswerReader()
        reader.feed_message(form)
        yield reader.answer
    reader = AnswerReader()
    for letter in made.output:
        reader.feed_delta({"content": letter})
    yield reader.answer


@pytest.mark.parametrize("made", [made for made in MADE_ANSWERS if made.group in {"thinking", "cut off", "two boxes", "around the box"}])
def test_servers_give_the_same_verdicts(made):
    verdicts = [graded(answer, made).verdict for answer in in_server_forms(made)]
    assert verdicts == [made.verdict] * 4


def test_control_with_its_thinking_an_answer_would_be_graded_otherwise():
    """Were thoughts graded too, some answers without a box of their own would pass."""
    made = [made for made in MADE_ANSWERS if made.group == "thinking"]
    with_thoughts = [graded(re.sub(r"\[/?THINK\]", " ", one.output), one).verdict for one in made]
    changed = [one for one, verdict in zip(made, with_thoughts, strict=True) if verdict != one.verdict]
    assert len(changed) >= 5
    assert sum(verdict == "correct" for verdict in with_thoughts) > sum(one.verdict == "correct" for one in made)


class TableClient(RuleClient):
    """Answers problem number n with the n-th output of the table."""

    def _answer(self, request):
        made = MADE_ANSWERS[int(request.problem_id.partition("/")[2])]
        answer = parse_answer(tokens_of(made.output), tiny_tokenizer())
        return SampleAnswer("h", answer.thinking, answer.content, answer.thinking_state == "unterminated", made.finish_reason, 0.0)


def test_the_whole_table_through_a_run(tmp_path):
    """The verdicts that are stored: nothing between client and store changes them."""
    problems = tuple(TaskProblem(f"made/{number}", "?", made.gold) for number, made in enumerate(MADE_ANSWERS))
    task = QuestionTask("made", "Made answers", 1, problems, IntegerGrader(second_grader=""))
    client = TableClient([task])
    record = RunRecord("table", client.identity(), 0)
    plans = make_plans([task], ModesSection.model_validate({"none": None, "high": {"max_tokens": 64}}))
    with ResultStore.open(tmp_path / "r.sqlite") as store:
        run_evaluations(client, store, plans, record, config={}, progress=Progress())
        samples = store.graded_samples(record.run_id, plans[0].evaluation)
    assert [sample.verdict for sample in samples] == [MADE_ANSWERS[int(sample.problem_id.partition("/")[2])].verdict for sample in samples]
    assert len(samples) == len(MADE_ANSWERS)


def test_the_restated_rules_say_what_the_packages_said():
    """Oracle of the restatement: the marks of the table, recorded from the code that the two publish."""
    for made in MADE_ANSWERS:
        answer = final_answer(made.output)
        assert gpt_oss_says(answer, made.gold) == made.gpt_oss, made
        assert lm_eval_says(answer, made.gold) == made.lm_eval, made


def test_how_often_the_other_rules_disagree(record_property):
    """Of the table's answers, right ones that each rule calls wrong, and others that it calls right. Each rule errs in both ways."""
    counts = {}
    for name in ("gpt_oss", "lm_eval"):
        missed = sum(made.verdict == "correct" and not getattr(made, name) for made in MADE_ANSWERS)
        granted = sum(made.verdict != "correct" and getattr(made, name) for made in MADE_ANSWERS)
        counts[name] = (missed, granted)
        record_property(name, f"{missed} right answers called wrong, {granted} others called right, of {len(MADE_ANSWERS)}")
    assert counts == {"gpt_oss": (59, 18), "lm_eval": (62, 7)}


@pytest.mark.parametrize(
    ("output", "gold", "gpt_oss", "lm_eval"),
    [
        # What the literature says of the two rules, one by one.
        (r"\boxed{\text{70}}", "70", False, False),
        (r"\boxed{1{,}234}", "1234", False, False),
        (r"\boxed{70^\circ}", "70", False, True),
        (r"\boxed{1,234}", "234", True, False),
        ("There are 70 ways, of which 3 are excluded.", "3", True, False),
        ("The cost is $70$.", "70", True, True),
        (r"\boxed{070}", "70", True, False),
        (r"\boxed{70\%}", "70", False, True),
    ],
)
def test_known_defects_of_the_rules(output, gold, gpt_oss, lm_eval):
    assert (gpt_oss_says(output, gold), lm_eval_says(output, gold)) == (gpt_oss, lm_eval)
