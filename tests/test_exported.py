"""Exported models: one ONNX file gives the numbers of its checkpoint, and runs without torch."""

from hypothesis import given, settings
from hypothesis import strategies as st
from untrained import BARS, bars, chosen, config_of, panel_of, untrained

from forecast.inference.agreement import differences
from forecast.model.export import exported_model

LARGEST = 1e-6
"""Largest difference from the checkpoint in torch, relative to the price."""


@st.composite
def models(draw):
    """Options of a model of one symbol, and those of its further members."""
    likelihood = draw(st.sampled_from(["student_t", "mse"]))
    columns = draw(st.sampled_from([(), BARS, ("High", "Low", "Volume"), ("Volume",)]))
    volatilities = ["ewma", "gjr", "window"] + ["range"] * ("High" in columns)
    options = {
        "likelihood": likelihood,
        "target": draw(st.sampled_from(["residual", "level"])),
        "log_prices": draw(st.booleans()),
        "volatility": draw(st.sampled_from(volatilities)),
        "input_columns": columns,
    }
    shapes = st.fixed_dictionaries(
        {
            "sequence_length": st.integers(2, 30),
            "num_layers": st.integers(1, 2),
            "volatility": st.sampled_from(volatilities),
        }
    )
    return options, draw(st.lists(shapes, max_size=2))


@settings(max_examples=25, deadline=None)
@given(models(), st.integers(0, 2**31))
def test_the_graph_gives_the_distribution_of_the_checkpoint_in_torch(snapshot, model, seed):
    options, further = model
    series = chosen(bars(snapshot), ("Close", *options["input_columns"]))
    checkpoint = untrained(series, config_of(**options), seed, further)
    found = differences(checkpoint, exported_model(checkpoint).SerializeToString(), 16, seed)
    assert found.max() <= LARGEST


@settings(max_examples=8, deadline=None)
@given(
    likelihood=st.sampled_from(["student_t", "mse"]),
    columns=st.sampled_from([(), BARS]),
    market=st.booleans(),
    seed=st.integers(0, 2**31),
)
def test_the_graph_of_many_symbols_gives_that_of_each_of_new_ones_and_of_the_market(
    snapshot, likelihood, columns, market, seed
):
    panel = panel_of(snapshot, 6, ("Close", *columns))
    config = config_of(likelihood=likelihood, input_columns=columns, market=market)
    checkpoint = untrained(panel, config, seed, [{"sequence_length": 7}])
    found = differences(checkpoint, exported_model(checkpoint).SerializeToString(), 24, seed)
    assert found.max() <= LARGEST
