// The pack's own sentences in the user's language: ComfyUI gives extensions no translator.
import { api } from "../../scripts/api.js";
import { app } from "../../scripts/app.js";

let translations = {}; // language -> the texts of all packs' locales folders

/** Fetches the texts; to be awaited in an extension's init. */
export async function loadTranslations() {
  translations = await api.getCustomNodesI18n();
}

/** The sentence of a part of the page with this name in the user's language, else in English. */
export function sentence(part, name) {
  const language = app.extensionManager.setting.get("Comfy.Locale");
  const texts = translations[language]?.fluxKrea ?? translations.en?.fluxKrea;
  return texts?.[part][name];
}
