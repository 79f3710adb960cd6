// Recognize: what is in an image, which training images are nearest to it, and its features.

import { getJson, pathOf } from "./api.js";
import { curl, offerCommand } from "./command.js";
import { byId, make, offerDownload, percent, picture, pngUrl, sure } from "./dom.js";
import { Slider } from "./slider.js";
import { Source } from "./source.js";
import { Work } from "./work.js";

const FIRST = 5; // answers shown at once

export function recognizePanel() {
  const work = new Work(byId("recognize"));
  const source = new Source(byId("recognize-drop"), {
    taken: () => work.run(run),
    refused: (text) => work.complain(text),
  });
  const count = new Slider("neighbours-n", () => source.blob && work.later((signal) => neighbours(signal)));
  const refreshCommand = offerCommand(byId("recognize-command"), () => command());
  let model = null;

  const can = (ability) => model.abilities.includes(ability);
  const command = () =>
    curl(pathOf(model, can("classify") ? "classify" : "embed"), { form: [["images", `@${source.name}`]] });

  async function run(signal) {
    clear();
    refreshCommand();
    const slow = model.answers_by === "zero-shot"; // one class after the other is tried
    const parts = { classify, embed, neighbours };
    const order = slow ? ["embed", "neighbours", "classify"] : ["classify", "embed", "neighbours"];
    work.say("Looking at it ...");
    let failure = null;
    for (const name of order.filter(can)) {
      if (slow && name === "classify") work.say("Trying every class; this may take a while ...");
      try {
        await parts[name](signal);
      } catch (error) {
        if (name !== "neighbours" || signal.aborted) throw error;
        failure = error; // the training images may be missing; the rest does not need them
      }
    }
    if (!can("classify")) work.say("Done.");
    if (failure) throw failure;
  }

  async function classify(signal) {
    const answer = await ask("classify", signal);
    const { label, probability, probabilities } = answer.predictions[0];
    const sorted = answer.classes.map((name, i) => [name, probabilities[i]]).sort((a, b) => b[1] - a[1]);
    byId("answers").replaceChildren(...sorted.slice(0, FIRST).map(answerRow));
    byId("answers-rest").replaceChildren(...sorted.slice(FIRST).map(answerRow));
    byId("answers-more").hidden = sorted.length <= FIRST;
    byId("answers-box").hidden = false;
    work.say(`It is seen as ${sure(label, probability)}.`);
  }

  async function neighbours(signal) {
    const found = await ask(`neighbours?k=${count.value}`, signal);
    for (const space of ["pixels", "features"]) {
      byId(`nearest-${space}`).replaceChildren(...(found[space] ?? []).map(neighbour));
      byId(`nearest-${space}-box`).hidden = !found[space]?.length;
    }
    byId("neighbours-box").hidden = false;
  }

  async function embed(signal) {
    const answer = await ask("embed", signal);
    const vector = answer.vectors[0];
    byId("features-said").textContent = `${vector.length} numbers, of ${answer.layers.join(", ")}`;
    byId("features-first").textContent = vector.slice(0, 8).map((v) => v.toPrecision(3)).join("  ") + " ...";
    const file = new Blob([JSON.stringify(answer)], { type: "application/json" });
    URL.revokeObjectURL(byId("features-save").href);
    offerDownload(byId("features-save"), URL.createObjectURL(file), `${source.name}.features.json`);
    byId("features-box").hidden = false;
  }

  const ask = (verb, signal) => getJson(pathOf(model, verb), { form: source.form(), signal, say: work.say });

  function clear() {
    for (const name of ["answers-box", "neighbours-box", "features-box"]) byId(name).hidden = true;
  }

  return {
    name: "recognize",
    offered: (m) => ["classify", "embed", "neighbours"].some((ability) => m.abilities.includes(ability)),
    use(m) {
      model = m;
      source.most = m.limits.bytes ?? Infinity;
      work.stop();
      work.say("");
      work.complain("");
      clear();
      refreshCommand();
    },
    show: () => source.blob && byId("answers-box").hidden && work.run(run),
    hide: () => work.stop(),
    take: (blob, name) => source.take(blob, name),
  };
}

function answerRow([name, probability]) {
  const bar = make("meter", { min: 0, max: 1, value: probability, "aria-label": `probability of ${name}` });
  return make("li", {}, make("span", { textContent: name }), bar, make("span", { textContent: percent(probability) }));
}

function neighbour({ id, label, distance, png }) {
  const what = label ?? "no label";
  const caption = make("figcaption", {}, make("strong", { textContent: what }), ` ${distance.toPrecision(3)}`);
  const img = picture(pngUrl(png), `training image ${id}, ${what}`);
  return make("li", { title: String(id), "data-id": id }, make("figure", {}, img, caption));
}
