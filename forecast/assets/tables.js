// Lets readers sort the rows of a long table by a click on a title, and search them.
for (const table of document.querySelectorAll("table.explored")) {
  const [head, ...rows] = table.rows;
  const value = (row, column) => row.cells[column].textContent;
  const number = (text) => (text.trim() === "" ? Infinity : parseFloat(text));
  [...head.cells].forEach((title, column) => {
    const button = document.createElement("button");
    button.textContent = title.textContent;
    title.replaceChildren(button);
    button.addEventListener("click", () => {
      const down = title.getAttribute("aria-sort") === "ascending";
      for (const other of head.cells) other.removeAttribute("aria-sort");
      title.setAttribute("aria-sort", down ? "descending" : "ascending");
      const words = !title.classList.contains("number");
      rows.sort((one, other) => {
        const [a, b] = [value(one, column), value(other, column)];
        return words ? a.localeCompare(b) : number(a) - number(b);
      });
      if (down) rows.reverse();
      rows[0]?.parentNode.append(...rows);
    });
  });
  const search = document.createElement("input");
  search.type = "search";
  search.placeholder = "Search";
  search.setAttribute("aria-label", "Search the table");
  search.addEventListener("input", () => {
    const wanted = search.value.toLowerCase();
    for (const row of rows) row.hidden = !row.textContent.toLowerCase().includes(wanted);
  });
  table.parentNode.before(search);
}
