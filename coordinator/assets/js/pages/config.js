// The run's whole configuration.
import { get } from "../api.js";
import { el, loading, replace, section } from "../dom.js";
import { withTexts } from "./browser.js";

export class Config {
  constructor() {
    this.body = el("div", null, loading("the configuration"));
    this.element = section("Configuration", "defaults filled in", this.body);
  }

  show() {
    return withTexts(this.body, async () => {
      const { toml } = await get("/api/config");
      replace(this.body, el("div", { class: "panel" }, el("pre", { class: "toml", tabindex: "0", "aria-label": "TOML" }, toml)));
    });
  }

  state() {}
  leave() {}
}
