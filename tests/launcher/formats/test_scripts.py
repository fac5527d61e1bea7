"""Scripts as bash, PowerShell and cmd.exe would run them, and what only running them decides."""

from __future__ import annotations

import contextlib
import subprocess
import time
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from launcher.formats.base import Draft
from launcher.formats.command_line import read
from launcher.formats.scripts import bash, cmd, powershell
from launcher.formats.scripts.state import Unreadable
from schemas.problems import errors

RUN = "accelerate launch train_network.py"


def values(draft: Draft) -> dict[str, Any]:
    return {name: setting.value for name, setting in draft.arguments.items()}


def codes(draft: Draft) -> list[str]:
    return [problem.code for problem in errors(draft.problems)]


# bash


@pytest.mark.parametrize(
    ("script", "found"),
    [
        (f'v2=0\nif [[ $v2 == 1 ]]; then ext+=("--v2"); else ext+=("--clip_skip" 2); fi\n{RUN} ${{ext[@]}}', {"clip_skip": 2}),
        (f'v2=1; ext=(); if [ $v2 -eq 1 ]; then ext+=("--v2"); else ext+=(--clip_skip 2); fi; {RUN} "${{ext[@]}}"', {"v2": True}),
        (f"trainer_file=./sd-scripts/train_network.py\n{RUN.split(' train')[0]} $trainer_file --seed 1", {"seed": 1}),
        (f'ARGS=(\n --seed 1 # why\n\n --output_name "a b"\n)\n{RUN} "${{ARGS[@]}}"', {"seed": 1, "output_name": "a b"}),
        (f'ARGS="--seed 1 --xformers"\n{RUN} $ARGS', {"seed": 1, "xformers": True}),
        (f"A=\n{RUN} $A --seed 1 $A", {"seed": 1}),
        (f'A=x\n[ "$A" = x ] && B="--seed 3"\n{RUN} $B', {"seed": 3}),
        (f'A=\n[[ -n $A ]] || B="--seed 3"\n{RUN} $B', {"seed": 3}),
        (f"N=$((16/2))\n{RUN} --network_dim $N", {"network_dim": 8}),
        (f"source venv/bin/activate\ncd sd-scripts || exit 1\npip install -r r.txt\n{RUN} --seed 1", {"seed": 1}),
        (f"if [ ! -d models ]; then echo no; exit 1; fi\n{RUN} --seed 1", {"seed": 1}),
        (f"cat <<EOF\n{RUN} --seed 2\nEOF\n{RUN} --seed 1 2>&1 | tee log.txt", {"seed": 1}),
        (f"export A=1; if (( A > 0 )); then S=4; elif true; then S=5; fi; {RUN} --seed ${{S}}", {"seed": 4}),
        (f'A=lora.toml\n{RUN} --output_name "${{A%.toml}}"', {"output_name": "lora"}),
        (f'A=""\n{RUN} --output_name ${{A:-x}} ${{A:+--xformers}}', {"output_name": "x"}),
    ],
)  # fmt: skip
def test_bash_decides(script: str, found: dict[str, Any]) -> None:
    draft = read(script, file="run.sh")
    assert values(draft) == found
    assert codes(draft) == []


@pytest.mark.parametrize(
    ("script", "line", "got"),
    [
        (f"A=1\nif [ -f x ]; then A=2; fi\n{RUN} --seed $A", 2, "[ -f x ]"),
        (f"A=1\n{RUN} --seed 1 --output_dir $(pwd)", 2, "$(pwd)"),
        (f"{RUN} --seed 1 --output_name `date`", 1, "`date`"),
        (f'{RUN} --seed 1 "$@"', 1, "${@}"),
        (f"A=$1\n{RUN} --seed $A", 1, "${1}"),
        (f"for s in 1 2; do\n{RUN} --seed $s\ndone", 1, "for s ... do"),
        (f"train() {{\n{RUN} --seed 1\n}}\ntrain", 1, "train()"),
        (f"case $X in a) S=1;; *) S=2;; esac\n{RUN} --seed $S", 1, "case ... in"),
        (f". ./settings.sh\n{RUN} --seed 1", 1, ". ./settings.sh"),
        (f"eval $X\n{RUN} --seed 1", 1, "eval ${X}"),
        (f"{RUN} --seed 1 \\\n # a remark\n --network_dim 4", 3, "--network_dim"),
        (f"{RUN} --seed ${{S:-4}}", 1, "${S:-4}"),
        (f"{RUN} --seed 1 'open", 1, None),
    ],
)  # fmt: skip
def test_bash_names_what_it_cannot_decide(script: str, line: int, got: str | None) -> None:
    found = errors(read(script, file="run.sh").problems)
    assert (line, got) in [(problem.line, problem.got) for problem in found]
    assert all(problem.fix for problem in found)


def test_no_option_is_never_well() -> None:
    assert codes(read(RUN, file="run.sh")) == ["no-options"]


def test_several_training_commands_say_which_is_read() -> None:
    (problem,) = errors(read(f"{RUN} --seed 1\n{RUN} --seed 2\n", file="run.sh").problems)
    assert (problem.code, problem.line) == ("several-commands", 2)
    assert "line 1, is read" in problem.must


def test_an_argument_has_the_line_of_its_text() -> None:
    draft = read(f"A=(\n--seed 1\n--network_dim 4\n)\nB='--xformers'\n{RUN} ${{A[@]}} $B \\\n --lowram", file="run.sh")
    assert draft.lines == {"seed": 2, "network_dim": 3, "xformers": 5, "lowram": 7}


SHAPES = st.sampled_from(
    [
        "A='x y'", 'B="$A z"', "C=", "D=3", "E=$((D*2))", "L=(a 'b c' d)", 'L+=("$A" e)', "L+=($A)", "M=(${L[@]})", 'M=("${L[@]}")',
        "A+=q", "if [ \"$D\" -eq 3 ]; then A=1; else B=2; fi", "if [[ $C == '' ]]; then C='--v2 1'; fi", '[ -z "$C" ] && L+=(p)',
        '[[ $A != 1 && -n $B ]] || M=()', "F=${A%y}", "F=${A#x }", "G=${C:-none}", "G=${C:+some}", "export H=\"$A\"", "unset C; C=k",
        "if (( D > 2 )); then if [[ $A = x* ]]; then :; fi; D=1; elif [ 1 = 1 ]; then D=7; fi", "N=${#A}", "F=a\\ b", "G=$'x'\"y\"z",
        "{ A=g; B=h; }", "( A=inner )", "! [ 1 = 2 ] && B=not", "A=${L[1]}", "B=\"${L[*]}\"", "C=${#L[@]}", "D=9 # remark", "F=\"a\\\"b\\c\"",
        "echo $A >/dev/null", "C=\"\n two \"",
    ]
)  # fmt: skip
WORDS = st.sampled_from(
    [
        "$A", '"$A"', "$B", "--x=$C", '--x="$C"', "${D}", "$E", "${L[@]}", '"${L[@]}"', '"${L[*]}"', '"p${M[@]}s"', "$C", '"$C"', "'$A'",
        "a\\\n  b", "\\$A", "\"\\$A\"", "x'y z'\"w\"", "--k ${F}", "$G", '"$H"', "a#b", "${N}", "''", "p$A", "$A$B", '"$A"$B', "$((D + 1))",
        "a{b}", "${L}", "-5", "p\"${L[@]}\"$A",
    ]
)  # fmt: skip


@settings(derandomize=True, max_examples=15, deadline=None)
@given(st.lists(st.tuples(st.lists(SHAPES, max_size=8), st.lists(WORDS, max_size=6)), min_size=12, max_size=12))
def test_words_are_those_that_bash_passes(scripts: list[tuple[list[str], list[str]]]) -> None:
    start = "A=a B=b C=c D=4 E=5 F=f G=g H=h N=1 L=(l1 l2) M=()\n"
    texts = ["\n".join([start, *lines, f"accelerate {' '.join(words)}"]) for lines, words in scripts]
    define = "accelerate() { printf '%s\\0' accelerate \"$@\"; printf 'END\\0'; }\n"
    together = define + "\n".join(f"(\n{text}\n)" for text in texts)
    done = subprocess.run(["bash", "--norc"], input=together.encode(), capture_output=True, cwd="/", check=False)
    expected = [part.split("\0")[:-1] for part in done.stdout.decode().split("END\0")[:-1]]
    assert len(expected) == len(texts), done.stderr
    for text, wanted in zip(texts, expected, strict=True):
        words = bash.read(text).commands[-1].words
        if not any(word.doubts for word in words):
            assert [word.text for word in words] == [
                "accelerate" if word == "accelerate" else word for word in wanted
            ], text


# PowerShell

TRAIN_PS1 = """
$is_v2_model = 0 # 1 or 0
$resolution = "512,512"
$network_module = "lycoris.kohya"
$lr = "1e-4"
$Env:HF_HOME = "huggingface"
$ext_args = [System.Collections.ArrayList]::new()
$launch_args = [System.Collections.ArrayList]::new()
if ($is_v2_model) {
  [void]$ext_args.Add("--v2")
} else {
  [void]$ext_args.Add("--clip_skip=2")
}
if ($network_module -eq "lycoris.kohya" -and -not $is_v2_model) {
  [void]$ext_args.Add("--network_args")
  [void]$ext_args.Add("conv_dim=4")
}
.\\venv\\Scripts\\activate
python -m accelerate.commands.launch $launch_args --num_cpu_threads_per_process=8 "./sd-scripts/train_network.py" `
  --resolution=$resolution `
  --network_module=$network_module `
  --learning_rate=$lr $ext_args
Write-Output "done"
"""


def test_powershell_as_the_well_known_script_has_it() -> None:
    draft = read(TRAIN_PS1, file="train.ps1")
    assert codes(draft) == []
    assert values(draft) == {
        "resolution": "512,512", "network_module": "lycoris.kohya", "learning_rate": 1e-4, "clip_skip": 2,
        "network_args": ("conv_dim=4",),
    }  # fmt: skip
    assert draft.lines["clip_skip"] == 12


@pytest.mark.parametrize(
    ("script", "found"),
    [
        (f'$a = @("--seed", "1")\n{RUN} @a', {"seed": 1}),
        (f'$a = @(\n "--seed"\n 1 # why\n)\n$a += "--xformers"\n& {RUN} $a', {"seed": 1, "xformers": True}),
        (f'$n = "x"; $m = "$($n)_${{n}}`""\n{RUN} --output_name "$m"', {"output_name": 'x_x"'}),
        (
            f"[int]$v = 2\nif ($v -lt 2) {{ $s = 1 }} elseif ($v -ge 2 -or $false) {{ $s = 5 }}\n{RUN} --seed=$s",
            {"seed": 5},
        ),
        (f"$a = 'b' + 'c'\n<# no\n{RUN} --seed 9 #>\n{RUN} --output_name $a", {"output_name": "bc"}),
    ],
)
def test_powershell_decides(script: str, found: dict[str, Any]) -> None:
    draft = read(script, file="run.ps1")
    assert (codes(draft), values(draft)) == ([], found)


@pytest.mark.parametrize(
    "script",
    [
        f"if (Test-Path x) {{ $s = 1 }} else {{ $s = 2 }}\n{RUN} --seed $s",
        f"foreach ($s in 1,2) {{ {RUN} --seed $s }}",
        f"$s = Get-Date\n{RUN} --seed $s",
        f"{RUN} --seed $args",
        f"Invoke-Expression $x\n{RUN} --seed 1",
        f"function f {{ {RUN} --seed 1 }}",
        f"{RUN} --seed (1 + 2)",
        f'{RUN} --seed 1 "open',
    ],
)
def test_powershell_names_what_it_cannot_decide(script: str) -> None:
    assert codes(read(script, file="run.ps1"))


# cmd.exe


@pytest.mark.parametrize(
    ("script", "found"),
    [
        (f'@echo off\nset "N=my lora"\nset V=1\nif "%V%"=="1" (\n set X=--v2\n) else (\n set X=--clip_skip 2\n)\n{RUN} %X% ^\n --output_name "%N%"', {"v2": True, "output_name": "my lora"}),
        (f"rem {RUN} --seed 9\ncall venv\\Scripts\\activate.bat\nset S=4\nif not %S%==4 set S=5\n{RUN} --seed %S% > log.txt", {"seed": 4}),
    ],
)  # fmt: skip
def test_cmd_decides(script: str, found: dict[str, Any]) -> None:
    draft = read(script, file="run.bat")
    assert (codes(draft), values(draft)) == ([], found)


@pytest.mark.parametrize(
    "script",
    [
        f"if exist x set S=4\n{RUN} --seed %S%",
        f"set /p S=seed\n{RUN} --seed %S%",
        f"for %%s in (1 2) do {RUN} --seed %%s",
        f"goto a\n:a\n{RUN} --seed 1",
        f"{RUN} --seed %1",
    ],
)
def test_cmd_names_what_it_cannot_decide(script: str) -> None:
    assert codes(read(script, file="run.bat"))


# bounds

LONG = 20_000  # characters; what grows with their square takes many seconds at that length


@pytest.mark.parametrize("file", ["a.sh", "a.ps1", "a.bat", "a.txt"])
@pytest.mark.parametrize(
    "piece", ["\\ ", "((", "$(", "${a", "'", '"', "if ", "`", "a=(", "{ ", "x\n", "$a ", "[[ ", "! ", "a() ", "<<E\n", "%a%", "^\n", "`\n", "@'", "--a "]
)  # fmt: skip
def test_any_length_is_read_in_time(file: str, piece: str) -> None:
    begun = time.process_time()
    read(RUN + " --seed 1 " + piece * (LONG // len(piece)), file=file)
    assert time.process_time() - begun < 3


@pytest.mark.parametrize(
    ("file", "line", "use"),
    [("a.sh", "A{1}=" + "${{A{0}}}" * 10, "$A11"), ("a.ps1", '$A{1}="' + "$A{0}" * 10 + '"', "$A11"), ("a.bat", "set A{1}=" + "%A{0}%" * 10, "%A11%")],
)  # fmt: skip
def test_expansion_is_bounded(file: str, line: str, use: str) -> None:
    first = {"a.sh": "A0=aaaaaaaaaa", "a.ps1": '$A0="aaaaaaaaaa"', "a.bat": "set A0=aaaaaaaaaa"}[file]
    script = "\n".join([first, *(line.format(number, number + 1) for number in range(11)), f"{RUN} --seed 1 {use}"])
    begun = time.process_time()
    assert "undecided-script" in codes(read(script, file=file))
    assert time.process_time() - begun < 2


PIECES = [*"\"'`$(){}[]<>;&|%^!=,.#\\ \n\tab1@-\xa0", "if", "fi", "then", "do", "{ ", "else", "set ", "--seed "]


@settings(derandomize=True, max_examples=300, deadline=None)
@given(st.lists(st.sampled_from(PIECES), max_size=60))
def test_garbage_is_refused_or_read(pieces: list[str]) -> None:
    for reader in (bash.read, powershell.read, cmd.read):
        with contextlib.suppress(Unreadable):
            reader("".join(pieces))


# what people write


@pytest.mark.parametrize(
    ("file", "script", "found"),
    [
        (
            "a.sh",
            f'v=0; if [[ $v == 1 ]]; then e+=("--v2"); else e+=("--clip_skip 2"); fi; {RUN} ${{e[@]}}',
            {"clip_skip": 2},
        ),
        ("a.ps1", f"$v=0\n$e =@()\nif ($v -eq 1) {{ $e+='--v2' }} else {{ $e+='--seed=2' }}\n{RUN} $e", {"seed": 2}),
        (
            "a.bat",
            f"set A=2\nif %A%==1 (set S=1) else if %A%==2 (set S=2) else (set S=3)\n{RUN} --seed %S%",
            {"seed": 2},
        ),
        (
            "a.bat",
            f"set A=2\nif %A%==1 (\nset S=1\n) else if %A%==2 (\nset S=2\n) else (\nset S=3\n)\n{RUN} --seed %S%",
            {"seed": 2},
        ),
        ("a.bat", f"set A=1\nif %A%==1 (set S=1) else (set S=2)\n{RUN} --seed %S%", {"seed": 1}),
        ("a.txt", f"{RUN} --train_data_dir D:\\data\\new", {"train_data_dir": "D:\\data\\new"}),
    ],
)
def test_what_people_write_is_decided(file: str, script: str, found: dict[str, Any]) -> None:
    draft = read(script, file=file)
    assert (codes(draft), values(draft)) == ([], found)


def test_a_quoted_array_keeps_a_word_with_a_blank() -> None:
    draft = read(f'e=("--clip_skip 2")\n{RUN} --seed 1 "${{e[@]}}"', file="a.sh")
    assert "clip_skip 2" in draft.keys
    assert "clip_skip" not in draft.arguments


def test_a_windows_path_that_bash_takes_apart_is_named() -> None:
    assert "lost-backslashes" in [p.code for p in read(f"{RUN} --train_data_dir D:\\data\\new", file="a.sh").problems]
    assert "lost-backslashes" not in [p.code for p in read(f"{RUN} --train_data_dir 'D:\\a'", file="a.sh").problems]


SECRET = "q7Zk20pLm4"


@pytest.mark.parametrize(
    ("file", "script"),
    [
        ("a.sh", f"if [ $TOKEN = {SECRET} ]; then S=1; fi\n{RUN} --seed $S"),
        ("a.sh", f"if [[ '{SECRET}' == $MY_TOKEN ]]; then S=1; fi\n{RUN} --seed $S"),
        ("a.sh", f"wandb_api_key={SECRET}\n[ $wandb_api_key -gt $(cat f) ] && S=2\n{RUN} --seed $S"),
        ("a.sh", f"wandb_api_key={SECRET}\n[[ $wandb_api_key -gt $X ]] && S=2\n{RUN} --seed $S"),
        ("a.sh", f"{RUN} --seed 1 --huggingface_token ${{HF_TOKEN:-{SECRET}}}"),
        ("a.ps1", f'if ($Env:TOKEN -eq "{SECRET}") {{ $S = 1 }}\n{RUN} --seed $S'),
        ("a.bat", f"if %TOKEN%=={SECRET} set S=1\n{RUN} --seed %S%"),
        ("a.bat", f"set HF_TOKEN={SECRET}\nif %HF_TOKEN% lss x set S=1\n{RUN} --seed %S%"),
    ],
)
def test_a_doubt_shows_no_secret(file: str, script: str) -> None:
    found = errors(read(script, file=file).problems)
    assert found
    assert SECRET not in str(found)
