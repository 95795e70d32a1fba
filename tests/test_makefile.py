"""The Makefile against a stand-in for the environment: a `python` that writes down what it is asked to do."""

import os
import re
import shutil
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PYTHON = """#!/bin/sh
# Stand-in: notes its arguments, and fails where a file tells it to.
case "$*" in
  -c*importlinter*) echo "lint-imports" >> "$LOG";;
  -c*ensurepip*) ;;
  *shared.setup.pins*) test ! -e "$PLACE/broken";;
  *shared.setup.install*) echo "$*" >> "$LOG";;
  *) echo "$*" >> "$LOG"; for word in $(cat "$PLACE/fails" 2>/dev/null); do case "$*" in *$word*) exit 3;; esac; done;;
esac
"""
KNOBS = re.search(r"^KNOBS := (.*)$", (ROOT / "Makefile").read_text(), re.M)[1].split()
OF_MAKE = {*KNOBS, "MAKEFLAGS", "MAKELEVEL", "MFLAGS", "MAKEOVERRIDES"}  # what `make test ARGS=…` passes down to the tests
LAUNCH = "-m shared.experiment.launch --config_file shared/experiment/launch/{}.yaml"


class Place:
    """A folder with the Makefile, two papers, and stand-ins for Python and the GPU driver."""

    def __init__(self, root: Path):
        self.root, self.log, self.bin = root, root / "log", root / "bin"
        shutil.copy(ROOT / "Makefile", root)
        for paper in ("alpha", "beta"):
            (root / "papers" / paper).mkdir(parents=True)
            (root / "papers" / paper / "train.py").touch()
        (root / "papers" / "__init__.py").touch()
        self.script(root / ".venv" / "bin" / "python", PYTHON)
        self.script(self.bin / "nvidia-smi", "#!/bin/sh\nexit 9\n")

    def script(self, path: Path, text: str) -> Path:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
        path.chmod(0o755)
        return path

    def make(self, *words: str, path: str | None = None, **environment: str) -> subprocess.CompletedProcess:
        """Run make and leave in `self.calls` what the stand-in was asked to do."""
        self.log.write_text("")
        kept = {name: value for name, value in os.environ.items() if name not in OF_MAKE}
        kept.update(PATH=path or f"{self.bin}:{os.environ['PATH']}", LOG=str(self.log), PLACE=str(self.root), **environment)
        done = subprocess.run(["make", *words], cwd=self.root, env=kept, capture_output=True, text=True, timeout=60)
        self.calls = self.log.read_text().splitlines()
        return done


@pytest.fixture
def place(tmp_path):
    return Place(tmp_path)


CORES = min(8, os.cpu_count())
SPREAD = f" -n {min(4, CORES)} --dist loadfile --no-loadscope-reorder" if CORES > 1 else ""
BY_DEFAULT = f"{LAUNCH.format('cpu2')} --num_processes {CORES}" if CORES > 1 else f"{LAUNCH.format('cpu')} --num_processes 1"


def run(paper: str, script: str, options: str = "--scale cpu --results results", device: str = "cpus") -> str:
    return f"{BY_DEFAULT if device == 'cpus' else LAUNCH.format(device)} -m papers.{paper}.{script} {options}".strip()


def page(paper: str, options: str = "--scale cpu --results results") -> str:
    return f"-m shared.report.page {paper} {options}"


def overview(options: str = "--scale cpu --results results") -> str:
    return f"-m shared.report.overview {options}"


def test_python_keeps_its_byte_code_even_where_the_machine_forbids_it(place):
    asked = PYTHON.replace("#!/bin/sh\n", '#!/bin/sh\necho "forbidden: $PYTHONDONTWRITEBYTECODE" >> "$LOG"\n')
    place.script(place.root / ".venv" / "bin" / "python", asked)
    place.make("overview", PYTHONDONTWRITEBYTECODE="1")
    assert place.calls[-2:] == ["forbidden: ", overview()]


def test_make_alone_prints_help_for_every_target_and_every_variable(place):
    text = place.make().stdout
    assert text == place.make("help").stdout
    makefile = (ROOT / "Makefile").read_text()
    targets = re.search(r"^\.PHONY: (.*) FORCE$", makefile, re.M)[1].split()
    assert set(re.findall(r"^  ([a-z][^ ]*) ", text, re.M)) == {*targets, "reproduce-<paper>", "headline-<paper>", "figures-<paper>", "bench-<paper>"}
    assert re.findall(r"^  ([A-Z_]+)=", text, re.M) == KNOBS
    assert "papers here: alpha beta" in text
    assert place.calls == []  # and needs no environment
    assert max(map(len, text.splitlines())) < 140


def test_reproduce_trains_evaluates_and_draws(place):
    assert place.make("reproduce-beta").returncode == 0
    assert place.calls == [run("beta", "train"), run("beta", "evaluate"), page("beta")]


@pytest.mark.parametrize("target", ["reproduce", "headline"])
def test_all_papers_are_those_with_a_train_script(place, target):
    place.make(target)
    assert [call.split("papers.")[1].split()[0] for call in place.calls if "papers." in call] == [
        "alpha.train", "alpha.evaluate", "beta.train", "beta.evaluate"]  # fmt: skip
    assert all(("--headline" in call) == (target == "headline") for call in place.calls if "papers." in call)
    assert place.calls[-2:] == [page("beta"), overview()] and place.calls.count(overview()) == 1


def test_the_overview_can_be_made_alone(place):
    assert place.make("overview", "SCALE=photos", "RESULTS=/tmp/r", "SET=digits=1").returncode == 0
    assert place.calls == [overview("--scale photos --results /tmp/r")]  # SET is for the pages of the papers


def test_make_notes_when_each_stage_began(place):
    where = "RESULTS=my results/it's"
    place.make("headline-alpha", where)
    (place.root / "fails").write_text("alpha.evaluate")
    place.make("reproduce-alpha", where)
    noted = [line.split() for line in (place.root / "my results" / "it's" / "cpu" / "alpha" / "times.txt").read_text().splitlines()]
    assert [line[1:] for line in noted] == [["headline", stage] for stage in ("train", "evaluate", "page", "end")] + [
        ["reproduce", stage] for stage in ("train", "evaluate")]
    seconds = [int(line[0]) for line in noted]
    assert seconds == sorted(seconds) and seconds[0] > 1_700_000_000


def test_where_nothing_can_be_noted_the_script_says_so(place):
    (place.root / "file").touch()
    done = place.make("reproduce-alpha", "RESULTS=file")
    assert done.returncode == 0 and len(place.calls) == 3 and done.stderr == ""  # the stand-in has no complaint


def test_the_dials_reach_the_scripts(place):
    place.make("reproduce-alpha", "SCALE=photos", "SEEDS=0 1 2", "ARGS=--attack.eps 2/255", "DATA_ROOT=/my pictures/it's", "RESULTS=/tmp/r")
    options = "--scale photos --seeds 0 1 2 --data-root /my pictures/it's --results /tmp/r --attack.eps 2/255"
    drawn = page("alpha", "--scale photos --results /tmp/r")
    assert place.calls == [run("alpha", "train", options), run("alpha", "evaluate", options), drawn]


def test_figures_load_no_model(place):
    place.make("figures-alpha", "SET=digits=1 style=dark")
    assert place.calls == [page("alpha", "--scale cpu --results results --set digits=1 --set style=dark")]


def test_the_environment_sets_a_dial_too(place):
    place.make("figures-alpha", SCALE="smoke")
    assert place.calls == [page("alpha", "--scale smoke --results results")]


@pytest.mark.parametrize("device", ["cpu", "cpu2", "gpu"])
def test_device_names_the_launch_configuration(place, device):
    place.make("reproduce-alpha", f"DEVICE={device}")
    assert place.calls[0] == run("alpha", "train", device=device)
    assert (ROOT / "shared" / "experiment" / "launch" / f"{device}.yaml").exists()


def test_a_gpu_is_used_where_the_driver_lists_one(place):
    place.script(place.bin / "nvidia-smi", "#!/bin/sh\necho 'GPU 0: X (UUID: a)'\n")
    place.make("reproduce-alpha")
    assert place.calls[0] == run("alpha", "train", device="gpu")
    refused = place.make("reproduce-alpha", "DEVICE=gpus")
    assert "DEVICE=gpus needs at least two GPUs and 1 can be seen" in refused.stderr
    assert (refused.returncode, place.calls) == (2, [])


def test_several_gpus_are_counted_or_given(place):
    place.script(place.bin / "nvidia-smi", "#!/bin/sh\nprintf 'GPU 0: X\\nGPU 1: X\\nGPU 2: X\\n'\n")
    for words, count in ((), 3), (("GPUS=2",), 2):
        place.make("reproduce-alpha", "DEVICE=gpus", *words)
        assert place.calls[0].startswith(f"{LAUNCH.format('gpus')} --num_processes {count} -m papers.alpha.train ")


def test_the_launcher_can_be_swapped(place):
    launcher = place.script(place.bin / "srun", '#!/bin/sh\necho "srun $*" >> "$LOG"\n')
    place.make("reproduce-alpha", f"LAUNCH={launcher} accelerate launch --num_processes 4")
    command = "srun accelerate launch --num_processes 4 -m papers.alpha.{} --scale cpu --results results"
    assert place.calls[:2] == [command.format("train"), command.format("evaluate")]


@pytest.mark.parametrize(("words", "said"), [
    (["SEED=1"], "there is no variable SEED; make knows SCALE SEEDS"),
    (["SCALE=huge"], "there is no SCALE=huge; choose one of: smoke cpu photos paper"),
    (["SCALE=cpu paper"], "there is no SCALE=cpu paper"),
    (["SEEDS=0,1"], 'not "0,1"'),
    (["SEEDS=-1"], 'not "-1"'),
    (["GPUS=two"], 'not "two"'),
    (["DEVICE=tpu"], "there is no DEVICE=tpu; choose one of: cpu cpu2 cpus gpu gpus"),
    (["RESULTS="], "RESULTS is empty"),
    (["SET=digits"], 'SET takes name=value, not "digits"'),
])  # fmt: skip
def test_a_mistake_is_one_sentence(place, words, said):
    done = place.make("reproduce-alpha", *words)
    assert done.returncode == 2
    assert said in done.stderr
    assert len(done.stderr.splitlines()) == 1
    assert place.calls == []


@pytest.mark.parametrize("target", ["reproduce-gamma", "headline-gamma", "figures-gamma"])
def test_an_unknown_paper_is_refused_with_the_known_ones(place, target):
    done = place.make(target)
    assert done.returncode == 2
    assert done.stderr.splitlines()[0] == "there is no paper 'gamma' with a train.py; there is: alpha beta"
    assert place.calls == []


def test_a_failing_script_stops_the_run(place):
    (place.root / "fails").write_text("alpha.evaluate")
    assert place.make("reproduce").returncode == 2
    assert place.calls == [run("alpha", "train"), run("alpha", "evaluate")]


INSTALL = "-m shared.setup.install --venv "


def test_a_finished_environment_is_left_alone(place):
    assert place.make("setup").returncode == 0
    assert place.calls == []


@pytest.mark.parametrize("state", ["broken", "nothing there"])
def test_an_environment_that_is_not_whole_is_installed_first(place, state):
    if state == "broken":
        (place.root / "broken").touch()
    else:
        shutil.rmtree(place.root / ".venv")
    place.script(place.bin / "python3.14", "#!/bin/sh\nexit 127\n")  # such as pyenv's stand-in for a version that is not active
    place.script(place.bin / "python3.13", PYTHON)
    assert place.make("setup").returncode == 0
    assert place.calls == [f"{INSTALL}.venv"]


def test_what_is_asked_of_setup_reaches_the_installer(place):
    python = place.script(place.bin / "my python", PYTHON)
    place.make("setup", f"PYTHON={python}", "TORCH=cpu", "VENV=other place/it's ü")
    assert place.calls == [f"{INSTALL}other place/it's ü --torch cpu --this-python"]
    assert "there is no TORCH=gpu; choose cpu" in place.make("setup", "TORCH=gpu").stderr


def test_an_environment_may_lie_anywhere(place):
    shutil.move(place.root / ".venv", place.root / "it's ü b")
    assert place.make("figures-alpha", "VENV=it's ü b").returncode == 0
    assert place.calls == [page("alpha")]


def test_an_install_that_fails_stops_everything(place):
    (place.root / "broken").touch()
    python = place.script(place.bin / "python3.11", "#!/bin/sh\ncase $1 in -c) exit 0;; *) exit 2;; esac\n")
    done = place.make("reproduce-alpha", f"PYTHON={python}")
    assert done.returncode == 2
    assert place.calls == []


def test_without_a_python_that_fits_one_sentence_says_so(place):
    shutil.rmtree(place.root / ".venv")
    for name in ("python3.14", "python3.13", "python3.12", "python3.11", "python3", "python"):
        place.script(place.bin / name, "#!/bin/sh\nexit 1\n")
    for target in ("setup", "doctor"):
        done = place.make(target)
        assert done.returncode == 2
        assert "there is no Python of 3.11 to 3.14 with its venv module (on Debian: python3-venv): install one" in done.stderr
    assert "PYTHON=/no/python is no Python of 3.11 to 3.14" in place.make("setup", "PYTHON=/no/python").stderr


def test_doctor_and_clean_need_no_environment(place):
    python = place.script(place.bin / "python3.11", PYTHON)
    shutil.rmtree(place.root / ".venv")
    place.make("doctor", f"PYTHON={python}")
    assert place.calls == ["-m shared.setup.doctor --results results"]
    assert "there is nothing at" in place.make("clean-results").stdout
    assert place.calls == []


def test_make_test_runs_rules_smoke_and_then_pytest(place):
    done = place.make("test", "SEEDS=5", "SCALE=photos", TMPDIR=str(place.root))
    assert done.returncode == 0, done.stderr
    ruff, imports, train, evaluate, drawn, *tests = place.calls
    assert (ruff, imports) == ("-m ruff check .", "lint-imports")
    assert tests == [f"-m tests.cpus --quick{SPREAD}", f"-m pytest -m not slow and not bench{SPREAD}"]
    folder = Path(re.search(r"--results (\S+)", train)[1])
    assert train == run("alpha", "train", f"--scale smoke --results {folder}")
    assert (evaluate, drawn) == (train.replace("train", "evaluate"), page("alpha", f"--scale smoke --results {folder}"))
    assert folder.parent == place.root
    assert not folder.exists()


@pytest.mark.parametrize(("word", "calls"), [("ruff", 1), ("alpha.train", 3), ("page", 5), ("cpus", 6), ("bench", 7)])
def test_make_test_fails_where_a_part_fails_and_cleans_up(place, word, calls):
    (place.root / "fails").write_text(word)
    assert place.make("test", TMPDIR=str(place.root)).returncode == 2
    assert len(place.calls) == calls
    assert not list(place.root.glob("tmp.*"))


@pytest.mark.parametrize(("cores", "given"), [(1, ""), (2, " -n 2"), (3, " -n 3"), (4, " -n 4"), (64, " -n 4")])
def test_tests_run_on_every_core_but_at_most_four(place, cores, given):
    place.script(place.bin / "getconf", f"#!/bin/sh\necho {cores}\n")
    place.make("test")
    assert place.calls[-1] == "-m pytest -m not slow and not bench" + (f"{given} --dist loadfile --no-loadscope-reorder" if given else "")


@pytest.mark.parametrize(("words", "expected"), [("-k word", f"{SPREAD} -k word"), ("-n 0", f"{SPREAD} -n 0"), ("-p no:xdist", " -p no:xdist")])
def test_make_test_takes_arguments(place, words, expected):
    place.make("test", f"ARGS={words}")
    assert place.calls[-1] == f"-m pytest -m not slow and not bench{expected}"
    assert words not in "".join(place.calls[:-1])  # ruff and the smoke run are not asked for them


def test_make_test_passes_without_papers(place):
    shutil.rmtree(place.root / "papers")
    assert place.make("test").returncode == 0
    assert "papers here: none yet" in place.make("help").stdout
    for target in ("reproduce", "overview"):
        assert (place.make(target).stdout, place.calls) == ("no paper yet\n", [])


def test_pytest_and_tools_take_arguments(place):
    place.make("test-slow", "ARGS=-k rehearsal")
    place.make("bench", "ARGS=--quick")
    assert place.calls == ["-m shared.bench --quick"]
    place.make("zoo", "ARGS=--card-only")
    assert place.calls[0] == f"{BY_DEFAULT} -m shared.training.pretrain --card-only"
    assert all(call.startswith(f"{BY_DEFAULT} -m shared.training.") and call.endswith(" --card-only") for call in place.calls)


def test_results_are_deleted_only_when_sure(place):
    kept, doomed = place.root / "results" / "paper", place.root / "results" / "cpu"
    kept.mkdir(parents=True)
    doomed.mkdir()
    refused = place.make("clean-results")
    assert refused.returncode == 2
    assert "SURE=yes" in refused.stderr
    assert doomed.exists()
    assert place.make("clean-results", "SURE=yes").returncode == 0
    assert kept.exists()
    assert not doomed.exists()
