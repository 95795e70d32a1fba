(function () {
  var form = document.querySelector("form.filter"), rows = Array.from(document.querySelectorAll("tr[data-verdict]"));
  if (!form) { return; }
  var texts = rows.map(function (row) { return row.textContent.toLowerCase(); });
  function show() {
    var words = form.words.value.toLowerCase().split(/\s+/).filter(Boolean), shown = 0;
    rows.forEach(function (row, k) {
      var fits = (!form.paper || !form.paper.value || row.dataset.paper === form.paper.value)
        && (!form.verdict.value || row.dataset.verdict === form.verdict.value)
        && (!form.headline.checked || row.dataset.headline === "1")
        && words.every(function (word) { return texts[k].includes(word); });
      row.hidden = !fits;
      shown += fits;
    });
    form.querySelector("output").textContent = shown + " of " + rows.length + " claims";
  }
  form.hidden = false;
  form.addEventListener("input", show);
  form.addEventListener("reset", function () { setTimeout(show); });
  form.addEventListener("submit", function (event) { event.preventDefault(); });
  show();
}());
