"""Published scores: each with a source, none with an invented length, each beside its own tasks only."""

from ms4_evals.leaderboard.published import PUBLISHED, published_for


def test_every_number_has_a_source_and_a_remark():
    for item in PUBLISHED:
        assert 0 < item.score < 100
        assert len(item.source) > 10
        assert item.note
    assert len(set(PUBLISHED)) == len(PUBLISHED)


def test_the_numbers_of_the_announcement():
    """Mistral's chart: LCR / AIME25 / LiveCodeBench of Small 4, Magistral Medium 1.2 and Small 1.2."""
    chart = {(item.model, item.family): item.score for item in PUBLISHED if "bar chart" in item.source}
    expected = {
        "Mistral Small 4": (71.2, 83.8, 63.6),
        "Magistral Medium 1.2": (73.0, 84.4, 66.1),
        "Magistral Small 1.2": (27.0, 80.2, 60.7),
    }
    assert chart == {
        (model, family): score
        for model, scores in expected.items()
        for family, score in zip(("lcr", "aime_2025", "livecodebench"), scores, strict=True)
    }


def test_the_only_published_length_is_that_of_the_card():
    assert [(item.family, item.score, item.characters) for item in PUBLISHED if item.characters is not None] == [("lcr", 72.0, 1600.0)]


def test_they_stand_beside_their_own_tasks_only():
    assert {item.family for item in published_for("aime_2025")} == {"aime_2025"}
    assert {item.family for item in published_for("livecodebench_v6_aa")} == {"livecodebench"}
    assert {item.family for item in published_for("lcr_1.0")} == {"lcr", "lcr_1.0"}
    assert {item.family for item in published_for("lcr_1.1")} == {"lcr"}
    for task in ("aime_2024", "aime_20250", "arithmetic_digits_1", "lcrx", ""):
        assert published_for(task) == ()


def test_the_best_comes_first():
    scores = [item.score for item in published_for("lcr_1.0")]
    assert scores == sorted(scores, reverse=True)
