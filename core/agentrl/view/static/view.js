// What every page does: keys, light or dark, and following what changes. No library, no build step.
"use strict";
(() => {
  const EVERY_MS = 2000;
  const root = document.documentElement;

  // Light or dark: as the system has it until the reader chooses.
  const kept = (() => { try { return localStorage.getItem("agentrl-theme"); } catch { return null; } })();
  if (kept) root.dataset.theme = kept;
  const isDark = () => root.dataset.theme ? root.dataset.theme === "dark" : matchMedia("(prefers-color-scheme: dark)").matches;
  const themeChanged = () => document.dispatchEvent(new CustomEvent("agentrl:theme"));
  document.getElementById("theme").addEventListener("click", () => {
    root.dataset.theme = isDark() ? "light" : "dark";
    try { localStorage.setItem("agentrl-theme", root.dataset.theme); } catch { /* It holds for this page. */ }
    themeChanged();
  });
  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", themeChanged);

  // Keys.
  const keys = document.getElementById("keys");
  document.getElementById("help").addEventListener("click", () => keys.showModal());
  const rows = () => [...document.querySelectorAll("[data-row]")].filter((row) => row.offsetParent !== null);
  const move = (by) => {
    const all = rows();
    if (!all.length) return;
    const at = all.indexOf(document.activeElement.closest("[data-row]"));
    const next = all[at < 0 ? (by > 0 ? 0 : all.length - 1) : Math.min(Math.max(at + by, 0), all.length - 1)];
    if (!next.hasAttribute("tabindex")) next.tabIndex = -1;
    next.focus();
    next.scrollIntoView({ block: "nearest" });
  };
  document.addEventListener("keydown", (event) => {
    if (event.ctrlKey || event.metaKey || event.altKey || keys.open) return;
    const field = event.target.closest("input:not([type=checkbox], [type=range]), select, textarea, [contenteditable]");
    if (field) {
      if (event.key === "Escape") field.blur();
      return;
    }
    if (event.key === "j") move(1);
    else if (event.key === "k") move(-1);
    else if (event.key === "?") keys.showModal();
    else if (event.key === "/") document.querySelector("[data-search]")?.focus();
    else if (event.key === "u") [...document.querySelectorAll(".trail a")].filter((a) => a.pathname !== location.pathname).pop()?.click();
    else if (event.key === "Enter" && event.target.matches("[data-row]")) event.target.querySelector("a[href]")?.click();
    else return;
    event.preventDefault();
  });

  // Following what changes: the page is asked for again, and its elements with data-live take the place of the old.
  const connection = document.getElementById("connection");
  let tag = root.dataset.tag || null, waiting = false;
  const told = (text) => { if (connection.textContent !== text) connection.textContent = text; };
  async function get(url, headers) {
    const answer = await fetch(url, { headers, credentials: "same-origin", cache: "no-store" });
    if (answer.status === 304) return null;
    if (!answer.ok) throw new Error(answer.status === 401 ? "the token is asked for again: reload" : `not read (${answer.status})`);
    return answer;
  }
  function replace(text) {
    const fresh = new DOMParser().parseFromString(text, "text/html");
    for (const old of document.querySelectorAll("[data-live][id]")) {
      const next = fresh.getElementById(old.id);
      if (!next || next.isEqualNode(old) || old.contains(document.activeElement.closest("input:not([type=checkbox]), select, textarea"))) continue;
      const at = [...old.querySelectorAll("[data-row]")].indexOf(document.activeElement);
      for (const box of old.querySelectorAll("input[type=checkbox]:checked")) {
        const same = [...next.querySelectorAll("input[type=checkbox]")].find((each) => each.name === box.name && each.value === box.value);
        if (same) same.checked = true;
      }
      old.replaceWith(document.adoptNode(next));
      const row = at < 0 ? null : [...next.querySelectorAll("[data-row]")][at];
      if (row) { row.tabIndex = -1; row.focus({ preventScroll: true }); }
    }
    document.dispatchEvent(new CustomEvent("agentrl:replaced", { detail: fresh }));
  }
  const followers = [];
  async function follow() {
    if (waiting || document.hidden) return;
    waiting = true;
    try {
      if (document.querySelector("[data-live][id]")) {
        const answer = await get(location.href.split("#")[0], tag ? { "If-None-Match": tag } : {});
        if (answer) { tag = answer.headers.get("etag"); replace(await answer.text()); }
      }
      for (const each of followers) await each();
      told("");
    } catch (error) {
      told(error instanceof TypeError ? "the server has ended, or cannot be reached" : error.message);
    } finally {
      waiting = false;
    }
  }
  setInterval(follow, EVERY_MS);
  document.addEventListener("visibilitychange", follow);

  // For the scripts of single pages: `follow(read)` has `read` called as often, and `json(url)` reads what it needs.
  window.agentrl = {
    isDark,
    follow: (read) => followers.push(read),
    json: async (url) => (await get(url, {})).json(),
    colour: (name) => getComputedStyle(root).getPropertyValue(name).trim(),
  };
})();
