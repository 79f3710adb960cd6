// The page: which models there are, which tabs the chosen one gets, and what the tabs hand to each other.

import { getJson, getKey, setKey } from "./api.js";
import { changePanel } from "./change.js";
import { byId, fillSelect } from "./dom.js";
import { galleryPanel } from "./gallery.js";
import { generatePanel } from "./generate.js";
import { recognizePanel } from "./recognize.js";
import { reportPanel } from "./report.js";
import { guardDrops } from "./source.js";
import { Tabs } from "./tabs.js";
import { Work } from "./work.js";

const models = [];
const generate = generatePanel({ models, send });
const panels = [
  generate,
  galleryPanel({ settings: generate.settings, labels: generate.labels, open: openInGenerate }),
  recognizePanel(),
  changePanel(),
  reportPanel(),
];
const panel = (name) => panels.find((p) => p.name === name);
const tabs = new Tabs(byId("tabs"), {
  opened: (name) => panel(name).show(),
  closed: (name) => panel(name).hide(),
});
const work = new Work(document.querySelector("header"));

function send(name, blob, fileName) {
  panel(name).take(blob, fileName);
  tabs.open(name);
  byId(name).focus();
}

function openInGenerate(wanted) {
  generate.open(wanted);
  tabs.open("generate");
  byId("generate").focus();
}

/** Everything is about this model from now on. */
function choose(model) {
  if (tabs.current) panel(tabs.current).hide();
  const offered = panels.filter((p) => p.offered(model));
  tabs.offer(offered.map((p) => p.name));
  for (const p of offered) p.use(model);
  byId("facts").textContent = facts(model);
  const wanted = tabs.current ?? location.hash.slice(1);
  const name = tabs.offered().includes(wanted) ? wanted : tabs.offered()[0];
  if (name === tabs.current) panel(name).show();
  else tabs.open(name);
}

function facts({ kind, shape, classes, answers, multi_label: several, parameters, data }) {
  const [channels, height, width] = shape;
  const names = classes.length || answers.length;
  return [
    `${kind} model`,
    `${width}×${height} ${channels === 1 ? "grey" : "colour"}`,
    names ? `${names} ${several ? "attributes" : "classes"}` : "no classes",
    `${Intl.NumberFormat("en", { notation: "compact", maximumFractionDigits: 1 }).format(parameters)} parameters`,
    data ? `trained on ${data}` : "",
  ].filter(Boolean).join(" · ");
}

async function start(signal) {
  const list = await getJson("v1/models", { signal, say: work.say });
  askForKey(list.key_needed);
  if (list.key_needed && !getKey()) return;
  models.splice(0, models.length, ...list.models);
  fillSelect(byId("model"), models.map((m) => [m.name, m.name]));
  byId("model").value = list.default;
  byId("model-control").hidden = models.length < 2;
  byId("model-name").textContent = models.length < 2 ? list.default : "";
  document.title = `${list.default} · twofold`;
  choose(models.find((m) => m.name === list.default) ?? models[0]);
}

function askForKey(needed) {
  byId("key-form").hidden = !needed;
  if (needed && !getKey()) {
    byId("key").focus();
    work.complain("This server asks for an API key: enter yours.");
  }
}

byId("model").addEventListener("change", () => {
  const model = models.find((m) => m.name === byId("model").value);
  document.title = `${model.name} · twofold`;
  choose(model);
});
byId("key-form").addEventListener("submit", (event) => {
  event.preventDefault();
  setKey(byId("key").value.trim());
  byId("key").value = "";
  work.run(start);
});
document.addEventListener("key-wanted", () => {
  byId("key-form").hidden = false;
});
guardDrops();
work.run(start);
