"""Findings in the forms of other tools."""

from __future__ import annotations

import json

import pytest
import yaml
from click.testing import CliRunner

from launcher.check.annotations import github, sarif
from launcher.commands.configs import validate
from tests.test_house import ROOT

PROBLEM = {
    "severity": "error",
    "code": "bad-value",
    "key": "network_dim",
    "line": 3,
    "got": "a",
    "must": "must be\n5 %",
    "fix": "--set network_dim=5",
}
MACHINE = {**PROBLEM, "severity": "warning", "code": "missing-package"}


@pytest.fixture
def files():
    return [{"file": "a b,c.json", "problems": [PROBLEM, MACHINE]}]


def test_sarif_points_to_the_line(files):
    run = sarif(files, "1.0")["runs"][0]
    (result,) = run["results"]
    place = result["locations"][0]["physicalLocation"]
    assert place == {"artifactLocation": {"uri": "a%20b%2Cc.json"}, "region": {"startLine": 3}}
    assert run["tool"]["driver"]["rules"][result["ruleIndex"]]["id"] == result["ruleId"] == "bad-value"
    assert result["level"] == "error"
    assert "Fix: --set network_dim=5" in result["message"]["text"]


def test_a_workflow_command_is_one_line_and_cannot_be_forged(files):
    (line,) = github(files)
    assert line.startswith("::error file=a b%2Cc.json,line=3,title=kohyakit bad-value::network_dim: must be%0A5 %25")
    assert "\n" not in line


@pytest.mark.parametrize("form", ["sarif", "github"])
def test_the_command(tmp_path, form):
    file = tmp_path / "p.json"
    file.write_text('{\n "LoRA_type": "Standard",\n "network_dim": "x"\n}', encoding="utf-8")
    ended = CliRunner().invoke(validate, [str(file), "--format", form])
    assert ended.exit_code == 1
    if form == "sarif":
        (one,) = [result for result in json.loads(ended.stdout)["runs"][0]["results"] if result["level"] == "error"]
        assert one["locations"][0]["physicalLocation"]["region"]["startLine"] == 3
    else:
        assert f"::error file={file},line=3,title=kohyakit bad-value::network_dim" in ended.stdout
    file.write_text("{", encoding="utf-8")
    assert CliRunner().invoke(validate, [str(file), "--format", form]).exit_code == 1


def test_action_and_hook_name_what_there_is():
    action = yaml.safe_load((ROOT / "action.yml").read_text(encoding="utf-8"))
    assert "kohyakit validate --format github" in action["runs"]["steps"][-1]["run"]
    (hook,) = yaml.safe_load((ROOT / ".pre-commit-hooks.yaml").read_text(encoding="utf-8"))
    assert hook["entry"] == "kohyakit validate"
    assert hook["id"] in (ROOT / "docs" / "lint-presets.md").read_text(encoding="utf-8")
