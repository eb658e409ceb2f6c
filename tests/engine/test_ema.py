import numpy as np
import torch

from mvit_video.engine.ema import WeightAverage


def test_the_average_is_that_of_a_loop_in_double_precision():
    model = torch.nn.Linear(3, 2)
    average = WeightAverage(model, decay=0.9)
    expected = model.weight.detach().double().numpy().copy()
    generator = torch.Generator().manual_seed(0)
    factors = []
    for step in range(120):
        with torch.no_grad():
            model.weight += torch.randn(2, 3, generator=generator)
        average.update(model, step)
        factors.append(min(0.9, (1 + step) / (10 + step)))
        expected = factors[-1] * expected + (1 - factors[-1]) * model.weight.detach().double().numpy()
    assert factors[0] == 0.1 and factors[79] < 0.9 and factors[80] == 0.9
    assert np.abs(average.model.weight.numpy() - expected).max() < 1e-5


def test_the_average_is_a_network_of_its_own_in_evaluation_mode():
    model = torch.nn.Sequential(torch.nn.Linear(3, 2), torch.nn.Dropout(0.5)).train()
    average = WeightAverage(model, decay=0.9)
    before = average.model[0].weight.clone()
    with torch.no_grad():
        model[0].weight += 1
    assert torch.equal(average.model[0].weight, before)
    assert model.training and not average.model.training
    assert not any(parameter.requires_grad for parameter in average.model.parameters())
    assert all(parameter.requires_grad for parameter in model.parameters())


def test_statistics_of_batch_norms_are_copied():
    model = torch.nn.BatchNorm1d(2)
    average = WeightAverage(model, decay=0.9)
    model(torch.randn(8, 2) + 3)
    average.update(model, 0)
    assert torch.equal(average.model.running_mean, model.running_mean)
    assert average.model.num_batches_tracked == 1
