"use strict";

const NUMBER = /^[<+]?(-?[\d,]*\.?\d+(?:e[-+]?\d+)?)/i;

/** What a text is sorted by: its first number if it begins with one, else the text itself. */
function sortKey(value) {
  if (value === null || value === undefined || value === "" || value === "-") return null;
  if (typeof value === "number") return value;
  const found = NUMBER.exec(value);
  if (!found) return value.toLowerCase();
  const number = Number(found[1].replaceAll(",", ""));
  return value.startsWith("<") ? number * (1 - 1e-9) : number; // <0.001 is less than 0.001
}

function compare(one, other) {
  if (one === null || other === null) return (one === null) - (other === null); // nothing stands last
  if (typeof one === typeof other) return one < other ? -1 : one > other ? 1 : 0;
  return typeof one === "number" ? -1 : 1;
}

/**
 * A table that can be sorted by every column.
 *
 * `kept` remembers the order while the page lives: {column, falling}. `row(index)` gives the rows of the table body that
 * stand for an entry. Entries that do not `fit` are left out, and of the others `most` are drawn.
 *
 * Returns the table, and what draws its body anew and tells how many entries fit.
 */
function sortableTable({ id, title, header, left, rows, kept, row, lead, fits = () => true, most = () => Infinity }) {
  const body = element("tbody");
  const heads = header.map((name, column) =>
    element("th", { scope: "col", class: column < left ? "word" : null },
      element("button", { type: "button", id: `${id}-${column}`, onclick: () => turn(column) }, name)));
  const order = () => {
    const indices = rows.map((_, index) => index);
    if (kept.column === undefined) return indices;
    const keys = rows.map((cells) => sortKey(cells[kept.column]));
    const sign = kept.falling ? -1 : 1;
    return indices.sort((a, b) => {
      const nothing = (keys[a] === null) - (keys[b] === null);
      return nothing || sign * compare(keys[a], keys[b]) || a - b;
    });
  };
  const show = () => {
    heads.forEach((head, column) => {
      if (column === kept.column) head.setAttribute("aria-sort", kept.falling ? "descending" : "ascending");
      else head.removeAttribute("aria-sort");
    });
    const fitting = order().filter(fits);
    body.replaceChildren(...fitting.slice(0, most()).flatMap(row));
    return fitting.length;
  };
  const turn = (column) => {
    const numbers = column >= left; // the largest number is asked for first, and the first word
    kept.falling = kept.column === column ? !kept.falling : numbers;
    kept.column = column;
    show();
  };
  const table = element("table", { id }, element("caption", {}, title),
    element("thead", {}, element("tr", {}, ...(lead ? [element("th", { scope: "col", class: "word" }, lead)] : []), ...heads)), body);
  return { box: element("div", { class: "scroll", tabindex: "0", role: "region", "aria-label": title }, table), show };
}

/** The cells of a row. */
function cellsOf(values, left) {
  return values.map((value, column) =>
    element("td", { class: column < left ? "word" : null }, typeof value === "number" ? DECIMAL.format(value) : value ?? "–"));
}
