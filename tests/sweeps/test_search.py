"""Searches for values, from the command line to the best trial, on digits."""

import re
import shlex
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import mlflow
import optuna
import pytest
from optuna.trial import TrialState

from edkd.rundir import checkpoint, journal
from edkd.runs.pruning import load_optuna, storage
from edkd.sweeps import trials
from tests.commandline import Ended, edkd, error, journals, launch
from tests.fake_slurm import FakeSlurm, fake_slurm

__all__ = ["fake_slurm"]  # a fixture

KD = ["distiller=kd", "distiller.temperature=interval(1,8)", "distiller.kd_weight=0.5,0.9"]


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


def searched(tiny: list[str], *arguments: str, trials: int = 4) -> Ended:
    held_out = ["dataset.validation=0.2", "hydra/sweeper=optuna", f"hydra.sweeper.n_trials={trials}"]
    return launch("-m", *tiny, *held_out, *arguments)


def study(output: Path) -> optuna.Study:
    """That of the one search below an output folder."""
    load_optuna()
    (path,) = output.glob("sweeps/*.optuna.log")
    return optuna.load_study(study_name=path.name.removesuffix(".optuna.log"), storage=storage(path))


def events(output: Path) -> dict[str, Counter[str]]:
    """How often each event is in a journal, by the name of the run."""
    return {
        f"{path.parts[-3]}/{path.parts[-2]}": Counter(record["event"] for record in journal.read(path.parent))
        for path in output.glob("runs/*/*/*/journal.jsonl")
    }


def test_trials_are_ordinary_runs_under_one_parent_and_the_best_is_named(tiny: list[str], here: Path) -> None:
    tiny = [each for each in tiny if each != "tracking=journal"]
    done = searched(tiny, *KD, "hydra.sweeper.pruner=none")
    assert done.code == 0, done
    made = study(here / "outputs")
    best = max(made.trials, key=lambda trial: trial.value or 0.0)
    found = events(here / "outputs")
    assert {name.rpartition("-")[0]: each["start"] for name, each in found.items() if "vanilla" in name} == {
        "resnet8/vanilla-s0": 1
    }
    assert len(found) == 5 and all(each["end"] == 1 for each in found.values())
    for trial in made.trials:
        records = journal.read(here / "outputs" / "runs" / trial.user_attrs["name"])
        curve = {each["epoch"]: each["metrics"]["val/top1"] for each in records if each["event"] == "epoch"}
        assert (trial.intermediate_values, trial.value) == (curve, max(curve.values()))
        values = records[0]["config"]["distiller"]
        assert values["temperature"] == pytest.approx(trial.params["distiller.temperature"], rel=1e-5)
        assert str(values["kd_weight"]) == trial.params["distiller.kd_weight"]
    assert f"\nbest: trial {best.number}, {best.value:.2f} % of the held-out part: distiller.temperature=" in done.out

    runs = mlflow.MlflowClient("sqlite:///outputs/mlflow.db").search_runs(["1"])
    (parent,) = [run for run in runs if "edkd.sweep" in run.data.tags]
    children = [run for run in runs if run.data.tags.get("mlflow.parentRunId") == parent.info.run_id]
    assert (len(children), parent.info.status) == (5, "FINISHED")
    assert parent.data.tags["mlflow.note.content"].startswith(f"best: trial {best.number}, ")

    *_, command = done.out.splitlines()
    words = shlex.split(command)
    assert words[-1] == "seed=1,2,3" and "hydra/sweeper=optuna" not in words
    planned = launch(*words[2:-1], "seed=0,1", "+dry_run=true")
    assert "2 runs: 1 done, 1 new; teachers to train first: 0" in planned.out
    assert edkd("status", made.study_name).code == 0

    before = journals(here / "outputs")
    again = searched(tiny, *KD, "hydra.sweeper.pruner=none")
    assert (again.code, again.out.splitlines()[-8:]) == (0, done.out.splitlines()[-8:])
    assert journals(here / "outputs") == before
    assert searched(tiny, *KD, "hydra.sweeper.pruner=none", trials=5).code == 0
    assert len(study(here / "outputs").trials) == 5 and len(events(here / "outputs")) == 6


def test_an_interrupted_search_goes_on_as_if_nothing_had_been(
    tiny: list[str], here: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = searched(tiny, *KD, f"output={here / 'whole'}")
    save, tell, calls = checkpoint.save, trials.Trials._tell, Counter[str]()

    def interrupted(name: str, at: int, called: Any, *arguments: Any) -> Any:
        calls[name] += 1
        if calls[name] == at:
            raise KeyboardInterrupt
        return called(*arguments)

    # In the first epoch of the second trial, and between the end of the third and the study's record of it.
    monkeypatch.setattr(checkpoint, "save", lambda *given: interrupted("save", 5, save, *given))
    monkeypatch.setattr(trials.Trials, "_tell", lambda *given: interrupted("tell", 3, tell, *given))
    codes = [searched(tiny, *KD).code for _ in range(3)]
    assert codes == [130, 130, 0]
    before, after = (study(here / name) for name in ("whole", "outputs"))
    shown = [(trial.number, trial.state, trial.params, trial.value) for trial in before.trials]
    assert [(trial.number, trial.state, trial.params, trial.value) for trial in after.trials] == shown
    assert whole.code == 0 and len(shown) == 4
    starts = [each["start"] for name, each in sorted(events(here / "outputs").items())]
    assert sorted(starts) == [1, 1, 1, 1, 2]


def test_a_kill_while_a_trial_is_drawn_costs_its_number_alone(
    tiny: list[str], here: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert searched(tiny, *KD, f"output={here / 'whole'}").code == 0
    draw, drawn = optuna.Trial._suggest, []

    def interrupted(trial: optuna.Trial, name: str, distribution: Any) -> Any:
        drawn.append(name)
        if len(drawn) == 6:  # the third trial has its first value then, and lacks its second
            raise KeyboardInterrupt
        return draw(trial, name, distribution)

    monkeypatch.setattr(optuna.Trial, "_suggest", interrupted)
    assert [searched(tiny, *KD).code for _ in range(2)] == [130, 0]
    ended = (TrialState.COMPLETE, TrialState.PRUNED)
    before, after = (study(here / name).get_trials(states=ended) for name in ("whole", "outputs"))
    assert [(each.params, each.value) for each in after] == [(each.params, each.value) for each in before]
    assert [each.number for each in after] == [0, 1, 3, 4]


def test_a_trial_with_better_ones_is_pruned_and_recorded(tiny: list[str], here: Path) -> None:
    space = ["distiller=vanilla", "schedule.lr=0.05,1e-8,2e-8,3e-8,4e-8", "schedule.epochs=3"]
    done = searched(tiny, *space, "hydra.sweeper.startup_trials=1", trials=8)
    assert done.code == 0, done
    made = study(here / "outputs")
    pruned = [trial for trial in made.trials if trial.state.name == "PRUNED"]
    assert pruned and made.best_params == {"schedule.lr": "0.05"}
    for trial in pruned:
        found = events(here / "outputs")[trial.user_attrs["name"].partition("/")[2]]
        assert found["pruned"] == 1 and found["end"] == 0 and 0 < found["epoch"] < 3
        assert trial.params["schedule.lr"] != "0.05"
    assert re.search(
        rf"trial {pruned[0].number}: pruned after epoch \d, at \d+\.\d\d % of the held-out part\n", done.out
    )
    assert edkd("status", made.study_name).code == 0


def test_a_run_that_another_search_pruned_continues(
    tiny: list[str], here: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(optuna.samplers.TPESampler, "infer_relative_search_space", None)  # nobody asks this sampler
    options = ["distiller=vanilla", "schedule.epochs=3", "hydra.sweeper.sampler=random"]
    pruning = ["schedule.lr=0.05,0.04,0.03,1e-8", "hydra.sweeper.startup_trials=1"]
    assert searched(tiny, *options, *pruning, trials=6).code == 0
    *_, last = study(here / "outputs").trials  # the draws depend on the seed alone
    assert (last.state, last.params) == (TrialState.PRUNED, {"schedule.lr": "1e-08"})
    (path,) = here.glob("outputs/sweeps/*.optuna.log")
    path.unlink()
    whole = ["schedule.lr=0.05,1e-8,0.03,0.04", "hydra.sweeper.pruner=none"]
    assert searched(tiny, *options, *whole, trials=1).code == 0
    (trial,) = study(here / "outputs").trials
    assert (trial.state, trial.user_attrs["run"]) == (TrialState.COMPLETE, last.user_attrs["run"])
    found = events(here / "outputs")[trial.user_attrs["name"].partition("/")[2]]
    assert (found["pruned"], found["epoch"], found["end"]) == (1, 3, 1)


def test_what_failed_is_named_and_tried_again(tiny: list[str], here: Path) -> None:
    space = ["distiller=vanilla", "schedule.lr=0.05,1e30,2e30"]
    first = searched(tiny, *space, trials=5)
    assert first.code == 1
    assert "failed: epoch 1" in first.out and first.out.endswith("run the same command again to continue\n")
    failed = {each.params["schedule.lr"] for each in study(here / "outputs").trials if each.state.name == "FAIL"}
    assert failed and failed <= {"1e+30", "2e+30"}
    asked = len(study(here / "outputs").trials)
    assert searched(tiny, *space, trials=5).code == 1
    again = study(here / "outputs").trials[asked:]
    assert {each.params["schedule.lr"] for each in again[: len(failed)]} == failed


@pytest.mark.parametrize("launcher", ["local", "slurm"])
def test_trials_run_in_batches_wherever_sweeps_do(
    launcher: str, tiny: list[str], fake_slurm: FakeSlurm, here: Path
) -> None:
    fake_slurm.set("run")
    fake_slurm.queue(j1="RUNNING", j2_0="PENDING", j2_1="PENDING", j3="PENDING")
    options = ["hydra.launcher.poll_s=0.2", "hydra.sweeper.n_jobs=2"] if launcher == "slurm" else []
    done = searched(tiny, *KD, f"hydra/launcher={launcher}", *options, trials=3)
    assert done.code == 0, done
    assert "3 trials: 3 to come, 2 at a time" in done.out
    assert sorted(each["end"] for each in events(here / "outputs").values()) == [1, 1, 1, 1]
    assert [trial.state.name for trial in study(here / "outputs").trials] == ["COMPLETE"] * 3
    if launcher == "slurm":  # a teacher, two students that wait for it, one more
        assert [re.findall(r"--(?:array|dependency)=\S+", script) for script in fake_slurm.scripts()] == [
            [],
            ["--array=0-1%2", "--dependency=afterany:1"],
            [],
        ]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            ["dataset.validation=0"],
            "a search chooses by held-out images, of which there are none: dataset.validation=0.1",
        ),
        (
            ["distiller.temperature=2", "distiller.kd_weight=0.5"],
            "nothing to search: give a key several values, such as ",
        ),
        (["seed=0,1"], "seed=0,1: the trials of a search have one seed"),
        (["pair=all"], "the trials of a search have one pair"),
        (["dataset.validation=0.1,0.3"], "dataset.validation=0.1,0.3: the trials of a search have one dataset"),
        (["student=resnet8,resnet14"], "student=resnet8,resnet14: the trials of a search have one student"),
        (["distiller.temperature=interval(8,1)"], "distiller.temperature=interval(8,1): "),
        (["distiller.temperature=tag(log,interval(0,1))"], "distiller.temperature=tag(log,interval(0,1)): "),
        (["distiller.temperature=interval(0,8)"], "distiller.temperature=0: must be above 0"),
        (["schedule.batch_size=interval(16,64)"], "schedule.batch_size=34.336: must be a whole number"),
        (["distiller.heat=interval(0,8)"], "distiller.heat: no such key in distiller=kd"),
        (["schedule.lr=interval(0.01,0.1)"], "the sweep would train teacher resnet8 of digits-8-20perclass-test10"),
        (["hydra.sweeper.n_trials=0"], "hydra.sweeper.n_trials=0: must be above 0"),
        (["hydra.sweeper.pruner=best"], "hydra.sweeper.pruner=best: must be one of median, hyperband, none"),
        (["hydra.sweeper.prune_after=2"], "hydra.sweeper.prune_after=2: must be 1 or less"),
        (["hydra.sweeper.trials=2"], "hydra.sweeper.trials: no such key in hydra.sweeper, did you mean n_trials?"),
        (["hydra/launcher=slurm_detached"], "hydra.launcher.detached=true: a search waits for its trials"),
        (
            ["engine.devices=2"],
            "engine.devices: a run in several processes cannot be pruned; hydra.sweeper.pruner=none",
        ),
        (["+dry_run=1"], "dry_run=1: must be true or false"),
    ],
)
def test_what_a_search_refuses(arguments: list[str], message: str, tiny: list[str], here: Path) -> None:
    named = {each.partition("=")[0] for each in arguments}
    kept = [each for each in KD if each.partition("=")[0] not in named]
    assert error(searched(tiny, *kept, *arguments)).startswith(message)
    assert not (here / "outputs").exists()


def test_a_search_without_optuna_says_what_to_install(tiny: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "optuna", None)
    assert error(searched(tiny, *KD)).endswith("pip install 'edkd[search]' brings it")


def test_a_second_command_leaves_a_search_alone(tiny: list[str], here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    others: list[Ended] = []

    def meanwhile(self: Any, *arguments: Any) -> None:
        others.append(searched(tiny, *KD))

    monkeypatch.setattr(trials.Trials, "carry_out", meanwhile)
    searched(tiny, *KD)
    assert others[0].code == 1
    assert re.match(r"edkd: another command is at search \S+; `edkd status \S+` shows its trials\n", others[0].err)


def test_a_plan_says_what_is_searched_and_writes_nothing(tiny: list[str], here: Path) -> None:
    space = ["distiller=dkd", "distiller.alpha=tag(log,interval(0.5,2))", "distiller.beta=range(1,8,0.5)"]
    done = searched(tiny, *space, "distiller.warmup_epochs=range(0,3)", "distiller.temperature=2,4", "+dry_run=true")
    lines = done.out.splitlines()
    assert re.fullmatch(r"search digits-8-20perclass-test10-val0.2-\w{8}: 4 trials: 4 to come, 1 at a time", lines[0])
    assert lines[1:6] == [
        "  distiller.alpha: 0.5 to 2, on a logarithmic scale",
        "  distiller.beta: 1 to 7.5 in steps of 0.5",
        "  distiller.warmup_epochs: 0 to 2 in steps of 1",
        "  distiller.temperature: 2, 4",
        "teachers to train first: 1",
    ]
    assert not (here / "outputs").exists()


def test_an_experiment_names_what_is_searched_and_the_command_line_has_the_last_word(
    tiny: list[str], here: Path
) -> None:
    done = searched(tiny, "experiment=search_digits", "distiller.alpha=1", "+dry_run=true", trials=9)
    assert [line.partition(":")[0].strip() for line in done.out.splitlines()[1:3]] == [
        "distiller.beta",
        "distiller.temperature",
    ]
    single = launch("-m", *tiny, "experiment=search_digits", "+dry_run=true")  # no search: one run, its values ignored
    assert single.code == 0 and ": 1 run: 1 new; teachers to train first: 1" in single.out
