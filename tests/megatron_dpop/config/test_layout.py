"""Layouts that a model cannot be cut by are refused before anything starts."""

from dataclasses import replace
from typing import Any

import pytest

from dpop_base.architectures import Architecture, read_architecture
from dpop_base.errors import UserError
from megatron_dpop.config.layout import ModelLayout, check_layout, check_row_tokens, row_multiple
from tests.tiny import write_model


@pytest.fixture(scope="module")
def twelve_layers(tmp_path_factory: pytest.TempPathFactory) -> Architecture:
    return replace(read_architecture(write_model(tmp_path_factory.mktemp("model"))), num_layers=12)


@pytest.mark.parametrize(
    ("layout", "message"),
    [
        ({"pipeline": 5}, "parallel.pipeline: 5 does not divide the model's 12 layers"),
        ({"virtual_pipeline": 2}, "parallel.virtual_pipeline: there is one pipeline stage; set parallel.pipeline too"),
        ({"last_stage_layers": 2}, "first_stage_layers and last_stage_layers: there is one pipeline stage"),
        ({"pipeline": 2, "virtual_pipeline": 4}, "parallel.virtual_pipeline: 4 does not divide the 6 layers of a"),
        ({"pipeline": 4, "first_stage_layers": 2}, "2 and None leave no equal number of the model's 12 layers"),
        ({"pipeline": 2, "first_stage_layers": 5, "last_stage_layers": 6}, "5 and 6 leave no equal number"),
        ({"pipeline": 3, "first_stage_layers": 6, "last_stage_layers": 6}, "6 and 6 leave no equal number"),
    ],
)
def test_stages_that_do_not_fit(twelve_layers: Architecture, layout: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        check_layout(twelve_layers, ModelLayout(**layout))


@pytest.mark.parametrize(
    "layout",
    [
        {"pipeline": 4, "virtual_pipeline": 3},
        {"pipeline": 4, "first_stage_layers": 3, "last_stage_layers": 3},
        {"pipeline": 3, "first_stage_layers": 2, "last_stage_layers": 4},
        {"pipeline": 2, "last_stage_layers": 4},
    ],
)
def test_stages_that_fit(twelve_layers: Architecture, layout: dict[str, Any]) -> None:
    check_layout(twelve_layers, ModelLayout(**layout))


@pytest.mark.parametrize("layout", [{"tensor": 1, "sequence": True}, {"tensor": 2, "sequence": False}])
def test_overlap_of_nothing_is_refused(twelve_layers: Architecture, layout: dict[str, Any]) -> None:
    with pytest.raises(UserError, match=r"parallel.overlap_tensor: with parallel.tensor \d and parallel.sequence"):
        check_layout(twelve_layers, ModelLayout(overlap_tensor=True, **layout))


def test_overlapped_rows_have_one_length() -> None:
    layout = ModelLayout(tensor=2, sequence=True, context=2, overlap_tensor=True)
    assert row_multiple(layout, fp8=False) == 256
    check_row_tokens(4096, layout)
    with pytest.raises(UserError, match=r"data.row_tokens: 4160 does not divide .* multiple of 256, such as 4352"):
        check_row_tokens(4160, layout)


def test_rows_are_shared_evenly_by_context_parallel_ranks() -> None:
    layout = ModelLayout(tensor=2, sequence=True, context=4)
    assert row_multiple(layout, fp8=False) == 128
    check_row_tokens(8192, layout)
    with pytest.raises(UserError, match=r"data.row_tokens: 1000 does not divide .* multiple of 128, such as 1024"):
        check_row_tokens(1000, layout)
    check_row_tokens(1000, ModelLayout())


@pytest.mark.parametrize(("tensor", "context", "multiple"), [(1, 1, 128), (8, 1, 128), (16, 1, 256), (2, 2, 256)])
def test_rows_of_fp8_end_on_its_blocks(tensor: int, context: int, multiple: int) -> None:
    """128 tokens of every context-parallel rank, and 16 of every rank that shares them."""
    assert row_multiple(ModelLayout(tensor=tensor, sequence=True, context=context), fp8=True) == multiple
