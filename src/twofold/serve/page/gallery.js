// Gallery: some images of every class, a row each, made a few classes at a time.

import { getJson, pathOf } from "./api.js";
import { byId, make, named, picture, pngUrl } from "./dom.js";
import { Slider } from "./slider.js";
import { Work } from "./work.js";

const ROWS = 10; // classes at first, and with every "more"
const TOGETHER = 32; // images of one request: they are computed together

/** settings(), labels(): how and what to generate, from that panel. open({seed, label}): shows one image there. */
export function galleryPanel({ settings, labels: all, open }) {
  const work = new Work(byId("gallery"));
  const rows = byId("gallery-rows");
  const more = byId("gallery-more");
  const refresh = () => work.later(run);
  const each = new Slider("gallery-n", refresh);
  const seed = new Slider("gallery-seed", refresh);
  let model = null;
  let made = ""; // what the rows show, complete
  let wanted = ROWS;

  const labels = () => (all().length ? all().slice(0, wanted) : [null]);
  const request = () => JSON.stringify([model.name, labels(), each.value, seed.value, settings()]);

  async function run(signal) {
    const asked = request();
    made = "";
    const empty = labels().map(emptyRow);
    rows.replaceChildren(...empty.map((row) => row.section));
    more.hidden = wanted >= all().length;
    const seeds = Array.from({ length: each.value }, (_, i) => seed.value + i);
    const together = Math.max(1, Math.floor(Math.min(TOGETHER, model.limits.images) / each.value));
    for (let at = 0; at < empty.length; at += together) {
      work.say(`Making images: ${at * each.value} of ${empty.length * each.value} ...`);
      const part = empty.slice(at, at + together);
      const label = part[0].label === null ? null : part.flatMap((row) => seeds.map(() => row.label));
      const json = { seeds: part.flatMap(() => seeds), label, ...settings() };
      const { images } = await getJson(pathOf(model, "generate"), { json, signal, say: work.say });
      for (const [i, { strip }] of part.entries()) {
        strip.replaceChildren(...images.slice(i * each.value, (i + 1) * each.value).map(button));
      }
    }
    made = asked;
    work.say(`${empty.length * each.value} images. Choose one to open it in Generate.`);
  }

  function emptyRow(label) {
    const blanks = Array.from({ length: each.value }, () => make("span", { className: "thumb blank" }));
    const strip = make("div", { className: "strip" }, ...blanks);
    const title = make("h3", { textContent: label ?? "Images" });
    return { label, strip, section: make("section", { className: "row" }, title, strip) };
  }

  function button({ seed: own, label, png }) {
    const what = `${named(label)}, seed ${own}`;
    const element = make("button", { type: "button", className: "thumb", title: what }, picture(pngUrl(png), what));
    element.addEventListener("click", () => open({ seed: own, label }));
    return element;
  }

  more.addEventListener("click", () => {
    wanted += ROWS;
    work.run(run);
  });

  return {
    name: "gallery",
    offered: (m) => m.abilities.includes("generate"),
    use(m) {
      model = m;
      wanted = ROWS;
      made = "";
      each.atMost(Math.min(12, m.limits.images));
      rows.replaceChildren();
    },
    show: () => made === request() || work.run(run),
    hide: () => work.stop(),
  };
}
