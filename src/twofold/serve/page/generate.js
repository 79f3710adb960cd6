// Generate: one image from a seed, watched as it emerges from noise; what a classifier says about it.

import { events, getJson, pathOf, request } from "./api.js";
import { curl, offerCommand } from "./command.js";
import { byId, fileName, fillSelect, named, offerDownload, pngUrl, show, sure } from "./dom.js";
import { Slider } from "./slider.js";
import { Work } from "./work.js";

const SEEDS = 2 ** 31;
const GUIDES = [["representations", "its representations"], ["own", "its own classifier"]]; // the first is the better one
const PATIENT = 1.5; // seconds an image may take where judging it tries every class, which takes as long as many images
const FINE_STEPS = 100; // up to which the slider goes; the number beside it takes more
const calm = matchMedia("(prefers-reduced-motion: reduce)");

/** models: all that are served. send(name, blob): hands the image to the panel of that name. */
export function generatePanel({ models, send }) {
  const work = new Work(byId("generate"));
  const changed = () => {
    refreshCommand();
    work.later(run);
  };
  const seed = new Slider("seed", changed);
  const steps = new Slider("steps", changed);
  const guidance = new Slider("guidance", changed);
  const guideScale = new Slider("guide-scale", changed);
  const [label, sampler, guide] = ["label", "sampler", "guide"].map(byId);
  const [img, progress, emerge, emerged] = ["picture", "progress", "emerge", "emerge-at"].map(byId);
  const refreshCommand = offerCommand(byId("generate-command"), () => command());
  let model = null;
  let shown = null; // what the picture shows, as in the answer, or null while none is done
  let took = 0; // seconds of computation of that picture
  let past = []; // the previews: {step, steps, sigma, src}

  /** The request's settings without seed and label; other panels generate with the same. */
  function settings() {
    const asked = { sampler: sampler.value, steps: steps.value };
    if (model.classes.length) asked.guidance = guidance.value;
    if (guide.value) Object.assign(asked, { guide: guide.value, guide_scale: guideScale.value });
    return asked;
  }

  /** Classes that can be asked for: the model's own, or those that its guide knows. */
  const labels = () => (guide.value ? model.answers : model.classes).map(String);

  const body = () => ({ seed: seed.value, label: labels().length ? label.value : null, ...settings() });

  const command = () =>
    curl(pathOf(model, "generate"), { json: body(), accept: "image/png", out: fileName(model.name, label.value, seed.value) + ".png" });

  async function run(signal) {
    const json = body();
    past = [];
    shown = null;
    byId("seen").textContent = "";
    byId("save").hidden = true;
    setSending(false);
    progress.value = 0;
    work.say("");
    const response = await request(pathOf(model, "generate"), { json, accept: "text/event-stream", signal, say: work.say });
    for await (const { event, data } of events(response)) {
      signal.throwIfAborted();
      if (event === "preview") preview(data);
      if (event === "done") done(data);
    }
    if (!shown) throw new Error("The image did not come to its end; press Generate to try again.");
    await judge(signal);
  }

  function preview({ step, steps: of, sigma, images }) {
    past.push({ step, of, sigma, src: pngUrl(images[0]) });
    Object.assign(progress, { max: of, value: step });
    if (!calm.matches) look(past.length - 1);
  }

  function done({ images, seconds }) {
    shown = images[0];
    took = seconds;
    const src = pngUrl(shown.png);
    const last = past.at(-1);
    past.push({ step: last?.of ?? steps.value, of: last?.of ?? steps.value, sigma: 0, src });
    Object.assign(progress, { max: 1, value: 1 });
    look(past.length - 1);
    offerDownload(byId("save"), src, fileName(model.name, shown.label, `seed${shown.seed}`) + ".png");
    setSending(true);
    work.say(`Done in ${seconds.toFixed(2)} s: ${named(shown.label)}, seed ${shown.seed}.`);
  }

  /** Shows how far the image was at one of its previews. */
  function look(index) {
    const { step, of, sigma, src } = past[index];
    emerge.max = past.length - 1;
    emerge.value = index;
    emerge.disabled = past.length < 2;
    const end = index === past.length - 1 && shown;
    emerged.textContent = end ? "finished" : `step ${step} of ${of}, noise ${sigma.toPrecision(2)}`;
    emerge.setAttribute("aria-valuetext", emerged.textContent);
    const what = labels().length ? `${named(label.value)}, seed ${seed.value}` : `seed ${seed.value}`;
    show(img, src, `Generated image: ${what}, ${emerged.textContent}`);
  }

  /** What the model itself, or another that is served and takes such images, recognizes in it. */
  async function judge(signal) {
    const able = (m) => m.abilities.includes("classify") && String(m.shape) === String(model.shape);
    const candidates = [model, ...models].filter((m) => able(m) && (m.answers_by !== "zero-shot" || took < PATIENT));
    const by = candidates[0];
    if (!by) return;
    const answer = await getJson(pathOf(by, "classify"), { json: { images: [shown.png] }, signal, say: work.say });
    const { label: seen, probability } = answer.predictions[0]; // without a probability: several attributes
    byId("seen").textContent = `${by === model ? "The model" : by.name} sees in it: ${sure(seen, probability)}`;
  }

  function hand(panel) {
    send(panel, pngBlob(shown.png), fileName(model.name, shown.label, `seed${shown.seed}`) + ".png");
  }

  function setSending(on) {
    for (const name of ["recognize", "change"]) byId(`to-${name}`).disabled = !on;
  }

  function guided() {
    byId("guide-scale-control").hidden = !guide.value;
    guideScale.set(guide.value === "own" ? 5 : 4); // as `twofold sample` has it
    fillSelect(label, labels().map((name) => [name, name]));
    byId("label-control").hidden = !labels().length;
  }

  sampler.addEventListener("change", () => {
    steps.set(model.samplers[sampler.value]);
    changed();
  });
  guide.addEventListener("change", () => {
    guided();
    changed();
  });
  label.addEventListener("change", changed);
  emerge.addEventListener("input", () => look(Number(emerge.value)));
  byId("another").addEventListener("click", () => {
    seed.set(Math.floor(Math.random() * SEEDS));
    changed();
  });
  byId("generate-form").addEventListener("submit", (event) => {
    event.preventDefault();
    refreshCommand();
    work.run(run);
  });
  for (const name of ["recognize", "change"]) byId(`to-${name}`).addEventListener("click", () => hand(name));

  return {
    name: "generate",
    settings,
    labels,
    offered: (m) => m.abilities.includes("generate"),
    use(m) {
      model = m;
      shown = null;
      work.stop();
      img.hidden = true;
      setUp(m, { sampler, guide, steps, guidance });
      guided();
      refreshCommand();
    },
    show: () => shown || work.run(run),
    hide: () => work.stop(),
    /** From the gallery: that seed and class. */
    open(wanted) {
      seed.set(wanted.seed);
      if (wanted.label !== null) label.value = wanted.label;
      shown = null;
    },
  };
}

/** Controls for what this model can do, at its own defaults. */
function setUp(model, { sampler, guide, steps, guidance }) {
  fillSelect(sampler, Object.keys(model.samplers).map((name) => [name, name]));
  sampler.value = model.defaults.sampler;
  steps.atMost(model.limits.steps, FINE_STEPS);
  steps.set(model.defaults.steps);
  guidance.set(model.defaults.guidance ?? 1);
  const guides = model.guides ?? [];
  const usual = model.classes.length ? "its usual way" : "nothing: any class";
  fillSelect(guide, [["", usual], ...GUIDES.filter(([name]) => guides.includes(name))]);
  guide.value = model.classes.length ? "" : (GUIDES.find(([name]) => guides.includes(name))?.[0] ?? "");
  byId("guide-control").hidden = !guides.length;
  byId("guidance-control").hidden = !model.classes.length;
  byId("to-recognize").hidden = !model.abilities.some((a) => ["classify", "embed", "neighbours"].includes(a));
  byId("to-change").hidden = !model.abilities.some((a) => ["edit", "inpaint", "vary"].includes(a));
}

function pngBlob(base64) {
  const bytes = Uint8Array.from(atob(base64), (c) => c.charCodeAt(0));
  return new Blob([bytes], { type: "image/png" });
}
