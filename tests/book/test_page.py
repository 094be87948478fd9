"""The page of a notebook: complete, without network, and the same whenever the results are the same."""

import base64
import re

import nbformat.v4 as nb
import pytest

from dipp_core.book import page

PNG = b"\x89PNG of a curve"


def picture(content=PNG, **metadata):
    data = {"image/png": base64.b64encode(content).decode(), "text/plain": "<Image>"}
    return nb.new_output("display_data", data=data, metadata=metadata)


def page_of(*outputs, source="1 + 1", tags=(), figures=None):
    code = nb.new_code_cell(source, outputs=list(outputs), metadata={"tags": list(tags)})
    return page.render(nb.new_notebook(cells=[nb.new_markdown_cell("# A title"), code]), figures)


# ---------------------------------------------------------------------------------------------------------- formulas


def test_a_formula_becomes_mathml():
    assert re.search(r'see <math [^>]*display="inline">.*<msub><mi>&#x003B1;', page.markdown(r"see $\alpha_t$"))


@pytest.mark.parametrize(
    "text", ["$$x_t$$", "\\begin{align}x &= 1\\end{align}", "$$\n\\begin{pmatrix}a\\end{pmatrix}\n$$"]
)
def test_a_display_formula_becomes_mathml(text):
    assert 'display="block"' in page.markdown(text)


def test_a_formula_in_code_stays_code():
    assert page.markdown("`$x$`") == "<p><code>$x$</code></p>\n"


@pytest.mark.parametrize(
    "tex",
    [r"\notacommand x", r"a & b", r"a \\ b", r"\begin{aligned} a &= b \\ c &= d \end{aligned}", r"x_", r"\left( x", ""],
)
def test_a_formula_that_could_not_be_shown_is_refused_with_its_text(tex):
    with pytest.raises(page.PageError) as caught:
        page.formula(tex, "inline")
    assert str(caught.value).endswith(tex)


# ------------------------------------------------------------------------------------------------------------- links


@pytest.mark.parametrize(
    ("written", "moved"),
    [
        ("02_other.ipynb", "02_other.html"),
        ("02_other.ipynb#a-part", "02_other.html#a-part"),
        ("../reports/tables/x.csv", "../tables/x.csv"),
        ("../dipp_core/book/page.py", "../../dipp_core/book/page.py"),
        ("https://arxiv.org/abs/2410.18881", "https://arxiv.org/abs/2410.18881"),
        ("#here", "#here"),
    ],
)
def test_links_hold_from_the_folder_of_the_pages(written, moved):
    assert f'href="{moved}"' in page.markdown(f"[words]({written})")


def test_pictures_in_prose_hold_from_the_folder_of_the_pages():
    assert 'src="../figures/a/b.png"' in page.markdown("![words](../reports/figures/a/b.png)")


def test_a_heading_can_be_linked_to():
    assert '<h2 id="what-we-saw">' in page.markdown("## What we *saw* $x$")


# ------------------------------------------------------------------------------------------------------------ outputs


def test_a_published_figure_is_linked(tmp_path):
    folder = tmp_path / "01_draw"
    folder.mkdir()
    (folder / "curve.png").write_bytes(PNG)
    html = page_of(picture(alt="a curve"), figures=folder)
    assert '<img src="../figures/01_draw/curve.png" alt="a curve">' in html


def test_any_other_picture_is_embedded(tmp_path):
    code = base64.b64encode(PNG).decode()
    assert f'<img src="data:image/png;base64,{code}" alt="">' in page_of(picture(), figures=tmp_path)


def test_words_for_a_picture_cannot_break_out():
    assert 'alt="a &quot;&gt;&lt;b&gt;"' in page_of(picture(alt='a "><b>'))


def test_printed_text_is_shown_and_escaped():
    html = page_of(nb.new_output("stream", text="a < b\n"))
    assert "<pre class=out>a &lt; b</pre>" in html


def test_progress_bars_are_left_out():
    bar = "\r 10%|#         | 1/10 [00:01<00:09]\r100%|##########| 10/10 [00:10<00:00]\ndone\n"
    html = page_of(nb.new_output("stream", name="stderr", text=bar))
    assert "<pre class=out>done</pre>" in html
    assert "00:10" not in html


def test_only_a_progress_bar_leaves_nothing():
    assert "class=out" not in page_of(nb.new_output("stream", name="stderr", text="100%|####| 4/4 [00:01<00:00]\n"))


def test_a_widget_leaves_nothing():
    data = {"application/vnd.jupyter.widget-view+json": {"model_id": "f00d"}, "text/plain": "IntProgress(value=0)"}
    html = page_of(nb.new_output("display_data", data=data))
    assert "IntProgress" not in html
    assert "f00d" not in html


def test_a_widget_with_a_picture_leaves_the_picture():
    data = {
        "application/vnd.jupyter.widget-view+json": {"model_id": "f00d"},
        "image/png": base64.b64encode(PNG).decode(),
    }
    html = page_of(nb.new_output("display_data", data=data))
    assert "data:image/png" in html
    assert "f00d" not in html


def test_a_published_animation_is_linked(tmp_path):
    content, folder = b"GIF89a..", tmp_path / "01_draw"
    folder.mkdir()
    (folder / "moving.gif").write_bytes(content)
    data = {"image/gif": base64.b64encode(content).decode(), "text/plain": "<Image>"}
    output = nb.new_output("display_data", data=data, metadata={"image/gif": {"alt": "it moves"}})
    assert '<img src="../figures/01_draw/moving.gif" alt="it moves">' in page_of(output, figures=folder)


def test_a_table_is_shown_as_a_table():
    data = {"text/html": "<table><tr><td>1</td></tr></table>", "text/plain": "   a"}
    assert "<div class=table><table>" in page_of(nb.new_output("execute_result", data=data))


def test_a_value_is_shown_and_escaped():
    assert "<pre class=out>&lt;object&gt;</pre>" in page_of(
        nb.new_output("execute_result", data={"text/plain": "<object>"})
    )


def test_markdown_output_is_shown_like_prose():
    html = page_of(nb.new_output("display_data", data={"text/markdown": "line $x$ of [it](01_draw.ipynb)"}))
    assert "<math" in html
    assert 'href="01_draw.html"' in html


def test_an_error_shows_its_trace():
    error = nb.new_output("error", ename="E", evalue="v", traceback=["\x1b[31mValueError\x1b[0m: too <small>"])
    html = page_of(error)
    assert "too &lt;small&gt;" in html
    assert "\x1b" not in html


# ------------------------------------------------------------------------------------------------------------ the page


def test_code_is_shown_escaped_and_coloured():
    assert re.search(r"<pre class=code>.*<span class=\"\w+\">&lt;</span>", page_of(source="if a < b: pass"))


def test_the_injected_values_are_named_as_such():
    html = page_of(source="# Parameters\noverrides = {}", tags=["injected-parameters"])
    assert "The values of this run, from params.yaml" in html
    assert "# Parameters" not in html


def test_a_hidden_cell_is_hidden():
    assert "secret" not in page_of(source="secret = 1", tags=["hide"])


def test_the_title_is_the_first_heading():
    assert "<title>A title</title>" in page_of()


def test_counters_ids_and_times_do_not_show():
    """Two runs with the same results give the same page."""

    def run(number):
        cell = nb.new_code_cell("1 + 1", outputs=[nb.new_output("execute_result", data={"text/plain": "2"})])
        cell.id, cell.execution_count, cell.outputs[0].execution_count = f"id{number}", number, number
        cell.metadata["papermill"] = {"duration": number, "start_time": f"2024-01-0{number}"}
        return page.render(nb.new_notebook(cells=[cell], metadata={"papermill": {"duration": number}}))

    assert run(1) == run(2)


def test_a_page_loads_nothing_and_runs_nothing():
    html = page_of(picture())
    assert not re.search(r"<script|<link|<iframe|@import|url\(|src=.?https?:", html)


def test_a_page_of_a_smoke_run_says_so():
    notebook = {"cells": [{"cell_type": "markdown", "metadata": {}, "source": "# Title"}]}
    assert "class=warning" in page.render(notebook, None, "smoke")
    assert "class=warning" not in page.render(notebook, None, "mini")
