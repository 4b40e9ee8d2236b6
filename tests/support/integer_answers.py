r"""Hand-made outputs of a model on integer problems, each with the verdict that is right, beside what two other harnesses say of it.

A row: the whole output (a thought between ``[THINK]`` and ``[/THINK]``), the gold answer, the right verdict, and two marks: ``G`` where
gpt-oss's evals say "correct" of the final answer, ``L`` where lm-eval does, ``-`` where they do not. The marks were recorded by running the
code of the packages gpt-oss 0.0.9 (``gpt_oss/evals/aime_eval.py``) and lm_eval 0.4.13 (``lm_eval/tasks/aime/utils.py``); ``answer_rules``
states the two rules. A fifth entry is the finish reason, where it is not ``stop``.

What is right: the last box that holds something decides, and it must hold one integer that a reader takes from it without computing more
than a quotient. An unevaluated sum, a list, or a value outside of the box is none.
"""

from __future__ import annotations

from dataclasses import dataclass

from ms4_evals.graders.base import Verdict


@dataclass(frozen=True)
class MadeAnswer:
    """One row.

    Attributes:
        group: what it is an example of.
        output: of the model, thought included.
        gold: the right integer.
        verdict: that the integer check must give.
        gpt_oss: gpt-oss's evals call the final answer correct.
        lm_eval: lm-eval calls it correct.
        finish_reason: ``stop`` or ``length``.
    """

    group: str
    output: str
    gold: str
    verdict: Verdict
    gpt_oss: bool
    lm_eval: bool
    finish_reason: str = "stop"


_ROWS: dict[str, list[tuple[str, ...]]] = {
    "plain": [
        (r"\boxed{70}", "70", "correct", "GL"),
        (r"The sum is $\boxed{70}$.", "70", "correct", "GL"),
        (r"$$\boxed{70}$$", "70", "correct", "GL"),
        (r"\[ \boxed{70} \]", "70", "correct", "GL"),
        (r"\boxed{ 70 }", "70", "correct", "GL"),
        ("\\boxed{\n70\n}", "70", "correct", "GL"),
        (r"\boxed {70}", "70", "correct", "G-"),
        (r"\\boxed{70}", "70", "correct", "GL"),
        (r"\boxed{71}", "70", "wrong", "--"),
        (r"\boxed{7}", "70", "wrong", "--"),
        (r"\boxed{0}", "0", "correct", "GL"),
        (r"\boxed{999}", "999", "correct", "GL"),
    ],
    "other boxes": [
        (r"\fbox{70}", "70", "correct", "G-"),
        (r"\framebox{70}", "70", "correct", "G-"),
        (r"$\boxed 70$", "70", "correct", "GL"),
        (r"$\boxed7$", "7", "correct", "G-"),
        (r"\boxed 70", "70", "correct", "GL"),
        (r"\boxed 7.5", "7", "no-answer", "--"),
        ("boxed{70}", "70", "correct", "G-"),
        ("So the answer is boxed{70}.", "70", "correct", "G-"),
        ("The unboxed{70} crate.", "70", "no-answer", "G-"),
        (r"\boxed\{70\}", "70", "no-answer", "G-"),
        (r"\mbox{70}", "70", "no-answer", "G-"),
    ],
    "nested boxes": [
        (r"\boxed{\boxed{70}}", "70", "correct", "-L"),
        (r"\boxed{x=\boxed{70}}", "70", "correct", "-L"),
        (r"\boxed{\fbox{70}}", "70", "correct", "--"),
        (r"\boxed{\boxed{35}+\boxed{35}}", "70", "wrong", "--"),
        (r"\boxed{{70}}", "70", "correct", "--"),
    ],
    "two boxes": [
        (r"$m=\boxed{35}$, so $m+n=\boxed{70}$.", "70", "correct", "GL"),
        (r"$\boxed{70}$, or rather $\boxed{35}$.", "70", "wrong", "--"),
        (r"\boxed{35} and \boxed{35} give 70.", "70", "wrong", "--"),
        (r"\boxed{7}\boxed{0}", "70", "wrong", "--"),
        (r"First $\boxed{\frac{33}{37}}$, so the sum is $\boxed{70}$.", "70", "correct", "GL"),
        (r"\boxed{70} (I was asked to write \boxed{}.)", "70", "correct", "G-"),
        (r"\boxed{70} and then \boxed{7", "70", "correct", "G-"),
        (r"\boxed{70} \fbox{35}", "70", "wrong", "GL"),
    ],
    "text and fonts": [
        (r"\boxed{\text{70}}", "70", "correct", "--"),
        (r"\boxed{\textbf{70}}", "70", "correct", "--"),
        (r"\boxed{\mathbf{70}}", "70", "correct", "--"),
        (r"\boxed{\mathrm{70}}", "70", "correct", "--"),
        (r"\boxed{\textbf{\text{70}}}", "70", "correct", "--"),
        (r"\boxed{\bf 70}", "70", "correct", "--"),
        (r"\boxed{\underline{70}}", "70", "correct", "--"),
        (r"\boxed{\textcolor{red}{70}}", "70", "correct", "--"),
        (r"\boxed{\color{blue}70}", "70", "correct", "--"),
        (r"\boxed{\Large 70}", "70", "correct", "--"),
        (r"\boxed{\displaystyle 70}", "70", "correct", "--"),
        (r"\boxed{\text{Answer: }70}", "70", "correct", "--"),
        (r"\boxed{\text{Answer: 70}}", "70", "correct", "--"),
        (r"\boxed{\text{The answer is }70}", "70", "correct", "--"),
        (r"\boxed{Answer: 70}", "70", "correct", "--"),
        (r"\boxed{\text{seventy}}", "70", "wrong", "--"),
        (r"\boxed{\text{None}}", "70", "wrong", "--"),
        (r"\boxed{**70**}", "70", "correct", "--"),
        (r"\boxed{`70`}", "70", "correct", "--"),
    ],
    "thousands": [
        (r"\boxed{1{,}234}", "1234", "correct", "--"),
        (r"\boxed{1,234}", "1234", "correct", "--"),
        (r"\boxed{1\,234}", "1234", "correct", "--"),
        (r"\boxed{1{,}\!234}", "1234", "correct", "--"),
        (r"\boxed{1 234}", "1234", "correct", "-L"),
        (r"\boxed{12,345,678}", "12345678", "correct", "--"),
        (r"\boxed{1,234}", "234", "wrong", "G-"),
        (r"\boxed{12,34}", "1234", "wrong", "--"),
        (r"\boxed{1{,}234}", "1", "wrong", "--"),
    ],
    "zeros and signs": [
        (r"\boxed{070}", "70", "correct", "G-"),
        (r"\boxed{007}", "7", "correct", "G-"),
        (r"\boxed{000}", "0", "correct", "G-"),
        (r"\boxed{70.0}", "70", "correct", "--"),
        (r"\boxed{70.}", "70", "correct", "--"),
        (r"\boxed{70,}", "70", "correct", "--"),
        (r"\boxed{+70}", "70", "correct", "G-"),
        (r"\boxed{-70}", "70", "wrong", "--"),
        ("\\boxed{\u221270}", "70", "wrong", "--"),
        (r"\boxed{\text{minus }70}", "70", "wrong", "--"),
        (r"\boxed{70.5}", "70", "wrong", "--"),
        (r"\boxed{70.0001}", "70", "wrong", "--"),
        (r"\boxed{69.99}", "70", "wrong", "--"),
    ],
    "degrees, units, money": [
        (r"\boxed{70^\circ}", "70", "correct", "-L"),
        (r"\boxed{70^{\circ}}", "70", "correct", "-L"),
        ("\\boxed{70\xb0}", "70", "correct", "--"),
        (r"\boxed{70\degree}", "70", "correct", "--"),
        (r"\boxed{70\text{ cm}}", "70", "correct", "-L"),
        (r"\boxed{70\ \mathrm{cm}^2}", "70", "correct", "--"),
        (r"\boxed{70\text{ cm}^{2}}", "70", "correct", "-L"),
        (r"\boxed{70~\text{units}}", "70", "correct", "--"),
        (r"\boxed{70 cm}", "70", "correct", "--"),
        (r"\boxed{70 square units}", "70", "correct", "--"),
        (r"\boxed{70\text{ minutes}}", "70", "correct", "-L"),
        (r"\boxed{\$70}", "70", "correct", "-L"),
        (r"\boxed{$70$}", "70", "correct", "--"),
        (r"\boxed{70\%}", "70", "wrong", "-L"),
        (r"\boxed{70\text{ thousand}}", "70", "wrong", "-L"),
        (r"\boxed{70}^\circ", "70", "correct", "GL"),
        (r"\boxed{70}\text{ minutes}", "70", "correct", "GL"),
    ],
    "equations": [
        (r"\boxed{m+n=70}", "70", "correct", "--"),
        (r"\boxed{m + n = 35 + 35 = 70}", "70", "correct", "--"),
        (r"\boxed{x=70}", "70", "correct", "-L"),
        (r"\boxed{N = 70}", "70", "correct", "-L"),
        (r"\boxed{70=m+n}", "70", "correct", "--"),
        (r"\boxed{AB = 70}", "70", "correct", "--"),
        (r"\boxed{35 = 70}", "70", "wrong", "--"),
        (r"\boxed{x=35, y=70}", "70", "wrong", "--"),
        (r"\boxed{x=35 \text{ and } y=70}", "70", "wrong", "--"),
        (r"\boxed{x=35 \quad y=70}", "70", "wrong", "--"),
        (r"\boxed{m+n}=70", "70", "wrong", "--"),
        (r"\boxed{m+n}", "70", "wrong", "--"),
    ],
    "fractions and expressions": [
        (r"\boxed{140/2}", "70", "correct", "--"),
        (r"\boxed{\frac{140}{2}}", "70", "correct", "--"),
        (r"\boxed{\dfrac{-140}{-2}}", "70", "correct", "--"),
        (r"\boxed{\frac{141}{2}}", "70", "wrong", "--"),
        (r"\boxed{\frac{33}{37}}", "70", "wrong", "--"),
        (r"\boxed{70/0}", "70", "wrong", "--"),
        (r"\boxed{35+35}", "70", "wrong", "--"),
        (r"\boxed{7 \cdot 10}", "70", "wrong", "--"),
        (r"\boxed{7^2}", "72", "wrong", "--"),
        ("\\boxed{7\xb2}", "72", "wrong", "--"),
        (r"\boxed{\sqrt{4900}}", "70", "wrong", "--"),
        (r"\boxed{70!}", "70", "wrong", "--"),
        (r"\boxed{70x}", "70", "wrong", "--"),
        (r"\boxed{\binom{8}{4}}", "70", "wrong", "--"),
        (r"\boxed{7\times 10^1}", "70", "wrong", "--"),
        (r"\boxed{70_{10}}", "70", "correct", "--"),
        (r"\boxed{106_{8}}", "70", "wrong", "--"),
    ],
    "residues": [
        (r"\boxed{70 \pmod{1000}}", "70", "correct", "--"),
        (r"\boxed{N \equiv 70 \pmod{1000}}", "70", "correct", "--"),
        (r"\boxed{70 (mod 1000)}", "70", "correct", "--"),
        (r"\boxed{70 \bmod 1000}", "70", "correct", "--"),
        (r"\boxed{70 \text{ mod } 1000}", "70", "correct", "-L"),
        (r"\boxed{1070 \equiv 70 \pmod{1000}}", "70", "correct", "--"),
        (r"\boxed{1070 \pmod{1000}}", "70", "wrong", "--"),
    ],
    "lists": [
        (r"\boxed{35, 70}", "70", "wrong", "G-"),
        (r"\boxed{35,70}", "70", "wrong", "G-"),
        (r"\boxed{35; 70}", "70", "wrong", "--"),
        (r"\boxed{35 \text{ or } 70}", "70", "wrong", "--"),
        (r"\boxed{(35, 70)}", "70", "wrong", "--"),
        (r"\boxed{35 \text{ and } 700}", "35700", "wrong", "--"),
        (r"\boxed{70 \text{ or } 35}", "70", "wrong", "-L"),
    ],
    "other scripts": [
        ("\\boxed{\uff17\uff10}", "70", "correct", "G-"),
        ("\\boxed{\u0667\u0660}", "70", "correct", "G-"),
        ("\\boxed{\U0001d7d5\U0001d7ce}", "70", "correct", "G-"),
        ("\\boxed{70}\u3002", "70", "correct", "GL"),
        ("\u7b54\u6848\u662f $\\boxed{70}$\u3002", "70", "correct", "GL"),
    ],
    "no box": [
        ("The answer is 70.", "70", "no-answer", "G-"),
        ("**70**", "70", "no-answer", "G-"),
        ("$70$", "70", "no-answer", "GL"),
        ("$$70$$", "70", "no-answer", "G-"),
        ("ANSWER: 70", "70", "no-answer", "G-"),
        ("Final Answer: $70$", "70", "no-answer", "GL"),
        ("70", "70", "no-answer", "GL"),
        ("", "70", "no-answer", "--"),
        (r"\boxed{}", "70", "no-answer", "--"),
        (r"\boxed{ }", "70", "no-answer", "--"),
        (r"The answer goes in \boxed{}. It is 70.", "70", "no-answer", "G-"),
        ("#### 70", "70", "no-answer", "G-"),
        ("There are 70 ways, of which 3 are excluded.", "70", "no-answer", "--"),
    ],
    "around the box": [
        ("```\n\\boxed{70}\n```", "70", "correct", "GL"),
        ("```latex\n\\boxed{70}\n```", "70", "correct", "GL"),
        (r"**\boxed{70}**", "70", "correct", "GL"),
        (r"**Answer:** \(\boxed{70}\)", "70", "correct", "GL"),
        (r"<answer>\boxed{70}</answer>", "70", "correct", "GL"),
        (r"{ \boxed{70}", "70", "correct", "GL"),
        (r"\boxed{70} }", "70", "correct", "GL"),
        (r"\boxed{70}, which costs \$35 and \$36.", "70", "correct", "GL"),
        (r"$\boxed{70}$ since $35+35=70$ and $8 \cdot 9 = 72$.", "70", "correct", "GL"),
        ("\\boxed{70}\n\nCheck: 35 + 35 = 70, as 7 is prime.", "70", "correct", "GL"),
    ],
    "cut off": [
        (r"\boxed{70", "70", "no-answer", "G-"),
        (r"\boxed{7", "70", "truncated", "--", "length"),
        (r"So the answer is \boxed{70} because we hav", "70", "correct", "GL", "length"),
        ("We add 35 and", "70", "truncated", "--", "length"),
        (r"\boxed{\frac{140}{2}", "70", "truncated", "--", "length"),
        ("", "70", "truncated", "--", "length"),
    ],
    "thinking": [
        (r"[THINK]35+35=70[/THINK]\boxed{70}", "70", "correct", "GL"),
        (r"[THINK]Maybe \boxed{35}?[/THINK]The answer is \boxed{70}.", "70", "correct", "GL"),
        (r"[THINK]So \boxed{70}.[/THINK]The answer follows.", "70", "no-answer", "--"),
        (r"[THINK]So \boxed{70}.[/THINK]", "70", "no-answer", "--"),
        (r"[THINK]So \boxed{70}.[/THINK]The answer is \boxed{35}.", "70", "wrong", "--"),
        (r"[THINK]I find \boxed{70}, but let me check", "70", "truncated", "--", "length"),
        (r"[THINK]I find \boxed{70}, but let me check", "70", "no-answer", "--"),
        ("[THINK]I find 70.", "70", "truncated", "--", "length"),
        ("[THINK]So 70.[/THINK]The answer is 70.", "70", "no-answer", "G-"),
        (r"[THINK]So \boxed{70}.[/THINK]\boxed{7", "70", "truncated", "--", "length"),
        (r"[THINK]a[/THINK]\boxed{70}[THINK]no, \boxed{35}[/THINK]", "70", "correct", "GL"),
        (r"[THINK]\boxed{70}[/THINK]I thought \boxed{\text{a while}}.", "70", "wrong", "--"),
    ],
}


def _made(group: str, row: tuple[str, ...]) -> MadeAnswer:
    output, gold, verdict, marks, *finish = row
    assert verdict in ("correct", "wrong", "no-answer", "truncated")
    return MadeAnswer(group, output, gold, verdict, marks[0] == "G", marks[1] == "L", *finish)


MADE_ANSWERS = [_made(group, row) for group, rows in _ROWS.items() for row in rows]
