"""Rows about digits are right, and pictures are what scikit-learn has."""

import base64
import io
import json

import numpy as np
from PIL import Image

from ms4_recipes.digit_rows import HELD_OUT, PIXELS, WORDS, pictures, text_rows, write_rows
from ms4_train.chat import read_row
from ms4_train.untrusted import ImageReader


def test_text_rows_are_true_and_repeatable():
    rows = list(text_rows(300, seed=1))
    assert rows == list(text_rows(300, seed=1))
    assert rows != list(text_rows(300, seed=2))
    kinds = set()
    for row in rows:
        read_row(row)
        question, answer = (message["content"] for message in row["messages"])
        words = question.rstrip(".?").split()
        kinds.add(words[0] + words[-1] if words[0] == "Write" and words[-1] == "word" else words[0])
        if "plus" in words:
            assert WORDS.index(words[2]) + WORDS.index(words[4]) == WORDS.index(answer)
        elif words[0] == "Which":
            assert WORDS.index(answer) == WORDS.index(words[-1]) + 1
        else:
            digit = int(words[1] if words[-1] == "word" else answer)
            assert {words[1], answer} == {str(digit), WORDS[digit]}
    assert len(kinds) == 4


def test_pictures_are_the_digits_of_scikit_learn(tmp_path):
    from sklearn.datasets import load_digits

    grey, digits = load_digits(return_X_y=True)
    trained, held_out = pictures()
    assert (len(trained) + len(held_out), len(held_out)) == (len(digits), HELD_OUT)
    for number, picture in ((0, trained[0]), (len(digits) - 1, held_out[-1])):
        assert picture.answer == WORDS[digits[number]]
        url = picture.messages[0]["content"][0]["image_url"]["url"]
        image = Image.open(io.BytesIO(base64.b64decode(url.partition(",")[2])))
        assert image.size == (PIXELS, PIXELS)
        small = np.asarray(image.resize((8, 8), Image.Resampling.BOX), dtype=float)
        assert np.corrcoef(small.ravel(), grey[number])[0, 1] > 0.97
    write_rows(tmp_path / "rows.jsonl", [trained[0].row()])
    row = read_row(json.loads((tmp_path / "rows.jsonl").read_text()), images=ImageReader())
    assert len(row.images) == 1
