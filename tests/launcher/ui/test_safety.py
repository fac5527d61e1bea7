"""Each way in which a stranger could reach the page, its files or its runs."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest
from starlette.testclient import TestClient

from launcher.ui import safety
from launcher.ui.app import CHANGE, READ, application
from launcher.ui.folders import Folders
from tests.launcher.ui.conftest import HOST, OWN, SECRET

READABLE = [path.replace("{id}", "x").replace("{key}", "seed").replace("{part}", "report") for path in READ]
CHANGING = [path.replace("{id}", "x") for path in CHANGE]


@pytest.mark.parametrize(
    "path", [*READABLE, *CHANGING, "/api/upload", "/api/run/x/events", "/static/ui.js", "/nothing"]
)
def test_nothing_is_said_without_the_secret(stranger: TestClient, path: str) -> None:
    for method in ("GET", "POST"):
        answer = stranger.request(method, path, headers=OWN)
        assert answer.status_code == 403
        assert "kohyakit ui" in answer.text


@pytest.mark.parametrize("wrong", ["", "b" * 48, SECRET[:-1], SECRET + "a", "é"])
def test_a_wrong_secret_opens_nothing(stranger: TestClient, wrong: str) -> None:
    assert stranger.get("/", params={"token": wrong}).status_code == 403
    assert stranger.get("/", headers={"Authorization": f"Bearer {wrong}".encode()}).status_code == 403
    assert stranger.get("/", headers={"Cookie": f"kohyakit-8765={wrong}".encode()}).status_code == 403


def test_the_secret_moves_into_a_cookie_that_scripts_and_other_sites_do_not_get(stranger: TestClient) -> None:
    answer = stranger.get("/lora", params={"file": "a b", "token": SECRET})
    assert (answer.status_code, answer.headers["location"]) == (303, "/lora?file=a+b")
    cookie = answer.headers["set-cookie"]
    assert all(word in cookie for word in ("kohyakit-8765=", "HttpOnly", "SameSite=Strict"))
    assert stranger.get("/").status_code == 200
    assert stranger.get(f"http://{HOST}//evil.example", params={"token": SECRET}).headers["location"] == "/evil.example"


@pytest.mark.parametrize(
    "host", ["evil.example", "evil.example:8765", "127.0.0.1", "127.0.0.1:9999", "127.0.0.1:8765.evil.example", ""]
)
def test_a_name_that_is_turned_to_this_machine_is_refused(page: TestClient, host: str) -> None:
    assert page.get("/", headers={"Host": host}).status_code == 421


@pytest.mark.parametrize(
    "origin", ["http://evil.example", "null", f"https://{HOST}", "http://127.0.0.1:1", f"http://{HOST}.evil.example"]
)
def test_another_site_cannot_change_anything(page: TestClient, origin: str) -> None:
    for path in CHANGING:
        answer = page.post(path, headers={"Origin": origin}, json={})
        assert (answer.status_code, "other pages" in answer.text) == (403, True), path


def test_a_change_must_say_where_it_comes_from(page: TestClient) -> None:
    del page.headers["Origin"]
    assert page.post("/api/open", json={"preset": "toy"}).status_code == 403
    scripted = {"Authorization": f"Bearer {SECRET}", "Accept": "application/json"}
    assert page.post("/api/open", json={"preset": "toy"}, headers=scripted).status_code == 200


def test_another_site_cannot_read_even_with_the_cookie(page: TestClient) -> None:
    for headers in ({"Origin": "http://evil.example"}, {"Sec-Fetch-Site": "cross-site", "Sec-Fetch-Mode": "no-cors"},
                    {"Sec-Fetch-Site": "same-site", "Sec-Fetch-Mode": "cors"}):  # fmt: skip
        assert page.get("/api/runs", headers=headers).status_code == 403
    assert page.get("/", headers={"Sec-Fetch-Site": "cross-site", "Sec-Fetch-Mode": "navigate"}).status_code == 200


def test_answers_tell_the_browser_what_it_may_do(page: TestClient) -> None:
    headers = page.get("/").headers
    policy = headers["content-security-policy"]
    assert "default-src 'none'" in policy
    assert "unsafe" not in policy
    assert "frame-ancestors 'none'" in policy
    assert headers["x-content-type-options"] == "nosniff"
    assert headers["cache-control"] == "no-store"


def test_no_page_holds_a_script_a_style_or_an_address_of_elsewhere(page: TestClient) -> None:
    templates = Path(safety.__file__).parent / "templates"
    for path in templates.glob("*.html"):
        text = path.read_text(encoding="utf-8")
        assert "<script>" not in text
        assert " style=" not in text
        assert " onclick=" not in text
        assert "http://" not in text.replace("http://www.w3.org/2000/svg", "")
        assert "https://" not in text


OUTSIDE = [
    "/etc/passwd",
    "/etc",
    "../../../../etc/passwd",
    "{tmp}/../..",
    "{tmp}/link",
    "{tmp}/linked",
    "/proc/self/environ",
    "\x00",
    "",
]


@pytest.mark.parametrize("path", OUTSIDE)
@pytest.mark.parametrize("address", [
    "/images?dir={}", "/images/thumb?file={}", "/lora?file={}", "/api/inspect?file={}", "/api/validate?file={}", "/api/plan?file={}",
    "/api/convert?to=args&file={}", "/api/diff?a=toy&b={}", "/api/dataset/check?dir={}", "/api/folders?path={}",
])  # fmt: skip
def test_no_path_outside_the_folders_is_read_or_listed(
    page: TestClient, tmp_path: Path, path: str, address: str
) -> None:
    from urllib.parse import quote

    (tmp_path / "link").symlink_to("/etc/passwd")
    (tmp_path / "linked").symlink_to("/etc")
    asked = path.format(tmp=tmp_path)
    if asked == "" and address.startswith(("/images?", "/lora?", "/api/folders")):
        return  # asks for nothing: the page says what to do
    answer = page.get(address.format(quote(asked, safe="")))
    assert answer.status_code in (403, 404), answer.text[:300]
    assert "root:" not in answer.text
    assert "hostname" not in answer.text


@pytest.mark.parametrize("path", ["/etc/passwd", "{tmp}/link", "{tmp}/../x.json"])
def test_nothing_outside_is_opened_recovered_or_written(page: TestClient, tmp_path: Path, path: str) -> None:
    (tmp_path / "link").symlink_to("/etc/passwd")
    asked = path.format(tmp=tmp_path)
    assert page.post("/api/open", json={"file": asked}).status_code == 403
    assert page.post("/api/recover", json={"file": asked}).status_code == 403
    assert page.post("/api/dataset/caption", json={"file": asked, "caption": "x"}).status_code == 403
    assert page.post("/api/dataset/undo", json={"dir": asked}).status_code == 403


def test_a_link_to_outside_is_not_even_listed(tmp_path: Path) -> None:
    inside = tmp_path / "in"
    (inside / "sub").mkdir(parents=True)
    (tmp_path / "out.txt").write_text("x")
    (inside / "link.txt").symlink_to(tmp_path / "out.txt")
    found = Folders((inside,)).listing(str(inside))
    assert [one["name"] for one in found["folders"]] == ["sub"]
    assert found["files"] == []
    assert found["parent"] is None


def test_a_caption_that_is_a_link_to_outside_is_not_written(page: TestClient, tmp_path: Path, photos: Path) -> None:
    outside = tmp_path.parent / f"{tmp_path.name}-outside.txt"
    outside.write_text("theirs")
    (photos / "3_frog" / "0.txt").unlink()
    (photos / "3_frog" / "0.txt").symlink_to(outside)
    answer = page.post("/api/dataset/caption", json={"file": str(photos / "3_frog" / "0.png"), "caption": "mine"})
    assert answer.status_code == 403
    assert outside.read_text() == "theirs"


@pytest.mark.parametrize(
    "name", ["train_data_dir", "output_dir", "network_weights", "sample_prompts", "dataset_config", "vae"]
)
def test_a_config_that_names_a_path_outside_is_told_so_and_not_launched(config, opened, preset, name: str) -> None:
    found = config(opened(preset(**{{"network_weights": "lora_network_weights"}.get(name, name): "/etc"})))
    if name == "sample_prompts":  # a form holds the text itself
        found = config(opened('sample_prompts = "/etc/passwd"\npretrained_model_name_or_path = "x"\n', "p.toml"))
    wrong = [one for one in found["findings"] if one["code"] == "outside-folders"]
    assert [one["argument"] for one in wrong] == [name]
    assert "kohyakit ui" in wrong[0]["fix"]
    refused = config(found["id"], "launch", status=403)
    assert refused["problems"][0]["code"] == "outside-folders"


def test_a_dataset_file_that_names_a_folder_outside_is_not_followed(config, opened, tmp_path: Path) -> None:
    data = tmp_path / "data.toml"
    data.write_text('[[datasets]]\n[[datasets.subsets]]\nimage_dir = "/etc"\n')
    found = config(opened(f'dataset_config = "{data}"\nnetwork_module = "networks.lora"\n', "c.toml"))
    assert [one["got"] for one in found["findings"] if one["code"] == "outside-folders"] == ["/etc"]


@pytest.mark.parametrize("name", ["9.png", "0.txt", "more"])
def test_links_in_the_data_that_lead_out_are_not_followed(
    page, config, opened, preset, photos: Path, tmp_path: Path, name: str
) -> None:
    outside = tmp_path.parent / f"{tmp_path.name}-{name}"
    if name == "more":
        outside.mkdir()
    else:
        outside.write_bytes(b"theirs")
    (photos / "3_frog" / name).unlink(missing_ok=True)
    (photos / "3_frog" / name).symlink_to(outside)
    found = config(opened(preset()))
    assert [(one["argument"], one["got"]) for one in found["findings"] if one["code"] == "outside-folders"] == [
        ("train_data_dir", str(photos / "3_frog" / name))
    ]
    assert found["plan"]["images"] is None
    for address in ("/images", "/api/dataset/check"):
        assert page.get(address, params={"dir": str(photos)}).status_code == 403


def test_uploads_and_bodies_are_bounded(page: TestClient, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(safety, "MOST_BODY", 1000)
    monkeypatch.setattr(safety, "MOST_UPLOAD", 5000)
    monkeypatch.setattr("launcher.ui.start.MOST_BODY", 1000)
    assert page.post("/api/open", content=b"x" * 2000).status_code == 413
    assert page.post("/api/open", content=iter([b"x" * 700, b"x" * 700])).status_code == 413
    assert page.post("/api/upload?name=a.json", content=b"{" + b" " * 2000).status_code == 422
    assert page.post("/api/upload?name=a.safetensors", content=iter([b"x" * 4000, b"x" * 4000])).status_code == 413
    assert list((tmp_path / "work" / ".kohyakit-ui" / "uploads").iterdir()) == []


@pytest.mark.parametrize(
    "name",
    [
        "../../evil.json",
        "..\\..\\evil.json",
        "/etc/evil.json",
        ".bashrc",
        "a\x00b.json",
        "con\n.json",
        "x" * 300 + ".json",
    ],
)
def test_the_name_of_an_upload_is_no_path(page: TestClient, tmp_path: Path, name: str) -> None:
    answer = page.post("/api/upload", params={"name": name}, content=b'{"LoRA_type": "Standard"}')
    assert answer.status_code == 200, answer.text
    made = [path for path in tmp_path.rglob("*") if path.is_file() and not path.name.startswith(("meta", "0001"))]
    assert [path.parent for path in made] == [tmp_path / "work"]


HTML = "<img src=x onerror=alert(1)>\"'&amp;<script>alert(2)</script>"


def test_what_files_hold_is_shown_and_never_obeyed(
    page: TestClient, config, opened, preset, photos: Path, lora
) -> None:
    name = opened(preset(training_comment=HTML, output_name="a<b>", **{HTML: HTML}))
    (photos / "3_frog" / "0.txt").write_text(HTML)
    weights = lora(metadata={"ss_training_comment": HTML, HTML: HTML})
    addresses = [f"/config/{name}", f"/config/{name}?view=json", f"/config/{name}?view=toml", f"/config/{name}/diff?with=toy",
                 f"/images?dir={photos}", f"/lora?file={weights}", "/", "/queue"]  # fmt: skip
    for address in addresses:
        text = page.get(address).text
        assert "<img src=x" not in text, address
        assert "<script>alert" not in text, address
    assert page.get("/explain/%3Cscript%3Ealert(2)%3C/script%3E").text.count("<script>alert") == 0
    assert page.get("/api/explain/%3Cscript%3E").headers["content-type"].startswith("application/json")


def test_a_secret_in_a_file_reaches_no_page_and_stays_in_the_file(
    page: TestClient, config, opened, preset, site
) -> None:
    key = "0123456789abcdef0123456789abcdef01234567"
    name = opened(preset(wandb_api_key=key, huggingface_token="hf_" + "x" * 20))
    for address in (f"/config/{name}", f"/config/{name}?view=json", f"/config/{name}?view=toml", f"/api/config/{name}",
                    f"/api/plan?config={name}", f"/api/validate?config={name}", f"/api/convert?config={name}&to=sd-scripts"):  # fmt: skip
        text = page.get(address).text
        assert key not in text, address
        assert "hf_xxx" not in text, address
    shown = config(name)["text"]
    config(name, "text", {"text": shown.replace('"frog"', '"toad"')})
    kept = json.loads(site.work.path(site.work.entry(name)).read_text())
    assert (kept["wandb_api_key"], kept["output_name"]) == (key, "toad")


def test_the_secret_is_kept_where_only_its_owner_reads_it(tmp_path: Path) -> None:
    first = safety.kept_secret(tmp_path / "x" / "secret")
    assert safety.kept_secret(tmp_path / "x" / "secret") == first
    assert len(first) == 48
    if os.name == "posix":
        assert (tmp_path / "x" / "secret").stat().st_mode & 0o077 == 0
    (tmp_path / "x" / "secret").write_text("short")
    assert safety.kept_secret(tmp_path / "x" / "secret") != "short"


def test_a_server_for_others_answers_to_its_own_name_too(site) -> None:
    other = TestClient(application(site, SECRET, 80, tuple(safety.names_of("Box.lan"))), base_url="http://box.lan")
    assert other.get("/api/presets", headers={"Authorization": f"Bearer {SECRET}"}).status_code == 200
    assert other.get("/api/presets").status_code == 403
