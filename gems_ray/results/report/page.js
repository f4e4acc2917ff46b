"use strict";

const MOST_ROWS = 200; // of the table of cells, until all are asked for
const MOST_SEEDS = 200; // lines of seeds that a reader can still tell something from
const TITLES = { failed: "Failed", diverged: "Diverged", slates: "Few slates", bc: "Below cloning", seeds: "Few seeds", peak: "Past its peak", bound: "Q above its bound", cells: "Not complete", gap: "Damaged file" };
// What the reader chose: it outlives a refresh.
const chosen = { metric: null, hidden: new Set(), seeds: false, places: {}, orders: {}, search: "", filters: {}, open: new Set() };
let data = JSON.parse(document.getElementById("data").textContent);

function part(name) {
  return document.querySelector(`#${name} > div`);
}

function showSummary() {
  part("summary").replaceChildren(
    ...data.summary.map((line) => element("p", {}, line)),
    element("h3", {}, data.warnings.length ? "What to know before believing a number" : "No warnings"),
    element("ul", { class: "warnings" }, ...data.warnings.map((warning) => element("li", { class: warning.kind },
      element("strong", {}, `${TITLES[warning.kind] ?? warning.kind}: `), warning.text,
      warning.cells.length === 1 ? element("span", {}, ` Cell ${warning.cells[0]}.`) : null))));
}

function showCurves() {
  const { curves } = data;
  if (!curves.metrics.length) {
    part("curves").replaceChildren(element("p", {}, "No cell has reported yet."));
    return;
  }
  const metric = curves.metrics.find((known) => known.key === chosen.metric) ?? curves.metrics[0];
  const charts = element("div", { class: "charts" });
  const groups = element("fieldset", {}, element("legend", {}, "Algorithms"));
  curves.groups.forEach((name, group) => groups.append(element("label", {},
    element("input", { type: "checkbox", id: `group-${group}`, checked: !chosen.hidden.has(name), onchange: (event) => {
      if (event.target.checked) chosen.hidden.delete(name); else chosen.hidden.add(name);
      draw();
    } }), sample(group), name)));
  const seeds = element("label", { class: "check" }, element("input", { type: "checkbox", id: "every-seed", checked: chosen.seeds, onchange: (event) => { chosen.seeds = event.target.checked; draw(); } }), "every seed");
  const cut = element("p", { class: "note", role: "status" });
  const draw = () => {
    const room = charts.clientWidth || 700, gap = 20, least = 384; // as in the style
    const columns = Math.max(1, Math.min(curves.environments.length, Math.floor((room + gap) / (least + gap))));
    const width = Math.max(280, (room - gap * (columns - 1)) / columns - 26);
    const visible = (group) => !chosen.hidden.has(curves.groups[group]);
    let left = 0;
    charts.replaceChildren(...curves.environments.map((environment, place) => {
      const means = metric.means.filter((mean) => mean.environment === place && visible(mean.group));
      const all = chosen.seeds ? metric.cells.filter((cell) => cell[1] === place && visible(cell[2])) : [];
      left += Math.max(0, all.length - MOST_SEEDS);
      const references = metric.key === "eval/return_mean" ? curves.references[place] : metric.key === "train/q_policy" && curves.bounds[place].length ? { bound: curves.bounds[place].at(-1) } : {};
      if (!means.length) return element("figure", {}, element("figcaption", {}, environment), element("p", {}, "Nothing of the chosen algorithms was measured here."));
      return chart({ id: `chart-${place}`, title: environment, label: metric.label, groups: curves.groups, means, seeds: all.slice(0, MOST_SEEDS), references, kept: chosen.places, width: Math.round(width) });
    }));
    cut.textContent = left ? `${left.toLocaleString("en")} more seeds are not drawn: the first ${MOST_SEEDS} of each environment are.` : "";
  };
  part("curves").replaceChildren(
    element("div", { class: "controls" }, choice("metric", "Shown", curves.metrics.map((known) => [known.key, known.label]), metric.key, (key) => { chosen.metric = key; showCurves(); document.getElementById("metric").focus(); }), seeds),
    groups, charts, cut,
    element("p", { class: "note" }, "Line: mean over seeds. Band: 95% interval of the mean (Student's t). Curves of returns are of the validation users; the lines of the reference policies are of the test users."),
    ...(curves.note ? [element("p", { class: "note" }, curves.note)] : []));
  draw();
  showCurves.draw = draw;
}

/** Whether the next table has the same notes, below which they stand then. */
function same(table, next) {
  return next !== undefined && String(table.notes) === String(next.notes);
}

function showResults() {
  part("results").replaceChildren(...data.tables.flatMap((table, index) => {
    const { box, show } = sortableTable({ id: `table-${index}`, title: table.title, header: table.header, left: table.left, rows: table.rows,
      kept: (chosen.orders[table.title] ??= {}), row: (at) => [element("tr", {}, ...cellsOf(table.rows[at], table.left))] });
    show();
    return [box, ...(same(table, data.tables[index + 1]) ? [] : table.notes.map((note) => element("p", { class: "note" }, note)))];
  }));
  if (!data.tables.length) part("results").append(element("p", {}, "No cell has a return of the test users yet."));
}

function detailsOf(index) {
  const found = data.cells.details[index];
  const entry = (name, ...content) => [element("dt", {}, name), element("dd", {}, ...content)];
  return element("div", {}, element("dl", {},
    ...entry("cell", found.cell),
    ...(found.reason ? entry("reason", found.reason) : []),
    ...entry("end of its log", found.log ? element("pre", { tabindex: "0" }, found.log) : "It has no log."),
    ...entry("to make it again", "Save this as one_cell.yaml and run it: ", element("code", {}, "gems-ray grid one_cell.yaml"), element("pre", { tabindex: "0" }, found.head + data.cells.bodies[found.body]))));
}

function showCells() {
  const { header, words, rows, details, choices } = data.cells;
  const status = header.indexOf("status");
  const made = new Map();
  const texts = rows.map((values, index) => [details[index].cell, details[index].reason, ...values].join(" ").toLowerCase());
  const columns = choices.map((name) => [name, header.indexOf(name)]);
  const row = (index) => {
    if (!made.has(index)) made.set(index, rowOfCell(index, rows[index], status, words));
    return made.get(index)();
  };
  const { box, show } = sortableTable({ id: "table-cells", title: "Every cell", header, left: words, rows, kept: (chosen.orders.cells ??= {}), lead: "details", row,
    fits: (index) => texts[index].includes(chosen.search.toLowerCase()) && columns.every(([name, column]) => !chosen.filters[name] || String(rows[index][column]) === chosen.filters[name]),
    most: () => (chosen.all ? Infinity : MOST_ROWS) });
  const count = element("p", { class: "count", role: "status" });
  const more = element("button", { type: "button", id: "show-all", onclick: () => { chosen.all = true; draw(); } }, "Draw all of them");
  const draw = () => {
    const fitting = show();
    count.textContent = `${WHOLE.format(fitting)} of ${WHOLE.format(rows.length)} cells` + (fitting > MOST_ROWS && !chosen.all ? `; the first ${MOST_ROWS} are drawn.` : "");
    more.hidden = fitting <= MOST_ROWS || Boolean(chosen.all);
  };
  const search = element("input", { type: "search", id: "search", value: chosen.search, oninput: () => { chosen.search = search.value; draw(); } });
  const selects = columns.map(([name, column]) => {
    const found = [...new Set(rows.map((values) => String(values[column])))].sort();
    return choice(`filter-${name}`, name, [["", "all"], ...found.map((value) => [value, value])], chosen.filters[name] ?? "", (value) => { chosen.filters[name] = value; draw(); });
  });
  part("cells").replaceChildren(
    element("div", { class: "controls" }, element("label", { for: "search" }, "Search", search), ...selects), count, box, more,
    element("p", { class: "note" }, "last, best: return of the test users for the final checkpoint, and for the best one on the validation users. score: 0 = random slates, 100 = behaviour agent, final checkpoint. A setting without a value is the default of its algorithm."));
  draw();
  showCells.draw = draw;
}

/** What gives the rows of a cell: one, and its details below it while they are open. */
function rowOfCell(index, values, status, words) {
  const name = data.cells.details[index].cell;
  const button = element("button", { type: "button", class: "open-cell", id: `open-${index}`, "aria-label": `Details of ${name}` });
  const cells = cellsOf(values, words);
  cells[status].classList.add(values[status]);
  const row = element("tr", {}, element("td", { class: "word" }, button), ...cells);
  let below = null;
  const turn = (open) => {
    below?.remove();
    below = open ? element("tr", { class: "details" }, element("td", { colspan: values.length + 1 }, detailsOf(index))) : null;
    if (below) row.after(below);
    button.textContent = open ? "−" : "+";
    button.setAttribute("aria-expanded", String(open));
    row.classList.toggle("open", open);
    if (open) chosen.open.add(name); else chosen.open.delete(name);
  };
  button.addEventListener("click", () => turn(!below));
  turn(chosen.open.has(name));
  return () => (below ? [row, below] : [row]);
}

function showSources() {
  part("sources").replaceChildren(
    ...data.runs.flatMap((run) => [
      element("h3", {}, `Run ${run.name}`), element("p", {}, run.state),
      element("p", {}, "To make it again:"), element("pre", { tabindex: "0" }, run.again),
      element("details", {}, element("summary", {}, `Its experiment file, ${run.name}/experiment.yaml`), element("pre", { tabindex: "0" }, run.experiment))]),
    element("h3", {}, "Cells, data and versions"), element("ul", {}, ...data.facts.map((fact) => element("li", {}, fact))));
}

function showEverything() {
  const focused = document.activeElement?.id;
  for (const show of [showSummary, showCurves, showResults, showCells, showSources]) show();
  if (focused) document.getElementById(focused)?.focus({ preventScroll: true });
}

/** Asks the server that the page came from for newer content, again and again. */
async function refresh() {
  const state = document.getElementById("state");
  try {
    const answer = await fetch("data.json", { cache: "no-store" });
    if (!answer.ok) throw new Error(answer.statusText);
    const text = await answer.text();
    if (text !== refresh.before) {
      if (refresh.before !== undefined) {
        data = JSON.parse(text);
        showEverything();
      }
      refresh.before = text;
    }
    state.textContent = "Refreshes itself.";
    document.getElementById("made").textContent = new Date().toLocaleString();
  } catch {
    state.textContent = "The server does not answer any more: this is what it said last.";
  }
  setTimeout(refresh, 3000);
}

function showTheme(dark) {
  document.documentElement.dataset.theme = dark ? "dark" : "light";
  const button = document.getElementById("theme");
  button.setAttribute("aria-pressed", String(dark));
}

const prefersDark = matchMedia("(prefers-color-scheme: dark)");
showTheme(prefersDark.matches);
prefersDark.addEventListener("change", () => showTheme(prefersDark.matches));
document.getElementById("theme").addEventListener("click", () => showTheme(document.documentElement.dataset.theme !== "dark"));
addEventListener("beforeprint", () => { chosen.all = true; showCells.draw(); showTheme.before = document.documentElement.dataset.theme; showTheme(false); });
addEventListener("afterprint", () => showTheme(showTheme.before === "dark"));
let width = innerWidth;
addEventListener("resize", () => { if (innerWidth !== width) { width = innerWidth; showCurves.draw?.(); } });
showEverything();
if (document.documentElement.dataset.kind === "live") refresh();
