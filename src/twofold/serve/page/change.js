// Change: one image of the user's, and what the model can make of it (see edit.js and redo.js).

import { byId } from "./dom.js";
import { editSection } from "./edit.js";
import { inpaintSection, varySection } from "./redo.js";
import { Source } from "./source.js";

export function changePanel() {
  const problem = byId("change-problem");
  const source = new Source(byId("change-drop"), {
    taken: () => {
      problem.textContent = "";
      for (const section of sections) section.taken();
    },
    refused: (text) => (problem.textContent = text),
  });
  const sections = [editSection(source), inpaintSection(source), varySection(source)];

  return {
    name: "change",
    offered: (m) => sections.some((section) => m.abilities.includes(section.ability)),
    use(m) {
      source.most = (m.limits.bytes ?? Infinity) * 0.7; // it is sent as base64, a third longer
      for (const section of sections) {
        byId(section.ability).hidden = !m.abilities.includes(section.ability);
        section.stop();
        section.use(m);
      }
    },
    show() {},
    hide: () => sections.forEach((section) => section.stop()),
    take: (blob, name) => source.take(blob, name),
  };
}
