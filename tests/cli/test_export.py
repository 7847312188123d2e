"""regraft export on the command line."""

from __future__ import annotations


def test_it_says_what_it_wants_and_what_a_run_without_a_base_lacks(regraft, finished, tmp_path):
    result = regraft("export", finished)
    assert result.exit_code == 2
    assert "one of --delta OUT and --merged OUT" in result.stderr
    result = regraft("export", finished, "--delta", tmp_path / "delta")
    assert result.exit_code == 2
    assert "was not made from a pretrained network, so there is no base to leave out" in result.stderr
    assert not (tmp_path / "delta").exists()
    result = regraft("export", finished, "--merged", tmp_path / "merged", "--base", "minilm")
    assert result.exit_code == 2
    assert "a merged model needs none" in result.stderr
