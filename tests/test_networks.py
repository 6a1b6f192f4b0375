"""ONNX Runtime gives the same answers as torch, whatever network the search picks."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from forecast.inference.engines import TOLERANCE, OnnxEngine, TorchEngine, disagreement, random_inputs
from forecast.model.checkpoint import Member
from forecast.model.network import build_network
from forecast.model.volatility import ewma
from forecast.model.windows import RECURSIONS
from tune_jobs.space import SPACES

SPACE = SPACES["full"]


@pytest.fixture(scope="module")
def checkpoint(tiny_result):
    """One member, whose network a test replaces."""
    return tiny_result.checkpoint.model_copy(update={"further_members": ()})


def random_weights(config):
    network = build_network(config)
    torch.nn.init.normal_(network.regressor.weight, std=0.1)
    return network.state_dict()


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
            "model_state": random_weights(checkpoint.config.model_copy(update=shape)),
        }
    )
    by_torch = TorchEngine(model, torch.device("cpu"))
    assert disagreement(OnnxEngine.of(model), by_torch, random_inputs(model, 20, seed)) <= TOLERANCE


def test_one_graph_runs_members_of_different_networks_windows_and_volatilities(checkpoint):
    torch.manual_seed(0)
    config = checkpoint.config.model_copy(update={"likelihood": "student_t"})
    further = []
    for shape in (
        {"hidden_size": 12},
        {"hidden_size": 4, "num_layers": 2, "sequence_length": 35},
        {"hidden_size": 4, "volatility": "gjr"},
    ):
        other = config.model_copy(update=shape)
        recursions = (ewma(),) * len(RECURSIONS[other.volatility])
        recursions = (ewma(100), *recursions[1:]) if "volatility" in shape else recursions
        further.append(Member(model_state=random_weights(other), config=other, recursions=recursions))
    model = checkpoint.model_copy(
        update={
            "config": config,
            "model_state": random_weights(config),
            "recursions": (ewma(), ewma()),
            "further_members": tuple(further),
        }
    )
    by_torch, by_onnx = TorchEngine(model, torch.device("cpu")), OnnxEngine.of(model)
    inputs = random_inputs(model, 20)
    assert len(inputs) == 3
    assert by_torch(inputs).shape == (20, 4, 3)
    assert disagreement(by_onnx, by_torch, inputs) <= TOLERANCE


def test_a_disagreement_is_relative_to_large_outputs_and_absolute_below_one(checkpoint):
    inputs = random_inputs(checkpoint, 3)

    def network(*outputs):
        return lambda _: torch.tensor(outputs).numpy()

    assert disagreement(network(1000.0, 0.0, 0.0), network(1001.0, 0.0, 0.0), inputs) == pytest.approx(
        1 / 1001
    )
    assert disagreement(network(0.0, 0.1, 0.0), network(0.0, 0.2, 0.0), inputs) == pytest.approx(0.1)
