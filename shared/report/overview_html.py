"""What filters the rows of the overview: three choices, a field for words, and the script behind them. Without scripts all rows are shown."""

from collections.abc import Sequence
from html import escape

CSS = """
body { max-width: 88rem; } table.overview { table-layout: fixed; } table.overview th:nth-child(n) { width: 15%; }
table.overview th:nth-child(1) { width: 7rem; } table.overview th:nth-child(2) { width: 31%; } table.overview th:nth-child(3) { width: 8rem; }
table.overview .value { white-space: normal; } table.overview td { overflow-wrap: break-word; } td.where { font-size: .76rem; color: var(--soft); }
table.costs th:nth-child(n) { width: auto; } table.costs th small { display: block; font-weight: 400; max-width: 15rem; }
form.filter { display: flex; flex-wrap: wrap; gap: .5rem .9rem; align-items: center; padding: .6rem .8rem; margin: .8rem 0; background: var(--band);
  border-radius: 4px; position: sticky; top: 0; z-index: 1; font-size: .9rem; }
form.filter input[type=search] { flex: 1 1 14rem; } form.filter select, form.filter input { font: inherit; padding: .2rem .4rem; }
form.filter output { color: var(--soft); white-space: nowrap; } tr[hidden] { display: none !important; }
@media (max-width: 44rem) { form.filter { position: static; } table.costs tr > th { display: block; padding: .15rem 0; } }
@media print { form.filter { display: none; } }
"""

SCRIPT = """
(function () {
  var form = document.querySelector("form.filter"), rows = Array.from(document.querySelectorAll("tr[data-verdict]"));
  if (!form) { return; }
  var texts = rows.map(function (row) { return row.textContent.toLowerCase(); });
  function show() {
    var words = form.words.value.toLowerCase().split(/\\s+/).filter(Boolean), shown = 0;
    rows.forEach(function (row, k) {
      var fits = (!form.paper.value || row.dataset.paper === form.paper.value)
        && (!form.verdict.value || row.dataset.verdict === form.verdict.value)
        && (!form.headline.checked || row.dataset.headline === "1")
        && words.every(function (word) { return texts[k].includes(word); });
      row.hidden = !fits;
      shown += fits;
    });
    form.querySelector("output").textContent = shown + " of " + rows.length + " claims";
  }
  form.addEventListener("input", show);
  form.addEventListener("reset", function () { setTimeout(show); });
  form.addEventListener("submit", function (event) { event.preventDefault(); });
  show();
}());
"""


def controls(papers: Sequence[str], statuses: Sequence[str]) -> str:
    """The form above the table."""
    return (
        f"<form class='filter'>{_choice('paper', 'all papers', papers)}{_choice('verdict', 'all verdicts', statuses)}"
        "<label><input type='checkbox' name='headline'> headline only</label>"
        "<input type='search' name='words' placeholder='words in the row' aria-label='words in the row'>"
        "<button type='reset'>show all</button><output></output></form>"
    )


def _choice(name: str, everything: str, values: Sequence[str]) -> str:
    options = "".join(f"<option>{escape(value)}</option>" for value in values)
    return f"<select name='{name}' aria-label='{name}'><option value=''>{everything}</option>{options}</select>"
