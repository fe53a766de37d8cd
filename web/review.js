// The tab Krea Review: the pictures that wait for a person's decision, with the reasons, and the decision.
// Whatever comes from the server is put into the page as text, never as markup.
import { api } from "../../scripts/api.js";
import { app } from "../../scripts/app.js";
import { loadTranslations, sentence } from "./translations.js";

const PATH = "/flux_krea/review";
const REVIEWER = "fluxKrea.reviewer"; // where this browser remembers who reviews
const KEYS = { a: true, r: false }; // approve, reject
const STYLE = `
  .flux-krea-review { box-sizing: border-box; height: 100%; overflow-y: auto; padding: 12px; display: flex;
    flex-direction: column; gap: 12px; font: 14px/1.45 sans-serif; color: var(--input-text); }
  .flux-krea-review label { display: flex; flex-direction: column; gap: 4px; }
  .flux-krea-review input, .flux-krea-review textarea { box-sizing: border-box; width: 100%; padding: 8px; font: inherit;
    color: var(--input-text); background: var(--comfy-input-bg); border: 1px solid var(--border-color); border-radius: 4px; }
  .flux-krea-review button { min-height: 40px; flex: 1 1 120px; padding: 8px 12px; font: inherit; cursor: pointer;
    color: var(--input-text); background: var(--comfy-input-bg); border: 1px solid var(--border-color); border-radius: 4px; }
  .flux-krea-review article { display: flex; flex-direction: column; gap: 8px; padding: 8px; border-radius: 6px;
    border: 1px solid var(--border-color); }
  .flux-krea-review article:focus { outline: 2px solid var(--p-primary-color, #3b82f6); }
  .flux-krea-review img { max-width: 100%; max-height: 60vh; object-fit: contain; align-self: center; }
  .flux-krea-review ul { margin: 0; padding-left: 20px; overflow-wrap: anywhere; }
  .flux-krea-review .buttons { display: flex; flex-wrap: wrap; gap: 8px; }
`;

const say = (name) => sentence("review", name);

/** An element with a text and children. */
function element(tag, properties = {}, ...children) {
  const made = Object.assign(document.createElement(tag), properties);
  made.append(...children);
  return made;
}

class ReviewTab {
  constructor(root) {
    this.status = element("p", { role: "status" });
    this.status.setAttribute("aria-live", "polite");
    this.reviewer = element("input", { name: "reviewer", value: localStorage.getItem(REVIEWER) ?? "" });
    this.reviewer.addEventListener("change", () => localStorage.setItem(REVIEWER, this.reviewer.value));
    this.list = element("div", { style: "display: contents" });
    const refresh = element("button", { textContent: say("refresh"), onclick: () => this.refresh() });
    refresh.style.flex = "none";
    root.replaceChildren(
      element("style", { textContent: STYLE }),
      element(
        "section",
        { className: "flux-krea-review" },
        element("label", {}, say("reviewer"), this.reviewer),
        refresh,
        element("small", { textContent: say("keys") }),
        this.status,
        this.list,
      ),
    );
    this.refresh();
  }

  async refresh() {
    const answer = await this.ask(PATH);
    if (!answer) return;
    // Cards that stay are left alone: somebody may be writing a note into one.
    const cards = new Map([...this.list.children].map((card) => [card.dataset.id, card]));
    for (const picture of answer.waiting)
      if (!cards.delete(picture.id)) this.list.append(this.card(picture));
    for (const card of cards.values()) this.remove(card);
    this.count();
  }

  count() {
    const count = this.list.childElementCount;
    this.status.textContent = count ? `${say("waiting")} ${count}` : say("nothingWaits");
  }

  card(picture) {
    const note = element("textarea", { name: "note", rows: 2 });
    const card = element(
      "article",
      { tabIndex: 0 },
      element("img", { src: api.apiURL(`${PATH}/${picture.id}/picture`), alt: say("picture") }),
      element("strong", { textContent: picture.prefix }),
      element("small", { textContent: new Date(picture.held).toLocaleString() }),
      element("ul", {}, ...picture.reasons.map((reason) => element("li", { textContent: reason }))),
      element("label", {}, say("note"), note),
      element(
        "div",
        { className: "buttons" },
        element("button", { name: "approve", textContent: say("approve"), onclick: () => decide(true) }),
        element("button", { name: "reject", textContent: say("reject"), onclick: () => decide(false) }),
      ),
    );
    card.dataset.id = picture.id;
    const decide = (approved) => this.decide(card, picture.id, approved, note.value);
    card.addEventListener("keydown", (event) => {
      if (event.target !== card || event.ctrlKey || event.metaKey || event.altKey) return; // typing, or a shortcut
      const neighbour = { ArrowDown: card.nextElementSibling, ArrowUp: card.previousElementSibling }[event.key];
      if (!neighbour && !(event.key in KEYS)) return;
      event.preventDefault();
      event.stopPropagation(); // ComfyUI has shortcuts of its own on these letters
      if (neighbour) neighbour.focus();
      else if (!event.repeat) decide(KEYS[event.key]); // a key held down shall not decide about the next one, too
    });
    return card;
  }

  async decide(card, id, approved, note) {
    const buttons = card.querySelectorAll("button");
    if (buttons[0].disabled) return; // one decision is sent once
    for (const button of buttons) button.disabled = true;
    const body = JSON.stringify({ approved, reviewer: this.reviewer.value, note });
    const headers = { "Content-Type": "application/json" };
    const answer = await this.ask(`${PATH}/${id}`, { method: "POST", headers, body }, () => this.remove(card));
    if (!answer) {
      for (const button of buttons) button.disabled = false;
      return;
    }
    this.remove(card);
    this.count();
  }

  remove(card) {
    const next = card.nextElementSibling ?? card.previousElementSibling;
    const focused = card.contains(document.activeElement);
    card.remove();
    if (focused) next?.focus();
  }

  /** The server's answer; where there is none, says why. `gone` is called for what nobody waits for any more. */
  async ask(path, options, gone) {
    try {
      const response = await api.fetchApi(path, options);
      const answer = await response.json();
      if (response.ok) return answer;
      if (response.status === 404) gone?.();
      this.status.textContent = answer.error;
    } catch {
      this.status.textContent = say("noAnswer");
    }
    return null;
  }
}

app.registerExtension({
  name: "fluxkrea.Review",
  async init() {
    await loadTranslations();
    let tab;
    api.addEventListener("execution_success", () => tab?.refresh());
    app.extensionManager.registerSidebarTab({
      id: "flux-krea-review",
      icon: "pi pi-eye",
      title: say("title"),
      tooltip: say("tooltip"),
      type: "custom",
      render: (root) => (tab = new ReviewTab(root)),
    });
  },
});
