"""Pictures: they are written, and they show as much as they claim."""

import numpy as np
from PIL import Image

from agritransfer.evaluation import plots
from agritransfer.evaluation.plots import draw_confusion_matrix, draw_gallery, draw_reliability, draw_training_curves


def size_of(path):
    with Image.open(path) as picture:
        return picture.size


def test_the_confusion_matrix_is_darkest_where_a_row_is_fullest(tmp_path):
    draw_confusion_matrix(tmp_path / "matrix.png", [[9, 1], [0, 10]], ["rust", "healthy"], "Test")
    with Image.open(tmp_path / "matrix.png") as picture:
        pixels = np.asarray(picture.convert("L")).astype(int)
    # The full cell of the second row is the darkest large area: dark green, not white.
    assert (pixels < 90).mean() > 0.05


def test_a_dollar_sign_in_a_name_is_no_formula(tmp_path):
    # Matplotlib would raise an error for the first and swallow the signs of the second.
    names = [r"$\frac$", "$x_1$", "100 $"]
    draw_confusion_matrix(tmp_path / "matrix.png", np.eye(3, dtype=int), names, names[0])
    draw_gallery(tmp_path / "gallery.png", [(Image.new("RGB", (9, 9)), names[0], names[1])], names[0])
    assert size_of(tmp_path / "matrix.png")[0] > 300 and size_of(tmp_path / "gallery.png")[0] > 100


def test_many_classes_make_a_larger_picture(tmp_path):
    for count in (3, 30):
        labels = [f"class {i}" for i in range(count)]
        draw_confusion_matrix(tmp_path / f"{count}.png", np.eye(count, dtype=int), labels, "Test")
    small, large = (size_of(tmp_path / f"{count}.png") for count in (3, 30))
    assert large[0] > 2 * small[0] and large[1] > 2 * small[1]


def test_the_curves_need_only_the_log_of_the_trainer(tmp_path):
    log = []
    for epoch in (1, 2):
        log.append({"epoch": epoch, "step": 5 * epoch, "loss": 1 / epoch})
        log.append({"epoch": epoch, "step": 5 * epoch, "eval_loss": 1.0, "eval_accuracy": 0.5, "eval_macro_f1": 0.4})
    draw_training_curves(tmp_path / "curves.png", log, best_step=5)
    assert size_of(tmp_path / "curves.png")[0] > 900


def test_penalties_are_labeled_with_numbers(tmp_path, monkeypatch):
    figures = []
    monkeypatch.setattr(plots, "_save", lambda figure, _path: figures.append(figure))
    scores = {"loss": 1.0, "eval_loss": 1.0, "eval_accuracy": 0.5, "eval_macro_f1": 0.4}
    log = [{"penalty": 10.0**power, "epoch": 1.0, "step": power + 6, **scores} for power in range(-5, 0)]
    draw_training_curves(tmp_path / "curves.png", log, best_step=3)
    figures[0].canvas.draw()
    labels = [label.get_text() for axes in figures[0].axes for label in axes.get_xticklabels(which="both")]
    assert {"0.0001", "0.001", "0.01", "0.1"} <= set(labels) and not any("$" in label for label in labels)


def test_the_gallery_grows_with_its_pictures_and_says_when_there_is_none(tmp_path):
    photo = Image.new("RGB", (60, 40), "green")
    for count in (0, 1, 12):
        draw_gallery(tmp_path / f"{count}.png", [(photo, "answer: healthy", "truth: rust")] * count, "Errors")
    sizes = {count: size_of(tmp_path / f"{count}.png") for count in (0, 1, 12)}
    assert sizes[12][1] > 2 * sizes[1][1] and sizes[0][0] > 0


def test_the_reliability_diagram_has_a_panel_for_each_set_of_probabilities(tmp_path):
    bins = [(0.55, 0.5, 10), (0.95, 0.7, 90)]
    draw_reliability(tmp_path / "one.png", {"as trained": bins})
    draw_reliability(tmp_path / "two.png", {"as trained": bins, "calibrated": bins})
    assert size_of(tmp_path / "two.png")[0] > 1.6 * size_of(tmp_path / "one.png")[0]
