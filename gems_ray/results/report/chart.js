"use strict";

const DASHES = ["", "7 3", "2 3", "8 3 2 3"];
const REFERENCE_DASHES = { random: "1 3", oracle: "6 4", behavior: "8 3 2 3", bound: "6 4" };

/** Round numbers that divide a range, about `count` of them. */
function ticks(low, high, count) {
  const rough = (high - low) / count || 1;
  const power = 10 ** Math.floor(Math.log10(rough));
  const step = [1, 2, 5, 10].map((factor) => factor * power).find((size) => size >= rough);
  const found = [];
  for (let value = Math.ceil(low / step) * step; value <= high + step * 1e-6; value += step) found.push(+value.toPrecision(12));
  return found;
}

function short(value) {
  const size = Math.abs(value);
  return size >= 1e6 ? `${+(value / 1e6).toPrecision(3)}M` : size >= 1e4 ? `${+(value / 1e3).toPrecision(3)}k` : String(+value.toPrecision(4));
}

/** The line of a path through points; a point without a value is left out. */
function path(xs, ys, x, y) {
  let text = "";
  xs.forEach((at, index) => {
    if (ys[index] !== null) text += `${text ? "L" : "M"}${x(at).toFixed(1)} ${y(ys[index]).toFixed(1)}`;
  });
  return text;
}

/** A sample of a group's line, for its checkbox. */
function sample(group) {
  const line = drawn("line", { x1: 1, y1: 6, x2: 31, y2: 6, class: `curve s${group % 8}`, "stroke-dasharray": DASHES[group % 4] });
  return drawn("svg", { width: 32, height: 12, "aria-hidden": "true", focusable: "false" }, line);
}

/**
 * The curves of an environment: lines of the means with their intervals, on request every seed, and what they are
 * compared with. A slider below reads the values off; the pointer moves it too.
 */
function chart({ id, title, label, groups, means, seeds, references, kept, width }) {
  const height = 260, margin = { left: 52, right: 12, top: 10, bottom: 38 };
  const xs = [...new Set(means.flatMap((mean) => mean.x))].sort((a, b) => a - b);
  const values = [
    ...means.flatMap((mean) => [...mean.mean, ...mean.low, ...mean.high]),
    ...seeds.flatMap((seed) => seed[4]), ...Object.values(references),
  ].filter((value) => value !== null);
  const least = values.reduce((a, b) => Math.min(a, b), Infinity), most = values.reduce((a, b) => Math.max(a, b), -Infinity);
  const room = (most - least) * 0.04 || 1;
  const low = least >= 0 ? Math.max(0, least - room) : least - room, high = most + room;
  const first = xs[0], last = xs.at(-1);
  const x = (at) => margin.left + ((at - first) / (last - first || 1)) * (width - margin.left - margin.right);
  const y = (value) => height - margin.bottom - ((value - low) / (high - low)) * (height - margin.top - margin.bottom);

  const svg = drawn("svg", { viewBox: `0 0 ${width} ${height}`, role: "img", "aria-label": `${title}: ${label} against updates. The slider below reads the values.` });
  for (const tick of ticks(low, high, 5)) {
    svg.append(drawn("line", { class: "grid", x1: margin.left, x2: width - margin.right, y1: y(tick), y2: y(tick) }),
      drawn("text", { x: margin.left - 6, y: y(tick) + 4, "text-anchor": "end" }, short(tick)));
  }
  for (const tick of ticks(first, last, width < 400 ? 3 : 6)) svg.append(drawn("text", { x: x(tick), y: height - margin.bottom + 16, "text-anchor": x(tick) > width - 30 ? "end" : "middle" }, short(tick)));
  svg.append(drawn("text", { x: (margin.left + width - margin.right) / 2, y: height - 5, "text-anchor": "middle" }, "updates"));
  for (const [name, value] of Object.entries(references)) {
    svg.append(drawn("line", { class: "reference", x1: margin.left, x2: width - margin.right, y1: y(value), y2: y(value), "stroke-dasharray": REFERENCE_DASHES[name] ?? "6 4" }));
  }
  for (const mean of means) {
    const known = mean.x.map((_, index) => index).filter((index) => mean.low[index] !== null);
    const edge = [...known.map((i) => `${x(mean.x[i]).toFixed(1)} ${y(mean.high[i]).toFixed(1)}`), ...known.reverse().map((i) => `${x(mean.x[i]).toFixed(1)} ${y(mean.low[i]).toFixed(1)}`)];
    if (edge.length) svg.append(drawn("path", { class: `band f${mean.group % 8}`, d: `M${edge.join("L")}Z` }));
  }
  for (const [, , group, at, value] of seeds) svg.append(drawn("path", { class: `seed s${group % 8}`, d: path(at, value, x, y) }));
  for (const mean of means) svg.append(drawn("path", { class: `curve s${mean.group % 8}`, d: path(mean.x, mean.mean, x, y), "stroke-dasharray": DASHES[mean.group % 4] }));
  for (const mean of means) { // a line of one report, or over few of many updates, could not be seen
    if (mean.mean.at(-1) !== null) svg.append(drawn("circle", { class: `end f${mean.group % 8}`, cx: x(mean.x.at(-1)), cy: y(mean.mean.at(-1)), r: 3 }));
  }
  let above = -Infinity;
  for (const [name, value] of Object.entries(references).sort((one, other) => other[1] - one[1])) {
    above = Math.max(y(value) - 4, above + 13); // labels of near values stand below each other
    svg.append(drawn("text", { x: width - margin.right, y: above, "text-anchor": "end" }, `${name} ${shown(value)}`));
  }
  const cross = drawn("line", { class: "cross", y1: margin.top, y2: height - margin.bottom });
  svg.append(cross);

  const reading = element("table", { class: "reading" });
  const slider = element("input", { type: "range", id: `${id}-slider`, min: 0, max: xs.length - 1, step: 1, "aria-label": `Updates at which the values of ${title} are read`, oninput: () => read(Number(slider.value)) });
  const read = (index) => {
    kept[id] = index === xs.length - 1 ? undefined : xs[index]; // the end stays the end while a run goes on
    slider.value = index;
    slider.setAttribute("aria-valuetext", `${xs[index].toLocaleString("en")} updates`);
    cross.setAttribute("x1", x(xs[index]));
    cross.setAttribute("x2", x(xs[index]));
    const rows = means.map((mean) => {
      const place = mean.x.findLastIndex((at) => at <= xs[index]);
      const interval = place < 0 || mean.low[place] === null ? "–" : `${shown(mean.low[place])} to ${shown(mean.high[place])}`;
      const ended = mean.x.at(-1) < xs[index] ? ` (until ${mean.x.at(-1).toLocaleString("en")})` : "";
      return [mean, [groups[mean.group] + ended, shown(mean.mean[place]), interval, mean.seeds[place] ?? "–"]];
    }).sort((one, other) => (other[0].mean.at(-1) ?? 0) - (one[0].mean.at(-1) ?? 0));
    reading.replaceChildren(
      element("caption", {}, `After ${xs[index].toLocaleString("en")} updates`),
      element("thead", {}, element("tr", {}, ...["algorithm", "mean", "95% interval", "seeds"].map((name, column) => element("th", { scope: "col", class: column ? null : "word" }, name)))),
      element("tbody", {}, ...rows.map(([mean, texts]) => element("tr", {}, ...texts.map((text, column) => element("td", { class: column ? null : "word" }, ...(column ? [] : [sample(mean.group), " "]), String(text)))))));
  };
  const follow = (event) => {
    const box = svg.getBoundingClientRect();
    const at = first + (((event.clientX - box.left) / box.width) * width - margin.left) / (width - margin.left - margin.right) * (last - first);
    let nearest = 0;
    xs.forEach((value, index) => { if (Math.abs(value - at) < Math.abs(xs[nearest] - at)) nearest = index; });
    read(nearest);
  };
  svg.addEventListener("pointermove", follow);
  svg.addEventListener("pointerdown", follow);
  const before = kept[id] === undefined ? -1 : xs.indexOf(kept[id]);
  read(before < 0 ? xs.length - 1 : before);
  return element("figure", { id }, element("figcaption", {}, title), svg, slider, element("div", { class: "scroll", tabindex: "0", role: "region", "aria-label": `Values of ${title}` }, reading));
}
