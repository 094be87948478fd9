"""The one command that fetches lists of prompts: through DVC, from a folder that stands for the publisher."""

import pytest

from dipp_core.evaluation import prompt_fetch
from dipp_core.evaluation.prompt_lists import PromptError, PromptList, parse_parti, read

TABLE = "Prompt\tCategory\tChallenge\tNote\na cat\tAnimals\tBasic\t\na dog\tAnimals\tBasic\t\n"


@pytest.fixture
def shop(tmp_path):
    """A checkout under DVC, a publisher, and the list it publishes: (root, published file, lists)."""
    from dvc.repo import Repo

    published = tmp_path / "published" / "some.tsv"
    published.parent.mkdir()
    published.write_text(TABLE)
    root = tmp_path / "checkout"
    root.mkdir()
    Repo.init(str(root), no_scm=True).close()
    return root, published, {"some": PromptList({"some.tsv": str(published)}, parse_parti, 2, "some", "1 kB")}


def test_the_first_fetch_records_checksums_and_later_ones_verify_them(shop):
    root, published, lists = shop
    folder = root / "data" / "prompts"
    assert prompt_fetch.fetch("some", root=root, lists=lists) == 2
    recorded = (folder / "checksums.csv").read_text()
    assert recorded.splitlines()[1].split(",")[0::2] == ["some.tsv", str(len(TABLE))]
    assert "md5: " in (folder / "some.tsv.dvc").read_text()
    assert [prompt.text for prompt in read("some", folder=folder, lists=lists)] == ["a cat", "a dog"]

    (folder / "some.tsv").unlink()
    published.unlink()
    assert prompt_fetch.fetch("some", root=root, lists=lists) == 2, "DVC has a copy"
    assert (folder / "checksums.csv").read_text() == recorded

    (folder / "some.tsv").write_text(TABLE.replace("dog", "elk"))
    with pytest.raises(PromptError, match=r"is not the file in checksums.csv"):
        prompt_fetch.fetch("some", root=root, lists=lists)
    assert (folder / "checksums.csv").read_text() == recorded


def test_what_is_no_such_list_is_neither_kept_nor_recorded(shop):
    root, published, lists = shop
    published.write_text("<!DOCTYPE html>")
    with pytest.raises(PromptError, match="cannot be read as the list some"):
        prompt_fetch.fetch("some", root=root, lists=lists)
    assert [
        path.name for path in (root / "data" / "prompts").iterdir() if path.suffix in (".tsv", ".dvc", ".csv")
    ] == []
    published.write_text(TABLE)
    assert prompt_fetch.fetch("some", root=root, lists=lists) == 2


def test_a_file_put_there_by_hand_is_taken(shop):
    root, published, lists = shop
    published.unlink()
    with pytest.raises(PromptError, match=r"cannot be fetched .*: try again, or put the file at .*some.tsv$"):
        prompt_fetch.fetch("some", root=root, lists=lists)
    (root / "data" / "prompts" / "some.tsv").write_text(TABLE)
    assert prompt_fetch.fetch("some", root=root, lists=lists) == 2
    assert (root / "data" / "prompts" / "some.tsv.dvc").is_file()


def test_the_command_says_what_is_wrong_in_one_line(capsys):
    assert prompt_fetch.main(["cocoa"]) == 1
    assert capsys.readouterr().err == "there is no list 'cocoa'; known are own, coco, hpsv2, parti\n"
    assert prompt_fetch.main(["own"]) == 0
    assert capsys.readouterr().out == "own: 48 prompts\n"
