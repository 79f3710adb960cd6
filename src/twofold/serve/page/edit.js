// Counterfactual: what would have to change for the image to be of another class; a slider goes along the change.

import { getJson, pathOf } from "./api.js";
import { curl, offerCommand } from "./command.js";
import { byId, fileName, fillSelect, offerDownload, percent, pngUrl, seen, show } from "./dom.js";
import { base64 } from "./source.js";
import { Work } from "./work.js";

/** source: the panel's image. */
export function editSection(source) {
  const work = new Work(byId("edit"));
  const [to, slider, at, img] = ["edit-to", "edit-share", "edit-at", "edit-picture"].map(byId);
  const refreshCommand = offerCommand(byId("edit-command"), () =>
    curl(pathOf(model, "edit"), { form: [["image", `@${source.name}`], ["to", to.value]] }),
  );
  let model = null;
  let frames = [];

  async function run(signal) {
    byId("edit-result").hidden = true;
    work.say("Looking for the change; this takes a while ...");
    const json = { image: await base64(source.blob), to: to.value };
    const found = await getJson(pathOf(model, "edit"), { json, signal, say: work.say });
    frames = found.frames;
    slider.max = frames.length - 1;
    slider.value = frames.length - 1;
    byId("edit-result").hidden = false;
    look();
    const { before, after, reached } = found;
    const chances = `${found.to} had ${percent(before.p_target)} and has ${percent(after.p_target)}`;
    const story = `It was seen as ${seen(before.label)}, now as ${seen(after.label)}: ${chances}.`;
    work.say(reached ? story : `It did not get to ${found.to}. ${story}`);
  }

  function look() {
    const index = Number(slider.value);
    const { share, p_target: probability, label, png } = frames[index];
    const goal = `${to.value} has ${percent(probability)}`;
    at.textContent = `${percent(share)} of the change: seen as ${seen(label)}; ${goal}`;
    slider.setAttribute("aria-valuetext", at.textContent);
    show(img, pngUrl(png), `Image after ${at.textContent}`);
    offerDownload(byId("edit-save"), pngUrl(png), fileName("edit", to.value, `${index}of${frames.length - 1}`) + ".png");
  }

  slider.addEventListener("input", look);
  to.addEventListener("change", () => {
    refreshCommand();
    work.stop();
    byId("edit-result").hidden = true;
    work.say("");
  });
  byId("edit-form").addEventListener("submit", (event) => {
    event.preventDefault();
    if (source.blob) work.run(run);
    else work.complain("Give an image first.");
  });

  return {
    ability: "edit",
    use(m) {
      model = m;
      const names = m.answers.length ? m.answers : m.classes;
      const goals = m.multi_label ? names.flatMap((name) => [name, `not ${name}`]) : names; // attributes come and go
      fillSelect(to, goals.map((name) => [String(name), String(name)]));
      refreshCommand();
    },
    taken() {
      work.stop();
      work.say("");
      work.complain("");
      byId("edit-result").hidden = true;
      refreshCommand();
    },
    stop: () => work.stop(),
  };
}
