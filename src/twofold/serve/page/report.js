// The run's report, in a frame; where a key is needed it is fetched with it first, for a frame has none.

import { address, getKey, pathOf, request } from "./api.js";
import { byId, offerDownload } from "./dom.js";
import { Work } from "./work.js";

export function reportPanel() {
  const frame = byId("report-frame");
  const [link, save] = [byId("report-link"), byId("report-save")];
  const work = new Work(byId("report"));
  let model = null;

  async function fetched(signal) {
    const response = await request(pathOf(model, "report"), { accept: "text/html", signal, say: work.say });
    const url = URL.createObjectURL(await response.blob());
    offerDownload(save, url, `${model.name}-report.html`);
    frame.src = url;
  }

  return {
    name: "report",
    offered: (m) => m.abilities.includes("report"),
    use(m) {
      model = m;
      URL.revokeObjectURL(save.href);
      frame.removeAttribute("src");
      save.removeAttribute("href");
      save.hidden = true;
    },
    show() {
      const locked = Boolean(getKey());
      frame.title = `Report of ${model.name}`;
      link.hidden = locked;
      if (locked) return save.href || work.run(fetched);
      link.href = address(pathOf(model, "report"));
      if (frame.getAttribute("src") !== link.href) frame.src = link.href;
    },
    hide: () => work.stop(),
  };
}
