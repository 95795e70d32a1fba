"""The Makefile against a stand-in for the environment: a `python` that writes down what it is asked to do."""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PYTHON = """#!/bin/sh
# Stand-in: notes its arguments, and fails where a file tells it to.
case "$*" in
  *"shared.experiment.make check"*) PYTHONPATH="$CODE" exec "$REAL" "$@";;
  -c*importlinter*) echo "lint-imports" >> "$LOG";;
  -c*ensurepip*) ;;
  *shared.setup.pins*) test ! -e "$PLACE/broken";;
  *shared.setup.install*) echo "$*" >> "$LOG";;
  *) echo "$*" >> "$LOG"; for word in $(cat "$PLACE/fails" 2>/dev/null); do case "$*" in *$word*) exit 3;; esac; done;;
esac
"""
KNOBS = re.search(r"^KNOBS := (.*)$", (ROOT / "Makefile").read_text(), re.M)[1].split()
OF_MAKE = {
    *KNOBS,
    "MAKEFLAGS",
    "MAKELEVEL",
    "MFLAGS",
    "MAKEOVERRIDES",
}  # what `make test ARGS=…` passes down to the tests
LAUNCH = "-m shared.experiment.launch"


class Place:
    """A folder with the Makefile, two papers, and a stand-in for Python."""

    def __init__(self, root: Path):
        self.root, self.log, self.bin = root, root / "log", root / "bin"
        shutil.copy(ROOT / "Makefile", root)
        for paper in ("alpha", "beta"):
            (root / "papers" / paper).mkdir(parents=True)
            (root / "papers" / paper / "train.py").touch()
        (root / "papers" / "__init__.py").touch()
        self.script(root / ".venv" / "bin" / "python", PYTHON)

    def script(self, path: Path, text: str) -> Path:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
        path.chmod(0o755)
        return path

    def make(self, *words: str, path: str | None = None, **environment: str) -> subprocess.CompletedProcess:
        """Run make and leave in `self.calls` what the stand-in was asked to do."""
        self.log.write_text("")
        kept = {name: value for name, value in os.environ.items() if name not in OF_MAKE}
        kept.update(
            PATH=path or f"{self.bin}:{os.environ['PATH']}",
            LOG=str(self.log),
            PLACE=str(self.root),
            CODE=str(ROOT),
            REAL=sys.executable,
            **environment,
        )
        done = subprocess.run(["make", *words], cwd=self.root, env=kept, capture_output=True, text=True, timeout=60)
        self.calls = self.log.read_text().splitlines()
        return done


@pytest.fixture
def place(tmp_path):
    return Place(tmp_path)


CORES = min(8, os.cpu_count())
SPREAD = f" -n {min(4, CORES)} --dist loadfile --no-loadscope-reorder" if CORES > 1 else ""
DIALS = {"SCALE": "cpu", **dict.fromkeys(("SEEDS", "ARGS", "DATA_ROOT", "BUDGET"), ""), "RESULTS": "results",
         **dict.fromkeys(("SET", "DEVICE", "GPUS", "LAUNCH", "TORCH", "DEFENCE", "OBJECTIVE", "METHOD", "NAME"), "")}  # fmt: skip


def do(target: str, **given: str) -> str:
    """What the environment's Python is asked to do for a target."""
    return f"-m shared.experiment.make {target} " + " ".join(
        f"{name}={value}" for name, value in {**DIALS, **given}.items()
    )


def test_python_keeps_its_byte_code_even_where_the_machine_forbids_it(place):
    asked = PYTHON.replace("#!/bin/sh\n", '#!/bin/sh\necho "forbidden: $PYTHONDONTWRITEBYTECODE" >> "$LOG"\n')
    place.script(place.root / ".venv" / "bin" / "python", asked)
    place.make("overview", PYTHONDONTWRITEBYTECODE="1")
    assert place.calls[-2:] == ["forbidden: ", do("overview")]


def test_make_alone_prints_help_for_every_target_and_every_variable(place):
    text = place.make().stdout
    assert text == place.make("help").stdout
    makefile = (ROOT / "Makefile").read_text()
    targets = re.search(r"^\.PHONY: (.*) FORCE$", makefile, re.M)[1].split()
    of_papers = {
        f"{kind}-<paper>" for kind in ("reproduce", "headline", "figures", "status", "plan", "bench", "record")
    }
    assert set(re.findall(r"^  ([a-z][^ ]*) ", text, re.M)) == {*targets, *of_papers}
    assert re.findall(r"^  ([A-Z_]+)=", text, re.M) == KNOBS
    assert "papers here: alpha beta" in text
    assert place.calls == []  # and needs no environment
    assert max(map(len, text.splitlines())) < 140


@pytest.mark.parametrize("target", ["reproduce", "reproduce-beta", "headline", "headline-alpha", "figures-beta", "overview", "smoke", "bench",
                                    "bench-alpha", "status", "status-beta", "reproduce-gamma"])  # fmt: skip
def test_a_target_is_one_command(place, target):
    assert place.make(target).returncode == 0
    assert place.calls == [do(target)]


def test_the_dials_reach_it_as_they_were_written(place):
    given = {"SCALE": "photos", "SEEDS": "0 1 2", "ARGS": "--attack.eps 2/255", "DATA_ROOT": "/my pictures/it's", "BUDGET": "90", "RESULTS": "/tmp/r",
             "SET": "digits=1 style=dark", "DEVICE": "gpus", "GPUS": "2"}  # fmt: skip
    place.make("reproduce-alpha", *(f"{name}={value}" for name, value in given.items()))
    assert place.calls == [do("reproduce-alpha", **given)]


def test_the_environment_sets_a_dial_too(place):
    place.make("figures-alpha", SCALE="smoke")
    assert place.calls == [do("figures-alpha", SCALE="smoke")]


@pytest.mark.parametrize(("words", "said"), [
    (["SEED=1"], "there is no variable SEED; make knows SCALE SEEDS"),
    (["SCALE=huge"], "there is no SCALE=huge; choose one of: smoke cpu photos evening paper"),
    (["SCALE=cpu paper"], "there is no SCALE=cpu paper"),
    (["SEEDS=0,1"], 'not "0,1"'),
    (["SEEDS=-1"], 'not "-1"'),
    (["GPUS=two"], 'not "two"'),
    (["TORCH=gpu"], "there is no TORCH=gpu; choose cpu"),
    (["GPUS=0"], 'not "0"'),
    (["GPUS=1 2"], 'not "1 2"'),
    (["DEVICE=gpu", "LAUNCH=srun"], "LAUNCH starts the scripts in another way"),
    (["ARGS=--name 'a"], "is not closed"),
    (["DEVICE=tpu"], "there is no DEVICE=tpu; choose one of: cpu cpu2 cpus gpu gpus"),
    (["RESULTS="], "RESULTS is empty"),
    (["DEFENCE=my_module"], "DEFENCE=my_module: write module:name, as in DEFENCE=my_module:Mine"),
    (["DEFENCE=a:B", "METHOD=c:D"], "a run has one row of your own"),
    (["SET=digits"], 'SET takes name=value, not "digits"'),
])  # fmt: skip
def test_a_mistake_is_one_sentence(place, words, said):
    done = place.make("reproduce-alpha", *words)
    assert done.returncode == 2
    assert said in done.stderr
    assert len(done.stderr.splitlines()) == 1
    assert place.calls == []


def test_a_failing_command_fails_make(place):
    (place.root / "fails").write_text("reproduce-alpha")
    assert place.make("reproduce-alpha").returncode == 2


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
    place.script(
        place.bin / "python3.14", "#!/bin/sh\nexit 127\n"
    )  # such as pyenv's stand-in for a version that is not active
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
    assert place.calls == [do("figures-alpha")]


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
        assert (
            "there is no Python of 3.11 to 3.14 with its venv module (on Debian: python3-venv): install one"
            in done.stderr
        )
    assert "PYTHON=/no/python is no Python of 3.11 to 3.14" in place.make("setup", "PYTHON=/no/python").stderr


def test_doctor_and_clean_need_no_environment(place):
    python = place.script(place.bin / "python3.11", PYTHON)
    shutil.rmtree(place.root / ".venv")
    place.make("doctor", f"PYTHON={python}")
    assert place.calls == ["-m shared.setup.doctor --results results"]
    assert "there is nothing at" in place.make("clean-results").stdout
    assert place.calls == []


def test_make_test_runs_rules_smoke_and_then_pytest(place):
    done = place.make("test", "SEEDS=5", "SCALE=photos")
    assert done.returncode == 0, done.stderr
    smoke = do("smoke", SEEDS="5", SCALE="photos")
    assert place.calls == [
        "-m ruff check .",
        "lint-imports",
        "-m mypy",
        smoke,
        f"-m tests.cpus --quick{SPREAD}",
        f"-m pytest -m not slow and not bench{SPREAD}",
    ]


@pytest.mark.parametrize(("word", "calls"), [("ruff", 1), ("mypy", 3), ("smoke", 4), ("cpus", 5), ("bench", 6)])
def test_make_test_fails_where_a_part_fails(place, word, calls):
    (place.root / "fails").write_text(word)
    assert place.make("test").returncode == 2
    assert len(place.calls) == calls


@pytest.mark.parametrize(("cores", "given"), [(1, ""), (2, " -n 2"), (3, " -n 3"), (4, " -n 4"), (64, " -n 4")])
def test_tests_run_on_every_core_but_at_most_four(place, cores, given):
    place.script(place.bin / "getconf", f"#!/bin/sh\necho {cores}\n")
    place.make("test")
    assert place.calls[-1] == "-m pytest -m not slow and not bench" + (
        f"{given} --dist loadfile --no-loadscope-reorder" if given else ""
    )


@pytest.mark.parametrize(
    ("words", "expected"),
    [("-k word", f"{SPREAD} -k word"), ("-n 0", f"{SPREAD} -n 0"), ("-p no:xdist", " -p no:xdist")],
)
def test_make_test_takes_arguments(place, words, expected):
    place.make("test", f"ARGS={words}")
    assert place.calls[-1] == f"-m pytest -m not slow and not bench{expected}"


def test_without_papers_help_says_so(place):
    shutil.rmtree(place.root / "papers")
    assert "papers here: none yet" in place.make("help").stdout


def test_pytest_and_tools_take_arguments(place):
    place.make("test-slow", "ARGS=-k rehearsal")
    assert place.calls == ["-m pytest -m slow -k rehearsal"]
    place.make("zoo", "ARGS=--card-only", "DEVICE=cpu")
    assert place.calls[0] == f"{LAUNCH} --device cpu -m shared.training.pretrain --card-only"
    assert all(
        call.startswith(f"{LAUNCH} --device cpu -m shared.training.") and call.endswith(" --card-only")
        for call in place.calls
    )


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
