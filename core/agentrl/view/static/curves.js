// Draws the figures of a page: reads columns of metrics, only those that are looked at and only what is new of them.
"use strict";
(() => {
  const place = document.getElementById("curves");
  if (!place) return;
  const colours = ["--c1", "--c2", "--c3", "--c4", "--c5", "--c6", "--c7", "--c8"];
  const sources = JSON.parse(place.dataset.sources).map((source) => ({ ...source, file: 0, every: 0, count: 0, step: [], time: [], metrics: {} }));
  const wanted = new Set();
  const shown = new Set();
  const smooth = document.getElementById("smooth"), log = document.getElementById("log"), by = document.getElementById("by");
  const find = document.getElementById("find");
  const note = document.getElementById("drawn");

  // Reading.
  const ask = (source, names, after, until) => {
    const query = new URLSearchParams(names.map((name) => ["name", name]));
    if (after !== undefined) { query.set("after", after); query.set("every", source.every); query.set("file", source.file); }
    if (until !== undefined) query.set("until", until);
    return agentrl.json(`${source.url}?${query}`);
  };
  const whole = (source, got) => Object.assign(source, { file: got.file, every: got.every, count: got.count, step: got.step, time: got.time, metrics: got.metrics });
  async function read(source) {
    const names = [...wanted];
    if (!names.length) return false;
    const missing = names.filter((name) => !(name in source.metrics));
    if (missing.length && source.count) {
      const got = await ask(source, missing, 0, source.count);
      const fits = got.file === source.file && got.every === source.every && got.count === source.count;
      if (!fits) { whole(source, await ask(source, names)); return true; }
      Object.assign(source.metrics, got.metrics);
    }
    const known = Object.keys(source.metrics);
    const got = source.count ? await ask(source, known, source.count) : await ask(source, names);
    if (got.file !== source.file || got.every !== source.every || (got.start === 0 && source.count)) {
      const isNew = got.count > 0 || source.count > 0;
      if (source.count && got.start !== 0) whole(source, await ask(source, names)); else whole(source, got);
      return isNew;
    }
    source.count = got.count;
    source.step.push(...got.step);
    source.time.push(...got.time);
    for (const name of known) source.metrics[name].push(...got.metrics[name]);
    return got.step.length > 0 || missing.length > 0;
  }
  let reading = Promise.resolve();
  const update = (force = false) => {
    reading = reading.catch(() => {}).then(async () => {
      let isNew = force;
      for (const source of sources) isNew = (await read(source)) || isNew;
      if (isNew) shown.forEach(draw);
      const thinned = Math.max(...sources.map((source) => source.every));
      note.textContent = thinned > 1 ? `Of many steps every ${thinned}th is drawn, and every evaluation.` : "";
    });
    return reading;
  };

  // Drawing.
  const smoothed = (values) => {
    const factor = Number(smooth.value);
    if (!factor) return values;
    let mean = 0, weight = 0;
    return values.map((value) => {
      mean = factor * mean + (1 - factor) * value;
      weight = factor * weight + (1 - factor);
      return mean / weight;  // Without the zero that the mean began with.
    });
  };
  function curve(source, name) {
    const values = source.metrics[name] || [], x = [], y = [];
    const begun = source.time[0];
    values.forEach((value, at) => {
      if (value === null) return;
      x.push(by.value === "step" ? source.step[at] : (source.time[at] - begun) / 3600);
      y.push(value);
    });
    return { x, y };
  }
  function traces(figure) {
    const names = JSON.parse(figure.dataset.metrics), found = [];
    const isStacked = "stacked" in figure.dataset && !log.checked;
    sources.forEach((source, which) => names.forEach((name, at) => {
      const { x, y } = curve(source, name);
      if (!x.length) return;
      const isEvaluation = name.startsWith("evaluation/");
      const colour = agentrl.colour(colours[(sources.length > 1 ? which : at) % colours.length]);
      const label = sources.length > 1 ? (names.length > 1 ? `${source.run} · ${name}` : source.run) : name;
      const dash = sources.length > 1 && at ? ["solid", "dot", "dash"][at % 3] : "solid";
      const few = x.length < 40;
      if (Number(smooth.value) && !isEvaluation && !isStacked) {
        found.push({ x, y, mode: "lines", line: { color: colour, width: 1 }, opacity: 0.3, hoverinfo: "skip", showlegend: false });
      }
      found.push({
        x, y: isEvaluation || isStacked ? y : smoothed(y), name: plain(label), mode: isEvaluation || few ? "lines+markers" : "lines",
        line: { color: colour, width: isEvaluation ? 1.5 : 2, dash }, marker: { color: colour, size: isEvaluation ? 8 : 4, symbol: isEvaluation ? "diamond" : "circle" },
        hovertemplate: "%{y:.6~g}<extra>%{fullData.name}</extra>",
        ...(isStacked ? { stackgroup: "all" } : {}),
      });
    }));
    return found;
  }
  // Plotly reads a few HTML elements in labels; a name is text.
  const plain = (text) => text.replace(/&/g, "&amp;").replace(/</g, "&lt;").replace(/>/g, "&gt;");
  function draw(figure) {
    if (!window.Plotly || figure.hidden) return;
    const [ink, line, paper] = ["--ink", "--line", "--paper"].map(agentrl.colour);
    const lines = traces(figure);
    const axis = { gridcolor: line, zerolinecolor: line, linecolor: line };
    Plotly.react(figure.querySelector(".drawing"), lines, {
      paper_bgcolor: paper, plot_bgcolor: paper, font: { color: ink, size: 11 }, margin: { l: 50, r: 8, t: 8, b: 34 },
      xaxis: { ...axis, title: { text: by.value === "step" ? "step" : "hours" }, rangemode: "tozero" },
      yaxis: { ...axis, type: log.checked ? "log" : "linear", tickformat: "~g", nticks: 6 },
      legend: { orientation: "h", y: 1.02, yanchor: "bottom", font: { size: 10 } }, showlegend: lines.filter((each) => each.showlegend !== false).length > 1,
      hovermode: "x unified", hoverlabel: { bgcolor: paper, font: { color: ink } }, uirevision: by.value,
    }, { responsive: true, displaylogo: false, displayModeBar: false });
  }
  const redraw = () => shown.forEach(draw);

  // Figures are drawn when they come into sight.
  const sight = new IntersectionObserver((entries) => {
    let isMore = false;
    for (const { target, isIntersecting } of entries) {
      if (!isIntersecting || shown.has(target)) continue;
      shown.add(target);
      JSON.parse(target.dataset.metrics).forEach((name) => wanted.add(name));
      isMore = true;
    }
    if (isMore) update(true).catch(() => {});
  }, { rootMargin: "200px" });
  const look = () => place.querySelectorAll("figure.plot").forEach((figure) => sight.observe(figure));

  // What a run begins to log later comes with the page that is asked for again: new figures take their places.
  document.addEventListener("agentrl:replaced", (event) => {
    const fresh = event.detail && event.detail.getElementById("curves");
    if (!fresh) return;
    let before = null;
    for (const section of fresh.querySelectorAll("section.group")) {
      const old = document.getElementById(section.id);
      if (!old) {
        const added = document.adoptNode(section);
        if (before) before.after(added); else place.prepend(added);
        before = added;
        continue;
      }
      before = old;
      for (const figure of section.querySelectorAll("figure.plot")) {
        const known = document.getElementById(figure.id);
        if (!known) { old.querySelector(".plots").append(document.adoptNode(figure)); continue; }
        if (known.dataset.metrics === figure.dataset.metrics) continue;
        known.dataset.metrics = figure.dataset.metrics;
        known.querySelector("figcaption").replaceWith(document.adoptNode(figure.querySelector("figcaption")));
        if (shown.has(known)) JSON.parse(known.dataset.metrics).forEach((name) => wanted.add(name));
      }
    }
    look();
  });

  find.addEventListener("input", () => {
    const words = find.value.toLowerCase().split(/\s+/).filter(Boolean);
    for (const section of place.querySelectorAll("section.group")) {
      let any = false;
      for (const figure of section.querySelectorAll("figure.plot")) {
        figure.hidden = !words.every((word) => figure.dataset.find.toLowerCase().includes(word));
        any = any || !figure.hidden;
      }
      section.hidden = !any;
    }
    redraw();
  });
  document.getElementById("controls").addEventListener("submit", (event) => event.preventDefault());
  smooth.addEventListener("input", redraw);
  log.addEventListener("change", redraw);
  by.addEventListener("change", redraw);
  document.addEventListener("agentrl:theme", redraw);
  look();
  agentrl.follow(() => update());
})();
