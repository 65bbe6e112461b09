// Elements made of data. Text becomes text nodes and nothing else: no response of a model can become markup.

// el("p", { class: "muted" }, "text", child): attributes with a value of null or false are left out, functions are
// listeners ("onclick").
export function el(tag, attributes, ...children) {
  const element = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes ?? {})) {
    if (value === null || value === undefined || value === false) continue;
    if (typeof value === "function") element.addEventListener(name.slice(2), value);
    else element.setAttribute(name, value === true ? "" : String(value));
  }
  append(element, children);
  return element;
}

function append(element, children) {
  for (const child of children.flat(Infinity)) {
    if (child === null || child === undefined || child === false) continue;
    element.append(child instanceof Node ? child : document.createTextNode(String(child)));
  }
}

export function replace(element, ...children) {
  element.replaceChildren();
  append(element, children);
  return element;
}

// A section with its heading; screen readers find it by name.
export function section(title, note, ...children) {
  const heading = el("h2", null, title);
  heading.id = `h-${title.toLowerCase().replaceAll(/[^a-z]+/g, "-")}`;
  const head = el("div", { class: "heading" }, heading, note && el("p", { class: "muted" }, note));
  return el("section", { "aria-labelledby": heading.id }, head, ...children);
}

export const loading = (what) => el("p", { class: "panel empty" }, `Loading ${what} …`);
export const empty = (text) => el("p", { class: "panel empty" }, text);
export const failed = (error) => el("p", { class: "error", role: "alert" }, error.message ?? String(error));

// A table: columns are { title, number, cell(row) }.
export function table(caption, columns, rows, style = null) {
  const head = columns.map((c) => el("th", { scope: "col", class: c.number ? "number" : null }, c.title));
  const body = rows.map((row) =>
    el("tr", null, columns.map((c) => el("td", { class: c.number ? "number" : null }, c.cell(row)))),
  );
  return el(
    "div",
    { class: "scroll", tabindex: "0", role: "region", "aria-label": caption },
    el("table", { class: style }, el("caption", null, caption), el("thead", null, el("tr", null, head)), el("tbody", null, body)),
  );
}

// A colour of the theme, as drawing on a canvas needs it.
export function color(name, alpha = 1) {
  const probe = el("span", { hidden: true });
  probe.style.color = `var(--${name})`;
  document.body.append(probe);
  const [r, g, b] = getComputedStyle(probe).color.match(/[\d.]+/g) ?? [128, 128, 128];
  probe.remove();
  return `rgba(${r}, ${g}, ${b}, ${alpha})`;
}
