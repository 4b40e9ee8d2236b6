// Tables that sort by mouse and keyboard. A column: {label, value(row), show(row), number, title, group, first, hidden(state)}.

/**
 * A table.
 * columns: value(row) sorts (null last), show(row) gives nodes or text; `number` aligns right and sorts downwards first.
 * groups: optional [{label (nodes or text), span}] above the headings.
 * sort: {index, descending} to begin with, or null for the rows' own order.
 */
function sortableTable({ columns, rows, groups, caption, sort, onsort, rowattributes }) {
  const body = h("tbody");
  const state = { sort: sort || null };
  const heads = columns.map((column, index) =>
    h(
      "th",
      { scope: "col", class: classes(column), title: column.title },
      h("button", { type: "button", onclick: () => choose(index) }, column.label, h("span", { class: "arrow", "aria-hidden": "true" })),
    ),
  );
  const cells = rows.map((row, index) => ({ row, index, element: makeRow(row) }));

  function makeRow(row) {
    return h(
      "tr",
      rowattributes ? rowattributes(row) : null,
      columns.map((column, index) =>
        h(
          index === 0 ? "th" : "td",
          { class: classes(column), scope: index === 0 ? "row" : null },
          column.show ? column.show(row) : column.value(row),
        ),
      ),
    );
  }

  function choose(index) {
    const isSame = state.sort && state.sort.index === index;
    state.sort = { index, descending: isSame ? !state.sort.descending : Boolean(columns[index].number) };
    apply();
    if (onsort) onsort(state.sort);
  }

  function apply() {
    heads.forEach((head, index) => {
      const mine = state.sort && state.sort.index === index;
      head.setAttribute("aria-sort", mine ? (state.sort.descending ? "descending" : "ascending") : "none");
    });
    const ordered = state.sort ? [...cells].sort((a, b) => compare(a, b)) : cells;
    body.append(...ordered.map(cell => cell.element));
  }

  function compare(a, b) {
    const column = columns[state.sort.index];
    const x = column.value(a.row),
      y = column.value(b.row);
    if (x === null || x === undefined || y === null || y === undefined) {
      return (x === null || x === undefined) - (y === null || y === undefined) || a.index - b.index;
    }
    const order = typeof x === "number" ? x - y : String(x).localeCompare(String(y), "en", { numeric: true });
    return (state.sort.descending ? -order : order) || a.index - b.index;
  }

  apply();
  const groupRow =
    groups &&
    h(
      "tr",
      { class: "groups" },
      groups.map(group => h("th", { scope: "colgroup", colspan: group.span, class: group.class }, group.label)),
    );
  const table = h(
    "table",
    { class: "sortable" },
    caption && h("caption", null, caption),
    h("thead", null, groupRow, h("tr", null, heads)),
    body,
  );
  return { element: h("div", { class: "scroll", tabindex: "0", role: "region", "aria-label": caption || "table" }, table), table, cells };
}

function classes(column) {
  return [column.number ? "number" : "left", column.first ? "first" : "", column.class || ""].filter(Boolean).join(" ");
}

/** The marks of a cell as small badges, with what each means. */
const MARK_MEANINGS = {
  "no sandbox": "programs were run without a sandbox: a program could have changed its own verdict",
  "errors left out": "samples that ended in an error are left out of the score",
  partial: "not all planned samples are there",
  errors: "samples ended in an error that is not the model's; no score is given until they are drawn again",
};

function badges(marks) {
  return marks.map(mark => h("span", { class: "mark", title: MARK_MEANINGS[mark] || mark }, mark));
}

function verdictBadge(verdict) {
  return h("span", { class: `verdict v-${VERDICTS.includes(verdict) ? verdict : "other"}` }, verdict);
}

/** A score with its interval, as text and as a bar from 0 to 100. */
function scoreNodes(score) {
  const [value, low, high] = score;
  return [
    h("span", { class: "score" }, percent(value)),
    h("span", { class: "interval" }, `[${percent(low)}, ${percent(high)}]`),
    s(
      "svg",
      { class: "bar", viewBox: "0 0 100 8", preserveAspectRatio: "none", "aria-hidden": "true" },
      s("rect", { class: "bar-back", x: 0, y: 3, width: 100, height: 2 }),
      s("rect", { class: "bar-range", x: 100 * low, y: 1.5, width: Math.max(0.8, 100 * (high - low)), height: 5 }),
      s("rect", { class: "bar-value", x: Math.min(98.6, Math.max(0, 100 * value - 0.7)), y: 0, width: 1.4, height: 8 }),
    ),
  ];
}

/** What stands where a score may not: how far the evaluation is. */
function withoutScore(cell) {
  const errors = cell.errors ? `, ${plural(cell.errors, "error")}` : "";
  return h(
    "span",
    { class: "unfinished", title: "no score is given while samples are missing or errors remain" },
    `${count(cell.graded)} of ${count(cell.planned)}${errors}`,
  );
}
