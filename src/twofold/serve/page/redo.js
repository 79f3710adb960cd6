// Two ways to make parts of an image, or all of it, anew: paint in what a mask covers; variations of the whole.

import { ApiError, getJson, pathOf } from "./api.js";
import { curl, offerCommand } from "./command.js";
import { byId, fileName, fillSelect, make, percent, picture, pngUrl, show } from "./dom.js";
import { Mask } from "./mask.js";
import { Slider } from "./slider.js";
import { base64 } from "./source.js";
import { Work } from "./work.js";

const UNCOVERED = { where: "mask", what: "nothing is covered", hint: "paint on the image, or add a rectangle" };

/** What both share: seed, class, running, showing. name: of the section. own(): further fields of the request. */
function redoing(name, source, { own, files, ready }) {
  const work = new Work(byId(name));
  const seed = new Slider(`${name}-seed`, () => refreshCommand());
  const label = byId(`${name}-label`);
  const results = byId(`${name}-results`);
  const refreshCommand = offerCommand(byId(`${name}-command`), () => curl(pathOf(model, name), { form: fields() }));
  let model = null;

  const asked = () => (label.value ? { label: label.value, ...guided() } : {});
  const guided = () => (model.classes.length ? {} : { guide: model.guides.at(-1) }); // who knows its classes
  const fields = () => [["image", `@${source.name}`], ...Object.entries({ ...files, ...own(), ...asked(), seed: seed.value })];

  async function run(signal) {
    work.say("Making it ...");
    const body = { image: await base64(source.blob), ...(await ready()), ...own(), ...asked(), seed: seed.value };
    const { images, seconds } = await getJson(pathOf(model, name), { json: body, signal, say: work.say });
    results.replaceChildren(...images.map((image) => result(image, name)));
    work.say(`Done in ${seconds.toFixed(2)} s.`);
  }

  byId(`${name}-form`).addEventListener("submit", (event) => {
    event.preventDefault();
    if (source.blob) work.run(run);
    else work.complain("Give an image first.");
  });
  label.addEventListener("change", () => refreshCommand());

  return {
    ability: name,
    work,
    refresh: () => refreshCommand(),
    use(m) {
      model = m;
      const classes = m.classes.length ? m.classes : m.guides?.length ? m.answers : [];
      fillSelect(label, [["", "any class"], ...classes.map((name) => [String(name), String(name)])]);
      byId(`${name}-label-control`).hidden = !classes.length;
      results.replaceChildren();
      refreshCommand();
    },
    taken() {
      work.stop();
      work.say("");
      work.complain("");
      results.replaceChildren();
      refreshCommand();
    },
    stop: () => work.stop(),
  };
}

function result({ seed, label, png }, name) {
  const url = pngUrl(png);
  const link = make("a", { href: url, download: fileName(name, label, `seed${seed}`) + ".png", textContent: "Save" });
  const caption = make("figcaption", {}, `seed ${seed} `, link);
  return make("figure", {}, picture(url, `Result of ${name}, seed ${seed}`), caption);
}

/** source: the panel's image. */
export function inpaintSection(source) {
  const mask = new Mask(() => {
    byId("mask-share").textContent = `${percent(mask.share())} of the image is covered.`;
  });
  const section = redoing("inpaint", source, {
    own: () => ({}),
    files: { mask: "@mask.png" },
    ready: async () => {
      if (!mask.share()) throw new ApiError(UNCOVERED);
      return { mask: await base64(await mask.png()) };
    },
  });
  const img = byId("mask-image");
  const taken = section.taken;
  section.taken = () => {
    taken();
    byId("mask-box").hidden = false;
    img.addEventListener("load", () => mask.size(img.naturalWidth, img.naturalHeight), { once: true });
    show(img, source.url, "Your image, under the mask");
  };
  return section;
}

/** source: the panel's image. */
export function varySection(source) {
  const strength = new Slider("vary-strength", () => section.refresh());
  const count = new Slider("vary-n", () => section.refresh());
  const section = redoing("vary", source, {
    own: () => ({ strength: strength.value, n: count.value }),
    files: {},
    ready: async () => ({}),
  });
  const use = section.use;
  section.use = (model) => {
    count.atMost(Math.min(8, model.limits.images));
    use(model);
  };
  return section;
}
