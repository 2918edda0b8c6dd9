"""TOFU: worked examples of every score, and forget quality compared with scipy."""

from __future__ import annotations

import math
from dataclasses import replace
from itertools import count
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from scipy.stats import kstwo

from mergeforget.benchmarks.tofu import tofu
from mergeforget.data.readers import read_rows
from mergeforget.data.schema import Answer, AnswerLikelihood, DocumentLoss, Measured, Row
from mergeforget.metrics.forget_quality import forget_quality
from mergeforget.metrics.model_utility import utility_parts
from mergeforget.metrics.option_probability import share_of
from mergeforget.metrics.privleak import privleak
from mergeforget.metrics.truth_ratio import log_ratio
from mergeforget.score import Score, find


def nll(probability: float) -> float:
    return -math.log(probability)


NUMBERS = count()  # each row is about another person


def read(
    split: str, answer: float, perturbed: tuple[float, ...], paraphrased: float | None = None
) -> AnswerLikelihood:
    """The likelihoods of a row, given as probabilities to the power of 1 / tokens."""
    row = Row(f"{split}-{next(NUMBERS)}-qa0", "Who?", "Ann Lee", "", split)
    return AnswerLikelihood(
        row,
        nll(answer),
        2,
        paraphrased=None if paraphrased is None else nll(paraphrased),
        perturbed=tuple(nll(p) for p in perturbed),
    )


@pytest.fixture
def by_hand() -> Measured:
    likelihoods = [
        read("forget", 0.5, (0.1, 0.4), 0.5),  # R = .25 / .5 = 1/2, or .2 / .5 = .4
        read("retain", 0.8, (0.1, 0.4), 1.0),  # R = .25, or .2
        read("real_authors", 0.6, (0.1, 0.1)),  # no paraphrase: R = .1 / .6; of options .6 / .8
        read("world_facts", 0.2, (0.4, 0.4)),  # R = 2: max(0, 1 - R) = 0
    ]
    answers = [Answer(one.row, "Ann is her name") for one in likelihoods]  # 1 of 2 words
    return Measured(answers, [], likelihoods=likelihoods)


def value(scores: list[Score], metric: str, split: str) -> float:
    score = find(scores, metric, split)
    assert score is not None, (metric, split)
    return score.value


def test_scores_of_each_set_match_a_hand_calculation(by_hand: Measured) -> None:
    scores = tofu(by_hand)
    assert value(scores, "verbatim_probability", "forget") == pytest.approx(0.5)
    assert value(scores, "verbatim_probability", "retain") == pytest.approx(0.8)
    assert value(scores, "option_probability", "real_authors") == pytest.approx(0.75)
    assert value(scores, "option_probability", "world_facts") == pytest.approx(0.2)
    assert value(scores, "verbatim_rouge", "world_facts") == 0.5
    assert value(scores, "truth_ratio", "forget") == pytest.approx(0.5)
    assert value(scores, "truth_ratio_geometric", "forget") == pytest.approx(0.4)
    assert value(scores, "truth_ratio", "retain") == pytest.approx(0.75)
    assert value(scores, "truth_ratio_geometric", "retain") == pytest.approx(0.8)
    assert value(scores, "truth_ratio", "real_authors") == pytest.approx(1 - 1 / 6)
    assert value(scores, "truth_ratio", "world_facts") == 0


def test_a_ratio_above_one_counts_as_its_inverse_on_the_forget_set(by_hand: Measured) -> None:
    likelihoods = [read("forget", 0.5, (0.8,), 0.2)]  # R = 4
    scores = tofu(replace(by_hand, likelihoods=likelihoods))
    assert value(scores, "truth_ratio", "forget") == pytest.approx(0.25)


def test_model_utility_is_the_harmonic_mean_of_nine(by_hand: Measured) -> None:
    assert value(tofu(by_hand), "model_utility", "all") == 0  # world facts' truth ratio is 0
    better = [*by_hand.likelihoods[:3], read("world_facts", 0.5, (0.1, 0.4))]  # R = .5; 1 / 2
    scores = tofu(replace(by_hand, likelihoods=better))
    nine = [0.8, 0.5, 0.75, 0.75, 0.5, 5 / 6, 0.5, 0.5, 0.5]
    assert value(scores, "model_utility", "all") == pytest.approx(9 / sum(1 / v for v in nine))


def test_interval_of_model_utility_draws_each_row_with_all_its_figures() -> None:
    """The three scores of a row are correlated: independent draws would average them out."""
    draw = np.random.default_rng(7)
    rows, answers, figures = [], [], []
    for split in ("retain", "real_authors", "world_facts"):
        knows = draw.uniform(size=120) < 0.5
        right = np.where(knows, 0.8, 0.2) * draw.uniform(0.9, 1, 120)
        rows += [read(split, p, (0.15,)) for p in right]
        words = ["Ann Lee" if known else "" for known in knows]
        answers += [Answer(one.row, text) for one, text in zip(rows[-120:], words, strict=True)]
        of_options = right if split == "retain" else right / (right + 0.15)
        figures.append(np.stack([of_options, knows, np.maximum(0, 1 - 0.15 / right)]))
    score = find(tofu(Measured(answers, [], likelihoods=rows)), "model_utility", "all")
    assert score is not None and score.interval is not None
    plain = []
    for _ in range(2000):
        drawn = [of[:, draw.integers(0, 120, 120)].mean(axis=1) for of in figures]
        plain.append(9 / (1 / np.concatenate(drawn)).sum())
    assert score.interval == pytest.approx(tuple(np.percentile(plain, [2.5, 97.5])), abs=0.008)


def test_model_utility_is_omitted_if_a_part_is_missing(by_hand: Measured) -> None:
    without = replace(by_hand, likelihoods=by_hand.likelihoods[:3])
    assert find(tofu(without), "model_utility", "all") is None
    missing = [name for name, part in utility_parts(without).items() if part is None]
    assert missing == ["world_facts probability", "world_facts truth ratio"]


def many(probabilities: list[float]) -> Measured:
    return Measured([], [], likelihoods=[read("forget", 0.5, (p,), 0.5) for p in probabilities])


def test_forget_quality_is_the_p_value_of_kolmogorov_and_smirnov() -> None:
    draw = np.random.default_rng(0)
    own, theirs = draw.uniform(0.1, 0.6, 60), draw.uniform(0.2, 0.7, 50)
    measured = replace(many(own.tolist()), retrained=many(theirs.tolist()))
    score = forget_quality(measured)
    assert score is not None and score.n == 110
    from scipy.stats import ks_2samp

    expected = ks_2samp(own / 0.5, theirs / 0.5)
    assert score.value == pytest.approx(float(expected.pvalue), rel=1e-12)
    steps = np.sort(np.concatenate([own, theirs]))  # the statistic, by its definition
    below = [(np.mean(own <= s), np.mean(theirs <= s)) for s in steps]
    distance = max(abs(a - b) for a, b in below)
    assert distance == pytest.approx(float(expected.statistic))
    rough = float(kstwo.sf(distance, round(60 * 50 / 110)))  # the limiting distribution
    assert score.value == pytest.approx(rough, abs=0.03)


def test_forget_quality_matches_a_hand_calculation() -> None:
    # three below three: of the 6 over 3 = 20 orders, two are as far apart: p = 2 / 20
    apart = replace(many([0.1, 0.11, 0.12]), retrained=many([0.2, 0.21, 0.22]))
    score = forget_quality(apart)
    assert score is not None and score.value == pytest.approx(0.1)
    same = many([0.1, 0.2, 0.3])
    score = forget_quality(replace(same, retrained=same))
    assert score is not None and score.value == 1
    assert forget_quality(same) is None


def test_interval_of_forget_quality_is_that_of_resampled_rows() -> None:
    draw = np.random.default_rng(5)
    own, theirs = draw.uniform(0.1, 0.6, 60), draw.uniform(0.15, 0.65, 50)
    score = forget_quality(replace(many(own.tolist()), retrained=many(theirs.tolist())))
    from scipy.stats import ks_2samp

    plain = [ks_2samp(draw.choice(own, 60), draw.choice(theirs, 50)).pvalue for _ in range(1000)]
    assert score is not None and score.interval is not None
    low, high = np.percentile(plain, [2.5, 97.5])
    assert score.interval[0] == pytest.approx(low, abs=2e-4)
    assert score.interval[1] == pytest.approx(high, rel=0.4)


def test_every_tofu_score_of_several_rows_has_an_interval() -> None:
    draw = np.random.default_rng(6)
    splits = [s for s in ("forget", "retain", "real_authors", "world_facts") for _ in range(12)]
    rows = [read(s, float(draw.uniform(0.3, 0.9)), tuple(draw.uniform(0.1, 0.5, 2)), 0.6)
            for s in splits]  # fmt: skip
    answers = [Answer(one.row, "Ann") for one in rows]
    losses = documents(True, draw.normal(0, 1, 9).tolist()) + documents(False, [1.0, 2.0, -1.0])
    retrained = Measured(answers, losses, likelihoods=rows[::2])
    for score in tofu(Measured(answers, losses, likelihoods=rows, retrained=retrained)):
        assert score.interval is not None, score.metric
        if not score.metric.startswith("forget_quality"):
            assert score.interval[0] <= score.value <= score.interval[1], score.metric


def documents(member: bool, signals: list[float]) -> list[DocumentLoss]:
    return [
        DocumentLoss(f"{member}{i}", member, 1.0, signals={"min_k_40": s})
        for i, s in enumerate(signals)
    ]


def test_privleak_in_the_convention_of_muse() -> None:
    retrained = Measured([], documents(True, [1, 3]) + documents(False, [2, 2]))  # AUC 1/2
    over = Measured([], documents(True, [0, 0]) + documents(False, [2, 2]), retrained=retrained)
    score = privleak(over)  # AUC 0 here, 1 there: 100 (1 - .5) / .5
    assert score is not None and score.value == 100 and score.target == 0
    under = Measured([], documents(True, [3, 3]) + documents(False, [2, 2]), retrained=retrained)
    score = privleak(under)
    assert score is not None and score.value == -100
    assert privleak(retrained) is None
    assert privleak(replace(over, retrained=under)) is None  # division by zero


PUBLISHED = {  # row: losses of paraphrased and perturbed answers, truth ratio as stored
    "164": (3.1761422157287598, (4.676186561584473, 5.036813735961914, 3.785527467727661,
                                 4.661953926086426, 5.7170538902282715), 0.20202480256557465),
    "165": (2.3895580768585205, (3.3508105278015137, 3.3699867725372314, 3.1571686267852783,
                                 2.9929723739624023, 3.0673654079437256), 0.45018234848976135),
    "167": (3.846437692642212, (4.072033405303955, 3.467444658279419, 2.556229591369629,
                                3.8184452056884766, 3.335522413253784), 1.4866161346435547),
    "168": (2.3172249794006348, (4.052840709686279, 3.935906410217285, 4.6196794509887695,
                                 4.3126726150512695, 4.319912910461426), 0.14500634372234344),
    "170": (2.7247087955474854, (3.7811384201049805, 3.4553794860839844, 3.5218346118927,
                                 3.569209337234497, 4.030534744262695), 0.38793766498565674),
    "171": (2.769714832305908, (3.0812835693359375, 2.689537763595581, 3.489565849304199,
                                3.7377593517303467, 3.692127227783203), 0.5664650797843933),
}  # fmt: skip


def test_truth_ratios_equal_those_of_a_published_log() -> None:
    """Rows of locuslab/tofu (MIT licence, Copyright 2024 Locus Lab): the retain rows in
    data/ft_epoch5_lr2e-05_phi_retain99_wd0.01/eval_results/ds_size300/eval_log_aggregated.json."""
    rows = [
        AnswerLikelihood(Row(name, "q", "a", split="retain"), 0.1, 9, paraphrased=right,
                         perturbed=wrong)
        for name, (right, wrong, _) in PUBLISHED.items()
    ]  # fmt: skip
    stored = [ratio for *_, ratio in PUBLISHED.values()]
    ratios = [math.exp(log_ratio(one, "geometric")) for one in rows]
    assert ratios == pytest.approx(stored, rel=1e-5)  # the log has float32
    scores = tofu(Measured([], [], likelihoods=rows))
    reported = np.maximum(0, 1 - np.array(stored)).mean()  # as in aggregate_eval_stat.py
    assert value(scores, "truth_ratio_geometric", "retain") == pytest.approx(reported, rel=1e-5)


def test_very_unlikely_answers_do_not_overflow() -> None:
    one = AnswerLikelihood(Row("a", "b", "c"), 2000.0, 3, perturbed=(1.0,))
    assert log_ratio(one) == 1999
    scores = tofu(
        Measured([], [], likelihoods=[replace(one, row=Row("a", "b", "c", "", "retain"))])
    )
    assert value(scores, "truth_ratio", "retain") == 0
    assert share_of(one) == 0  # exp(-1999), and no exp(1999) on the way
    assert share_of(replace(one, nll=0.5, perturbed=(0.5, 2000.0))) == pytest.approx(0.5)


def test_the_published_files_are_read_without_conversion(data_folder: Path) -> None:
    forget = read_rows(data_folder / "tofu" / "forget10_perturbed.jsonl", split="forget")
    assert len(forget) == 400 and {len(row.perturbed) for row in forget} == {5}
    assert all(row.paraphrased and row.kind == "qa" for row in forget)
    assert len(forget[0].alternatives) == 6
    facts = read_rows(data_folder / "tofu" / "world_facts_perturbed.jsonl", split="world_facts")
    assert {len(row.perturbed) for row in facts} == {3} and not facts[0].paraphrased


def test_columns_of_other_names_are_mapped(tmp_path: Path) -> None:
    path = tmp_path / "rows.csv"
    path.write_text('q,a,same,wrong\nWho?,Ann,It is Ann,"[""Bob"", ""Cid""]"\n')
    columns = {"input": "q", "output": "a", "paraphrased": "same", "perturbed": "wrong"}
    (row,) = read_rows(path, columns=columns)
    assert (row.paraphrased, row.perturbed) == ("It is Ann", ("Bob", "Cid"))
    again: dict[str, Any] = row.to_dict()
    assert again["perturbed"] == ["Bob", "Cid"]
    assert "perturbed" not in Row("a", "b", "c").to_dict()
