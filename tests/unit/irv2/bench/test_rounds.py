"""irv2.bench.rounds: cases in turn, ratios of pairs, the A/A test, one benchmark at a time."""

import subprocess
import sys
import time

import pytest
from process_output import read_line

from irv2.bench.rounds import Rounds, machine, machine_lock, rate, run_rounds
from irv2.errors import UsageError


def test_every_round_runs_every_case_once_and_the_base_twice_in_turned_order():
    seen = []

    def case(name, value):
        return lambda: seen.append(name) or value

    rounds = run_rounds({"a": case("a", 1.0), "b": case("b", 2.0)}, 3, aa="a", title="try")
    assert seen == ["a", "b", "a", "a", "b", "a", "a", "b", "a"]
    assert {name: len(rates) for name, rates in rounds.rates.items()} == {
        "a": 3,
        "b": 3,
        "a again": 3,
    }
    assert rounds.ratio("b", "a").value == 2.0


def test_a_ratio_is_of_pairs_so_that_drift_cancels():
    """Both cases slow down tenfold over the run; their ratio stays what it is."""
    base = [100.0, 50.0, 20.0, 10.0]
    rounds = Rounds({"base": base, "ours": [1.5 * value for value in base]})
    ratio = rounds.ratio("ours", "base")
    assert (ratio.value, ratio.lower, ratio.upper) == pytest.approx((1.5, 1.5, 1.5))


def test_limits_hold_the_median_ratio_between_the_extremes_of_the_rounds():
    rounds = Rounds({"base": [1.0] * 5, "ours": [0.8, 1.0, 1.1, 1.2, 1.6]})
    ratio = rounds.ratio("ours", "base")
    assert 0.8 <= ratio.lower < ratio.value == 1.1 < ratio.upper <= 1.6


@pytest.mark.parametrize(
    ("again", "void"), [([10.0, 11.0, 9.0], False), ([13.0, 13.1, 12.9], True)]
)
def test_a_case_that_differs_from_itself_makes_the_benchmark_void(again, void):
    assert Rounds({"a": [10.0, 10.1, 9.9], "a again": again}).is_void("a") is void


def test_a_rate_counts_whole_calls_even_when_one_takes_longer_than_the_time_given():
    assert rate(lambda: time.sleep(0.05) or 8, 0.01) == pytest.approx(160, rel=0.5)  # a busy core


def test_two_benchmarks_at_once_are_refused(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    program = "import sys; from irv2.bench.rounds import machine_lock\n" + (
        "with machine_lock(): print('locked', flush=True); sys.stdin.read()"
    )
    with subprocess.Popen(
        [sys.executable, "-c", program], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as other:
        assert read_line(other.stdout) == "locked\n"
        with pytest.raises(UsageError, match="another benchmark is running"), machine_lock():
            pass
        other.communicate("")
    with machine_lock():
        pass


def test_a_report_names_the_machine_by_what_matters_not_by_its_name():
    assert {"cores", "processor", "python", "load_before"} == machine().keys()
