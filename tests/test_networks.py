"""ONNX Runtime gives the same answers as torch, whatever network the search picks."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from forecast.inference.engines import TOLERANCE, OnnxEngine, TorchEngine, disagreement, random_inputs
from forecast.model.lstm import LSTMForecaster
from tune_jobs.space import SPACES

SPACE = SPACES["full"]


@pytest.fixture(scope="module")
def checkpoint(tiny_result):
    return tiny_result.checkpoint


@settings(max_examples=15, deadline=None)
@given(
    hidden=st.sampled_from(SPACE.hidden_size),
    layers=st.integers(*SPACE.num_layers),
    length=st.integers(*SPACE.sequence_length[:2]),
    target=st.sampled_from(["residual", "level"]),
    seed=st.integers(0, 2**31),
)
def test_onnx_runtime_and_torch_agree_on_every_shape_of_the_search_space(
    checkpoint, hidden, layers, length, target, seed
):
    torch.manual_seed(seed)
    shape = {"hidden_size": hidden, "num_layers": layers, "sequence_length": length, "target": target}
    model = checkpoint.model_copy(
        update={
            "config": checkpoint.config.model_copy(update=shape),
            "model_state": LSTMForecaster(hidden, layers, zero_head=False).state_dict(),
        }
    )
    by_torch = TorchEngine(model, torch.device("cpu"))
    assert disagreement(OnnxEngine(model), by_torch, random_inputs(model, 20, seed)) <= TOLERANCE


def test_a_disagreement_is_relative_to_large_outputs_and_absolute_below_one(checkpoint):
    inputs = random_inputs(checkpoint, 3)

    def network(*outputs):
        return lambda _: torch.tensor(outputs).numpy()

    assert disagreement(network(1000.0, 0.0, 0.0), network(1001.0, 0.0, 0.0), inputs) == pytest.approx(
        1 / 1001
    )
    assert disagreement(network(0.0, 0.1, 0.0), network(0.0, 0.2, 0.0), inputs) == pytest.approx(0.1)
