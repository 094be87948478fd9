"""The first page's numbers are those of the metrics and tables, and what was not made is left out."""

import json

import pytest

from dipp_core.book import landing

HEAD = "architecture,method,gold,gold_low,gold_high,reward,reward_low,reward_high"
HEAD += ",accuracy,accuracy_low,accuracy_high,diversity,diversity_low,diversity_high\n"


@pytest.fixture
def reports(tmp_path):
    (tmp_path / "metrics").mkdir()
    (tmp_path / "metrics/02_integral_kl.json").write_text(json.dumps({"ikl_grad_rel_err_exact": 3.2e-16, "other": 1}))
    (tmp_path / "tables/24_miniature_results").mkdir(parents=True)
    rows = "UNet,DI++,0.7627,0.7350,0.7853,2.91,2.6,3.1,0.9,0.8,1,0.035,0.03,0.04\nUNet,unknown" + ",1" * 12 + "\n"
    (tmp_path / "tables/24_miniature_results/results.csv").write_text(HEAD + rows)
    return tmp_path


def test_numbers_come_from_the_files(reports):
    miniature, checked = landing.results(reports, {"02_integral_kl", "24_miniature_results"})
    assert checked.rows == (
        (landing.CHECKED[0][0], "3e-16", "below 1e-10", '<a href="site/02_integral_kl.html">02</a>'),
    )
    assert len(miniature.rows) == 1
    assert miniature.rows[0][:2] == ("UNet, <strong>DI++</strong>", "0.763 <small>[0.735, 0.785]</small>")
    assert len(miniature.rows[0]) == len(miniature.columns)


def test_claims_lead_to_the_chapters_that_were_made(reports):
    (reports / "tables/41_paper_and_here").mkdir()
    text = 'claim,evidence,verdict,notebooks\nReward up,"so, so",partly,"02, 23"\n'
    (reports / "tables/41_paper_and_here/claims.csv").write_text(text)
    (claims,) = landing.results(reports, {"41_paper_and_here", "02_two"})
    assert claims.rows == (("Reward up", '<span class="verdict">partly</span>', '<a href="site/02_two.html">02</a>'),)


def test_what_has_no_chapter_is_left_out(reports):
    assert landing.results(reports, set()) == []


@pytest.mark.parametrize(("value", "text"), [(0, "0"), (2.4e-5, "2e-05"), (0.0019, "0.002"), (1.5, "1.5")])
def test_numbers_are_short(value, text):
    assert landing.number(value) == text


def test_claims_are_measured_by_metrics_that_exist(checkout):
    for _, stem, key, bar in landing.CHECKED:
        value = json.loads((checkout / f"reports/metrics/{stem}.json").read_text())[key]
        assert value < float(bar.removeprefix("below "))
