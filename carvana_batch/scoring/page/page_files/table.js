"use strict";
// The table of all images: sorted, filtered, and drawn one page at a time to stay fast with thousands of rows.
(() => {
  const PAGE = 50;
  const DECIMALS = { ratio: 5, pixels: 2, count: 0 };
  const UNDEFINED = "–";

  const { columns, rows, dice, links } = JSON.parse(document.getElementById("data").textContent);
  if (!rows.length) return;

  const element = (id) => document.getElementById(id);
  const table = element("table");
  const byName = element("filter-name");
  const byDice = element("filter-dice");
  const state = { column: dice, descending: false, first: 0, shown: [] };

  const cardOfRow = new Map();
  for (const card of document.querySelectorAll(".card")) cardOfRow.set(Number(card.dataset.row), card);

  const formats = columns.map(({ kind }) => {
    const digits = DECIMALS[kind];
    const options = { minimumFractionDigits: digits, maximumFractionDigits: digits };
    const numbers = kind === "text" ? null : new Intl.NumberFormat("en", options);
    return (value) => (value === null ? UNDEFINED : numbers ? numbers.format(value) : value);
  });

  // Car and view of an id, as inputs/keys.py splits them.
  function split(image) {
    const underscore = image.lastIndexOf("_");
    if (underscore <= image.lastIndexOf("/") + 1) return [image, ""];
    return [image.slice(0, underscore), image.slice(underscore + 1)];
  }

  function matcher(text) {
    if (text.startsWith("car:")) return (image) => split(image)[0] === text.slice(4);
    if (text.startsWith("view:")) return (image) => split(image)[1] === text.slice(5);
    const part = text.toLowerCase();
    return (image) => image.toLowerCase().includes(part);
  }

  function select() {
    const matches = matcher(byName.value.trim());
    const limit = byDice.value === "" ? Infinity : byDice.valueAsNumber;
    const { column, descending } = state;
    const kept = [];
    rows.forEach((row, index) => {
      if (row[dice] < limit && matches(row[0])) kept.push(index);
    });
    const sign = descending ? -1 : 1;
    kept.sort((first, second) => {
      const a = rows[first][column];
      const b = rows[second][column];
      if (a === b) return first - second;
      if (a === null || b === null) return a === null ? 1 : -1; // undefined values come last in both orders
      return a < b ? -sign : sign;
    });
    state.shown = kept;
    state.first = 0;
    draw();
  }

  function draw() {
    const { shown, first } = state;
    const last = Math.min(first + PAGE, shown.length);
    table.tBodies[0].replaceChildren(...shown.slice(first, last).map(drawRow));
    columns.forEach((column, index) => {
      const header = table.tHead.rows[0].cells[index];
      if (index === state.column) header.setAttribute("aria-sort", state.descending ? "descending" : "ascending");
      else header.removeAttribute("aria-sort");
    });
    const count = shown.length.toLocaleString("en");
    const all = rows.length.toLocaleString("en");
    const order = `sorted by ${columns[state.column].heading}, ${state.descending ? "highest" : "lowest"} first`;
    const found = shown.length === rows.length ? `All ${all} images` : `${count} of ${all} images`;
    element("status").textContent = shown.length ? `${found}, ${order}` : `No image of ${all} fits the filters`;
    element("page-shown").textContent = `${(first + 1).toLocaleString("en")} to ${last.toLocaleString("en")}`;
    element("pages").hidden = shown.length <= PAGE;
    element("page-before").disabled = first === 0;
    element("page-after").disabled = last === shown.length;
    element("table-box").scrollTop = 0;
  }

  function drawRow(index) {
    const line = document.createElement("tr");
    rows[index].forEach((value, column) => {
      const cell = document.createElement(column === 0 ? "th" : "td");
      const text = formats[column](value);
      if (columns[column].kind === "text") cell.className = "text";
      if (column === 0) {
        cell.scope = "row";
        const name = document.createElement("bdi");
        name.textContent = text;
        cell.append(cardOfRow.has(index) ? open(name, cardOfRow.get(index)) : links[index] ? link(name, links[index]) : name);
      } else {
        cell.textContent = text;
      }
      line.append(cell);
    });
    return line;
  }

  function link(name, address) {
    const anchor = document.createElement("a");
    anchor.className = "open";
    anchor.href = address;
    anchor.append(name);
    return anchor;
  }

  function open(name, card) {
    const button = document.createElement("button");
    button.type = "button";
    button.className = "open";
    button.title = "Show the picture";
    button.append(name);
    button.addEventListener("click", () => card.click());
    return button;
  }

  function turn(pages) {
    state.first += pages * PAGE;
    draw();
    // The button that was pressed may now be disabled and lose the focus.
    if (document.activeElement === document.body || document.activeElement.disabled) element("table-box").focus();
    element("images").scrollIntoView();
  }

  columns.forEach(({ heading, kind }, index) => {
    const header = document.createElement("th");
    const button = document.createElement("button");
    header.scope = "col";
    if (kind === "text") header.className = "text";
    button.type = "button";
    button.textContent = heading;
    button.addEventListener("click", () => {
      state.descending = state.column === index && !state.descending;
      state.column = index;
      select();
    });
    header.append(button);
    table.tHead.rows[0].append(header);
  });
  byName.addEventListener("input", select);
  byDice.addEventListener("input", select);
  element("filters").addEventListener("submit", (event) => event.preventDefault());
  element("filters").addEventListener("reset", () => setTimeout(select)); // once the fields have been cleared
  element("page-before").addEventListener("click", () => turn(-1));
  element("page-after").addEventListener("click", () => turn(1));
  for (const anchor of document.querySelectorAll("[data-filter]")) {
    anchor.addEventListener("click", () => {
      byName.value = anchor.dataset.filter;
      byDice.value = "";
      select();
    });
  }
  element("filters").hidden = element("table-box").hidden = false;
  select();
})();
