// What the script of the curves needs of a page, where the page is a file: the numbers stand in the file itself.
"use strict";
window.agentrl = {
  colour: (name) => getComputedStyle(document.documentElement).getPropertyValue(name).trim(),
  follow: () => {},
  json: async (address) => {
    const whole = JSON.parse(document.getElementById("numbers").textContent);
    const query = new URLSearchParams(address.slice(address.indexOf("?")));
    const names = query.getAll("name");
    const isNew = query.has("after") && !query.has("until");  // Nothing comes later to a file.
    const some = (values) => (isNew ? [] : values || []);
    return {
      file: whole.file, every: whole.every, count: whole.count, start: isNew ? whole.count : 0,
      step: some(whole.step), time: some(whole.time),
      metrics: Object.fromEntries(names.map((name) => [name, some(whole.metrics[name])])),
    };
  },
};
