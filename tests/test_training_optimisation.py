"""Optimizer, learning rate and the moving average of the weights."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn

from carvana_batch.training.optimisation import WeightAverage, learning_rate_at, make_optimizer
from carvana_batch.training.settings import OPTIMIZER_NAMES, SCHEDULE_NAMES, TrainingSettings


@pytest.mark.parametrize("schedule", SCHEDULE_NAMES)
def test_the_rate_warms_up_and_does_not_rise_again(schedule: str) -> None:
    settings = TrainingSettings(warm_up=10, lr=2.0, schedule=schedule)
    rates = [learning_rate_at(step, 100, settings) for step in range(100)]
    assert rates[:10] == pytest.approx([0.2 * (step + 1) for step in range(10)])
    assert max(rates) == pytest.approx(2.0)
    assert rates[10:] == sorted(rates[10:], reverse=True)


def test_each_schedule_has_its_shape() -> None:
    def middle_and_end(schedule: str) -> tuple[float, float]:
        settings = TrainingSettings(warm_up=0, lr=1.0, schedule=schedule)
        return learning_rate_at(25, 100, settings), learning_rate_at(100, 100, settings)

    assert middle_and_end("constant") == (1.0, 1.0)
    assert middle_and_end("linear") == pytest.approx((0.01 + 0.99 * 0.75, 0.01))
    assert middle_and_end("cosine") == pytest.approx((0.01 + 0.99 * (1 + math.sqrt(0.5)) / 2, 0.01))


def test_a_short_run_warms_up_for_a_tenth_of_its_steps() -> None:
    settings = TrainingSettings(warm_up=200, lr=1.0, schedule="constant")
    assert [learning_rate_at(step, 20, settings) for step in range(3)] == [0.5, 1.0, 1.0]


@pytest.mark.parametrize("name", OPTIMIZER_NAMES)
def test_only_convolutions_are_decayed(name: str) -> None:
    network = nn.Sequential(nn.Conv2d(1, 1, 1), nn.BatchNorm2d(1))
    optimizer = make_optimizer(network, TrainingSettings(optimizer=name, weight_decay=0.3, lr=0.1))
    assert type(optimizer).__name__.lower() == name
    decayed = {
        id(parameter): group["weight_decay"]
        for group in optimizer.param_groups
        for parameter in group["params"]
    }
    convolution, norm = network[0], network[1]
    assert decayed[id(convolution.weight)] == 0.3
    assert {decayed[id(one)] for one in (convolution.bias, norm.weight, norm.bias)} == {0.0}
    assert len(decayed) == len(list(network.parameters()))


def test_the_average_follows_the_formula() -> None:
    network = nn.Linear(1, 1, bias=False)
    values = [0.0, 4.0, -2.0, 7.0]
    with torch.no_grad():
        network.weight.fill_(values[0])
        average = WeightAverage(network, decay=0.2)
        expected = values[0]
        for step, value in enumerate(values[1:]):
            network.weight.fill_(value)
            average.update(network, step)
            decay = min(0.2, (1 + step) / (10 + step))
            expected = decay * expected + (1 - decay) * value
    assert average.state["weight"].item() == pytest.approx(expected)


def test_without_decay_the_average_equals_the_weights() -> None:
    network = nn.Sequential(nn.Conv2d(1, 2, 3), nn.BatchNorm2d(2))
    average = WeightAverage(network, decay=0.0)
    network(torch.randn(4, 1, 8, 8))
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.add_(1.0)
    average.update(network, 50)
    assert all(average.state[name].equal(value) for name, value in network.state_dict().items())
