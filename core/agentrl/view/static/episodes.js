// The pages of episodes: texts that are loaded when they are asked for, and keys for the episodes beside this one.
"use strict";
(() => {
  // A link with data-load stands for the rest of a text: the page behind it holds that in its element #part. One that
  // goes on after a text adds to it, and any other takes the place of the beginning that is shown.
  document.addEventListener("click", async (event) => {
    const link = event.target.closest("a[data-load]");
    if (!link || event.ctrlKey || event.metaKey || event.shiftKey || event.button) return;
    event.preventDefault();
    if (link.getAttribute("aria-busy") === "true") return;
    link.setAttribute("aria-busy", "true");
    try {
      const answer = await fetch(link.href, { credentials: "same-origin" });
      if (!answer.ok) throw new Error(`not read (${answer.status})`);
      const part = new DOMParser().parseFromString(await answer.text(), "text/html").getElementById("part");
      const rest = link.closest(".rest");
      if (link.dataset.load !== "more") rest.previousElementSibling?.remove();
      rest.replaceWith(...[...part.children].map((each) => document.adoptNode(each)));
    } catch {
      location.href = link.href;
    }
  });

  document.addEventListener("keydown", (event) => {
    if (event.ctrlKey || event.metaKey || event.altKey || event.target.closest("input, select, textarea, dialog")) return;
    const rel = { n: "next", p: "prev" }[event.key];
    if (rel) document.querySelector(`#neighbours a[rel="${rel}"], #pages a[rel="${rel}"]`)?.click();
  });

  // A filter is chosen at once; fields without a value stay out of the address.
  const form = document.querySelector("form[data-filters]");
  if (!form) return;
  form.addEventListener("change", (event) => { if (event.target.matches("select")) form.requestSubmit(); });
  form.addEventListener("submit", () => {
    for (const field of form.elements) if (field.name && !field.value) field.disabled = true;
  });
  addEventListener("pageshow", () => { for (const field of form.elements) field.disabled = false; });
})();
