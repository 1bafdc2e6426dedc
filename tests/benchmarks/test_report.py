"""The report: both pages show the numbers of the runs, and the page works in a browser."""

from __future__ import annotations

import html
import json
import re
import shutil
import subprocess
from dataclasses import replace
from pathlib import Path

import pytest
from lab_runs import PROTOCOLS, lab, run, runs

from benchmarks.collected import Collected
from benchmarks.markers import insert
from benchmarks.outcomes import Search, Tried
from benchmarks.report import write_report
from benchmarks.report_tables import bytes_text, result_view, target_view
from benchmarks.summary import summarize
from benchmarks.targets import Target, judge
from flatcl.errors import DataError

NAME = "split-mnist-domain"
BROWSER = next(
    filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None
)
PROBE = """
<script>
const body = [...document.querySelectorAll("tbody")].find((b) => b.rows[0].dataset.method);
const table = body.parentElement;
const order = () => [...body.rows].map((row) => row.dataset.method);
const shown = () => [...body.rows].filter((r) => r.checkVisibility()).map((r) => r.dataset.method);
const heading = [...table.querySelectorAll("th")].find((th) => th.textContent === "ACC %");
const clicked = () => { heading.querySelector("button").click(); return order(); };
const set = (id, value) => {
  document.querySelector(id).value = value;
  document.querySelector(id).dispatchEvent(new Event("change", { bubbles: true }));
};
const visible = (selector) =>
  [...document.querySelectorAll(selector)].filter((part) => part.checkVisibility()).length;
const box = document.querySelector("input[value=ewc]");
const found = { first: order(), falling: clicked(), sort: heading.getAttribute("aria-sort") };
found.rising = clicked();
found.again = clicked();
box.click();
found.without = shown();
box.click();
document.querySelector("[data-choose=none]").click();
found.none = [shown().length, document.querySelector("#count").textContent];
document.querySelector("[data-choose=all]").click();
found.sections = visible("section[data-protocol]");
set("#protocol", "split-mnist-domain");
found.ofOne = visible("section[data-protocol]");
set("#protocol", "");
found.tables = visible("table");
set("#regime", "tuned");
found.tuned = visible("table");
set("#regime", "");
found.figures = [...document.querySelectorAll("figure svg")].map((svg) => {
  const area = svg.getBoundingClientRect();
  const texts = [...svg.querySelectorAll("text")].map((text) => text.getBoundingClientRect());
  return [area.width, area.height, texts.filter((t) => t.width > 0 && t.height > 0).length];
});
const light = getComputedStyle(document.body).backgroundColor;
document.querySelector("#theme").click();
found.theme = light !== getComputedStyle(document.body).backgroundColor;
const end = document.createElement("pre");
end.id = "probe";
end.textContent = JSON.stringify(found);
document.body.append(end);
</script>
"""


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """A written report of two protocols, with what it was written from."""
    outcomes, searches, _ = lab(2, [NAME])
    few = {"protocol": "split-mnist-class", "regime": "default"}
    outcomes += [*runs("naive", [0.2], **few), *runs("ldc", [0.9], **few)]
    about = {name: PROTOCOLS[name] for name in (NAME, "split-mnist-class")}
    root = tmp_path_factory.mktemp("lab")
    page = "# flatcl\n\n<!-- generated: lab -->\nstale text\n<!-- end -->\n\nbelow\n"
    (root / "README.md").write_text(page)
    write_report(outcomes, searches, about, root / "benchmarks")
    return outcomes, searches, about, root


def read(made, name: str) -> str:
    return (made[3] / "benchmarks" / name).read_text(encoding="utf-8")


def test_every_mean_is_in_both_pages_and_in_the_summary(made):
    summary = summarize(made[0], made[1])
    assert json.loads(read(made, "summary.json")) == summary
    page, markdown = read(made, "REPORT.html"), read(made, "README.md")
    for regimes in summary.values():
        for methods in regimes.values():
            for method, entry in methods.items():
                text = f"{entry['acc_mean']:.1f}"
                if entry["acc_ci95"] is not None:
                    text += f" ± {entry['acc_ci95']:.1f}"
                assert f">{text}</td>" in page, method
                assert re.search(rf"^\| \**{method}\b.*\| +{re.escape(text)} \|", markdown, re.M)


def test_the_page_is_one_file_that_asks_for_nothing(made):
    page = read(made, "REPORT.html")
    assert not re.search(r"<link|<img|<iframe|@import|\bsrc=|data:image", page)
    assert set(re.findall(r"https?://[^\"'<> ]+", page)) <= {
        "http://www.w3.org/2000/svg", "http://www.w3.org/1999/xlink",
    }  # fmt: skip
    assert "default-src 'none'" in page
    ids = re.findall(r'\bid="([^"]+)"', page)
    assert len(ids) == len(set(ids))
    assert set(re.findall(r'(?:href="|url\()#([^")]+)', page)) <= set(ids)


def test_the_same_runs_make_the_same_bytes(made, tmp_path):
    outcomes, searches, about, _ = made
    write_report(list(reversed(outcomes)), searches[::-1], about, tmp_path)
    for name in ("REPORT.html", "README.md", "summary.json"):
        assert (tmp_path / name).read_text(encoding="utf-8") == read(made, name), name


def test_footnotes_tell_what_a_row_rests_on(made):
    markdown = read(made, "README.md")
    part = markdown[markdown.index("domain-incremental, tuned") :].split("\n### ")[0]
    notes = dict(re.findall(r"^\[(\d+)\] (.*?) *$", part, re.M))
    row = dict(re.findall(r"^\| \**(\S+?)\** \[([\d,]+)\]", part, re.M))

    def of(method):
        return " ".join(notes[mark] for mark in row[method].split(","))

    assert "1 of 2 runs diverged" in of("ewc")
    assert "edge of the grid (lr)" in of("si")
    assert "Keeps samples" in of("er")
    assert "a reference, not a rival" in of("joint")
    assert "mean and 8 principal directions" in of("ldc")
    default = markdown[markdown.index("domain-incremental, default") :]
    assert "Not the published 55.16" in default.split("\n### ")[0]  # naive: at the given rate


def test_footnotes_that_only_the_other_rows_tell():
    outcomes = [*runs("ldc", [0.9, 0.91]), *runs("joint", [0.8, 0.81]), *runs("ncl", [0.85, 0.86])]
    outcomes += [
        *runs("er", [0.7, 0.7], held=(3000, 3000)),
        *runs("agem", [0.6, 0.6], held=(500, 500)),
    ]
    outcomes += [*runs("naive", [0.3, 0.3]), *runs("naive-tuned", [0.3, 0.3], seconds=8)]
    outcomes += runs("ncl", [0.8, 0.8], regime="default")
    about = replace(PROTOCOLS[NAME], guessed=["ncl"])

    def notes(regime):
        view = result_view(Collected(outcomes), "p", regime, {}, (), about)
        return {
            row.key: " ".join(view.notes[number - 1] for number in row.notes) for row in view.rows
        }, view.remarks

    tuned, remarks = notes("tuned")
    assert "No bound here: ncl, ldc come out above it." in tuned["joint"]
    assert "Holds 500 B, where er holds 3 kB" in tuned["agem"]
    assert "Holds" not in tuned["er"]
    assert "middle of our grid" not in tuned["ncl"]
    assert "middle of our grid" in notes("default")[0]["ncl"]
    assert any("reads 0.80 here" in remark for remark in remarks)


def test_published_figures_that_our_naive_reaches_too_are_marked():
    reached = {"tuned": {"naive": 66.0, "ewc": 64.0, "si": 90.0, "joint": 98.0}}
    targets = [Target("ewc", 65.0, 2.0, "x"), Target("si", 91.0, 2.0, "x")]
    targets += [Target("naive", 66.0, 1.0, "x"), Target("mas", 66.0, 9.0, "x")]
    view = target_view(judge(targets, reached))
    assert [row.cells[6].text for row in view.rows] == [
        "reached, not discriminating", "reached", "reached", "not run",
    ]  # fmt: skip
    assert view.remarks[0].startswith("1 of 2 judged figures of rivals are not discriminating")


def test_misses_and_figures_that_are_not_judged_are_shown(made):
    for text in (read(made, "README.md"), read(made, "REPORT.html")):
        assert "missed" in text
        assert "not judged" in text
        assert "other network" in text


def test_grids_show_every_value_and_what_was_chosen(made):
    markdown = read(made, "README.md")
    grid = markdown[markdown.index("domain-incremental, grids") :].split("\n## ")[0]
    row = next(line for line in grid.splitlines() if line.startswith("| ewc "))
    assert "lr: 0.01 0.05 0.2; ewc_lambda: 1 10 100 1000 10000" in row
    assert "| lr 0.05, ewc_lambda 100 |" in re.sub(" +", " ", row)
    assert "| 15 |" in re.sub(" +", " ", row)


def test_the_main_page_gets_the_headline_and_keeps_the_rest(made):
    text = (made[3] / "README.md").read_text(encoding="utf-8")
    assert text.startswith("# flatcl\n\n<!-- generated: lab -->\n\n| protocol")
    assert text.endswith("<!-- end -->\n\nbelow\n")
    assert "stale text" not in text
    assert "Geometric mean of the gap closed" in text


def test_a_report_of_few_runs_can_be_written(tmp_path):
    few = {"protocol": NAME, "regime": "default"}
    outcomes = [*runs("ldc", [0.9], **few), run("ewc", 0, 0.1, status="diverged", **few)]
    tried = [Tried({"lr": 0.1, "ewc_lambda": x}, 0.0, 1.0, 1) for x in (1.0, 10.0)]
    search = Search(NAME, "ewc", tried, tried[0].settings, ())
    write_report(outcomes, [search], PROTOCOLS, tmp_path)
    markdown = (tmp_path / "README.md").read_text(encoding="utf-8")
    assert "1 of 1 runs diverged" in markdown
    assert "## Without runs" in markdown
    assert "Permuted MNIST, 10 tasks" in markdown


def test_runs_that_nothing_is_told_about_are_refused(tmp_path):
    with pytest.raises(DataError, match=r"\['p'\].*give them in about="):
        write_report([run("ldc", 0, 0.9)], [], PROTOCOLS, tmp_path)
    with pytest.raises(DataError, match="no runs"):
        write_report([], [], PROTOCOLS, tmp_path)


def test_what_is_inserted_goes_between_its_own_marks(tmp_path):
    page = tmp_path / "README.md"
    assert not insert(page, "a", "x")
    before = "<!-- generated: b -->\nb\n<!-- end -->\n<!-- generated: a -->\na\n<!-- end -->\n"
    page.write_text(before)
    assert not insert(page, "c", "x")
    assert page.read_text() == before
    assert insert(page, "a", "new")
    assert page.read_text() == before.replace("\na\n", "\n\nnew\n\n")
    page.write_text("<!-- generated: a -->")
    with pytest.raises(DataError, match="add one"):
        insert(page, "a", "x")


@pytest.mark.parametrize(
    ("count", "text"),
    [(0, "0"), (999, "999 B"), (358_440, "358 kB"), (999_999, "1 MB"), (7_168_800, "7.17 MB")],
)
def test_bytes_have_three_digits(count, text):
    assert bytes_text(count) == text


def test_sorting_filters_figures_and_theme_in_a_browser(made, tmp_path):
    if BROWSER is None:
        pytest.skip("no chromium or google-chrome on the PATH: the page's script is not tested")
    page = tmp_path / "page.html"
    page.write_text(read(made, "REPORT.html").replace("</body>", f"{PROBE}</body>"), "utf-8")
    done = _browse(page, tmp_path)
    assert "CONSOLE" not in done.stderr, done.stderr
    probe = re.search(r'<pre id="probe">(.*?)</pre>', done.stdout, re.S)
    assert probe is not None, done.stderr
    found = json.loads(html.unescape(probe.group(1)))
    acc = {
        method: entry["acc_mean"] for method, entry in summarize(made[0])[NAME]["default"].items()
    }
    falling = sorted(acc, key=lambda method: -acc[method])
    assert found["first"] == list(acc)
    assert found["falling"] == falling != list(acc)
    assert found["sort"] == "descending"
    assert found["rising"] == falling[::-1]
    assert found["again"] == list(acc)
    assert found["without"] == [method for method in acc if method != "ewc"]
    assert found["none"] == [0, f"0 of {len(acc)}"]
    assert (found["sections"], found["ofOne"]) == (2, 1)
    assert found["tables"] - found["tuned"] == 2  # one of the default regime a protocol
    assert len(found["figures"]) == 6 + 4  # of both regimes with searches; of one without
    for width, height, letters in found["figures"]:
        assert width > 300
        assert height > 100
        assert letters > 5
    assert found["theme"]


def _browse(page: Path, folder: Path) -> subprocess.CompletedProcess[str]:
    command = [
        str(BROWSER), "--headless", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage",
        "--enable-logging=stderr", "--window-size=1400,1000", "--virtual-time-budget=3000",
        f"--user-data-dir={folder / 'profile'}", "--dump-dom", page.as_uri(),
    ]  # fmt: skip
    return subprocess.run(command, capture_output=True, text=True, timeout=120, check=True)
