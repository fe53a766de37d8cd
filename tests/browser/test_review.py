"""The tab Krea Review in ComfyUI's own frontend: pictures are approved and rejected, by mouse and by keyboard."""

import itertools

import pytest
from PIL import Image

from tests.browser import frontend
from tests.server.test_content_filter import SKIN, gated, waiting

TAB = ".flux-krea-review"
NUMBERS = itertools.count()  # a graph that ComfyUI has run before would hold nothing anew


@pytest.fixture
def held(server):
    """Holds pictures for review, under a name of their own; gives that name."""
    Image.new("RGB", (96, 96), SKIN).save(server.input_dir / "flagged.png")
    for case in server.get("/flux_krea/review")["waiting"]:
        server.request(f"/flux_krea/review/{case['id']}", {"approved": False})

    def hold(count, name="review"):
        graph = gated(["flagged.png"] * count, 0)
        prefix = graph["save"]["inputs"]["filename_prefix"] = f"{name}{next(NUMBERS)}"
        server.run(graph)
        return prefix

    return hold


def open_tab(page):
    """Opens the tab as a user does, and waits until it says how many pictures wait."""
    page.get_by_role("button", name="Krea Review").click()
    page.wait_for_function(f"() => document.querySelector('{TAB} [role=status]')?.textContent")
    return page.locator(TAB)


def released(server, prefix):
    return sorted(path.name for path in server.output_dir.glob(f"{prefix}_*"))


def test_a_picture_is_shown_with_its_reasons_and_approved(page, server, held):
    prefix = held(1)
    tab = open_tab(page)
    card = tab.locator("article")
    assert "Open NSFW finds sexual content (the whole picture): 0.22" in card.inner_text()
    page.wait_for_function(f"() => document.querySelector('{TAB} img').naturalWidth === 96")
    frontend.screenshot(page, "review")
    tab.locator("[name=reviewer]").fill("Ann")
    card.locator("[name=note]").fill("<img src=x onerror=alert(1)>")
    card.locator("[name=approve]").click()
    tab.get_by_text("No picture waits for review.").wait_for()
    assert released(server, prefix) == [f"{prefix}_00001_.png"] and waiting(server, prefix) == []
    assert frontend.our_errors(page) == []


def test_a_rejected_picture_goes(page, server, held):
    prefix = held(1)
    tab = open_tab(page)
    tab.locator("[name=reject]").click()
    tab.get_by_text("No picture waits for review.").wait_for()
    assert released(server, prefix) == [] and waiting(server, prefix) == []


def test_the_keyboard_is_enough(page, server, held):
    """Arrows choose, A approves, R rejects, and what is typed into a note decides nothing."""
    prefix = held(3)
    tab = open_tab(page)
    tab.locator("article").first.focus()
    page.keyboard.press("ArrowDown")
    page.keyboard.press("r")
    page.wait_for_function(f"() => document.querySelectorAll('{TAB} article').length === 2")
    page.keyboard.press("a")
    page.wait_for_function(f"() => document.querySelectorAll('{TAB} article').length === 1")
    tab.locator("[name=note]").focus()
    page.keyboard.type("a fair picture, rather")
    assert tab.locator("article").count() == 1 and len(waiting(server, prefix)) == 1
    assert len(released(server, prefix)) == 1


def test_a_key_held_down_decides_about_one_picture(page, server, held):
    prefix = held(3)
    tab = open_tab(page)
    tab.locator("article").first.focus()
    for _ in range(4):
        page.keyboard.down("a")  # the second and later ones are repeats
        page.wait_for_timeout(250)
    page.keyboard.up("a")
    assert tab.locator("article").count() == 2
    assert "somebody has decided" not in tab.inner_text()
    assert len(waiting(server, prefix)) == 2 and len(released(server, prefix)) == 1


def test_a_picture_that_is_held_meanwhile_appears_and_a_note_in_writing_stays(page, server, held):
    prefix = held(1)
    tab = open_tab(page)
    tab.locator("[name=note]").fill("half a sen")
    frontend.open_graph(page, {"nodes": [], "links": [], "version": 0.4})
    page.evaluate(
        "([graph, name]) => { graph.save.inputs.filename_prefix = name;"
        " return app.api.queuePrompt(0, { output: graph, workflow: {} }); }",
        [gated(["flagged.png"], 0), f"{prefix}_meanwhile"],
    )
    page.wait_for_function(f"() => document.querySelectorAll('{TAB} article').length === 2")
    assert [note.input_value() for note in tab.locator("[name=note]").all()] == ["half a sen", ""]


def test_of_two_tabs_the_second_learns_that_somebody_has_decided(browser, page, server, held):
    prefix = held(1)
    tab = open_tab(page)
    other = browser.new_context(viewport={"width": 1200, "height": 800}).new_page()
    other.goto(server.url)
    other.wait_for_function("window.app?.vueAppReady && !window.app.extensionManager.spinner", timeout=60_000)
    second = open_tab(other)
    tab.locator("[name=approve]").click()
    tab.get_by_text("No picture waits for review.").wait_for()
    second.locator("[name=reject]").click()
    second.get_by_text("somebody has decided").wait_for()
    assert second.locator("article").count() == 0
    assert len(released(server, prefix)) == 1
    other.context.close()


def test_script_in_a_name_is_shown_as_text(page, server, held):
    held(1, name="<img src=x onerror=document.title='owned'>")
    tab = open_tab(page)
    assert "<img src=x" in tab.locator("article").inner_text()
    assert tab.locator("article img").count() == 1 and page.title() != "owned"


def test_it_fits_a_phone(page, server, held):
    held(1)
    open_tab(page)
    page.set_viewport_size({"width": 390, "height": 780})
    page.wait_for_timeout(500)
    frontend.screenshot(page, "review_phone")
    for name in ("approve", "reject"):
        box = page.locator(f"{TAB} [name={name}]").bounding_box()
        assert box["x"] >= 0 and box["x"] + box["width"] <= 390 and box["height"] >= 40


def test_it_speaks_chinese(chinese, page, server, held):
    held(1)
    page.get_by_role("button", name="Krea 审核").click()
    page.get_by_text("通过并保存").wait_for()
