"""Every mesh, ZeRO stage and way of training against one process of plain torch: the parity matrix of ``support/parallel_matrix.py``.

Tolerances: the first loss within 1e-5, gradients within 1e-4 of the largest value of each parameter and expert, the clip norm in five
digits, ten losses within 1e-4, and no token with other experts. Measured: 1e-7 for losses and norms, 5e-6 for gradients, 1e-5 for moments
after ten steps. The controls show that the comparison fails where it should.
"""

import json
from pathlib import Path

import pytest
import torch
from support.distributed import run_ranks
from support.parallel_matrix import (
    CASES,
    CONTROLS,
    CORE,
    EXPERTS,
    FULL,
    LAYERS,
    LORA,
    STEPS,
    Recorded,
    Training,
    apart,
    matrix_model,
    matrix_rows,
    one_process,
    relative_error,
)
from support.parallel_runs import MAX_GRAD_NORM

MESHES = {"ep2": (2, 2), "ep4": (4, 4), "ep2_edp2": (4, 2)}
"""Name -> (ranks, expert-parallel size)."""


@pytest.fixture(scope="session")
def whole_matrix(tmp_path_factory):
    """Mesh -> what each of its ranks found, one launch per mesh, made when asked for."""
    reports = {}

    def of(mesh):
        if mesh not in reports:
            ranks, size = MESHES[mesh]
            folder = tmp_path_factory.mktemp(mesh)
            run_ranks(Path(__file__).with_name("matrix_worker.py"), str(folder), str(size), *CASES, *CONTROLS, ranks=ranks, timeout=1200)
            reports[mesh] = [json.loads((folder / f"{rank}.json").read_text()) for rank in range(ranks)]
        return reports[mesh]

    return of


def assert_same(found, case):
    """A run on ranks is the run of one process."""
    training = CASES[case].training
    assert found["steps"] == training.steps
    assert found["parameters"] == trained_parameters_of(training)
    assert found["flips"] == 0
    if training.bf16:
        # Gradients have 8 bits; their size must be right, or ranks would be counted twice or not at all.
        assert found["loss"] < 0.01
        assert found["norm"] < 0.02
        assert 0.9 < found["factor"][0] <= found["factor"][1] < 1.1, found
        return
    assert found["first_loss"] < 1e-5
    assert found["loss"] < 1e-4
    assert found["norm"] < 1e-5
    assert found["gradient"] < 1e-4, found["worst"]
    assert found["state"] < 2e-4


@pytest.mark.parametrize("case", CORE)
def test_two_ranks_share_the_experts(deepspeed_report, case):
    """ZeRO 1, 2 and 3, full and LoRA on attention, shared expert, experts and router: ten steps each."""
    for report in deepspeed_report:
        assert_same(report["matrix"][case], case)


@pytest.mark.slow
@pytest.mark.parametrize("mesh", MESHES)
@pytest.mark.parametrize("case", CASES)
def test_every_case_on_every_mesh(whole_matrix, mesh, case):
    """Two and four ranks; on the last mesh every expert is held twice, so its gradient is a sum over two ranks."""
    for report in whole_matrix(mesh):
        assert_same(report[case], case)


def assert_control_differs(report):
    for control in CONTROLS:
        assert report[control]["gradient"] > 0.1, control
        assert report[control]["norm"] > 1e-3, control
    assert report["permuted_experts"]["first_loss"] > 1e-5


def test_control_the_comparison_sees_permuted_experts_and_a_lost_gradient(deepspeed_report):
    for report in deepspeed_report:
        assert_control_differs(report["matrix"])


@pytest.mark.slow
@pytest.mark.parametrize("mesh", MESHES)
def test_control_on_every_mesh(whole_matrix, mesh):
    for report in whole_matrix(mesh):
        assert_control_differs(report)


def test_control_each_difference_is_seen():
    """One thing wrong at a time in a run that is otherwise equal."""
    training = Training(steps=1)
    expected = one_process(training, 2)
    same = apart(Recorded.of(expected.tensors()), expected)
    assert [same[key] for key in ("first_loss", "loss", "norm", "gradient", "state", "flips")] == [0] * 6
    assert same["factor"] == pytest.approx([1, 1])

    def changed(key):
        return Recorded.of({name: value * 1.01 if name == key else value for name, value in expected.tensors().items()})

    for key, seen in {
        "losses": "loss",
        "norms": "norm",
        "gradients/model.layers.1.mlp.gate.weight": "gradient",
        "state/exp_avg_sq/lm_head.weight": "state",
    }.items():
        found = apart(changed(key), expected)
        assert found[seen] == pytest.approx(0.01, rel=0.02), key
    flipped = Recorded.of(expected.tensors())
    flipped.choices["0/0/1"][0, 3] = torch.tensor([6, 7])
    assert apart(flipped, expected)["flips"] == 1


def test_experts_are_compared_one_by_one():
    expected = torch.tensor([[[1.0]], [[1000.0]], [[0.0]]])
    assert relative_error(expected + torch.tensor([[[0.1]], [[0.0]], [[0.0]]]), expected) == pytest.approx(0.1)
    assert relative_error(expected + torch.tensor([[[0.0]], [[0.0]], [[1e-9]]]), expected) == float("inf")
    assert relative_error(expected, expected) == 0


def test_routing_is_skewed_and_ranks_go_without_tokens():
    """What the cases are said to contain, of the one process."""
    expected = one_process(FULL, 4)
    assert len(expected.losses) == STEPS
    assert min(expected.norms) > MAX_GRAD_NORM  # clipping happens at every step
    assert len({round(loss, 3) for loss in expected.losses}) == STEPS
    counts_le = torch.zeros(LAYERS, EXPERTS)
    for chosen_ltk in expected.choices.values():
        for layer in range(LAYERS):
            counts_le[layer] += chosen_ltk[layer].flatten().bincount(minlength=EXPERTS)
    share_le = counts_le / counts_le.sum(1, keepdim=True)
    assert float(share_le[0].min()) > 0
    assert 0.5 < float(share_le[LAYERS - 2, :2].sum()) < 0.95
    assert share_le[LAYERS - 1, 2:].sum() == 0  # ranks 1 to 3 of four, and 1 of two, hold none of these
    assert sorted({len(matrix_rows(step, 0, 1).input_ids_t) for step in range(3)}) == [1, 9]
    assert bool((matrix_rows(2, 0, 1).target_ids_t == -100).all())
    assert len({matrix_rows(0, 0, rank).lengths for rank in range(4)}) == 4


def trained_parameters_of(training):
    return sum(parameter.requires_grad for parameter in matrix_model(training).parameters())


@pytest.mark.parametrize(("training", "count"), [(FULL, 3 + LAYERS * 15), (LORA, LAYERS * 2 * (5 + 3 + 2 + 1))])
def test_what_is_trained(training, count):
    """Router weights, or adapters of them, among it."""
    names = [name for name, parameter in matrix_model(training).named_parameters() if parameter.requires_grad]
    assert len(names) == count
    assert sum("mlp.gate" in name for name in names) == LAYERS * (2 if training.lora else 1)


@pytest.mark.slow
def test_the_one_process_computes_what_transformers_computes():
    """Loss and every gradient of the first step, document by document, by ``Mistral4ForCausalLM`` of transformers."""
    from support.models import hf_twin
    from torch.nn import functional

    expected = one_process(Training(steps=1), 2)
    oracle = hf_twin(matrix_model(FULL)).train()
    losses, tokens = [], 0
    for rank in range(2):
        rows = matrix_rows(0, 0, rank)
        for ids_t, target_t in zip(rows.input_ids_t.split(rows.lengths), rows.target_ids_t.split(rows.lengths), strict=True):
            logits_tv = oracle(input_ids=ids_t[None], use_cache=False).logits[0]
            losses.append(functional.cross_entropy(logits_tv, target_t, ignore_index=-100, reduction="sum"))
            tokens += int((target_t != -100).sum())
    loss = torch.stack(losses).sum() / tokens
    loss.backward()
    assert loss.item() == pytest.approx(expected.losses[0], abs=1e-5)
    gradients = {name: parameter.grad for name, parameter in oracle.named_parameters()}
    assert gradients.keys() == expected.gradients.keys()
    for name, gradient in expected.gradients.items():
        assert relative_error(torch.zeros_like(gradient) if gradients[name] is None else gradients[name], gradient) < 1e-4, name
