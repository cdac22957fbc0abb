"""The command that reproduces: what it is asked wrongly it says at once, before anything is computed."""

import re
import sys

import pytest

from reproduction import __main__ as command


@pytest.mark.parametrize(
    ("asked", "said"),
    [
        (["--part", "nonsense"], "parts are choose, .*not nonsense"),
        (["--workers", "0"], "--workers is at least 1, not 0"),
        (
            ["--part", "choose", "--only", "nothing", "--list"],
            "no task of choose has a name that begins with 'nothing'",
        ),
    ],
)
def test_wrong_requests(monkeypatch, tmp_path, capsys, asked, said):
    monkeypatch.setattr(sys, "argv", ["reproduction", "--out", str(tmp_path), *asked])
    try:
        code = command.main()
    except SystemExit as stop:
        code = stop.code
    assert code == 2
    assert re.search(said, capsys.readouterr().err)


def test_a_folder_that_cannot_be_is_named(monkeypatch, tmp_path, capsys):
    (tmp_path / "file").write_text("")
    monkeypatch.setattr(sys, "argv", ["reproduction", "--out", str(tmp_path / "file" / "out")])
    with pytest.raises(SystemExit):
        command.main()
    assert "file/out cannot be a folder" in capsys.readouterr().err


def test_the_short_run_is_refused_where_no_figures_were_published(monkeypatch, tmp_path, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["reproduction", "--out", "out", "--part", "quick"])
    assert command.main() == 2
    assert "to hold figures against" in capsys.readouterr().err
