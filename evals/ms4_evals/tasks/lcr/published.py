"""What the publishers of AA-LCR say about their data: releases, sets of documents, and the tokens of every prompt.

The numbers are those of the columns ``document_category``, ``document_set_id`` and ``input_tokens`` of ``AA-LCR_Dataset.csv``
(ArtificialAnalysis/AA-LCR on the Hugging Face hub, Apache-2.0). A copy of the data that does not fit them is not the benchmark.

``input_tokens`` was counted on question texts of which five were garbled (``mojibake``); the mended texts have two to five tokens fewer
(``GARBLED_EXTRA_TOKENS``). Everything else agrees to the token with cl100k_base.

Exercise it: ``pytest tests/evals/ms4_evals/tasks/lcr/test_published.py``.
"""

from __future__ import annotations

from dataclasses import dataclass

REPOSITORY = "ArtificialAnalysis/AA-LCR"
QUESTIONS_FILE = "AA-LCR_Dataset.csv"
DOCUMENTS_FILE = "extracted_text/AA-LCR_extracted-text.zip"


@dataclass(frozen=True)
class Release:
    """One version of the data on the hub.

    Attributes:
        revision: of the repository, pinned.
        questions_sha256: of the CSV file; None where no published sum is known (the revision pins it all the same).
        documents_sha256: of the archive of documents.
    """

    revision: str
    questions_sha256: str | None
    documents_sha256: str


_DOCUMENTS_SHA256 = "5e839249826f6b9bd5324f0d139089c9dc481ccb3f212a6dfad00c51045d9d8a"
RELEASES = {
    "1.0": Release(
        "bdae010bbce259820c0e34c1d7cce210d966fb75",
        "2f90d9c30cfb4dd8df2c0f46547c384065e4c76917bd347a9a97bf797235c1ea",
        _DOCUMENTS_SHA256,
    ),
    "1.1": Release("9a77ef56b717057ade24ceab4d273712a0b4f19e", None, _DOCUMENTS_SHA256),
}

CORRECTED_IN_1_1 = frozenset({10, 21, 25, 26, 28, 30, 40, 60, 67, 76, 78, 86, 87, 89, 90, 94})
"""Questions whose official answer 1.1 changed: wrong ones (40 was a spreadsheet's serial date) and unclear notation (0.16 for 16%)."""

MARKS_OF_1_0 = {21: "0.16", 40: "45444", 76: "16400000"}
"""Official answers that only 1.0 has: they tell which version a file holds."""


@dataclass(frozen=True)
class DocumentSet:
    """The documents that some questions share.

    Attributes:
        documents: how many there are.
        tekken_tokens: of the joined documents under the tekken vocabulary that mistral-common ships (``tekken_240911``), counted here on
            texts whose cl100k_base counts agreed with the published ones to the token. They are 1.032 to 1.285 times those.
        questions: numbers of the questions, from 1.
    """

    category: str
    name: str
    documents: int
    tekken_tokens: int
    questions: tuple[int, ...]


def _span(first: int, last: int) -> tuple[int, ...]:
    return tuple(range(first, last + 1))


SETS: tuple[DocumentSet, ...] = (
    DocumentSet("Academia", "ac_markets", 4, 104284, _span(1, 3)),
    DocumentSet("Academia", "ac_hack", 9, 120787, _span(4, 5)),
    DocumentSet("Company_Documents", "co_dc_2Q23", 3, 92070, _span(6, 9)),
    DocumentSet("Company_Documents", "co_dc_3Q23", 3, 94392, _span(10, 13)),
    DocumentSet("Company_Documents", "co_dc_4Q23", 3, 94614, (14,)),
    DocumentSet("Company_Documents", "co_dc_ann_sup_a", 4, 100094, _span(15, 17)),
    DocumentSet("Company_Documents", "co_dc_ann_sup_b", 3, 96267, (18,)),
    DocumentSet("Company_Documents", "co_dc_press_a", 6, 118819, _span(19, 21)),
    DocumentSet("Company_Documents", "co_dc_press_b", 6, 121229, _span(22, 26)),
    DocumentSet("Company_Documents", "co_dc_dr_press", 6, 118607, _span(27, 30)),
    DocumentSet("Company_Documents", "co_dc_dr_sup", 2, 94626, _span(31, 32)),
    DocumentSet("Company_Documents", "co_dc_eq_history", 6, 121439, _span(33, 35)),
    DocumentSet("Company_Documents", "co_dc_nxt_history", 6, 90810, _span(36, 40)),
    DocumentSet("Company_Documents", "co_pro_rel_ann", 12, 114353, _span(41, 42)),
    DocumentSet("Company_Documents", "co_pro_transcripts_2023", 6, 91596, _span(43, 54)),
    DocumentSet("Company_Documents", "co_pro_transcripts_2024", 8, 109663, (*_span(55, 59), 63, 64)),
    DocumentSet("Company_Documents", "co_pro_asana_rel_tran", 10, 123062, _span(60, 62)),
    DocumentSet("Company_Documents", "co_pro_ssheet_rel_tran", 8, 98722, _span(65, 68)),
    DocumentSet("Government_Consultations", "gc_bnpl", 24, 121080, _span(69, 72)),
    DocumentSet("Government_Consultations", "gc_screen", 22, 103663, _span(73, 74)),
    DocumentSet("Government_Consultations", "gc_wnc", 14, 120899, _span(75, 79)),
    DocumentSet("Legal", "legal_eu_ai", 8, 116520, _span(80, 81)),
    DocumentSet("Legal", "legal_sb1047", 12, 112875, _span(82, 85)),
    DocumentSet("Industry_Reports", "ind_ai", 4, 112127, _span(86, 89)),
    DocumentSet("Industry_Reports", "ind_clean", 5, 97295, (90,)),
    DocumentSet("Industry_Reports", "ind_aus_retail", 3, 116621, _span(91, 92)),
    DocumentSet("Industry_Reports", "ind_fow", 6, 104916, (93,)),
    DocumentSet("Marketing", "mkt_mkt", 9, 120868, _span(94, 97)),
    DocumentSet("Marketing", "mkt_gaming", 6, 122303, _span(98, 99)),
    DocumentSet("Survey_Reports", "sur_con", 11, 102334, (100,)),
)
SET_OF_QUESTION = {number: documents for documents in SETS for number in documents.questions}
QUESTIONS = 100

# Question 1 first; ten to a line.
_TOKENS = """
94494 94485 94476 113263 113266 71709 71719 71757 71691 73588
73598 73597 73572 74026 78868 78978 78887 75667 96079 96080
96038 95299 95247 95299 95229 95277 93737 93758 93760 93815
74160 74158 97540 97541 97554 80428 80406 80423 80413 80422
93610 93636 84446 84436 84432 84496 84440 84475 84442 84440
84436 84439 84436 84451 103414 103409 103409 103420 103436 107452
107447 107441 103416 103401 89459 89438 89448 89435 114563 114554
114556 114559 100518 100490 112016 111994 112020 112046 112009 109057
109091 106804 106796 106800 106822 106087 106090 106087 106099 88622
110894 110914 96559 110550 110550 110546 110548 113491 113500 94652
"""
INPUT_TOKENS = {number: int(tokens) for number, tokens in enumerate(_TOKENS.split(), start=1)}
"""Tokens of the whole prompt of each question under cl100k_base, as published."""

GARBLED_EXTRA_TOKENS = {5: 2, 21: 3, 62: 3, 65: 3, 81: 5}
"""What the garbled question texts cost; ``INPUT_TOKENS`` includes it."""
