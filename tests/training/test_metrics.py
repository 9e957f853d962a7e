"""metrics.csv is never far behind, and whole."""

from expand.training.progress import METRICS_EVERY_S, Metrics


def test_it_is_written_at_first_and_at_last_and_now_and_then_between(tmp_path):
    now = [0.0]
    metrics, path = Metrics(tmp_path / "metrics.csv", lambda: now[0]), tmp_path / "metrics.csv"
    rows, seen = [], []
    for epoch in range(1, 8):
        rows.append({"epoch": epoch, "loss": 0.5 * epoch})
        now[0] += METRICS_EVERY_S * 0.4
        metrics.write(rows, is_last=epoch == 7)
        seen.append(len(path.read_text().splitlines()) - 1)
    assert seen == [1, 1, 1, 4, 4, 4, 7]
    assert path.read_text().splitlines()[:2] == ["epoch,loss", "1,0.5"]
