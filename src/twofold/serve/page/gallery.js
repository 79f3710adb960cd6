// Gallery: some images of every class, a row each, made a few classes at a time.

import { getJson, pathOf } from "./api.js";
import { byId, fillSelect, make, named, picture, pngUrl } from "./dom.js";
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
  const from = byId("gallery-from");
  let made = []; // the rows that are complete
  let of = ""; // how their images were asked for
  let wanted = ROWS;

  const first = () => Number(from.value || 0);
  const labels = () => (all().length ? all().slice(first(), first() + wanted) : [null]);
  const request = () => JSON.stringify([model.name, all(), first(), each.value, seed.value, settings()]);
  const done = () => of === request() && made.length === labels().length;

  async function run(signal) {
    if (of !== request()) made = [];
    of = request();
    const empty = labels().slice(made.length).map(emptyRow);
    rows.replaceChildren(...[...made, ...empty].map((row) => row.section));
    more.hidden = first() + wanted >= all().length;
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
      made.push(...part);
    }
    work.say(`${made.length * each.value} images. Choose one to open it in Generate.`);
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

  from.addEventListener("change", () => {
    wanted = ROWS;
    work.run(run);
  });
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
      made = [];
      from.replaceChildren();
      each.atMost(Math.min(12, m.limits.images));
      rows.replaceChildren();
    },
    show() {
      fillSelect(from, all().map((name, i) => [String(i), name])); // who guides decides which classes there are
      byId("gallery-from-control").hidden = all().length <= ROWS;
      if (!done()) work.run(run);
    },
    hide: () => work.stop(),
  };
}
