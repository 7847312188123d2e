"""The pages of the lab are what the demonstrations give."""

from docs.build_lab import LAB, stale


def test_the_pages_and_pictures_of_the_lab_are_what_is_computed():
    assert stale() == [], "run: python docs/build_lab.py"


def test_a_changed_picture_and_one_that_no_demonstration_writes_are_noticed(tmp_path):
    for path in LAB.rglob("*"):
        if path.is_file():
            (tmp_path / path.relative_to(LAB)).parent.mkdir(parents=True, exist_ok=True)
            (tmp_path / path.relative_to(LAB)).write_text(path.read_text())
    (tmp_path / "images" / "saddle-1.svg").write_text("<svg/>")
    (tmp_path / "gone.md").write_text("# Gone")
    assert stale(tmp_path) == ["gone.md", "images/saddle-1.svg"]
