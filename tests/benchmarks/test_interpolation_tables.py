import json
import re

import interpolation
import pytest


def write(folder, name, damage, alpha, gains, control=False):
    """Write the table of a model that scores 50 % in the end, and so many points more at alpha = 0 and 0.5."""
    steps = [
        {
            "alpha": at,
            "held_out_acc_seen_within": 60 + 2 * at,
            "acc_all": 50 + gain,
            "balanced": 40 + gain,
            "best_acc_all": 60 + gain,
            "acc_absent_within": within,
        }
        for at, gain, within in zip((0.0, 0.5, 1.0), (*gains, 0.0), (70.0, 0.0, 70.0 - damage), strict=True)
    ]
    (folder / f"{name}.json").write_text(json.dumps({"control": control, "alpha": alpha, "steps": steps}))


def test_tables(tmp_path, capsys):
    write(tmp_path, "cities_hot", 10.0, 0.5, (9.0, 4.0))
    write(tmp_path, "cities_sgd", 1.0, 0.5, (-3.0, -1.0))
    write(tmp_path, "digits_sgd", 2.0, 1.0, (-3.0, -2.0))
    write(tmp_path, "names_nogap", -9.0, 1.0, (-3.0, -5.0), control=True)
    interpolation.main([str(tmp_path), "--without", "names"])
    text = re.sub(r" +", " ", capsys.readouterr().out)
    assert "| cities_hot | damaged | 10.0 | 0.5 | +4.0 | +4.0 | +9.0 | +4.0 | +9.0 |" in text
    assert text.index("| cities_sgd ") < text.index("| digits_sgd ") < text.index("| cities_hot ")  # the worst first
    row = "| not damaged | all | 2 | -0.5 / -0.5 / -1.0 (1) | -0.5 / -0.5 / -1.0 (1) | -3.0 / -3.0 / -3.0 (2) |"
    assert row in text
    assert "names" not in text
    interpolation.main([str(tmp_path)])
    assert "| no gap | names | 1 |" in re.sub(r" +", " ", capsys.readouterr().out)


def test_no_tables(tmp_path, capsys):
    with pytest.raises(SystemExit):
        interpolation.main([str(tmp_path)])
    assert "no .json files of runs" in capsys.readouterr().err
