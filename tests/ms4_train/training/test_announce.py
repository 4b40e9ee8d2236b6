"""What a person reads before the first step."""

import pytest
from support.models import tiny_model
from support.multimodal import tiny_multimodal
from support.quantised_models import quantised_tiny

from ms4_train.adapters import attach
from ms4_train.config.schema import AdapterSection, ParallelSection, TrainingSection
from ms4_train.data import Survey
from ms4_train.data.row_survey import SourceCounts
from ms4_train.errors import TrainingError
from ms4_train.parallel import Mesh
from ms4_train.training.announce import RunLength, TrainedParameters, announcement, ranks_said


def survey():
    counts = SourceCounts("rows.jsonl", 1.0, rows_read=10, rows_kept=9, rows_bad=1, tokens=1000, trained_tokens=250)
    return Survey(sources=[counts])


def lines(model, attached=None, **length):
    values = {"total_steps": 40, "first_step": 0, "epoch_steps": 10, "rows_per_step": 4, "rows_per_epoch": 40, "max_length": 128, **length}
    return list(announcement(TrainedParameters.of_model(model), attached, survey(), RunLength(**values), TrainingSection()))


def test_full_model_lists_kinds_of_parameters_with_exact_sums():
    model = tiny_model()
    total = sum(parameter.numel() for parameter in model.parameters())
    trained = TrainedParameters.of_model(model)
    assert trained.trainable == trained.total == total == model.config.num_parameters()
    assert sum(group.parameters for group in trained.groups) == total
    shown = lines(model)
    assert any("model.layers.*.mlp.experts.down_proj" in line and "2 tensors" in line for line in shown)
    assert f"  {total:,} of {total:,} parameters (100.000%)" in shown


def test_adapter_lists_matched_modules():
    model = tiny_model()
    attached = attach(model, AdapterSection(r=2, target_modules=["o_proj"], target_parameters=["mlp.experts.down_proj"]))
    shown = "\n".join(lines(model, attached))
    assert "o_proj                 2 modules" in shown
    assert "mlp.experts.down_proj  2 modules" in shown
    assert f"{attached.trainable:,} of {attached.total:,} parameters" in shown


def test_modules_of_the_vision_and_those_trained_whole_are_told_apart():
    model = tiny_multimodal()
    section = AdapterSection(r=2, target_modules=["o_proj", "q_proj"], target_parameters=["mlp.gate.weight"], modules_to_save=["lm_head"])
    shown = "\n".join(lines(model, attach(model, section)))
    assert "o_proj (2 of them in the vision)  4 modules" in shown
    assert "q_proj                            2 modules" in shown
    assert "mlp.gate.weight                   2 modules" in shown
    assert "lm_head, trained whole             1 module " in shown


def test_quantised_weights_are_counted():
    section = AdapterSection(r=2, target_modules=["o_proj"], target_parameters=["mlp.experts.down_proj"])
    shown = []
    for model in (quantised_tiny("fp8"), tiny_model()):
        attached = attach(model, section)
        assert attached.total == TrainedParameters.of_model(model).total == model.config.num_parameters() + attached.trainable
        shown.append(lines(model, attached))
    assert shown[0] == shown[1]


def test_a_rank_with_some_experts_counts_all():
    whole, part = tiny_model(), tiny_model()
    for layer in part.model.layers:
        for name in ("gate_up_proj", "down_proj"):
            parameter = getattr(layer.mlp.experts, name)
            parameter.data = parameter.data[:2].clone()
    counted, expected = TrainedParameters.of_model(part), TrainedParameters.of_model(whole)
    assert (counted.groups, counted.trainable, counted.total) == (expected.groups, expected.trainable, expected.total)
    assert (counted.expert_shares, expected.expert_shares) == (4, 1)


def test_data_and_length_are_said():
    shown = "\n".join(lines(tiny_model()))
    assert "1,000, of which 250 carry loss (25.0%)" in shown
    assert "40 steps; 40 packed rows per epoch, 4.00 epochs in all" in shown
    assert "4 packed rows per step, at most 512 tokens" in shown
    assert "30 of 40 steps, resumed after step 10" in "\n".join(lines(tiny_model(), first_step=10))
    assert "all 40 steps are done" in "\n".join(lines(tiny_model(), first_step=40))
    assert "epoch" not in "\n".join(lines(tiny_model(), rows_per_epoch=None))


def test_nothing_trained_is_refused():
    model = tiny_model()
    model.requires_grad_(False)
    with pytest.raises(TrainingError, match="no parameter"):
        TrainedParameters.of_model(model)


def test_a_run_that_never_leaves_its_warm_up_says_so():
    def rate(**keys):
        length = RunLength(40, 0, 10, 4, 40, 128)
        shown = announcement(TrainedParameters.of_model(tiny_model()), None, survey(), length, TrainingSection(**keys))
        return next(line for line in shown if "learning rate" in line)

    assert rate() == "  learning rate 1e-05, cosine"
    assert rate(warmup_ratio=0.1) == "  learning rate 1e-05, cosine, warm-up over 4 steps"
    assert rate(warmup_steps=40).endswith("warm-up over 40 steps: THE RUN ENDS BEFORE THIS RATE IS REACHED")


def test_how_ranks_share_the_work():
    def shown(world_size, size, **keys):
        section = ParallelSection(expert_parallel_size=size, **keys)
        return list(ranks_said(Mesh(world_size=world_size, expert_parallel_size=size), section, 32))

    assert shown(1, 1) == []
    assert shown(2, 1) == ["ranks:", "  2 on cpu; all 32 experts on each", "  ZeRO 2"]
    assert shown(2, 2, zero_stage=1, offload_optimizer="cpu")[1:] == [
        "  2 on cpu; 16 of a layer's 32 experts on each",
        "  ZeRO 1; optimizer on the CPU",
    ]
    assert shown(8, 4, zero_stage=3)[1] == "  8 on cpu; 8 of a layer's 32 experts on each, 2 copies of each"
