"""Our Adam against torch's."""

import subprocess
import sys

import torch

from forecast.model.adam import Adam


def trained(optimizer_of, steps, state=None):
    torch.manual_seed(0)
    network = torch.nn.LSTM(3, 8, num_layers=2)
    optimizer = optimizer_of(network.parameters())
    if state:
        network.load_state_dict(state[0])
        optimizer.load_state_dict(state[1])
    for _ in range(steps):
        optimizer.zero_grad()
        network(torch.randn(5, 4, 3, generator=torch.Generator().manual_seed(1)))[0].square().sum().backward()
        optimizer.step()
    return network.state_dict(), optimizer.state_dict()


def torchs(parameters):
    return torch.optim.Adam(parameters, lr=0.01, fused=True)


def ours(parameters):
    return Adam(parameters, 0.01)


def test_its_weights_are_those_of_torchs_to_the_last_bit_and_it_goes_on_from_torchs_state():
    expected, _ = trained(torchs, 6)
    for found, _ in (
        trained(ours, 6),
        trained(ours, 3, trained(torchs, 3)),
        trained(ours, 3, trained(ours, 3)),
    ):
        assert all(torch.equal(found[name], weights) for name, weights in expected.items())


def test_training_does_not_import_torchs_compiler():
    script = (
        "import sys, forecast\n"
        "series = forecast.load_series(source='snapshot')\n"
        "forecast.train(series, forecast.TrainConfig(hidden_size=4, max_epochs=1, members=1))\n"
        "assert 'torch._dynamo' not in sys.modules, 'torch._dynamo'\n"
    )
    subprocess.run([sys.executable, "-c", script], check=True)
