"""The trackers that a section asks for."""

from ms4_train.config.schema import TrackingSection
from ms4_train.tracking import make_trackers


def test_metrics_file_is_always_there(tmp_path, capsys):
    trackers = make_trackers(TrackingSection(console=False), tmp_path / "run", {}, total_steps=2)
    trackers.log(1, {"loss": 1.0})
    assert trackers.state() == {"metrics_bytes": (tmp_path / "run" / "metrics.jsonl").stat().st_size}
    trackers.close()
    assert capsys.readouterr().out == ""


def test_console_is_added(tmp_path, capsys):
    trackers = make_trackers(TrackingSection(), tmp_path, {}, total_steps=2)
    trackers.log(1, {"loss": 1.0})
    trackers.close()
    assert "step 1/2: loss 1.0000" in capsys.readouterr().out
