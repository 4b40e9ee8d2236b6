"""Rows of several adapters in one pass, against models whose weights were changed by hand, each sequence by itself."""

import pytest
import torch
from support.adapted import section
from support.adapter_rows import DORA, ENDS, SAVED, SAVED_ENDS, SMALL, WIDE, change, changed, make_folder, with_adapter
from support.checkpoints import our_logits, relative_error, some_ids
from support.models import tiny_model
from support.quantised_models import dequantised_twin, quantised_tiny

from ms4_train.adapters import adapter_tensors, load_adapter, merge, set_active_adapters
from ms4_train.adapters.row_parts import RowPart, index_rows, row_parts
from ms4_train.errors import AdapterError
from ms4_train.model import SequenceLayout
from ms4_train.model.row_segments import RowSegment, row_segments

LENGTHS = (7, 70, 1, 30, 12)  # one long enough for the compiled products of many rows
CASES = {"wide": (WIDE, 1), "ends": (ENDS, 2), "small": (SMALL, 3), "dora": (DORA, 4), "saved": (SAVED, 5)}
# fp32: W + s B A formed first rounds otherwise than two products do; as for PEFT's comparisons beside this file.
CLOSE = 1e-4


@torch.no_grad()
def logits_of(model, adapters, lengths=LENGTHS):
    """Logits of sequences in one pass, a list of [t, v]."""
    ids_t = some_ids(sum(lengths))
    stops = [sum(lengths[: index + 1]) for index in range(len(lengths))]
    segments = [RowSegment(name, stop - length, stop) for name, stop, length in zip(adapters, stops, lengths, strict=True)]
    with row_segments(segments):
        return model.logits(model(ids_t, SequenceLayout.from_lengths(lengths))).split(list(lengths))


def alone(model, index, lengths=LENGTHS):
    """The same of one sequence by a model without segments."""
    return our_logits(model, some_ids(sum(lengths)).split(list(lengths))[index])


def test_parts_are_joined_where_the_same_adapters_act():
    def names_of(adapter):
        return ("live",) if adapter is None else (adapter,) if adapter == "a" else ()

    assert row_parts(names_of, 9) == [RowPart(("live",), 0, 9)]
    with row_segments([RowSegment("a", 0, 2), RowSegment("b", 2, 3), RowSegment("c", 3, 5), RowSegment(None, 5, 6)]):
        parts = row_parts(names_of, 6)
        assert parts == [RowPart(("a",), 0, 2), RowPart((), 2, 5), RowPart(("live",), 5, 6)]
        assert index_rows((1, -1, 0), tuple(parts), torch.device("cpu")).tolist() == [1, 1, -1, -1, -1, 0]
        for rows in (5, 7):
            with pytest.raises(ValueError, match="are not those of"):
                row_parts(names_of, rows)
    with row_segments([RowSegment("b", 0, 2), RowSegment("c", 2, 3)]):
        assert row_parts(names_of, 100) == [RowPart((), 0, 100)]  # one part holds for any number of rows
    with row_segments([RowSegment("a", 0, 2), RowSegment("b", 3, 4)]), pytest.raises(ValueError, match="are not those of"):
        row_parts(names_of, 4)


@pytest.mark.parametrize("live", [None, "wide", "saved"])
def test_each_row_has_its_own_adapter(tmp_path, live):
    model = tiny_model() if live is None else with_adapter(*CASES[live], name="live")
    loaded = [name for name in CASES if name != live]
    for name in loaded:
        load_adapter(model, make_folder(tmp_path / name, *CASES[name]), base_fingerprint="sha256:0", name=name)
    set_active_adapters(model, [] if live is None else ["live"])
    expected = {name: changed(*CASES[name]) for name in loaded}
    expected[None] = tiny_model() if live is None else changed(*CASES[live])
    for adapters in ([*loaded, None, None][:5], [None, *reversed(loaded)][:5]):
        for index, found_tv in enumerate(logits_of(model, adapters)):
            wanted_tv = alone(expected[adapters[index]], index)
            assert relative_error(found_tv, wanted_tv) < CLOSE, (adapters, index)
            # Negative control: no other model is as close.
            others = [relative_error(alone(other, index), wanted_tv) for name, other in expected.items() if name != adapters[index]]
            assert min(others) > 100 * CLOSE
    assert relative_error(our_logits(model), our_logits(expected[None])) < CLOSE  # outside of segments it is the model as it stands


def test_modules_saved_whole_run_for_their_rows_alone(tmp_path):
    """Of every kind that takes rows: embedding, head, router, a gated MLP, a projection."""
    model = tiny_model()
    for name, seed in (("one", 3), ("two", 4)):
        load_adapter(model, make_folder(tmp_path / name, SAVED_ENDS, seed), base_fingerprint=None, name=name)
    set_active_adapters(model, [])
    found = logits_of(model, ["one", "two", None, "two", "one"])
    expected = {"one": changed(SAVED_ENDS, 3), "two": changed(SAVED_ENDS, 4), None: tiny_model()}
    for index, name in enumerate(["one", "two", None, "two", "one"]):
        assert relative_error(found[index], alone(expected[name], index)) < CLOSE
    with pytest.raises(AdapterError, match="saved whole"):
        load_adapter(with_adapter(ENDS, 1, name="ends"), tmp_path / "one", base_fingerprint=None, name="one")


def test_several_that_act_together_are_one_kind_of_row(tmp_path):
    model = with_adapter(WIDE, 1, name="first")
    for name, case in (("second", SMALL), ("third", WIDE)):
        load_adapter(model, make_folder(tmp_path / name, case, 7 + len(name)), base_fingerprint=None, name=name)
    set_active_adapters(model, ["first", "second"])
    both = our_logits(model, some_ids(sum(LENGTHS)).split(list(LENGTHS))[1])
    found = logits_of(model, ["third", None, "second", "first", None])
    # The sum is checked against PEFT beside this file; here only the pass differs, in the order in which products are summed.
    assert relative_error(found[1], both) < 1e-5
    assert relative_error(found[0], alone(changed(WIDE, 12), 0)) < CLOSE
    assert relative_error(found[2], alone(changed(SMALL, 13), 2)) < CLOSE


@pytest.mark.parametrize("kind", ["fp8", "nvfp4"])
def test_over_quantised_weights(kind, tmp_path):
    model = quantised_tiny(kind)
    for name, case in (("wide", WIDE), ("small", SMALL)):
        load_adapter(model, make_folder(tmp_path / name, case, len(name)), base_fingerprint=None, name=name)
    set_active_adapters(model, [])
    found = logits_of(model, ["small", "wide", None, "wide", None])
    for index, case in ((0, SMALL), (1, WIDE)):
        plain = dequantised_twin(quantised_tiny(kind))
        tensors = adapter_tensors(with_adapter(case, 5 if case is SMALL else 4))
        change(plain, tensors, section(**case))
        assert relative_error(found[index], alone(plain, index)) < CLOSE
    assert relative_error(found[2], alone(quantised_tiny(kind), 2)) < CLOSE


def test_factors_side_by_side_are_kept_until_adapters_or_values_change(tmp_path):
    model = with_adapter(WIDE, 1, name="live")
    load_adapter(model, make_folder(tmp_path / "small", SMALL, 3), base_fingerprint=None, name="small")
    set_active_adapters(model, ["live"])
    model.prepare_decode()
    adapters = ["small", None, "small", None, None]
    before = logits_of(model, adapters)
    lora = model.model.layers[0].mlp.experts.lora
    kept = lora.kept
    assert kept is not None
    logits_of(model, adapters)
    assert lora.kept is kept
    with torch.no_grad():
        for value in adapter_tensors(model, "live").values():
            value.mul_(0.5)
    model.release_decode()  # as a closed engine does
    assert lora.kept is None
    after = logits_of(model, adapters)
    halved = tiny_model()
    tensors = {name: 0.5 * value for name, value in adapter_tensors(with_adapter(WIDE, 1)).items()}
    change(halved, tensors, section(**WIDE))
    assert relative_error(after[1], alone(halved, 1)) < CLOSE < 0.01 < relative_error(before[1], after[1])


def test_merged_weights_serve_rows_as_they_stand_and_no_others(tmp_path):
    model = with_adapter(WIDE, 1, name="live")
    load_adapter(model, make_folder(tmp_path / "small", SMALL, 3), base_fingerprint=None, name="small")
    set_active_adapters(model, ["live"])
    merge(model, keep=True)
    assert relative_error(logits_of(model, [None] * 5)[1], alone(changed(WIDE, 1), 1)) < CLOSE
    with pytest.raises(AdapterError, match="merged"):
        logits_of(model, ["small", None, None, None, None])
