from dataclasses import replace

import numpy as np
import pytest
import torch

from mvit_video.evaluation import probes
from mvit_video.evaluation.metrics import wilson
from mvit_video.evaluation.probes import Shots, VideoViews

pytest.importorskip("sklearn")


def clouds(count, num_classes=3, views=2, dim=6, seed=0, spread=1.0):
    """`count` videos of each class around its own point, on channels of very different scale."""
    rng = np.random.default_rng(seed)
    labels = np.repeat(np.arange(num_classes), count)
    points = np.random.default_rng(99).normal(size=(num_classes, dim))
    video = np.repeat(np.arange(len(labels)), views)
    features = points[labels[video]] + spread * rng.normal(size=(len(video), dim))
    return VideoViews((features * 10.0 ** np.arange(-3, 3) + 5).astype(np.float32), video, labels)


@pytest.mark.parametrize("num_classes", [2, 3])
def test_the_linear_head_on_plain_features_is_scikit_learns_pipeline_on_standardised_ones(num_classes):
    from sklearn.linear_model import LogisticRegression
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    train, test = clouds(6, num_classes), clouds(4, num_classes, seed=1)
    head = probes.fit_linear(train, num_classes, seed=0)
    pipeline = make_pipeline(StandardScaler(), LogisticRegression(C=head.strength, max_iter=1000))
    pipeline.fit(train.features.astype(np.float64), train.labels[train.video])
    of_views = pipeline.predict_proba(test.features.astype(np.float64))
    expected = of_views.reshape(len(test.labels), 2, num_classes).mean(1)
    assert np.abs(head.scores(test) - expected).max() < 1e-5 and expected.std() > 0.1


def test_a_class_without_training_videos_is_never_predicted():
    train = clouds(4)
    head = probes.fit_linear(train, num_classes=5, seed=0)
    scores = head.scores(clouds(2, seed=1))
    assert (scores[:, 3:] == 0).all() and np.allclose(scores.sum(1), 1)


def test_the_regularisation_is_the_one_with_the_least_log_loss_on_held_out_videos():
    from sklearn.linear_model import LogisticRegression
    from sklearn.metrics import log_loss
    from sklearn.model_selection import StratifiedKFold, cross_val_predict
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    chosen = set()
    for spread in (0.1, 1.0, 4.0):
        train = clouds(12, views=1, spread=spread)
        losses = {}
        for strength in probes.STRENGTHS:
            pipeline = make_pipeline(StandardScaler(), LogisticRegression(C=strength, max_iter=1000))
            folds = StratifiedKFold(5, shuffle=True, random_state=7)
            words = train.features.astype(np.float64), train.labels
            losses[strength] = log_loss(
                train.labels, cross_val_predict(pipeline, *words, cv=folds, method="predict_proba")
            )
        chosen.add(min(losses, key=lambda strength: losses[strength]))
        assert probes.fit_linear(train, 3, seed=7).strength == min(losses, key=lambda strength: losses[strength])
    assert len(chosen) > 1


def test_videos_of_one_group_are_held_out_together_when_the_regularisation_is_chosen():
    """Each class has four recordings of six videos, which are alike within a recording and say nothing of the class."""
    from sklearn.linear_model import LogisticRegression
    from sklearn.metrics import log_loss
    from sklearn.model_selection import StratifiedGroupKFold, cross_val_predict
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    rng = np.random.default_rng(0)
    labels, groups = np.repeat(np.arange(3), 24), np.repeat(np.arange(12), 6)
    features = (rng.normal(size=(12, 8))[groups] + 0.1 * rng.normal(size=(72, 8))).astype(np.float32)
    train = VideoViews(features, np.arange(72), labels, groups)
    losses = {}
    for strength in probes.STRENGTHS:
        pipeline = make_pipeline(StandardScaler(), LogisticRegression(C=strength, max_iter=1000))
        folds = StratifiedGroupKFold(4, shuffle=True, random_state=7)
        words = dict(groups=groups, cv=folds, method="predict_proba")
        losses[strength] = log_loss(labels, cross_val_predict(pipeline, features.astype(np.float64), labels, **words))
    wanted = min(losses, key=lambda strength: losses[strength])
    assert probes.fit_linear(train, 3, seed=7).strength == wanted
    assert probes.fit_linear(replace(train, groups=None), 3, seed=7).strength > wanted, (
        "by its own recording, it seems easy"
    )
    order = np.random.default_rng(1).permutation(72)
    assert (train.of(order).groups == groups[order]).all()


def test_with_nothing_to_hold_out_the_regularisation_is_the_usual_one():
    assert probes.fit_linear(clouds(1), 3, 0).strength == probes.USUAL_STRENGTH
    one_recording = replace(clouds(4), groups=np.repeat(np.arange(3), 4))
    assert probes.fit_linear(one_recording, 3, 0).strength == probes.USUAL_STRENGTH


def test_nearest_neighbours_vote_by_their_cosine_as_a_loop_counts():
    train, test = clouds(10), clouds(3, seed=1)
    known = np.stack([train.features[train.video == place].mean(0, dtype=np.float64) for place in range(30)])
    middle = known.mean(0)
    [found] = probes.nearest_scores(train, [np.arange(30)], test, 3, 0)
    for place in range(len(test.labels)):
        asked = test.features[test.video == place].mean(0, dtype=np.float64) - middle
        near = [float(asked @ one / np.linalg.norm(asked) / np.linalg.norm(one)) for one in known - middle]
        votes = np.zeros(3)
        for other in sorted(range(30), key=lambda other: -near[other])[:20]:
            votes[train.labels[other]] += np.exp(near[other] / 0.07)
        assert np.allclose(found[place], votes / votes.sum(), atol=1e-6)


STEPS = 25  # of the comparison; 64 of the views are seen in each


class Plain(torch.nn.Module):
    """The attentive probe written out: a norm of every token, and a loop over the queries."""

    def __init__(self, dim, num_classes):
        super().__init__()
        self.norm = torch.nn.LayerNorm(dim)
        self.queries = torch.nn.Parameter(0.02 * torch.randn(8, dim))
        self.value, self.head = torch.nn.Linear(dim, dim), torch.nn.Linear(dim, num_classes)

    def forward(self, maps):
        x, parts = self.norm(maps.flatten(2).transpose(1, 2)), []
        for rows, query in zip(torch.arange(x.shape[2]).chunk(8), self.queries, strict=True):
            weights = (x @ query).softmax(1)  # (B, N)
            gathered = (weights[..., None] * x).sum(1)
            parts.append(gathered @ self.value.weight[rows].T + self.value.bias[rows])
        return self.head(torch.cat(parts, 1))


def plain_scores(train, test, num_classes, seed):
    """Scores of one probe, trained by itself."""
    torch.manual_seed(seed)
    probe = Plain(train.features.shape[1], num_classes)
    maps, labels = torch.from_numpy(train.features), torch.from_numpy(train.view_labels)
    optimizer = torch.optim.AdamW(probe.parameters(), 3e-3, weight_decay=0.05)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, STEPS)
    for _ in range(STEPS):
        rows = torch.randperm(len(maps))[:64]
        optimizer.zero_grad()
        torch.nn.functional.cross_entropy(probe(maps[rows]), labels[rows]).backward()
        optimizer.step()
        schedule.step()
    scores = probe(torch.from_numpy(test.features)).softmax(1).detach().numpy()
    return np.stack([scores[test.video == place].mean(0) for place in range(len(test.labels))])


def noise(count, views, seed):
    """`count` videos of each of three classes, which hardly differ: maps (V, 16, 2, 2, 1)."""
    rng = np.random.default_rng(seed)
    labels = np.repeat(np.arange(3), count)
    video = np.repeat(np.arange(len(labels)), views)
    maps = rng.normal(1, 2, (len(video), 16, 2, 2, 1)) + 0.3 * labels[video, None, None, None, None]
    return VideoViews(maps.astype(np.float32), video, labels)


def test_probes_that_are_trained_at_once_are_those_of_a_plain_loop_one_by_one(monkeypatch):
    monkeypatch.setattr(probes, "STEPS", STEPS)
    train, test = noise(25, 1, seed=1), noise(4, 2, seed=2)
    draws = [*(probes.choose(train.labels, 22, np.random.default_rng(draw)) for draw in range(2)), np.arange(75)]
    wanted = [plain_scores(train.of(places), test, 3, seed=5) for places in draws]
    for together in (probes.TOGETHER, 1):
        monkeypatch.setattr(probes, "TOGETHER", together)
        found = [*probes.attentive_scores(train, draws, test, 3, seed=5)]
        assert np.abs(np.stack(found) - wanted).max() < 1e-4
    assert np.abs(found[0] - found[1]).max() > 0.02


def test_the_attentive_probe_finds_what_the_mean_of_the_tokens_hides():
    """The class is the sign of some channels of the one token that is marked; those of other tokens are random."""

    def maps(count, seed):
        rng = np.random.default_rng(seed)
        labels = np.arange(count) % 2
        values = rng.normal(size=(count, 16, 2, 3, 3)).astype(np.float32)
        signs = rng.choice([-1, 1], size=(count, 2, 3, 3))
        for place, label in enumerate(labels):
            where = tuple(rng.integers(size) for size in (2, 3, 3))
            signs[(place, *where)] = 2 * label - 1
            values[(place, slice(0, 4), *where)] += 3
        values[:, 4:8] += 3 * signs[:, None]
        return VideoViews(values, np.arange(count), labels)

    train, test = maps(80, 0), maps(100, 1)
    everything = [np.arange(80)]
    attentive = next(probes.attentive_scores(train, everything, test, 2, 0)).argmax(1) == test.labels
    train, test = (VideoViews(one.features.mean((2, 3, 4)), one.video, one.labels) for one in (train, test))
    linear = next(probes.linear_scores(train, everything, test, 2, 0)).argmax(1) == test.labels
    assert attentive.mean() > 0.8 > 0.7 > linear.mean()


def test_every_method_sees_the_same_draw_which_has_the_same_number_of_each_class():
    rng = np.random.default_rng(0)
    labels = np.array([0, 0, 0, 2, 2, 2, 2, 5, 5])
    places = probes.choose(labels, 2, rng)
    assert sorted(labels[places]) == [0, 0, 2, 2, 5, 5] and len({*places.tolist()}) == 6
    train, test = clouds(5), clouds(4, seed=1)
    found = probes.measure(
        {"nearest neighbours": (train, test), "logistic regression": (train, test)}, 3, [1, None], 4, 0
    )
    again = probes.measure({"logistic regression": (train, test)}, 3, [1], 4, 0)
    assert [(one.shots, one.hits.shape) for one in found] == [(1, (4, 12)), (None, (1, 12))] * 2
    assert (again[0].hits == found[2].hits).all()
    assert probes.usual_shots(np.repeat([0, 1], [8, 30])) == [1, 2, 4]


def test_a_video_that_could_not_be_decoded_counts_as_wrong():
    test = clouds(4, seed=1, spread=0.01)
    kept = test.video != 5
    test = VideoViews(test.features[kept], test.video[kept], test.labels)
    [found] = probes.measure({"logistic regression": (clouds(4, spread=0.01), test)}, 3, [None], 1, 0)
    assert found.hits[0].tolist() == [place != 5 for place in range(12)]


def test_the_interval_of_several_draws_covers_both_what_is_drawn_and_what_is_tested():
    one = np.random.default_rng(0).random(400) < 0.7
    same = Shots("", 4, np.tile(one, (10, 1)))
    low, high = same.interval_95
    assert np.allclose([low, high], wilson(int(one.sum()), 400), atol=1.5), "no draw differs: that of the test videos"
    different = Shots("", 4, np.repeat([[True], [False]], 5, 0) & np.ones((10, 400), bool))
    assert different.top1 == 50 and different.interval_95[0] < 30 < 70 < different.interval_95[1]
    assert Shots("", None, one[None]).interval_95 == wilson(int(one.sum()), 400)
