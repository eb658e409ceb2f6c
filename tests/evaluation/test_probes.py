import numpy as np
import pytest
import torch

from mvit_video.evaluation import probes
from mvit_video.evaluation.metrics import wilson
from mvit_video.evaluation.probes import AttentiveProbe, Shots, VideoViews

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
    assert probes.fit_linear(clouds(1), 3, 0).strength == probes.USUAL_STRENGTH, "nothing can be held out"


def test_nearest_neighbours_vote_by_their_cosine_as_a_loop_counts():
    train, test = clouds(10), clouds(3, seed=1)
    known = np.stack([train.features[train.video == place].mean(0, dtype=np.float64) for place in range(30)])
    middle = known.mean(0)
    found = probes.nearest_scores(train, test, 3, 0)
    for place in range(len(test.labels)):
        asked = test.features[test.video == place].mean(0, dtype=np.float64) - middle
        near = [float(asked @ one / np.linalg.norm(asked) / np.linalg.norm(one)) for one in known - middle]
        votes = np.zeros(3)
        for other in sorted(range(30), key=lambda other: -near[other])[:20]:
            votes[train.labels[other]] += np.exp(near[other] / 0.07)
        assert np.allclose(found[place], votes / votes.sum(), atol=1e-6)


def test_the_attentive_probe_is_a_loop_over_its_queries():
    torch.manual_seed(0)
    probe, tokens = AttentiveProbe(16, 3), torch.randn(2, 5, 16)
    probe.queries.data.normal_()
    x, parts = probe.norm(tokens), []
    for number, query in enumerate(probe.queries):
        weights = (x @ query).softmax(1)  # (B, N)
        rows = slice(2 * number, 2 * number + 2)
        gathered = (weights[..., None] * x).sum(1)
        parts.append(gathered @ probe.value.weight[rows].T + probe.value.bias[rows])
    assert torch.allclose(probe(tokens), probe.head(torch.cat(parts, 1)), atol=1e-5)


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
    attentive = probes.attentive_scores(train, test, 2, 0).argmax(1) == test.labels
    train, test = (VideoViews(one.features.mean((2, 3, 4)), one.video, one.labels) for one in (train, test))
    linear = probes.linear_scores(train, test, 2, 0).argmax(1) == test.labels
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
