// Filters of the sample groups. The page can be read without.
(() => {
  const filters = document.querySelector(".filters");
  if (!filters) return;
  filters.hidden = false;
  const groups = [...document.querySelectorAll("details.group")];
  const [from, mixed, open] = ["from", "mixed", "open"].map((name) => filters.querySelector(`[name=${name}]`));
  const apply = () => groups.forEach((group) => {
    group.hidden = (from.value && group.dataset.from !== from.value) ||
      (mixed.checked && group.dataset.mixed !== "true");
  });
  from.addEventListener("change", apply);
  mixed.addEventListener("change", apply);
  open.addEventListener("click", () => {
    const shown = groups.filter((group) => !group.hidden);
    const all = shown.every((group) => group.open);
    shown.forEach((group) => { group.open = !all; });
    open.textContent = all ? "Open all" : "Close all";
  });
  addEventListener("beforeprint", () => groups.forEach((group) => { group.open = !group.hidden; }));
})();
