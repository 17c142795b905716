"""The script of the page: it sorts and filters tables and shows values in charts. The page is readable without it."""

SCRIPT = """
'use strict';
for (const table of document.querySelectorAll('table.sortable')) {
  const body = table.tBodies[0], rows = [...body.rows], heads = [...table.tHead.rows[0].cells];
  const value = (row, column) => row.cells[column].textContent;
  const order = (column, down) => (a, b) => {
    const [x, y] = [value(a, column), value(b, column)];
    if (!x || !y) return !x - !y;
    const sign = down ? -1 : 1;
    return sign * (isNaN(x) || isNaN(y) ? x.localeCompare(y) : x - y);
  };
  heads.forEach((head, column) => {
    const button = document.createElement('button');
    button.textContent = head.textContent;
    head.replaceChildren(button);
    button.addEventListener('click', () => {
      const down = head.getAttribute('aria-sort') === 'ascending';
      heads.forEach(other => other.removeAttribute('aria-sort'));
      head.setAttribute('aria-sort', down ? 'descending' : 'ascending');
      body.append(...rows.sort(order(column, down)));
    });
  });
  const label = document.createElement('label'), input = document.createElement('input');
  const count = document.createElement('span');
  input.type = 'search';
  input.placeholder = 'words, all of which a row must have';
  const filter = () => {
    const words = input.value.toLowerCase().split(/\\s+/).filter(Boolean);
    let shown = 0;
    for (const row of rows) {
      const text = ' ' + [...row.cells].map(cell => cell.textContent.toLowerCase()).join(' ') + ' ';
      row.hidden = !words.every(word => text.includes(word));
      shown += !row.hidden;
    }
    count.textContent = ` ${shown} of ${rows.length} ${table.dataset.noun}`;
  };
  input.addEventListener('input', filter);
  label.className = 'filter';
  label.append('Show ', input, count);
  table.parentElement.before(label);
  filter();
}
const tip = document.createElement('div');
tip.className = 'tip';
tip.hidden = true;
document.body.append(tip);
for (const chart of document.querySelectorAll('svg[data-points]')) {
  const points = JSON.parse(chart.dataset.points);
  const show = event => {
    const box = chart.getBoundingClientRect(), view = chart.viewBox.baseVal;
    const x = (event.clientX - box.left) * view.width / box.width;
    const y = (event.clientY - box.top) * view.height / box.height;
    let best = null, least = 900;
    for (const point of points) {
      const away = (point[0] - x) ** 2 + (point[1] - y) ** 2;
      if (away < least) [best, least] = [point, away];
    }
    tip.hidden = !best;
    if (!best) return;
    tip.textContent = best[2];
    const left = box.left + best[0] * box.width / view.width;
    const room = document.documentElement.clientWidth - tip.offsetWidth - 8;
    tip.style.left = `${scrollX + Math.max(8, Math.min(left + 8, room))}px`;
    tip.style.top = `${scrollY + box.top + best[1] * box.height / view.height - 34}px`;
  };
  chart.addEventListener('pointermove', show);
  chart.addEventListener('pointerdown', show);
  chart.addEventListener('pointerleave', () => { tip.hidden = true; });
}
"""
