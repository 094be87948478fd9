"""Claims get their verdict from numbers, rows of different kinds are never mixed, and texts are well formed."""

import dataclasses
import inspect
import json

import pandas as pd
import pytest

from dipp_core.book import claims, results, tables
from dipp_core.book.claims import Check
from dipp_core.book.report import Report
from dipp_core.book.results import LESS, Number
from dipp_core.files import InputError

BOUNDS = claims.Bounds(identity=1e-10, near=0.15, accuracy=0.05, share=0.1, settled=0.01)
GAIN = "24_miniature_results:gains.unet.dipp over diff_instruct.gold"


@pytest.fixture(scope="module")
def book():
    found = results.read()
    if "smoke" in found.scales.values():
        pytest.skip("a reader's run at smoke scale promises nothing")
    return found


def test_a_key_may_hold_dots_and_a_number_may_come_in_three_forms(book):
    content = {"table": {"reference 1.5": {"gold": {"value": 0.5, "low": 0.4, "high": 0.6}}}, "kl_0.5": [1, 0, 2]}
    small = dataclasses.replace(book, metrics={"x": content | {"plain": 3, "yes": True}})
    assert results.number(small, "x:table.reference 1.5.gold") == Number(0.5, 0.4, 0.6, "x:table.reference 1.5.gold")
    assert results.number(small, "x:kl_0.5") == Number(1.0, 0.0, 2.0, "x:kl_0.5")
    assert results.number(small, "x:plain").value == 3
    for nothing in ("x:yes", "x:table", "x:not there", "y:plain"):
        assert results.number(small, nothing) is None


def test_a_difference_of_two_numbers_has_no_interval(book):
    small = dataclasses.replace(book, metrics={"x": {"a": [5.0, 2.0, 9.0], "b": [1.0, -3.0, 4.0]}})
    found = results.number(small, f"x:a{LESS}x:b")
    assert (found.value, found.low) == (4.0, None)
    assert results.number(small, f"x:a{LESS}x:gone") is None


def test_a_reported_number_is_found_and_an_unclear_name_is_refused(book):
    source = "reported:distar_readme / table 3 / DI++-SDXL / 100 / 7.5 / image_reward"
    assert results.number(book, source).value == 1.061
    assert results.number(book, source.replace("100", "101")) is None
    with pytest.raises(ValueError, match="is named by"):
        results.number(book, "reported:dipp / headline")


@pytest.mark.parametrize(
    ("found", "text"),
    [
        (Number(0.76271, 0.73502, 0.78534), "0.763 (0.735 to 0.785)"),
        (Number(0.024, 0.0136, 0.038, GAIN), "+0.024 (+0.014 to +0.038)"),
        (Number(-0.0001, -0.03, 0.03, GAIN), "+0.000 (-0.030 to +0.030)"),
        (Number(96.8, 80.8, 113.1), "97 (81 to 113)"),
        (Number(6.09e-15), "6.1e-15"),
        (Number(8.0), "8"),
        (Number(28.7, source="reported:a / b / c /  /  / hpsv2_0"), "28.70"),
        (Number(111.0, source="reported:a / b / c /  /  / seconds_per_10_images"), "111"),
        (Number(0.226, source="reported:a / b / c /  /  / pickscore"), "0.2260"),
    ],
)
def test_numbers_are_told_with_as_many_digits_as_they_deserve(found, text):
    assert results.in_words(found) == text


@pytest.fixture
def bare(tmp_path, monkeypatch, book):
    """A checkout with metrics and reported numbers only."""
    for stage, content in book.metrics.items():
        path = tmp_path / "reports" / "metrics" / f"{stage}.json"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(content))
    folder = tmp_path / "data" / "reported"
    folder.mkdir(parents=True)
    book.reported.to_csv(folder / "reported.csv", index=False)
    pd.DataFrame(book.origins.items(), columns=["source", "what"]).to_csv(folder / "sources.csv", index=False)
    monkeypatch.setenv("DIPP_ROOT", str(tmp_path))
    monkeypatch.delenv("DIPP_RESULTS", raising=False)
    return tmp_path


def test_missing_and_broken_metrics_are_one_line(bare):
    assert results.read().scales["24_miniature_results"] == "unknown"
    path = bare / "reports/metrics/24_miniature_results.json"
    for text, message in (
        ("{", "cannot be read"),
        ("[]", "holds no table"),
        (None, "is missing; run `make repro STAGE=24_"),
    ):
        path.unlink() if text is None else path.write_text(text)
        with pytest.raises(InputError, match=message) as caught:
            results.read()
        assert "\n" not in str(caught.value)


def test_results_of_this_run_come_before_the_published_ones(bare, tmp_path, monkeypatch):
    own = tmp_path / "own"
    (own / "metrics").mkdir(parents=True)
    (own / "manifests").mkdir()
    (own / "metrics/12_pareto_2d.json").write_text('{"a": 1}')
    (own / "manifests/12_pareto_2d.json").write_text('{"scale": "smoke"}')
    monkeypatch.setenv("DIPP_RESULTS", str(own))
    found = results.read()
    assert found.metrics["12_pareto_2d"] == {"a": 1}
    assert (found.scales["12_pareto_2d"], found.scales["11_alignment_2d"]) == ("smoke", "unknown")


@pytest.mark.parametrize(
    ("rule", "found", "exact", "expected"),
    [
        ("above", Number(1, 0.1, 2), False, "met"),
        ("above", Number(1, -0.1, 2), False, "open"),
        ("above", Number(-1, -2, -0.1), False, "failed"),
        ("below", Number(-1, -2, -0.1), False, "met"),
        ("below", Number(1, 0.1, 2), False, "failed"),
        ("above", Number(5.0), False, "open"),
        ("above", Number(0.0), True, "failed"),
        ("below", Number(-1e-9), True, "met"),
        ("above", None, False, "not run here"),
    ],
)
def test_a_test_is_met_or_failed_only_where_the_whole_interval_is(rule, found, exact, expected):
    assert claims.outcome(Check("", (), "", rule, exact=exact), found) == expected


@pytest.mark.parametrize(
    ("outcomes", "expected"),
    [
        (["met", "met"], "yes"),
        (["met", "open"], "open"),
        (["met", "failed"], "mixed"),
        (["failed", "open"], "no"),
        (["open", "not run here"], "open"),
        ([], "open"),
    ],
)
def test_the_answer_is_a_function_of_the_outcomes(outcomes, expected):
    assert claims.answer(outcomes) == expected


@pytest.mark.parametrize(
    ("answers", "expected"),
    [
        (["yes", "yes"], "supported"),
        (["yes", "open"], "partly"),
        (["mixed", "open"], "partly"),
        (["yes", "yes", "yes", "no"], "contradicted"),
        (["open", "open"], "undecided"),
        ([], "undecided"),
    ],
)
def test_the_verdict_is_a_function_of_the_answers(answers, expected):
    assert claims.verdict(answers) == expected


def test_no_number_serves_two_claims_and_every_test_has_another_cell():
    serves = {}
    for claim in claims.all_claims(BOUNDS):
        for check in claim.checks:
            assert serves.setdefault(check.source, claim.name) == claim.name
        cells = [(check.about, check.cell) for check in claim.checks]
        assert len(set(cells)) == len(cells)


@pytest.fixture
def told(book):
    """A book in which every test is met: each number on the right side of its bound, with a narrow interval."""
    metrics = {}
    for claim in claims.all_claims(BOUNDS):
        for check in claim.checks:
            stage, _, key = check.source.partition(":")
            value = check.bound + (1e-3 if check.rule == "above" else -1e-3) * max(1e-9, abs(check.bound) or 1.0)
            if key.endswith(".late"):
                value = 0.0
            metrics.setdefault(stage, {})[key] = value if check.exact else [value, value - 1e-6, value + 1e-6]
    return dataclasses.replace(book, metrics=metrics)


def with_number(book, source, value):
    stage, _, key = source.partition(":")
    return dataclasses.replace(book, metrics={**book.metrics, stage: {**book.metrics[stage], key: value}})


def test_every_claim_can_be_supported_and_every_claim_can_be_contradicted(told):
    for claim in claims.all_claims(BOUNDS):
        assert claims.judged(claim, told)[1] == "supported", claim.name
        for about in dict.fromkeys(check.about for check in claim.checks):
            worse = told
            for check in claim.checks:
                if check.about == about:
                    value = check.bound + (-1.0 if check.rule == "above" else 1.0)
                    worse = with_number(
                        worse, check.source, value if check.exact else [value, value - 0.1, value + 0.1]
                    )
            assert claims.judged(claim, worse)[1] == "contradicted", about
        bare = dataclasses.replace(told, metrics={})
        assert claims.judged(claim, bare)[1] == "undecided"


def test_levelling_off_is_told_from_over_optimisation(told):
    over = told
    for net in claims.NETS:
        for method in claims.METHODS:
            over = with_number(over, f"24_miniature_results:settling.{net}.{method}.late", [-0.05, -0.06, -0.04])
    claim = next(one for one in claims.all_claims(BOUNDS) if one.name == "convergence")
    answers = claims.answers(claims.judged(claim, over)[0])
    assert [found for about, found in answers.items() if "over-optimised" in about] == ["no"]
    assert [found for about, found in answers.items() if "levelled off" in about] == ["yes"]


def test_a_verdict_that_hangs_on_one_comparator_or_bound_is_shown(told):
    source = "24_miniature_results:against_reference.{}.dipp.steps 4.gold"
    changed_book = told
    for net in claims.NETS:
        changed_book = with_number(changed_book, source.format(net), [-0.1, -0.2, -0.05])
    found = tables.turned(changed_book, BOUNDS)
    rows = found[found["claim"] == "One step rivals many"]
    assert {"reference at steps 4 alone", "reference at steps 4 left out"} <= set(rows["with"])
    near = with_number(told, "11_alignment_2d:cfg_sw2_to_cfg_optimum.worst", [0.1, 0.09, 0.11])
    assert "near x 0.5" in set(tables.turned(near, BOUNDS)["with"])


def test_algorithm_1_takes_no_pictures():
    from dipp_core.method.algorithm import align

    assert not {"images", "data", "pictures", "dataset", "loader"} & set(inspect.signature(align).parameters)


def test_the_tables_that_are_published_are_those_of_the_committed_numbers(book, tmp_path, checkout):
    """Byte for byte, in all three forms."""
    tables.publish(Report("41_paper_and_here", tmp_path), book, tables.bounds())
    committed = checkout / "reports/tables/41_paper_and_here"
    made = sorted((tmp_path / "tables/41_paper_and_here").iterdir())
    assert {path.name for path in committed.iterdir()} - {path.name for path in made} == {"not_met.csv"}
    assert [path.name for path in made if path.read_bytes() != (committed / path.name).read_bytes()] == []


def test_every_reported_number_stands_in_one_table_and_shares_no_row_or_scale_with_another_kind(book):
    found = []
    for table in tables.tables(book):
        for row in table.rows:
            sources = [cell.source for cell in row.cells.values() if cell is not None]
            assert all(source.startswith("reported:") == row.kind.startswith("reported") for source in sources)
            found += [source for source in sources if source.startswith("reported:")]
        metrics = " ".join(metric for row in table.rows for metric in row.cells)
        assert not ("hpsv2_0" in metrics and "hpsv2_1" in metrics)
    assert sorted(found) == sorted(results.reported_source(row) for row in book.reported.to_dict("records"))


def test_open_questions_and_findings_name_notebooks_that_are_there(book, checkout):
    questions = pd.read_csv(checkout / "data/reported/questions.csv", dtype=str, keep_default_na=False)
    named = [stage for stages in questions["stages"] for stage in stages.split("; ")]
    sources = [source for cell in questions["sources"] for source in cell.split("; ") if source]
    for kind in ("negatives", "beyond"):
        sources += list(tables.findings(book, kind)["source"])
        named += [stage for one in claims.read_claims()[kind] for stage in one["stages"]]
    assert {source.partition(":")[0] for source in sources} <= set(results.METRICS)
    assert all((checkout / f"notebooks/{stage}.ipynb").is_file() for stage in named)
    assert list(tables.questions(book, base=None)["question"]) == list(questions["question"])


def test_signs_of_markdown_and_latex_are_escaped():
    text = tables.markdown_rows(pd.DataFrame({"a": ["x | y*"], "b": ["[0](c)"]}), raw=("b",))
    assert text.splitlines()[2] == r"| x &#124; y\* | [0](c) |"
    text = tables.latex("A_title", "100%", [("x & y", pd.DataFrame({"a_b": ["50% & {more} #1 ~ \\ $ <é>"]}))])
    assert r"50\% \& \{more\} \#1 \textasciitilde{} \textbackslash{} \$ \textless{}\'e\textgreater{} \\" in text
    assert r"\caption{A\_title. 100\%}" in text


def test_full_scale_rows_appear_when_they_were_run_and_not_before(book):
    content = {
        "run": "true",
        "random_weights": 0,
        "models": {"ours": {"image_reward": [0.5, 0.4, 0.6], "hpsv2.1": 28.0, "other": 1}},
    }
    at = {"metrics": {**book.metrics, "40_evaluation": content}}
    assert not tables.full_scale_rows(dataclasses.replace(book, **at))
    smoke = dataclasses.replace(book, **at, scales={**book.scales, "40_evaluation": "smoke"})
    assert not tables.full_scale_rows(smoke)
    full = dataclasses.replace(book, **at, scales={**book.scales, "40_evaluation": "full"})
    (row,) = tables.full_scale_rows(full)
    assert row.labels == {"model": "models, ours"}
    assert row.cells["hpsv2_1"] == Number(28.0, source="40_evaluation:models.ours.hpsv2.1")
    made = {table.name: table for table in tables.tables(full)}
    assert made["distar_hpsv2_1"].rows[-1].cells["hpsv2_1"].value == 28.0
    assert made["hpsv2_0_leaderboard"].rows[-1].cells["hpsv2_0"] is None
    for no_result in ({"run": "not run here"}, {"random_weights": 1}):
        skipped = dataclasses.replace(full, metrics={**full.metrics, "40_evaluation": content | no_result})
        assert not tables.full_scale_rows(skipped)


def test_what_is_drawn_instead_is_there(checkout):
    frame = pd.read_csv(checkout / "data/reported/figures.csv", dtype=str, keep_default_na=False)
    for row in frame.to_dict("records"):
        if row["figure"] and row["stage"] != "41_paper_and_here":
            assert (checkout / f"reports/figures/{row['stage']}/{row['figure']}.png").is_file(), row
            assert (checkout / f"notebooks/{row['stage']}.ipynb").is_file(), row
