// Draws, on Krea Aspect-Ratio Latent, the frame that its settings give, before anything runs.
// The sizes are the server's: this page only asks for them and draws.
import { api } from "../../scripts/api.js";
import { app } from "../../scripts/app.js";
import { loadTranslations, sentence } from "./translations.js";

const NODE_ID = "FluxKreaAspectRatioLatent";
const SIZE_SETTINGS = ["aspect_ratio", "resolution", "swap_sides", "custom_ratio", "custom_megapixels"];
const VIEW = { height: 132, frameWidth: 200, frameHeight: 80 }; // px

/** Calls `after` whenever `object[name]` is called, without taking the place of what is there. */
function chain(object, name, after) {
  const before = object[name];
  object[name] = function (...args) {
    const result = before?.apply(this, args);
    after(...args);
    return result;
  };
}

function createView() {
  const element = document.createElement("div");
  element.className = "flux-krea-frame";
  element.style.cssText =
    "box-sizing: border-box; display: flex; flex-direction: column; align-items: center; gap: 6px; padding: 4px;" +
    `height: ${VIEW.height}px; pointer-events: none; font: 12px/1.35 sans-serif; color: var(--input-text);`;
  const outline = document.createElement("div");
  outline.className = "flux-krea-frame-outline";
  outline.style.cssText =
    "box-sizing: border-box; flex: none; margin: auto; border: 1px solid currentColor; border-radius: 2px;" +
    "background: var(--comfy-input-bg);";
  const caption = document.createElement("div");
  caption.className = "flux-krea-frame-caption";
  caption.style.cssText = "margin: auto; text-align: center; white-space: pre-line;";
  element.append(outline, caption);

  return {
    element,
    showFrame({ width, height, caption: text }) {
      const scale = Math.min(VIEW.frameWidth / width, VIEW.frameHeight / height);
      outline.style.width = `${width * scale}px`;
      outline.style.height = `${height * scale}px`;
      outline.hidden = false;
      caption.textContent = text;
    },
    showText(text) {
      outline.hidden = true;
      caption.textContent = text;
    },
  };
}

function addFramePreview(node) {
  const view = createView();
  const widget = node.addDOMWidget("frame", "flux_krea_frame", view.element, {
    serialize: false, // not an input of the node
    hideOnZoom: false,
    margin: 4,
    getMinHeight: () => VIEW.height + 8,
    getMaxHeight: () => VIEW.height + 8,
  });
  widget.serialize = false; // nor a value of the workflow

  const isLinked = (name) => node.inputs?.some((input) => input.name === name && input.link != null);
  const settings = node.widgets.filter(({ name }) => SIZE_SETTINGS.includes(name));
  let latest = 0;

  async function update() {
    const request = ++latest;
    if (isLinked("picture")) {
      view.showText(sentence("framePreview", "shapeIsLinked"));
      return;
    }
    if (SIZE_SETTINGS.some(isLinked)) {
      view.showText(sentence("framePreview", "settingIsLinked"));
      return;
    }
    const query = new URLSearchParams(settings.map(({ name, value }) => [name, value]));
    const answer = await api
      .fetchApi(`/flux_krea/frame?${query}`)
      .then((response) => response.json())
      .catch(() => ({ error: sentence("framePreview", "noAnswer") }));
    if (request !== latest) return; // a later change has asked again
    if ("error" in answer) view.showText(answer.error);
    else view.showFrame(answer);
  }

  for (const setting of settings) chain(setting, "callback", update);
  chain(node, "onConfigure", update);
  chain(node, "onConnectionsChange", update);
  chain(node, "onExecuted", ({ frame } = {}) => {
    if (frame) view.showFrame(frame[0]);
  });
  update();
}

app.registerExtension({
  name: "fluxkrea.FramePreview",
  init: loadTranslations,
  nodeCreated(node) {
    if (node.comfyClass === NODE_ID) addFramePreview(node);
  },
});
